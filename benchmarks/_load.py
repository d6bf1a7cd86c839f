"""Requests over kept-alive connections: at a fixed rate, each tried again until it is answered; or as fast as the
service answers."""

from __future__ import annotations

import asyncio
import gc
import json
import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlparse

Judge = Callable[[int, dict[str, Any]], str | None]
"""(number of the request, answer) -> what is wrong with it."""
_PAUSE_S = 0.05


@dataclass
class Outcome:
    """What became of the requests; milliseconds count from a request's due time to its answer."""

    sent: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    accepted_ms: list[float] = field(default_factory=list)
    refused_ms: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    again: dict[int, str] = field(default_factory=dict)
    """Numbers of the requests that were sent more than once, and why the first time."""
    in_flight: set[int] = field(default_factory=set)
    """Numbers of those that are sent and not answered, now."""
    exposed: set[int] | None = None
    """While it is a set, what is sent is added to it."""
    broken: int = 0
    models: Counter[str] = field(default_factory=Counter)


class Connection:
    """One kept-alive HTTP/1.1 connection."""

    def __init__(self, url: str, token: str) -> None:
        address = urlparse(url)
        self._host, self._port, self._token = address.hostname or "127.0.0.1", address.port or 80, token
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, path: str, body: bytes, headers: dict[str, str],
                  timeout_s: float) -> tuple[int, bytes, dict[str, str]]:
        """(status, body, headers); OSError if the connection breaks or nothing comes in time."""
        lines = [f"POST {path} HTTP/1.1", f"Host: {self._host}", f"Authorization: Bearer {self._token}",
                 "Content-Type: application/json", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        try:
            async with asyncio.timeout(timeout_s):
                if self._streams is not None and self._streams[0].at_eof():
                    self.close()  # the other side has closed it while it was idle, as HAProxy does after a reload
                if self._streams is None:
                    self._streams = await asyncio.open_connection(self._host, self._port)
                reader, writer = self._streams
                writer.write("\r\n".join([*lines, "", ""]).encode() + body)
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                found = {name.lower(): value.strip() for name, _, value in (h.partition(":") for h in head[1:])}
                answer = await _body(reader, found)
            if found.get("connection", "").lower() == "close":
                self.close()
            return int(head[0].split()[1]), answer, found
        except (OSError, EOFError, ValueError, IndexError, asyncio.LimitOverrunError) as error:
            self.close()
            raise ConnectionError(type(error).__name__) from None

    def close(self) -> None:
        """Close it; the next request opens another."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    """The rest of an answer, in one piece or in chunks (Serve's own refusals)."""
    if "chunked" not in headers.get("transfer-encoding", ""):
        return await reader.readexactly(int(headers.get("content-length", "0")))
    parts = []
    while size := int((await reader.readline()).split(b";")[0], 16):
        parts.append((await reader.readexactly(size + 2))[:-2])
    await reader.readexactly(2)
    return b"".join(parts)


@dataclass(frozen=True)
class Load:
    """`rate` requests per second for `seconds`, over at most `connections`. `patience_s`: how long a request is
    tried again after a broken connection or a 503, with its own idempotency key; 0: never. After a 503 it waits
    for as long as the service asks for, as serving.client does."""

    url: str
    token: str
    bodies: list[bytes]
    rate: float
    seconds: float
    connections: int = 32
    patience_s: float = 20.0
    deadline_ms: float | None = None

    async def run(self, judge: Judge, outcome: Outcome | None = None) -> Outcome:
        """Send everything and wait for the last answer. `outcome`: to be looked at meanwhile.

        This process collects no garbage meanwhile: with what the policy's tables hold that takes 250 ms, in which
        answers that have come would be measured as late.
        """
        gc.collect()
        gc.disable()
        try:
            return await self._run(judge, outcome)
        finally:
            gc.enable()

    async def _run(self, judge: Judge, outcome: Outcome | None) -> Outcome:
        outcome, free = outcome or Outcome(), asyncio.LifoQueue[Connection]()
        lines = [Connection(self.url, self.token) for _ in range(self.connections)]
        for line in lines:
            free.put_nowait(line)
        started, tasks = time.perf_counter() + 0.1, set()
        for number in range(round(self.rate * self.seconds)):
            due = started + number / self.rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            task = asyncio.create_task(self._one(number, due, free, outcome, judge))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
        for line in lines:
            line.close()
        return outcome

    async def _one(self, number: int, due: float, free: asyncio.LifoQueue[Connection], outcome: Outcome,
                   judge: Judge) -> None:
        outcome.sent += 1
        trace_id = secrets.token_hex(16)
        headers = {"x-request-start": f"{(time.time() - (time.perf_counter() - due)) * 1e3:.3f}",
                   "traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"}
        if self.patience_s:
            headers["Idempotency-Key"] = f"load-{due:.6f}-{number}"
        if self.deadline_ms is not None:
            headers["x-deadline-ms"] = f"{self.deadline_ms:g}"
        tries, why, refused, pause_s = 0, "", False, _PAUSE_S
        try:
            while tries == 0 or time.perf_counter() - due < self.patience_s:
                tries += 1
                if tries > 1:
                    outcome.again.setdefault(number, why)
                    await asyncio.sleep(pause_s)
                    headers.pop("x-request-start", None)  # the deadline counts from this try
                line = await free.get()
                outcome.in_flight.add(number)
                if outcome.exposed is not None:
                    outcome.exposed.add(number)
                began, refused = time.perf_counter(), False
                try:
                    status, body, said = await line.ask(
                        "/v1/decide", self.bodies[number % len(self.bodies)], headers, 10.0)
                except ConnectionError as error:
                    outcome.broken, why, pause_s = outcome.broken + 1, str(error), _PAUSE_S
                    continue
                finally:
                    free.put_nowait(line)
                outcome.statuses[status] += 1
                if status == 503:
                    outcome.refused_ms.append((time.perf_counter() - began) * 1e3)
                    after = said.get("retry-after", "")
                    if not after.isdigit():
                        outcome.wrong.append(f"request {number}: 503 without Retry-After: {body[:120]!r}")
                    refused, why = True, f"503 {body[:120]!r}"
                    pause_s = float(after) if after.isdigit() else _PAUSE_S
                    continue
                outcome.accepted_ms.append((time.perf_counter() - due) * 1e3)
                self._judge(number, status, body, trace_id, outcome, judge)
                return
            if not refused or self.patience_s:  # who does not try again has been told no
                outcome.lost.append(f"request {number}: {why} after {tries} tries")
        finally:
            outcome.in_flight.discard(number)

    @staticmethod
    def _judge(number: int, status: int, body: bytes, trace_id: str, outcome: Outcome, judge: Judge) -> None:
        if status != 200:
            outcome.wrong.append(f"request {number}: {status} {body[:120]!r}")
            return
        answer = json.loads(body)
        outcome.models[answer["model"][:12]] += 1
        fault = judge(number, answer)
        if answer["trace_id"] != trace_id:
            fault = f"the answer of another request, {answer['trace_id']}"
        if fault:
            outcome.wrong.append(f"request {number}: {fault}")


async def capacity(url: str, token: str, bodies: list[bytes], seconds: float, connections: int = 8) -> float:
    """Requests per second that are answered where each connection sends its next one at once."""
    answered, until = 0, time.perf_counter() + seconds

    async def ask(line: Connection) -> None:
        nonlocal answered
        while time.perf_counter() < until:
            status, body, _ = await line.ask("/v1/decide", bodies[answered % len(bodies)], {}, 10.0)
            if status not in (200, 503):
                raise RuntimeError(f"{status} while the capacity was measured: {body[:200]!r}")
            answered += status == 200
        line.close()

    began = time.perf_counter()
    await asyncio.gather(*(ask(Connection(url, token)) for _ in range(connections)))
    return answered / (time.perf_counter() - began)
