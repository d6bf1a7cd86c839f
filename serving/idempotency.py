"""Idempotency keys: a request repeated with the same key gets the same answer, and is not worked on twice.

Decisions are pure, but a model may be switched between a request and its repetition: the key keeps the answer that
was given first. Keys belong to their user.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import structlog

_LOG = structlog.get_logger("serving")
_SCOPE = "answer\n"
_MOST_SHARED_BYTES = 1_048_576
_PENDING_S = 30.0
"""A replica that began and never ended is taken for dead after this."""


@dataclass(frozen=True)
class StoredAnswer:
    """An answer as it was sent."""

    status: int
    body: bytes
    media_type: str
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Begun:
    """new: work, then `finish` or `abandon`. stored: `answer`. conflict: the key came with another body. pending:
    the first request with this key is still being worked on."""

    state: Literal["new", "stored", "conflict", "pending"]
    answer: StoredAnswer | None = None


class Idempotency(Protocol):
    """Where answers are kept: in this process, or in an actor that all replicas ask."""

    async def begin(self, key: str, digest: bytes) -> Begun:
        """What is known of `key` for a body with this digest."""
        ...

    async def finish(self, key: str, digest: bytes, answer: StoredAnswer) -> StoredAnswer:
        """Keep the answer. Of two answers to one key the first stays and is returned."""
        ...

    async def abandon(self, key: str, digest: bytes) -> None:
        """There is no answer worth keeping; the key is free again."""
        ...


@dataclass
class _Entry:
    digest: bytes
    until: float
    answer: StoredAnswer | None = None


class IdempotencyTable:
    """The bounded table behind any `Idempotency`: at most `keys` entries and `most_bytes` of bodies, oldest out
    first, each for `ttl_s` seconds. Plain calls, for one thread or one actor."""

    def __init__(self, keys: int, most_bytes: int, ttl_s: float,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._keys, self._most_bytes, self._ttl_s, self._clock = keys, most_bytes, ttl_s, clock
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def begin(self, key: str, digest: bytes) -> Begun:
        """See Idempotency."""
        entry = self._entries.get(key)
        if entry is not None and entry.until <= self._clock():
            self._drop(key)
            entry = None
        if entry is None:
            self._entries[key] = _Entry(digest, self._clock() + _PENDING_S)
            self._make_room()
            return Begun("new")
        if entry.digest != digest:
            return Begun("conflict")
        return Begun("pending") if entry.answer is None else Begun("stored", entry.answer)

    def finish(self, key: str, digest: bytes, answer: StoredAnswer) -> StoredAnswer:
        """See Idempotency."""
        entry = self._entries.get(key)
        if entry is not None and entry.answer is not None and entry.digest == digest:
            return entry.answer
        self._drop(key)
        self._entries[key] = _Entry(digest, self._clock() + self._ttl_s, answer)
        self._bytes += len(answer.body)
        self._make_room()
        return answer

    def abandon(self, key: str, digest: bytes) -> None:
        """See Idempotency."""
        entry = self._entries.get(key)
        if entry is not None and entry.answer is None and entry.digest == digest:
            self._drop(key)

    def _drop(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None and entry.answer is not None:
            self._bytes -= len(entry.answer.body)

    def _make_room(self) -> None:
        while self._entries and (len(self._entries) > self._keys or self._bytes > self._most_bytes):
            self._drop(next(iter(self._entries)))


class LocalIdempotency:
    """Answers kept in this process: enough for one replica."""

    def __init__(self, table: IdempotencyTable) -> None:
        self._table = table

    async def begin(self, key: str, digest: bytes) -> Begun:
        """See Idempotency."""
        return self._table.begin(key, digest)

    async def finish(self, key: str, digest: bytes, answer: StoredAnswer) -> StoredAnswer:
        """See Idempotency."""
        return self._table.finish(key, digest, answer)

    async def abandon(self, key: str, digest: bytes) -> None:
        """See Idempotency."""
        self._table.abandon(key, digest)


@runtime_checkable
class Memory(Protocol):
    """Where all replicas remember (serving.hub_actor.HubLink)."""

    async def recall(self, key: str) -> Any:
        """What was remembered under `key` and has not expired; None otherwise."""
        ...

    async def remember(self, key: str, value: Any, seconds: float) -> Any:
        """Keep `value`, unless something is kept under `key` already; what is kept."""
        ...


class SharedIdempotency:
    """Answers that all replicas know. Two replicas that get the same new key at once both work, and both give the
    first one's answer. While the memory is away requests are worked on: a decision is pure, and no answer is
    worse than one that may come from a newer model."""

    def __init__(self, memory: Memory, ttl_s: float) -> None:
        self._memory, self._ttl_s = memory, ttl_s

    async def begin(self, key: str, digest: bytes) -> Begun:
        """See Idempotency."""
        try:
            known = await self._memory.recall(_SCOPE + key)
        except Exception as error:  # noqa: BLE001  # whatever keeps Ray from answering
            _LOG.warning("idempotency_away", error=type(error).__name__)
            return Begun("new")
        if known is None:
            return Begun("new")
        kept_digest, answer = known
        return Begun("stored", answer) if kept_digest == digest else Begun("conflict")

    async def finish(self, key: str, digest: bytes, answer: StoredAnswer) -> StoredAnswer:
        """See Idempotency. Answers of more than a mebibyte are not kept."""
        if len(answer.body) > _MOST_SHARED_BYTES:
            return answer
        try:
            kept_digest, kept = await self._memory.remember(_SCOPE + key, (digest, answer), self._ttl_s)
        except Exception as error:  # noqa: BLE001  # whatever keeps Ray from answering
            _LOG.warning("idempotency_away", error=type(error).__name__)
            return answer
        return kept if kept_digest == digest else answer

    async def abandon(self, key: str, digest: bytes) -> None:
        """See Idempotency; nothing was kept yet."""
