"""The gatekeeper below the application: tokens, roles and sizes, before a body is read.

Serve's HAProxy binds all interfaces and Ray's token does not cover Serve's HTTP port, so this is the only guard.
"""

from __future__ import annotations

import json
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.access import OPEN_PATHS, PERMISSIONS, Authenticator, Principal, Refused

_LENGTH_DIGITS = 18


class Guard:
    """ASGI middleware: everything except open paths needs a token whose role may use the route, and no body is
    longer than `max_body`. The principal is left in `scope["state"]["principal"]`."""

    def __init__(self, app: ASGIApp, authenticator: Authenticator, max_body: int) -> None:
        self.app, self._authenticator, self._max_body = app, authenticator, max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008, "reason": "no such stream"})
        elif scope["path"] in OPEN_PATHS:
            await self._within_limit(scope, receive, send)
        else:
            try:
                principal = self._admit(scope, scope["method"])
            except Refused as refusal:
                await answer(send, refusal.status, refusal.detail)
                return
            scope.setdefault("state", {})["principal"] = principal
            await self._within_limit(scope, receive, send)

    def _admit(self, scope: Scope, method: str) -> Principal:
        """The principal of a request whose route the principal may use; Refused otherwise."""
        kind, _, token = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        if kind.lower() != b"bearer":
            raise Refused(401, "give a token as 'Authorization: Bearer <token>'")
        principal = self._authenticator.authenticate(token.strip())
        path = scope["path"]
        if (method, path) in PERMISSIONS and not principal.may(method, path):
            raise Refused(403, f"the role {principal.role} may not {method} {path}")
        return principal

    def _declared_length(self, scope: Scope) -> int:
        text = dict(scope["headers"]).get(b"content-length", b"0")
        if not text.isdigit():
            return 0
        return int(text) if len(text) <= _LENGTH_DIGITS else self._max_body + 1

    async def _within_limit(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; a body that is, or grows, past the limit is cut off."""
        if self._declared_length(scope) > self._max_body:
            await answer(send, 413, f"the body is longer than {self._max_body} bytes")
            return
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
                await answer(send, 413, f"the body is longer than {self._max_body} bytes")


class _TooLong(Exception):
    """The body passed the limit."""


async def answer(send: Send, status: int, detail: str) -> None:
    """A JSON answer with `detail`, below the application."""
    body = json.dumps({"detail": detail}).encode()
    headers: list[tuple[bytes, bytes]] = [(b"content-type", b"application/json"),
                                          (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    start: dict[str, Any] = {"type": "http.response.start", "status": status, "headers": headers}
    await send(start)
    await send({"type": "http.response.body", "body": body})
