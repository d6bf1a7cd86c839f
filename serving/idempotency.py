"""Idempotency keys: a request repeated with the same key gets the same answer, and is not worked on twice.

Decisions are pure, but a model may be switched between a request and its repetition: the key keeps the answer that
was given first. An answer that opens a position says on which bar, so that it is not repeated once that is
forbidden (serving.routes.answering). Keys belong to their user.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import structlog

from serving.calls import Call
from serving.limits import LimitsSettings

_LOG = structlog.get_logger("serving")
_PENDING_S = 30.0
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
class Begun:
    """new: work, then `finish` or `abandon`. stored: `answer`. conflict: the key came with another body. pending:
    the first request with this key is still being worked on."""

    state: Literal["new", "stored", "conflict", "pending"]
    answer: StoredAnswer | None = None


class Idempotency(Protocol):
    """Where answers are kept: in this process, or in an actor that all replicas ask."""

    async def begin(self, key: Key, digest: bytes) -> Begun:
        """What is known of `key` for a body with this digest."""
        ...

    async def finish(self, key: Key, digest: bytes, answer: StoredAnswer) -> StoredAnswer | None:
        """Keep the answer. Of two answers to one key the first stays and is returned; None: it is not kept."""
        ...

    async def abandon(self, key: Key, digest: bytes) -> None:
        """There is no answer worth keeping; the key is free again."""
        ...


@dataclass
class _Entry:
    digest: bytes
    until: float
    answer: StoredAnswer | None = None


@dataclass
class _Kept:
    """One user's entries, oldest first; `size` of their answers' bodies, bytes."""

    entries: OrderedDict[str, _Entry] = field(default_factory=OrderedDict)
    size: int = 0


class IdempotencyTable:
    """The bounded table behind any `Idempotency`: at most `keys` entries and `most_bytes` of bodies in all, each
    for `ttl_s` seconds. When it is full, the user who keeps most loses the oldest: nobody pushes out another's
    who keeps less. Who began and has not ended after `pending_s` is taken for dead. Plain calls, for one thread or
    one actor."""

    def __init__(self, keys: int, most_bytes: int, ttl_s: float, clock: Callable[[], float] = time.monotonic,
                 pending_s: float = _PENDING_S) -> None:
        self._keys, self._most_bytes, self._ttl_s, self._clock = keys, most_bytes, ttl_s, clock
        self._pending_s = pending_s
        self._users: dict[str, _Kept] = {}
        self._count = self.size = 0
        self._purged_at = clock()

    def __len__(self) -> int:
        return self._count

    def begin(self, key: Key, digest: bytes) -> Begun:
        """See Idempotency."""
        self.purge()
        entry = self._find(key)
        if entry is None:
            self._put(key, _Entry(digest, self._clock() + self._pending_s))
            return Begun("new")
        if entry.digest != digest:
            return Begun("conflict")
        return Begun("pending") if entry.answer is None else Begun("stored", entry.answer)

    def finish(self, key: Key, digest: bytes, answer: StoredAnswer) -> StoredAnswer | None:
        """See Idempotency. An answer that is larger than the whole table is not kept."""
        self.purge()
        entry = self._find(key)
        if entry is not None and entry.digest != digest:  # ours was taken for dead, and the key given to another
            return None
        if entry is not None and entry.answer is not None:
            return entry.answer
        self._drop(key)
        if len(answer.body) > self._most_bytes:
            return None
        self._put(key, _Entry(digest, self._clock() + self._ttl_s, answer))
        return answer

    def abandon(self, key: Key, digest: bytes) -> None:
        """See Idempotency."""
        entry = self._find(key)
        if entry is not None and entry.answer is None and entry.digest == digest:
            self._drop(key)

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
        self._grow(kept, 1, _size(entry))
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
        self._grow(kept, -1, -_size(entry))
        if not kept.entries:
            del self._users[key.user]

    def _grow(self, kept: _Kept, count: int, size: int) -> None:
        self._count += count
        self.size += size
        kept.size += size


def _size(entry: _Entry) -> int:
    return 0 if entry.answer is None else len(entry.answer.body)


def make_table(limits: LimitsSettings) -> IdempotencyTable:
    """The table of a process or of the actor. A key is pending for as long as any request may take: nobody gives
    an answer after that, and what a killed replica had begun is free again."""
    return IdempotencyTable(limits.idempotency_keys, limits.idempotency_bytes, limits.idempotency_ttl_s,
                            pending_s=limits.deadline_ms / 1e3)


class LocalIdempotency:
    """Answers kept in this process: enough for one replica."""

    def __init__(self, table: IdempotencyTable) -> None:
        self._table = table

    async def begin(self, key: Key, digest: bytes) -> Begun:
        """See Idempotency."""
        return self._table.begin(key, digest)

    async def finish(self, key: Key, digest: bytes, answer: StoredAnswer) -> StoredAnswer | None:
        """See Idempotency."""
        return self._table.finish(key, digest, answer)

    async def abandon(self, key: Key, digest: bytes) -> None:
        """See Idempotency."""
        self._table.abandon(key, digest)


@runtime_checkable
class AnswersLink(Protocol):
    """The table that all replicas ask (serving.hub_actor.HubLink); each call as of `Idempotency`."""

    async def begin_answer(self, key: Key, digest: bytes) -> Begun:
        """See Idempotency.begin."""
        ...

    async def finish_answer(self, key: Key, digest: bytes, answer: StoredAnswer) -> StoredAnswer | None:
        """See Idempotency.finish."""
        ...

    async def abandon_answer(self, key: Key, digest: bytes) -> None:
        """See Idempotency.abandon."""
        ...


class SharedIdempotency:
    """Answers that all replicas know, for one call. Asking them takes no more than half of what is left until the
    call's deadline. While they do not answer requests are worked on as if their key was new: a decision is pure,
    and no answer is worse than one that may come from a newer model. What is not kept is said to the client."""

    def __init__(self, link: AnswersLink, call: Call) -> None:
        self._link, self._call = link, call

    async def begin(self, key: Key, digest: bytes) -> Begun:
        """See Idempotency."""
        try:
            async with asyncio.timeout(self._patience_s()):
                return await self._link.begin_answer(key, digest)
        except Exception as error:  # noqa: BLE001  # whatever keeps Ray from answering
            _away(error)
            return Begun("new")

    async def finish(self, key: Key, digest: bytes, answer: StoredAnswer) -> StoredAnswer | None:
        """See Idempotency."""
        try:
            async with asyncio.timeout(self._patience_s()):
                return await self._link.finish_answer(key, digest, answer)
        except Exception as error:  # noqa: BLE001  # whatever keeps Ray from answering
            _away(error)
            return None

    async def abandon(self, key: Key, digest: bytes) -> None:
        """See Idempotency. The call does not wait for it: often its deadline is over."""
        task = asyncio.create_task(self._abandon(key, digest))
        _ABANDONING.add(task)  # the loop itself would not keep it alive
        task.add_done_callback(_ABANDONING.discard)

    async def _abandon(self, key: Key, digest: bytes) -> None:
        try:
            async with asyncio.timeout(_PENDING_S):
                await self._link.abandon_answer(key, digest)
        except Exception as error:  # noqa: BLE001  # whatever keeps Ray from answering
            _away(error)

    def _patience_s(self) -> float | None:
        left_ms = self._call.deadline_ms - self._call.age_ms()
        return None if left_ms == float("inf") else max(0.0, left_ms) / 1e3 * _SHARE


_ABANDONING: set[asyncio.Task[None]] = set()


def _away(error: Exception) -> None:
    _LOG.warning("idempotency_away", error=type(error).__name__)
