"""Settings of the service's security; they name files and hold no secret."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import limits
from pydantic import Field, field_validator, model_validator

from algospace.config import FrozenConfig
from algospace.errors import ConfigError

_SECRET_KEY = re.compile(r"(^|_)(password|passwd|secret|token|api_?key|private_?key|credentials?)$", re.I)
# a PEM file, a password's hash, a JWT, a URL with a password
_SECRET_VALUE = re.compile(r"-----BEGIN |\$argon2|\beyJ[\w-]+\.[\w-]+\.[\w-]*|://[^/\s:@]+:[^/\s@]+@")
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]+")


class RateSettings(FrozenConfig):
    """Moving windows as `limits` writes them ("10/minute"). Each replica counts for itself."""

    requests: str = "5000/second"
    """Per user, over all routes that need a token."""
    login_address: str = "10/minute"
    """Attempts to log in, per network address."""
    login_user: str = "5/minute"
    """Attempts to log in, per user name, right or wrong."""
    refusals_logged: str = "60/minute"
    """Refused requests that get a line in the audit log, per address; the others are counted in the next line."""

    @field_validator("*")
    @classmethod
    def _is_a_rate(cls, value: str) -> str:
        try:
            amount = limits.parse(value).amount
        except ValueError:
            raise ValueError("not a rate; write it like 10/minute") from None
        if amount < 1:
            raise ValueError(f"'{value}' lets nobody in; a rate is at least 1, like 1/minute")
        return value


class SecuritySettings(FrozenConfig):
    """`token`: one bearer token, whose owner may do everything. `jwt`: users, roles and signed tokens."""

    mode: Literal["token", "jwt"] = "token"
    folder: Path | None = None
    """keys/, users.json, revoked.json and audit.jsonl; `algospace keys rotate` and `algospace user` make them."""
    login: bool = False
    """Answer POST /v1/login: this service then holds the private key. Otherwise public keys are enough."""
    issuer: str = Field(default="algospace", min_length=1)
    audience: str = Field(default="algospace-decisions", min_length=1)
    login_seconds: int = Field(default=3600, ge=60, le=86_400)
    """How long a token from a login is valid."""
    leeway_seconds: int = Field(default=5, ge=0, le=60)
    """How far the clocks of issuer and service may differ."""
    reread_seconds: float = Field(default=1.0, ge=0, le=60)
    """How soon a rotation, a retired key and a revocation are seen by a running service."""
    rates: RateSettings = RateSettings()
    origins: tuple[str, ...] = ()
    """Other origins whose pages may call the service (CORS and WebSocket), as https://host[:port]."""
    check_origin: bool = True
    """Refuse WebSockets from pages of an origin that is neither the service's own nor in `origins`."""
    proxies: tuple[str, ...] = ()
    """Addresses of proxies whose X-Forwarded-For is believed; the address counts for the login's rates."""
    body_seconds: float = Field(default=10.0, gt=0, le=600)
    """Time in which a request's body has to arrive."""
    header_bytes: int = Field(default=16_384, ge=1024)
    """Bound on all of a request's headers together."""

    @field_validator("origins")
    @classmethod
    def _are_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(f"'{origin}' is no origin; write https://host or https://host:port")
        return value

    @model_validator(mode="after")
    def _files_are_named(self) -> SecuritySettings:
        if self.mode == "jwt" and self.folder is None:
            raise ValueError("mode jwt needs folder, where 'algospace keys rotate' has made the keys")
        if self.login and self.mode != "jwt":
            raise ValueError("login needs mode: jwt")
        return self

    def file(self, name: str) -> Path:
        """A file of the folder; ConfigError without one."""
        if self.folder is None:
            raise ConfigError("security.folder is not set; name the folder that 'algospace keys rotate' has made")
        return self.folder / name


def refuse_secrets(values: Any, source: object, place: str = "") -> None:
    """ConfigError, without the value, if a configuration holds what looks like a secret."""
    if isinstance(values, Mapping):
        for name, value in values.items():
            inner = f"{place}.{name}" if place else str(name)
            if isinstance(value, str) and value and _SECRET_KEY.search(str(name)):
                _refuse(source, inner)
            refuse_secrets(value, source, inner)
    elif isinstance(values, (list, tuple)):
        for number, value in enumerate(values):
            refuse_secrets(value, source, f"{place}[{number}]")
    elif isinstance(values, str) and _SECRET_VALUE.search(values):
        _refuse(source, place)


def _refuse(source: object, place: str) -> None:
    raise ConfigError(f"{source}: '{place}' looks like a secret; secrets come from files or the environment "
                      "(ALGOSPACE_TOKEN, --token-file, security.folder), never from a configuration")
