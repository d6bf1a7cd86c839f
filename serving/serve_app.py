"""What `serve deploy` and KubeRay import: the application that a Serve configuration names.

    applications:
      - {name: algospace, route_prefix: /, import_path: "serving.serve_app:build",
         args: {bundle: /models/es, config: configs/serve/production.yaml}}
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from pydantic import Field

from algospace.config import FrozenConfig, load_config, parse_config, read_yaml
from algospace.errors import ConfigError
from serving.auth import TOKEN_VARIABLE, resolve_token, token_digest
from serving.deployment import ServeSettings, build_application
from serving.security.gate import Security, make_authenticator
from serving.security.settings import refuse_secrets
from serving.sources import find_bundle


class Arguments(FrozenConfig):
    """`args` of the application, paths all nodes see. `bundle`: a folder, or `models:/NAME@ALIAS`, which each node
    downloads. `token_file`: for mode token; or ALGOSPACE_TOKEN."""

    bundle: str
    config: Path | None = None
    replicas: int | None = Field(default=None, ge=1, le=64)
    token_file: Path | None = None


def build(arguments: dict[str, Any]) -> Any:
    """The Serve application. ConfigError or BundleError before anything is deployed if something is wrong, its
    security's files included."""
    wanted = parse_config(Arguments, arguments, source="args")
    settings = ServeSettings()
    if wanted.config is not None:
        refuse_secrets(read_yaml(wanted.config), wanted.config)
        settings = load_config(ServeSettings, wanted.config)
    if wanted.replicas is not None:
        settings = ServeSettings.model_validate(settings.model_dump() | {"replicas": wanted.replicas})
    _, source = find_bundle(wanted.bundle, settings.app.lifecycle)
    security = settings.app.security
    token, made_up = secrets.token_urlsafe(32), False  # nobody is asked for it in mode jwt
    if security.mode == "token":
        token, made_up = resolve_token(wanted.token_file)
    if made_up:
        raise ConfigError(f"no token: nobody would see a made-up one here; set {TOKEN_VARIABLE} or token_file, or "
                          "use security.mode jwt")
    digest = token_digest(token)
    Security(security, make_authenticator(security, digest))  # Serve would try replicas without end
    return build_application(source, digest, settings)
