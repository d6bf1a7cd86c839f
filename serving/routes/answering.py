"""The one way to answer a request for decisions: its body, its idempotency key, its deadline, one form of faults.

What is behind it, a decision, a batch or bars, is the route's.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import structlog
from fastapi import Request, Response
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from serving.access import Refused
from serving.batch_service import JSON
from serving.calls import Call, call_of, late
from serving.guard import refusal_answer
from serving.idempotency import Key, StoredAnswer
from serving.service import Service

_LOG = structlog.get_logger("serving")
_KEPT_HEADERS = ("x-trace-id",)
_LONGEST_KEY = 128
_CLIENT_GONE = 499
T = TypeVar("T")
Work = Callable[[bytes, str, Call], Awaitable[Response]]
"""(body, media type, call) -> the answer."""


async def answer(service: Service, request: Request, accepted: tuple[str, ...], most_bytes: int,
                 work: Work) -> Response:
    """Read the body, look the idempotency key up, work, and keep the answer of a success."""
    call = call_of(request.scope)
    try:
        media_type = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
        if media_type not in accepted:
            raise Refused(415, f"send {' or '.join(accepted)}, not {media_type[:100]}")
        key = _key(request, service.kill.state.revision)
        body = await _body(request, most_bytes)
    except Refused as refusal:
        return refusal_answer(refusal)
    except ClientDisconnect:
        return Response(status_code=_CLIENT_GONE)
    try:
        if key is None:
            return await work(body, media_type, call)
        digest = hashlib.sha256(media_type.encode() + b"\0" + body).digest()
        return await _once(service, key, digest, lambda: work(body, media_type, call), call)
    except Refused as refusal:
        return refusal_answer(refusal)
    except Exception as error:  # noqa: BLE001  # answered in the one form of faults; the log has the rest
        _LOG.exception("decision_failed", trace_id=call.trace_id, error=type(error).__name__)
        return JSONResponse({"detail": "an internal error; the log of the service says more"}, 500)


async def _body(request: Request, most_bytes: int) -> bytes:
    """The whole body; Refused (413) as soon as it is longer."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most_bytes:
            raise Refused(413, f"the body is longer than {most_bytes} bytes")
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _key(request: Request, revision: int) -> Key | None:
    """The idempotency key, as its user's own; Refused (400) if it is none. Answers are repeated while the kill
    switch stays as it is (`revision`): an EXECUTE from before it was thrown is not given again behind it."""
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    if not 1 <= len(key) <= _LONGEST_KEY or not key.isascii() or not key.isprintable():
        raise Refused(400, f"Idempotency-Key must be 1 to {_LONGEST_KEY} printable ASCII characters")
    principal: Any = request.scope.get("state", {}).get("principal")
    return Key(principal.user if principal else "", f"{request.scope['path']}\n{revision}\n{key}")


_NOT_STORED = {"idempotent-stored": "false"}


async def _once(service: Service, key: Key, digest: bytes, work: Callable[[], Awaitable[Response]],
                call: Call) -> Response:
    """The stored answer, or a new one, which is stored if it is a success."""
    store = service.answers(call)
    begun = await store.begin(key, digest)
    if begun.state == "conflict":
        raise Refused(409, "this Idempotency-Key came with another body; use a new key for a new request")
    if begun.state == "pending":
        raise late("the first request with this Idempotency-Key is still being worked on")
    if begun.answer is not None:
        call.notes["replayed"] = True
        kept = begun.answer
        return _as_sent(kept, {"idempotent-replayed": "true"})
    try:
        response = await work()
    except BaseException:
        await store.abandon(key, digest)
        raise
    if response.status_code != 200:
        await store.abandon(key, digest)
        return response
    headers = tuple((name, response.headers[name]) for name in _KEPT_HEADERS if name in response.headers)
    answer = StoredAnswer(200, bytes(response.body), response.media_type or JSON, headers)
    first = await store.finish(key, digest, answer)
    call.check("the answer was kept")
    return _as_sent(first, {}) if first is not None else _as_sent(answer, _NOT_STORED)


def _as_sent(answer: StoredAnswer, more: dict[str, str]) -> Response:
    return Response(answer.body, answer.status, dict(answer.headers) | more, answer.media_type)


async def within(call: Call, work: Awaitable[T], when: str) -> T:
    """What `work` gives; Refused (503) at the call's deadline, which does not wait for threads to end."""
    call.check(when)
    left_ms = call.deadline_ms - call.age_ms()
    patience = asyncio.timeout(None if left_ms == float("inf") else left_ms / 1e3)
    try:
        async with patience:
            return await work
    except TimeoutError:
        if not patience.expired():
            raise
        call.notes["late"] = True
        raise late(f"{when} at the deadline of {call.deadline_ms:g} ms; no decision is given") from None
