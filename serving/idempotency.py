"""Idempotency keys: a request repeated with the same key gets the same answer.

Decisions are pure, but a model may be switched between a request and its repetition: the key keeps the answer
that was ready first, and everybody who asks with it gets that. Nothing says that an answer is being worked on: who
waited for it might wait for a replica that was killed. An answer that opens a position says on which bar, so that
it is not repeated once that is forbidden (serving.routes.answering). Keys belong to their user.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import structlog

from serving.calls import Call
from serving.limits import LimitsSettings

_LOG = structlog.get_logger("serving")
_PURGE_S = 1.0
_SHARE = 0.5
"""Of the time that is left, what may be spent on asking the other replicas."""


class Key(NamedTuple):
    """A key as its user's own; `text` names the route, too."""

    user: str
    text: str


@dataclass(frozen=True)
class StoredAnswer:
    """An answer as it was sent; `opens_ns` as of serving.calls.Call."""

    status: int
    body: bytes
    media_type: str
    headers: tuple[tuple[str, str], ...] = ()
    opens_ns: int | None = None


@dataclass(frozen=True)
class Settled:
    """Which answer a key has. none: none yet. kept: yours. stored: `answer`, which was first. conflict: the key
    came with another body. lost: yours, and it is not kept."""

    state: Literal["none", "kept", "stored", "conflict", "lost"]
    answer: StoredAnswer | None = None


class Idempotency(Protocol):
    """Where answers are kept: in this process, or in an actor that all replicas ask."""

    async def find(self, key: Key, digest: bytes) -> Settled:
        """What is known before any work."""
        ...

    async def settle(self, key: Key, digest: bytes, answer: StoredAnswer) -> Settled:
        """Keep the answer to a request with this key and digest, unless there is one."""
        ...


@dataclass
class _Entry:
    digest: bytes
    until: float
    answer: StoredAnswer


@dataclass
class _Kept:
    """One user's entries, oldest first; `size` of their answers' bodies, bytes."""

    entries: OrderedDict[str, _Entry] = field(default_factory=OrderedDict)
    size: int = 0


class IdempotencyTable:
    """The bounded table behind any `Idempotency`: at most `keys` entries and `most_bytes` of bodies in all, each
    for `ttl_s` seconds. When it is full, the user who keeps most loses the oldest: nobody pushes out another's
    who keeps less. Plain calls, for one thread or one actor."""

    def __init__(self, keys: int, most_bytes: int, ttl_s: float,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._keys, self._most_bytes, self._ttl_s, self._clock = keys, most_bytes, ttl_s, clock
        self._users: dict[str, _Kept] = {}
        self._count = self.size = 0
        self._purged_at = clock()

    def __len__(self) -> int:
        return self._count

    def find(self, key: Key, digest: bytes) -> Settled:
        """See Idempotency."""
        self.purge()
        entry = self._find(key)
        if entry is None:
            return Settled("none")
        return Settled("stored", entry.answer) if entry.digest == digest else Settled("conflict")

    def settle(self, key: Key, digest: bytes, answer: StoredAnswer) -> Settled:
        """See Idempotency. An answer that is larger than the whole table is not kept."""
        found = self.find(key, digest)
        if found.state != "none":
            return found
        if len(answer.body) > self._most_bytes:
            return Settled("lost")
        self._put(key, _Entry(digest, self._clock() + self._ttl_s, answer))
        return Settled("kept")

    def purge(self) -> None:
        """Drop what has expired; looks at most once a second."""
        now = self._clock()
        if now - self._purged_at < _PURGE_S:
            return
        self._purged_at = now
        for user, kept in tuple(self._users.items()):
            for text in [text for text, entry in kept.entries.items() if entry.until <= now]:
                self._drop(Key(user, text))

    def _find(self, key: Key) -> _Entry | None:
        kept = self._users.get(key.user)
        entry = None if kept is None else kept.entries.get(key.text)
        if entry is not None and entry.until <= self._clock():
            self._drop(key)
            return None
        return entry

    def _put(self, key: Key, entry: _Entry) -> None:
        kept = self._users.setdefault(key.user, _Kept())
        kept.entries[key.text] = entry
        self._grow(kept, 1, len(entry.answer.body))
        while self._count > self._keys:
            self._drop_oldest(max(self._users, key=lambda user: len(self._users[user].entries)))
        while self.size > self._most_bytes:
            self._drop_oldest(max(self._users, key=lambda user: self._users[user].size))

    def _drop_oldest(self, user: str) -> None:
        self._drop(Key(user, next(iter(self._users[user].entries))))

    def _drop(self, key: Key) -> None:
        kept = self._users.get(key.user)
        entry = None if kept is None else kept.entries.pop(key.text, None)
        if kept is None or entry is None:
            return
        self._grow(kept, -1, -len(entry.answer.body))
        if not kept.entries:
            del self._users[key.user]

    def _grow(self, kept: _Kept, count: int, size: int) -> None:
        self._count += count
        self.size += size
        kept.size += size


def make_table(limits: LimitsSettings) -> IdempotencyTable:
    """The table of a process or of the actor."""
    return IdempotencyTable(limits.idempotency_keys, limits.idempotency_bytes, limits.idempotency_ttl_s)


class LocalIdempotency:
    """Answers kept in this process: enough for one replica."""

    def __init__(self, table: IdempotencyTable) -> None:
        self._table = table

    async def find(self, key: Key, digest: bytes) -> Settled:
        """See Idempotency."""
        return self._table.find(key, digest)

    async def settle(self, key: Key, digest: bytes, answer: StoredAnswer) -> Settled:
        """See Idempotency."""
        return self._table.settle(key, digest, answer)


@runtime_checkable
class AnswersLink(Protocol):
    """The table that all replicas ask (serving.hub_link.HubLink)."""

    async def find_answer(self, key: Key, digest: bytes) -> Settled:
        """See Idempotency.find."""
        ...

    async def settle_answer(self, key: Key, digest: bytes, answer: StoredAnswer) -> Settled:
        """See Idempotency.settle."""
        ...


class SharedIdempotency:
    """Answers that all replicas know, for one call. Asking them takes no more than half of what is left until the
    call's deadline. While they do not answer, none is known and none is kept, and the client is told so: a
    decision is pure, and no answer is worse than one that may come from a newer model."""

    def __init__(self, link: AnswersLink, call: Call) -> None:
        self._link, self._call = link, call

    async def find(self, key: Key, digest: bytes) -> Settled:
        """See Idempotency."""
        return await self._asked(self._link.find_answer(key, digest), Settled("none"))

    async def settle(self, key: Key, digest: bytes, answer: StoredAnswer) -> Settled:
        """See Idempotency."""
        return await self._asked(self._link.settle_answer(key, digest, answer), Settled("lost"))

    async def _asked(self, question: Awaitable[Settled], otherwise: Settled) -> Settled:
        try:
            async with asyncio.timeout(self._patience_s()):
                return await question
        except Exception as error:  # noqa: BLE001  # whatever keeps Ray from answering
            _LOG.warning("idempotency_away", error=type(error).__name__)
            return otherwise

    def _patience_s(self) -> float | None:
        left_ms = self._call.deadline_ms - self._call.age_ms()
        return None if left_ms == float("inf") else max(0.0, left_ms) / 1e3 * _SHARE

