"""The gatekeeper below the application: headers, tokens, roles, rates and sizes, before a body is read.

On a cluster HAProxy binds all interfaces, and no token of Ray covers the HTTP port, so this is the only guard.
Every refusal is `{"detail": "one line"}`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import structlog
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from algospace.errors import ConfigError
from serving.access import AUDITED, PERMISSIONS, UNAUDITED, Principal, Refused, is_open, methods_of, route_of
from serving.security.gate import Security

_LOG = structlog.get_logger("serving.security")
BEARER_PROTOCOL = "bearer."
"""Browsers cannot set headers of a WebSocket: the token comes as the subprotocol "bearer.<token>"."""
_LENGTH_DIGITS = 18
_ONCE = (b"authorization", b"content-length", b"content-type", b"host", b"origin", b"transfer-encoding")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_GIVE_TOKEN = "give a token as 'Authorization: Bearer <token>'"
_LARGEST_MESSAGE = 65_536
_RECHECK_SECONDS = 5.0
_LOGGED_BODY = 1000
_POLICY, _TOO_BIG = 1008, 1009


class Guard:
    """ASGI middleware: everything except open paths needs a token whose role may use the route, and no body is
    longer than `max_body` or slower than the settings allow. The principal is left in
    `scope["state"]["principal"]`."""

    def __init__(self, app: ASGIApp, security: Security, max_body: int,
                 bodies: Mapping[str, int] | None = None) -> None:
        """`bodies`: path -> its own limit in bytes, where it is not `max_body`."""
        self.app, self._security, self._max_body, self._bodies = app, security, max_body, bodies or {}

    def _most(self, path: str) -> int:
        return self._bodies.get(path, self._max_body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        principal: Principal | None = None
        try:
            headers = strict_headers(scope, self._security.settings.header_bytes)
            if not is_open(scope["path"]):
                principal = self._identify(scope, headers.get(b"authorization", b""))
                self._may(principal, scope["method"], scope["path"])
                self._security.requests.take(principal.user)
            if int(headers.get(b"content-length", b"0")) > self._most(scope["path"]):
                raise self._too_long(scope["path"])
        except Refused as refusal:
            await self._refuse(scope, receive, send, scope["method"], refusal, principal)
            return
        if principal is not None and scope["method"] in AUDITED:
            route = route_of(scope["path"])
            if (scope["method"], route) not in UNAUDITED:
                await self._audited(scope, receive, send, principal)
                return
        await self._within_limit(scope, receive, send)

    def _identify(self, scope: Scope, authorization: bytes) -> Principal:
        kind, _, token = authorization.partition(b" ")
        if kind.lower() != b"bearer":
            raise Refused(401, _GIVE_TOKEN)
        principal = self._security.authenticator.authenticate(token.strip())
        scope.setdefault("state", {})["principal"] = principal
        return principal

    def _may(self, principal: Principal, method: str, path: str) -> None:
        """Refused unless the table names the route and the principal's role for it."""
        route = route_of(path)
        if route is None:
            raise Refused(404, "Not Found")
        if (method, route) not in PERMISSIONS:
            raise Refused(405, f"{method} is not for {route}; it takes {', '.join(methods_of(route))}")
        if not principal.may(method, route):
            raise Refused(403, f"the role {principal.role} may not {method} {route}")

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, method: str, refusal: Refused,
                      principal: Principal | None) -> None:
        address = client_address(scope, self._security.settings.proxies)
        self._security.refused(address, method, scope["path"], refusal, principal)
        await refusal_answer(refusal)(scope, receive, send)

    async def _audited(self, scope: Scope, receive: Receive, send: Send, principal: Principal) -> None:
        """Pass on a request that changes something; its line is on the disk before the caller gets the answer. If
        it cannot be written, the answer says what was done, as an error."""
        body, written = bytearray(), True

        async def seen(message: Message) -> None:
            nonlocal written
            if message["type"] == "http.response.start":
                text = bytes(body).decode(errors="replace")
                try:
                    await run_in_threadpool(self._security.record, "changed", principal, method=scope["method"],
                                            path=scope["path"], status=message["status"], body=text,
                                            address=client_address(scope, self._security.settings.proxies))
                except (OSError, ConfigError) as error:
                    _LOG.error("audit_failed", error=str(error), path=scope["path"], status=message["status"],
                               user=principal.user)
                    written = False
                    done = Refused(500, f"the answer was {message['status']}, and what it says holds, but the "
                                        "audit log cannot be written; the log of the service says why")
                    await refusal_answer(done)(scope, receive, send)
            if written:
                await send(message)

        async def kept() -> Message:
            message = await receive()
            body.extend(message.get("body", b"")[:_LOGGED_BODY - len(body)])
            return message

        await self._within_limit(scope, kept, seen)

    def _too_long(self, path: str) -> Refused:
        return Refused(413, f"the body is longer than {self._most(path)} bytes")

    async def _within_limit(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; a body that grows past the limit, or comes too slowly, is cut off."""
        cut: Refused | None = None
        received, answered, complete = 0, False, False
        seconds = self._security.settings.body_seconds
        deadline = asyncio.get_running_loop().time() + seconds

        async def counted() -> Message:
            nonlocal received, complete, cut
            if complete:  # the application waits for the caller to hang up
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                cut = Refused(408, f"the body did not arrive within {seconds:g} s")
                raise _Cut from None
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received > self._most(scope["path"]):
                cut = self._too_long(scope["path"])
                raise _Cut
            return message

        async def watched(message: Message) -> None:
            nonlocal answered
            if cut is not None and not answered:
                return  # what the application makes of a body that was cut off
            answered = True
            await send(message)

        with suppress(_Cut):
            await self.app(scope, counted, watched)
        if cut is not None and not answered:
            await refusal_answer(cut)(scope, receive, send)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        principal: Principal | None = None
        try:
            headers = strict_headers(scope, self._security.settings.header_bytes)
            self._check_origin(headers)
            authorization = headers.get(b"authorization") or _from_protocols(scope)
            principal = self._identify(scope, authorization)
            self._may(principal, "WS", scope["path"])
            self._security.requests.take(principal.user)
        except Refused as refusal:
            if "websocket.http.response" in scope.get("extensions", {}):
                await self._refuse(scope, receive, send, "WS", refusal, principal)
            else:
                self._security.refused(client_address(scope, self._security.settings.proxies), "WS", scope["path"],
                                       refusal, principal)
                await send({"type": "websocket.close", "code": _POLICY, "reason": refusal.detail})
            return
        # the token is not for the application, and never an accepted subprotocol
        scope["subprotocols"] = [p for p in scope.get("subprotocols", []) if not p.startswith(BEARER_PROTOCOL)]
        await _Socket(self._security, authorization, receive, send).run(self.app, scope)

    def _check_origin(self, headers: dict[bytes, bytes]) -> None:
        """A page of another origin cannot use a browser's socket; programs send no Origin."""
        origin = headers.get(b"origin")
        settings = self._security.settings
        if origin is None or not settings.check_origin:
            return
        text = origin.decode("latin-1")
        if text not in settings.origins and _host_of(text) != headers.get(b"host", b"").decode("latin-1"):
            raise Refused(403, "pages of this origin may not connect; see security.origins")


class _Cut(Exception):
    """The body was not taken to its end."""


class _Socket:
    """An admitted WebSocket: short messages in; closed when its token expires or is revoked."""

    def __init__(self, security: Security, authorization: bytes, receive: Receive, send: Send) -> None:
        self._authenticator, self._token = security.authenticator, authorization.partition(b" ")[2].strip()
        self._receive, self._send = receive, send
        self._checked = time.monotonic()
        self._closed = asyncio.Event()

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        """Pass the connection on."""
        await app(scope, self._take, self._give)

    async def _take(self) -> Message:
        if self._closed.is_set():
            return {"type": "websocket.disconnect", "code": _POLICY}
        message = await self._receive()
        text, data = message.get("text"), message.get("bytes")
        if len(text or "") > _LARGEST_MESSAGE or len(data or b"") > _LARGEST_MESSAGE:
            await self._close(_TOO_BIG, "message too long")
            return {"type": "websocket.disconnect", "code": _TOO_BIG}
        return message

    async def _give(self, message: Message) -> None:
        if self._closed.is_set():
            return
        now = time.monotonic()
        if message["type"] == "websocket.send" and now - self._checked >= _RECHECK_SECONDS:
            self._checked = now
            try:
                self._authenticator.authenticate(self._token)
            except Refused as refusal:
                await self._close(_POLICY, refusal.detail)
                return
        await self._send(message)

    async def _close(self, code: int, reason: str) -> None:
        self._closed.set()
        await self._send({"type": "websocket.close", "code": code, "reason": reason})


def _from_protocols(scope: Scope) -> bytes:
    """The Authorization header that a browser's subprotocols stand for."""
    tokens = [p[len(BEARER_PROTOCOL):] for p in scope.get("subprotocols", []) if p.startswith(BEARER_PROTOCOL)]
    return b"Bearer " + tokens[0].encode() if len(tokens) == 1 else b""


def _host_of(origin: str) -> str | None:
    """Host and port; None of what is no origin."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def strict_headers(scope: Scope, most_bytes: int) -> dict[bytes, bytes]:
    """Name -> value. Refused (400, 431) for what two servers could read differently: a decisive header twice, a
    length that is no number or beside chunks, control characters; and for too much of it."""
    pairs: list[tuple[bytes, bytes]] = scope["headers"]
    if sum(len(name) + len(value) for name, value in pairs) > most_bytes:
        raise Refused(431, f"the headers are longer than {most_bytes} bytes")
    headers = dict(pairs)
    if len(headers) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        for name in _ONCE:
            if counts[name] > 1:
                raise Refused(400, f"the header {name.decode()} is there twice")
    length = headers.get(b"content-length")
    if length is not None and (not length.isdigit() or b"transfer-encoding" in headers):
        raise Refused(400, "content-length must be one number, and not beside transfer-encoding")
    if length is not None and len(length) > _LENGTH_DIGITS:
        raise Refused(413, "the body is too long")
    if any(_CONTROL.search(value) for _, value in pairs):
        raise Refused(400, "a header holds control characters")
    return headers


def client_address(scope: Scope, proxies: tuple[str, ...]) -> str:
    """The caller's network address; IPv6 as its /64, which one caller owns. A believed proxy's X-Forwarded-For
    counts from its end, where the proxies write."""
    address = str((scope.get("client") or ("unknown", 0))[0])
    if address in proxies:
        forwarded = b",".join(value for name, value in scope["headers"] if name == b"x-forwarded-for")
        for item in reversed(forwarded.decode("latin-1").split(",")):
            if item.strip() and item.strip() not in proxies:
                address = item.strip()
                break
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    return str(parsed) if parsed.version == 4 else str(ipaddress.ip_network((address, 64), strict=False))


def refusal_answer(refusal: Refused) -> JSONResponse:
    """The one form of every refusal."""
    headers: dict[str, Any] = {}
    if refusal.status == 401:
        headers["www-authenticate"] = "Bearer"
    if refusal.status in (408, 413, 431):
        headers["connection"] = "close"  # the rest of what is being sent is not read
    if refusal.retry_after is not None:
        headers["retry-after"] = str(refusal.retry_after)
    return JSONResponse({"detail": refusal.detail}, refusal.status, headers)
