"""The simplest way to be let in: one bearer token, whose owner may do everything."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from algospace.errors import ConfigError
from serving.access import Principal, Refused

TOKEN_VARIABLE = "ALGOSPACE_TOKEN"
_MIN_TOKEN_LENGTH = 16


def resolve_token(token_file: Path | None = None,
                  environment: Mapping[str, str] | None = None) -> tuple[str, bool]:
    """(token, was it made up): from `token_file`, else ALGOSPACE_TOKEN, else a random one.

    ConfigError if the configured one is unreadable or shorter than 16 characters.
    """
    environment = os.environ if environment is None else environment
    if token_file is not None:
        try:
            token, source = token_file.read_text(encoding="ascii").strip(), str(token_file)
        except (OSError, UnicodeDecodeError):
            raise ConfigError(f"{token_file}: cannot read a token; give a file of one ASCII line") from None
    elif TOKEN_VARIABLE in environment:
        token, source = environment[TOKEN_VARIABLE].strip(), TOKEN_VARIABLE
    else:
        return secrets.token_urlsafe(32), True
    if len(token) < _MIN_TOKEN_LENGTH or not token.isascii() or not token.isprintable():
        raise ConfigError(f"{source}: a token needs at least {_MIN_TOKEN_LENGTH} printable ASCII characters")
    return token, False


def token_digest(token: str) -> bytes:
    """SHA-256 of a token: what the service keeps of it."""
    return hashlib.sha256(token.encode()).digest()


class StaticToken:
    """An authenticator that knows one token by its SHA-256; its bearer is an admin."""

    def __init__(self, digest: bytes) -> None:
        self._digest = digest
        self._principal = Principal("token", "admin")

    def authenticate(self, token: bytes) -> Principal:
        """See Authenticator."""
        if not hmac.compare_digest(hashlib.sha256(token).digest(), self._digest):
            raise Refused(401, "give the service's token as 'Authorization: Bearer <token>'")
        return self._principal
