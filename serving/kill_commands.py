"""`algospace kill` and `algospace rearm`: the kill switch of a running service, through its API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from serving.model_commands import Url, ask_service

TokenFile = Annotated[Path | None, typer.Option(help="File with a token of the role risk or admin; else "
                                                     "ALGOSPACE_TOKEN.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the service's answer as JSON.")]
Why = Annotated[str, typer.Argument(help="Why, for the log and for whoever looks next.")]
_HERE = "http://127.0.0.1:8000"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("kill")(kill)
    app.command("rearm")(rearm)


def kill(why: Why, url: Url = _HERE, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Throw the kill switch: no replica lets a position be opened until somebody re-arms it.

    Example: algospace kill "the feed repeats itself"
    """
    answer = _order(url, token_file, "/v1/kill", why, as_json)
    if as_json:
        return
    typer.echo(f"thrown by {answer['user']}: {answer['why']}")
    if not answer["shared"]:
        typer.echo("the other replicas could not be told yet; they hear of it as soon as they can be")
    if answer["latched"] is not True:
        typer.echo("it does not outlive the service: "
                   + ("preconditions.kill_file is not set" if answer["latched"] is None else "its file failed"))


def rearm(why: Why, url: Url = _HERE, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Let positions be opened again; with signed tokens by somebody else than who threw the switch.

    Example: algospace rearm "the feed is whole again"
    """
    answer = _order(url, token_file, "/v1/rearm", why, as_json)
    if not as_json:
        typer.echo(f"re-armed by {answer['user']}: {answer['why']}")


def _order(url: str, token_file: Path | None, path: str, why: str, as_json: bool) -> dict[str, Any]:
    """The service's answer, printed if it is wanted as JSON; a refusal ends the command with exit code 1."""
    answer = ask_service(url, token_file, "POST", path, {"why": why})
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
    if "detail" in answer:
        if not as_json:
            typer.echo(f"nothing has changed: {answer['detail']}")
        raise typer.Exit(1)
    return answer
