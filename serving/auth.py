"""Who may ask: one bearer token, and a guard that denies by default.

Serve's HAProxy binds all interfaces and Ray's token does not cover Serve's HTTP port, so this is the only guard.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from algospace.errors import ConfigError

TOKEN_VARIABLE = "ALGOSPACE_TOKEN"
OPEN_PATHS = frozenset({"/v1/health", "/v1/ready"})
_MIN_TOKEN_LENGTH = 16
_LENGTH_DIGITS = 18


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


class BearerGuard:
    """ASGI middleware: everything except OPEN_PATHS needs the token, and no body is longer than `max_body`."""

    def __init__(self, app: ASGIApp, digest: bytes, max_body: int) -> None:
        self.app, self._digest, self._max_body = app, digest, max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008, "reason": "no such stream"})
        elif scope["path"] not in OPEN_PATHS and not self._authorised(scope):
            await _answer(send, 401, "give the service's token as 'Authorization: Bearer <token>'")
        elif self._declared_length(scope) > self._max_body:
            await _answer(send, 413, f"the body is longer than {self._max_body} bytes")
        else:
            await self._within_limit(scope, receive, send)

    def _authorised(self, scope: Scope) -> bool:
        kind, _, token = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        given = hashlib.sha256(token.strip()).digest()
        return bool(kind.lower() == b"bearer") & hmac.compare_digest(given, self._digest)

    def _declared_length(self, scope: Scope) -> int:
        text = dict(scope["headers"]).get(b"content-length", b"0")
        if not text.isdigit():
            return 0
        return int(text) if len(text) <= _LENGTH_DIGITS else self._max_body + 1

    async def _within_limit(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; a body that grows past the limit without having said so is cut off."""
        received, answered = 0, False

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_body:
                raise _TooLong
            return message

        async def watched(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            await self.app(scope, counted, watched)
        except _TooLong:
            if not answered:
                await _answer(send, 413, f"the body is longer than {self._max_body} bytes")


class _TooLong(Exception):
    """The body passed the limit."""


async def _answer(send: Send, status: int, detail: str) -> None:
    body = json.dumps({"detail": detail}).encode()
    headers: list[tuple[bytes, bytes]] = [(b"content-type", b"application/json"),
                                          (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    start: dict[str, Any] = {"type": "http.response.start", "status": status, "headers": headers}
    await send(start)
    await send({"type": "http.response.body", "body": body})
