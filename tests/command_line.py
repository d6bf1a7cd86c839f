"""The command line in this process, with this package's commands only."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import typer

from algospace import cli, commands

Result = tuple[int, str, str]
Runner = Callable[..., Result]


def runner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Runner:
    """Call it with the words of a command: (exit code, stdout, stderr)."""
    app = typer.Typer(pretty_exceptions_enable=False)
    commands.register(app)
    monkeypatch.setattr(cli, "build_app", lambda: app)

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["algospace", *(str(a) for a in arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call
