"""The `algospace` command: assembled from entry points, so that the layers hold.

Each package contributes `commands.register(app)`; exit codes are 0, 2 (bad input or usage) and 1 (our failure).
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import entry_points

import structlog
import typer
from rich.console import Console

from algospace.errors import AlgoSpaceError, UserError

ENTRY_POINT_GROUP = "algospace.commands"


def build_app() -> typer.Typer:
    """The command tree with every installed package's sub-commands."""
    app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                      help="Train, prove and serve teams of trading agents.")
    for entry_point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda e: e.name):
        entry_point.load()(app)
    return app


def log_to_stderr() -> None:
    """Log lines go to stderr: stdout is what a script reads. Tracebacks show no local variables, which hold
    accounts and positions."""
    colors = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    renderer = structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*structlog.get_config()["processors"][:-1], renderer],
                        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))


def main() -> None:
    """Console script."""
    log_to_stderr()
    try:
        code = build_app()(standalone_mode=False)
    except typer.Abort:
        _say("stopped")
        sys.exit(1)
    except typer.TyperException as error:  # an option that is missing, unknown or of another kind
        text = " ".join(error.format_message().split()).rstrip(".")
        if text:  # empty where a group without its command has printed its help
            _say(f"{text}; --help shows what there is")
        sys.exit(UserError.exit_code)
    except AlgoSpaceError as error:
        _say(str(error))
        sys.exit(error.exit_code)
    except OSError as error:
        if error.filename is None:
            raise
        # a path that the caller gave: no folder, no permission, no space left
        _say(f"{error.filename}: {error.strerror}; name a path that can be read or written")
        sys.exit(UserError.exit_code)
    sys.exit(code if isinstance(code, int) else 0)


def _say(text: str) -> None:
    Console(stderr=True, soft_wrap=True).print(f"error: {text}", style="red", markup=False, highlight=False)


if __name__ == "__main__":
    main()
