"""One request on its way: when it came, until when its answer is worth something, and its trace.

`Calls` is the outermost middleware: it sees refusals too. The trace context is W3C's (traceparent, version 00).
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.access import Refused
from serving.limits import LimitsSettings

_LOG = structlog.get_logger("serving.requests")
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_NUMBER = re.compile(r"[0-9]{1,15}(\.[0-9]{1,6})?")
_OLDEST_START_MS = 60_000.0
_LONGEST_PATH = 200


@dataclass
class Call:
    """A request. Times are of time.perf_counter_ns; `deadline_ms` counts from `began_ns`; `notes` go to the
    log. `opens_ns`: when the oldest bar closed on which its answer opens a position, ns UTC, 0 where that is not
    told; None: it opens none. What an answer has to tell waits, between `hold` and `release`, until it is known
    whether this or an earlier one is given."""

    trace_id: str
    flags: str = "00"
    began_ns: int = field(default_factory=time.perf_counter_ns)
    deadline_ms: float = float("inf")
    notes: dict[str, Any] = field(default_factory=dict)
    opens_ns: int | None = None
    _held: list[Callable[[], None]] | None = None

    def tell(self, told: Callable[[], None]) -> None:
        """Do `told`, now or at `release`."""
        if self._held is None:
            told()
        else:
            self._held.append(told)

    def hold(self) -> None:
        """From now on `tell` waits."""
        self._held = []

    def release(self) -> None:
        """The answer is the one that counts: tell what has waited."""
        held, self._held = self._held or [], None
        for told in held:
            told()

    def age_ms(self) -> float:
        """Milliseconds since the request began."""
        return (time.perf_counter_ns() - self.began_ns) / 1e6

    def check(self, when: str) -> None:
        """Refused (503) if the deadline is over: an old decision is worse than none."""
        age = self.age_ms()
        if age > self.deadline_ms:
            self.notes["late"] = True
            raise late(f"{when} after {age:.0f} ms, past its deadline of {self.deadline_ms:g} ms; "
                       f"no decision is given")


def late(detail: str) -> Refused:
    """A request that is too old."""
    refusal = Refused(503, detail)
    refusal.retry_after = 1
    return refusal


def new_call(headers: dict[bytes, bytes], limits: LimitsSettings) -> Call:
    """The call that a request's headers describe; Refused (400) if a deadline is no number."""
    call = Call(*_trace_of(headers.get(b"traceparent", b"").decode("latin-1")))
    asked = _number(headers, b"x-deadline-ms")
    call.deadline_ms = limits.deadline_ms if asked is None else min(asked, limits.deadline_ms)
    started = _number(headers, b"x-request-start")
    if started is not None:  # the caller's clock, milliseconds since 1970: counts the way and the queues before us
        age_ms = time.time_ns() / 1e6 - started
        call.began_ns -= int(min(max(age_ms, 0.0), _OLDEST_START_MS) * 1e6)
    return call


def _number(headers: dict[bytes, bytes], name: bytes) -> float | None:
    text = headers.get(name)
    if text is None:
        return None
    decoded = text.decode("latin-1").strip()
    if not _NUMBER.fullmatch(decoded):
        raise Refused(400, f"{name.decode()} must be a number of milliseconds")
    return float(decoded)


def _trace_of(text: str) -> tuple[str, str]:
    """(trace id, flags): the caller's, or a new trace where there is none or it is malformed."""
    match = _TRACEPARENT.fullmatch(text.strip())
    if match is None or not int(match[1], 16) or not int(match[2], 16) or (
            text.startswith("00-") and len(text.strip()) != 55):
        return secrets.token_hex(16), "00"
    return match[1], match[3]


class Calls:
    """ASGI middleware: gives every request a `Call` (scope["state"]["call"]), its answer traceparent and
    x-trace-id, and the log its line."""

    def __init__(self, app: ASGIApp, limits: LimitsSettings) -> None:
        self.app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        from serving.guard import refusal_answer

        call = Call("")
        status = 0

        async def traced(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = list(message.get("headers", ()))
                if not any(name == b"x-trace-id" for name, _ in headers):
                    headers.append((b"x-trace-id", call.trace_id.encode()))
                span = f"00-{call.trace_id}-{secrets.token_hex(8)}-{call.flags}"
                headers.append((b"traceparent", span.encode()))
                message = {**message, "headers": headers}
            await send(message)

        try:
            call = new_call(dict(scope["headers"]), self._limits)
        except Refused as refusal:
            call = Call(secrets.token_hex(16))
            await refusal_answer(refusal)(scope, receive, traced)
            self._log(scope, call, status)
            return
        scope.setdefault("state", {})["call"] = call
        try:
            await self.app(scope, receive, traced)
        finally:
            self._log(scope, call, status)

    def _log(self, scope: Scope, call: Call, status: int) -> None:
        wanted = self._limits.log_requests
        if wanted == "none" or (wanted == "errors" and 0 < status < 500):
            return
        principal = scope.get("state", {}).get("principal")
        _LOG.info("request", method=scope["method"], path=scope["path"][:_LONGEST_PATH], status=status,
                  ms=round(call.age_ms(), 3), trace_id=call.trace_id, user=getattr(principal, "user", None),
                  **call.notes)


def call_of(scope: Scope) -> Call:
    """The call of a request; one without limits where no middleware gave it one."""
    call: Call | None = scope.get("state", {}).get("call")
    return Call(secrets.token_hex(16)) if call is None else call
