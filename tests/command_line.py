"""The command line in this process."""

from __future__ import annotations

import io
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from email.message import Message
from typing import Any

import pytest
import typer
from fastapi import FastAPI
from fastapi.testclient import TestClient

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


def against(add_routes: Callable[[FastAPI], None], monkeypatch: pytest.MonkeyPatch,
            capsys: pytest.CaptureFixture[str], register: Callable[[typer.Typer], None]) -> Runner:
    """`runner` for commands that talk to a service: their requests go to these routes instead of a socket, and
    must carry the token."""
    app = FastAPI()
    add_routes(app)
    client = TestClient(app)

    def urlopen(request: urllib.request.Request, timeout: float) -> Any:
        assert request.get_header("Authorization") == "Bearer a-token-of-enough-length"
        answer = client.request(request.method or "GET", request.full_url.removeprefix("http://service"),
                                content=request.data, headers={"Content-Type": "application/json"})
        if answer.status_code >= 400:
            raise urllib.error.HTTPError(request.full_url, answer.status_code, "no", Message(),
                                         io.BytesIO(answer.content))
        return io.BytesIO(answer.content)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    monkeypatch.setenv("ALGOSPACE_TOKEN", "a-token-of-enough-length")
    run = runner(monkeypatch, capsys, register)
    return lambda *words: run(*words, "--url", "http://service")
