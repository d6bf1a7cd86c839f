"""`algospace model`: which models a running service has, shadow, promotion and roll-back, through its API."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from algospace.errors import ConfigError

Url = Annotated[str, typer.Option(help="Address of the service.")]
TokenFile = Annotated[Path | None, typer.Option(help="File with an admin's token; else ALGOSPACE_TOKEN.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the service's answer as JSON.")]
Source = Annotated[str, typer.Argument(help="A bundle's folder on the service's machine, models:/NAME@ALIAS, "
                                            "models:/NAME/VERSION or, to promote it, the word shadow.")]
_HERE = "http://127.0.0.1:8000"
_TIMEOUT_S = 600.0
_COME_BACK = (429, 502, 503, 504)


class NotAnswered(ConfigError):
    """The service has not taken the order: no connection, no room, or nobody behind the proxy. It may be repeated
    where a second time does no harm."""


def register(app: typer.Typer) -> None:
    """Add the group `model`."""
    group = typer.Typer(no_args_is_help=True, help="Champion, shadow and roll-back of a running service.")
    for name, function in (("status", status), ("shadow", shadow), ("promote", promote), ("rollback", rollback)):
        group.command(name)(function)
    app.add_typer(group, name="model")


def status(url: Url = _HERE, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Champion, shadow, previous champion, and how the shadow agrees.

    Example: algospace model status --url http://127.0.0.1:8000
    """
    found = ask_service(url, token_file, "GET", "/v1/model") | ask_service(url, token_file, "GET", "/v1/shadow")
    figures = found["shadow"]
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for name in ("champion", "previous"):
        typer.echo(f"{name:<9} {(found[name] or '-')[:12]}")
    if figures is None:
        typer.echo("shadow    -")
        return
    typer.echo(f"shadow    {figures['shadow'][:12]}  {figures['compared']} compared, {figures['dropped']} dropped")
    for name in ("verdict_agreement", "direction_agreement", "confidence_difference"):
        typer.echo(f"          {name} {_figure(figures[name])}")
    for who, calibration in figures["calibration"].items():
        gained, error = _figure(calibration["gained"]), _figure(calibration["ece"])
        typer.echo(f"          {who}: {calibration['resolved']} outcomes, gained {gained}, "
                   f"calibration error {error}")


def shadow(
    source: Annotated[str | None, typer.Argument(help="As for promote; without it the shadow is removed.")] = None,
    url: Url = _HERE, token_file: TokenFile = None, as_json: AsJson = False,
) -> None:
    """Have a candidate decide beside the champion, or no model any more.

    Example: algospace model shadow models:/algospace-bundle@candidate
    """
    order = {"alias": "shadow", "remove": True} if source is None else {"alias": "shadow", "source": source}
    _switch(url, token_file, order, as_json)


def promote(source: Source = "shadow", url: Url = _HERE, token_file: TokenFile = None,
            as_json: AsJson = False) -> None:
    """Make a model the champion, if its recorded checks have passed.

    Example: algospace model promote shadow
    """
    _switch(url, token_file, {"source": source}, as_json)


def rollback(url: Url = _HERE, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Make the previous champion champion again.

    Example: algospace model rollback
    """
    _switch(url, token_file, {"rollback": True}, as_json)


def _switch(url: str, token_file: Path | None, order: dict[str, Any], as_json: bool) -> None:
    answer = ask_service(url, token_file, "POST", "/v1/model", order)
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
    else:
        for check in answer.get("checks", ()):
            typer.echo(f"{'passed' if check['passed'] else 'FAILED'}  {check['name']:<16} {check['found']}")
        if "detail" in answer:
            typer.echo(f"nothing has changed: {answer['detail']}")
        else:
            shadow_id = answer["shadow"]
            typer.echo(f"champion {answer['champion'][:12]}" + (f", shadow {shadow_id[:12]}" if shadow_id else ""))
            if answer["registry"]:
                typer.echo(f"registry: {answer['registry']}")
    if "detail" in answer:
        raise typer.Exit(1)


def ask_service(url: str, token_file: Path | None, method: str, path: str, body: Any = None,
                seconds: float = _TIMEOUT_S) -> dict[str, Any]:
    """The service's answer; a refusal for the state that it is in (409) is one, everything else that is no success
    a ConfigError, NotAnswered where it may come later."""
    from serving.auth import TOKEN_VARIABLE, resolve_token

    token, made_up = resolve_token(token_file)
    if made_up:
        raise ConfigError(f"no token: set {TOKEN_VARIABLE} or give --token-file")
    if not _is_address(url):
        raise ConfigError(f"{url}: no address of a service; write it like {_HERE}")
    request = urllib.request.Request(
        url.rstrip("/") + path, method=method, data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            return dict(json.loads(answer.read()))
    except urllib.error.HTTPError as error:
        try:
            refused = dict(json.loads(error.read()))
        except ValueError:
            refused = {}
        if error.code == 409 and method == "POST":
            return refused
        kind = NotAnswered if error.code in _COME_BACK else ConfigError
        raise kind(f"{url}: {error.code}, {refused.get('detail', error.reason)}") from None
    except (OSError, HTTPException) as error:
        raise NotAnswered(f"{url}: no answer ({error}); is the service running there?") from None
    except ValueError as error:
        raise ConfigError(f"{url}: an answer of something else ({error})") from None


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and " " not in url
    except ValueError:
        return False


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
