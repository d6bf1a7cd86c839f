"""The command line in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import typer

from algospace import cli, commands

Result = tuple[int, str, str]
Runner = Callable[..., Result]


def runner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
           register: Callable[[typer.Typer], None] = commands.register) -> Runner:
    """Call it with the words of a command: (exit code, stdout, stderr). Only what `register` adds is there."""
    app = typer.Typer(pretty_exceptions_enable=False)
    register(app)
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


def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line of a command that must be refused with exit code 2."""
    monkeypatch.setattr(sys, "argv", ["algospace", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line
