"""Sub-commands of serving: `serve`."""

from __future__ import annotations

import json
import secrets
import signal
import sys
import threading
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add this package's commands to `app`."""
    from serving import doctor, kill_commands, model_commands
    from serving.security import commands as security

    app.command("serve")(serve)
    app.command("doctor")(doctor.doctor)
    model_commands.register(app)
    kill_commands.register(app)
    security.register(app)


def serve(
    bundle: Annotated[str, typer.Option(help="Folder of the bundle to serve, or models:/NAME@ALIAS of "
                                             "the registry that the settings name (lifecycle.registry).")],
    config: Annotated[Path | None, typer.Option(help="YAML file of serve settings (configs/serve).")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="TCP port; a free one by default.")] = None,
    replicas: Annotated[int | None, typer.Option(min=1, help="Number of replicas; overrides the config.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="File with the bearer token; else ALGOSPACE_TOKEN; else "
                                                         "a random one is printed.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0, help="Stop after this time; else on Ctrl-C.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line when ready.")] = False,
) -> None:
    """Serve a bundle's decisions over HTTP with Ray Serve until interrupted.

    Example: algospace serve --bundle runs/quickstart/bundle --port 8000
    """
    from algospace.config import parse_config, read_yaml
    from algospace.errors import ConfigError
    from serving.auth import resolve_token
    from serving.deployment import ServeSettings, start_service
    from serving.security.settings import refuse_secrets

    values = {} if config is None else read_yaml(config)
    refuse_secrets(values, config)
    changes = [] if replicas is None else [f"replicas={replicas}"]
    settings = parse_config(ServeSettings, values, changes, source=str(config or "serve"))
    signed = settings.app.security.mode == "jwt"
    if signed and token_file is not None:
        raise ConfigError("security.mode is jwt: no --token-file; log in, or use 'algospace user token'")
    # with signed tokens this one opens nothing, and is not shown
    token, made_up = (secrets.token_urlsafe(32), False) if signed else resolve_token(token_file)
    stop = threading.Event()
    with redirect_stdout(sys.stderr):  # Ray's messages and our log do not belong into what a script reads
        running = start_service(bundle, token, port, settings)
    with running as service:
        for sign in (signal.SIGINT, signal.SIGTERM):
            signal.signal(sign, lambda *_: stop.set())
        if as_json:
            ready = {"url": service.url, "model": service.model} | ({"token": token} if made_up else {})
            typer.echo(json.dumps(ready))
        else:
            typer.echo(f"decisions at {service.url}/v1/decide, model {service.model[:12]}")
            if made_up:
                typer.echo(f"bearer token (made up; set ALGOSPACE_TOKEN or --token-file for your own): {token}")
        stop.wait(seconds)
