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
from serving.idempotency import Key, Settled, StoredAnswer
from serving.service import Service

_LOG = structlog.get_logger("serving")
_KEPT_HEADERS = ("x-trace-id",)
_LONGEST_KEY = 128
_CLIENT_GONE = 499
T = TypeVar("T")
Work = Callable[[bytes, str, Call], Awaitable[Response]]
"""(body, media type, call) -> the answer."""


async def answer(service: Service, request: Request, accepted: tuple[str, ...], most_bytes: int,
                 work: Work, look_first: bool = True) -> Response:
    """Read the body, look for an answer to its idempotency key, work, and keep the answer of a success.

    look_first: without it a repetition is worked on before an answer is looked for; for work that is cheaper than
    asking the other replicas, and that a repetition finds as the first request did.
    """
    call = call_of(request.scope)
    try:
        media_type = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
        if media_type not in accepted:
            raise Refused(415, f"send {' or '.join(accepted)}, not {media_type[:100]}")
        text = _key_text(request)
        body = await _body(request, most_bytes)
    except Refused as refusal:
        return refusal_answer(refusal)
    except ClientDisconnect:
        return Response(status_code=_CLIENT_GONE)
    try:
        if text is None:
            return await work(body, media_type, call)
        digest = hashlib.sha256(media_type.encode() + b"\0" + body).digest()
        return await _Once(service, request, text, digest, call).answer(lambda: work(body, media_type, call),
                                                                        look_first)
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


def _key_text(request: Request) -> str | None:
    """The idempotency key; Refused (400) if it is none."""
    key = request.headers.get("idempotency-key")
    if key is not None and not (1 <= len(key) <= _LONGEST_KEY and key.isascii() and key.isprintable()):
        raise Refused(400, f"Idempotency-Key must be 1 to {_LONGEST_KEY} printable ASCII characters")
    return key


_NOT_STORED = {"idempotent-stored": "false"}


class _Once:
    """One request with an idempotency key.

    Answers are repeated while they may still be given. The switch's state is part of the key: what was answered
    before it changed is not known behind that. An answer that opens a position is judged again before it leaves:
    once its bar is too old or the market has closed, the request is decided anew, under a key of its own.
    """

    def __init__(self, service: Service, request: Request, text: str, digest: bytes, call: Call) -> None:
        self._service, self._digest, self._call = service, digest, call
        self._store = service.answers(call)
        self._switch = service.kill.state
        principal: Any = request.scope.get("state", {}).get("principal")
        self._key = Key(principal.user if principal else "", "\n".join(
            (request.scope["path"], str(self._switch.revision), str(self._switch.thrown), text)))

    async def answer(self, work: Callable[[], Awaitable[Response]], look_first: bool) -> Response:
        """The answer that is first: this one, which is told then, or a stored one. Only successes are stored."""
        if look_first:
            found = await self._settled(lambda: self._store.find(self._key, self._digest))
            if found.answer is not None:
                return self._replayed(found.answer)
        self._call.hold()
        response = await work()
        self._check_switch()
        if response.status_code != 200:
            self._call.release()
            return response
        headers = tuple((name, response.headers[name]) for name in _KEPT_HEADERS if name in response.headers)
        mine = StoredAnswer(200, bytes(response.body), response.media_type or JSON, headers, self._call.opens_ns)
        try:
            settled = await self._settled(lambda: self._store.settle(self._key, self._digest, mine))
        except asyncio.CancelledError:  # its caller has gone; it may be kept, and given to a repetition untold
            self._call.release()
            raise
        if settled.answer is None:
            self._call.release()
        self._call.check("the answer was kept")
        if settled.answer is not None:
            return self._replayed(settled.answer)
        self._check_switch()
        if self._forbidden(mine):
            raise late("the bar grew too old, or the market closed, while the answer was kept; it is not given")
        return _as_sent(mine, _NOT_STORED if settled.state == "lost" else {})

    async def _settled(self, ask: Callable[[], Awaitable[Settled]]) -> Settled:
        """Which answer the key has, a stored one only if it may be given again. Refused (409) if the key is
        another request's."""
        while True:
            settled = await ask()
            if settled.state == "conflict":
                raise Refused(409, "this Idempotency-Key came with another body; use a new key for a new request")
            if settled.answer is None:
                return settled
            self._check_switch()
            if not self._forbidden(settled.answer):
                return settled
            # of a batch, rows on younger bars may open positions in the next answer, too: until none does
            self._key = Key(self._key.user, f"{self._key.text}\n{settled.answer.opens_ns}")

    def _replayed(self, answer: StoredAnswer) -> Response:
        self._call.notes["replayed"] = True
        return _as_sent(answer, {"idempotent-replayed": "true"})

    def _forbidden(self, answer: StoredAnswer) -> bool:
        """Whether it opens a position that may not be opened any more."""
        opens_ns = answer.opens_ns
        return opens_ns is not None and self._service.watch.ruling(opens_ns or None) is not None

    def _check_switch(self) -> None:
        """Refused (503) if the kill switch has changed since the request came: the next try is answered behind
        that."""
        if self._service.kill.state != self._switch:
            raise late("the kill switch was changed meanwhile; no answer is given")


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
