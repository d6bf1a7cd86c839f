"""`algospace kill` and `algospace rearm`: the kill switch of a running service, through its API."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from serving.model_commands import NotAnswered, Url, ask_service

TokenFile = Annotated[Path | None, typer.Option(help="File with a token of the role risk or admin; else "
                                                     "ALGOSPACE_TOKEN.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the service's answer as JSON.")]
Why = Annotated[str, typer.Argument(help="Why, for the log and for whoever looks next.")]
_HERE = "http://127.0.0.1:8000"
_TRY_S, _PAUSE_S, _REARM_S = 5.0, 1.0, 60.0
_PATIENCE_S = 60.0
"""So long throwing is tried again: it waits in the same queue as the decisions, whose refusals it may get."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("kill")(kill)
    app.command("rearm")(rearm)


def kill(why: Why, url: Url = _HERE, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Throw the kill switch: no replica lets a position be opened until somebody re-arms it. Repeated for a minute
    where the service is busy or does not answer; exit code 2 if it never does, 1 if it is not thrown in the end.

    Example: algospace kill "the feed repeats itself"
    """
    answer = _order(url, token_file, "/v1/kill", why, as_json)
    _require(answer, True)
    if as_json:
        return
    typer.echo(f"thrown by {answer['user']}: {answer['why']}")
    if not answer["shared"]:
        typer.echo("the other replicas could not be told yet; they hear of it as soon as they can be, and open no "
                   "position if that takes long")
    if answer["latched"] is not True:
        typer.echo("it does not outlive the service: "
                   + ("preconditions.kill_file is not set" if answer["latched"] is None else "its file failed"))


def rearm(why: Why, url: Url = _HERE, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Let positions be opened again; with signed tokens by somebody else than who threw the switch.

    Example: algospace rearm "the feed is whole again"
    """
    answer = _order(url, token_file, "/v1/rearm", why, as_json)
    _require(answer, False)
    if not as_json:
        typer.echo(f"re-armed by {answer['user']}: {answer['why']}")


def _order(url: str, token_file: Path | None, path: str, why: str, as_json: bool) -> dict[str, Any]:
    """The service's answer, printed if it is wanted as JSON; a refusal ends the command with exit code 1."""
    def once(seconds: float) -> dict[str, Any]:
        return ask_service(url, token_file, "POST", path, {"why": why}, seconds)

    answer = _until_answered(once) if path == "/v1/kill" else once(_REARM_S)
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
    if "detail" in answer:
        if not as_json:
            typer.echo(f"nothing has changed: {answer['detail']}")
        raise typer.Exit(1)
    return answer


def _until_answered(order: Callable[[float], dict[str, Any]]) -> dict[str, Any]:
    """The answer to an order that does no harm when it is given twice, tried for `_PATIENCE_S` with one line for
    every try in vain; then NotAnswered."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return order(min(_TRY_S, max(1.0, deadline - time.monotonic())))
        except NotAnswered as error:
            if time.monotonic() + _PAUSE_S >= deadline:
                raise
            typer.echo(f"tried again: {error}", err=True)
        time.sleep(_PAUSE_S)


def _require(answer: dict[str, Any], thrown: bool) -> None:
    """End with exit code 1, and say why, if the switch is not as it was ordered."""
    if answer["thrown"] is not thrown:
        found = "thrown" if answer["thrown"] else "re-armed"
        typer.echo(f"it has been {found} meanwhile by {answer['user']}: {answer['why']}", err=True)
        raise typer.Exit(1)
