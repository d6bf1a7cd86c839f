"""The stream of what the service does: every event has a number, and a client misses none of them.

A client is given a snapshot, or the deltas it missed if it says where it stopped, then every delta in order. All
clients read one ring; a client that falls further behind than its queue is long is closed (1013, try again later)
and comes back by resuming.

    hub.publish("decision", {...})                      # anywhere in the process, some microseconds
    client = hub.subscribe(stream, seq)                 # in the event loop
    texts = await client.next()                         # messages to send; Slow if it is too far behind
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any

from pydantic import Field, model_validator

from algospace.config import FrozenConfig
from algospace.errors import InternalError
from serving.stream_state import TOPICS, Event, StreamState, data_text

SLOW = 1013
_BATCH = 64
_CATCH_UP_S = 2.0

Forward = Callable[[str, int, dict[str, Any]], None]


class StreamSettings(FrozenConfig):
    """Lengths in events."""

    ring: int = Field(default=8192, ge=1, le=1_000_000)
    """Events that are kept for clients that resume."""
    queue: int = Field(default=1024, ge=1)
    """How far a client may be behind."""
    recent: int = Field(default=200, ge=1)
    """Decisions in a snapshot."""
    heartbeat_s: float = Field(default=5.0, gt=0)
    max_clients: int = Field(default=128, ge=1)
    """Of one replica; further ones are told to come back later. Each takes one of Serve's slots, of which a
    replica has as many more (serving.deployment)."""

    @model_validator(mode="after")
    def _a_closed_client_can_resume(self) -> StreamSettings:
        if self.queue > self.ring:
            raise ValueError(f"queue = {self.queue} is longer than ring = {self.ring}; what a client still waits "
                             "for must be kept")
        return self


class EventLog:
    """The last events of one stream, by number, and the state they add up to."""

    def __init__(self, settings: StreamSettings, stream: str = "") -> None:
        self._settings = settings
        self.restart(stream or uuid.uuid4().hex)

    def restart(self, stream: str) -> None:
        """Begin a stream: no events, no state."""
        self.stream, self.seq, self.first = stream, 0, 1
        self.state = StreamState(self._settings.recent)
        self._ring: list[Event | None] = [None] * self._settings.ring

    def append(self, topic: str, ts_ns: int, data: dict[str, Any]) -> Event:
        """A new event at the end."""
        event = Event(self.seq + 1, topic, ts_ns, data)
        self.take(event)
        return event

    def take(self, event: Event) -> None:
        """The next event; its number is given."""
        self.seq = event.seq
        self._ring[event.seq % len(self._ring)] = event
        self.first = max(self.first, event.seq - len(self._ring) + 1)
        self.state.take(event)

    def begin_at(self, stream: str, seq: int, state: StreamState, events: Iterable[Event]) -> None:
        """Go on where another log of the same stream is: its number, its state (ours from now on), its kept
        events."""
        self.restart(stream)
        self.state, self.seq, self.first = state, seq, seq + 1
        for event in events:
            self._ring[event.seq % len(self._ring)] = event
            self.first = min(self.first, event.seq)

    def holds_after(self, seq: int) -> bool:
        """Whether every event after `seq` is here."""
        return self.first - 1 <= seq <= self.seq

    def after(self, seq: int, most: int) -> list[Event]:
        """The events seq + 1, seq + 2, ..., at most `most`; all must be here."""
        found = [self._ring[n % len(self._ring)] for n in range(seq + 1, min(self.seq, seq + most) + 1)]
        return [event for event in found if event is not None]


class Slow(Exception):
    """A client is further behind than its queue is long."""


class StreamHub:
    """Publishes to the clients of this process.

    With `forward_to` set, events go to a log elsewhere, which numbers them and sends them back
    (serving.hub_actor). `on_clients` is told how many clients there are.
    """

    def __init__(self, settings: StreamSettings) -> None:
        self.settings, self.log = settings, EventLog(settings)
        self.clients: set[Client] = set()
        self.on_clients: Callable[[int], None] | None = None
        self.slow_clients = 0
        self._forward: Forward | None = None
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken = False
        self._beating: asyncio.AbstractEventLoop | None = None
        self._snapshot: tuple[str, int, str] | None = None

    def forward_to(self, forward: Forward) -> None:
        """Events are numbered elsewhere from now on."""
        self._forward = forward

    @property
    def shared(self) -> bool:
        """Whether events are numbered elsewhere."""
        return self._forward is not None

    def publish(self, topic: str, data: dict[str, Any]) -> int:
        """Add an event, from any thread; its number, 0 where it is not known yet because it is given elsewhere.

        `data` must hold JSON values and is not copied: do not change it afterwards. InternalError, and no event,
        if it does not: NaN and infinities are no JSON, and one such event would break every snapshot after it.
        """
        if topic not in TOPICS:
            raise InternalError(f"no topic '{topic}' in the stream; known: {', '.join(sorted(TOPICS))}")
        try:
            text = data_text(data)
        except (ValueError, TypeError, RecursionError) as error:
            raise InternalError(f"an event of topic '{topic}' is no JSON and is not published: {error}") from error
        now = time.time_ns()
        if self._forward is not None:
            self._forward(topic, now, data)
            return 0
        with self._lock:
            event = self.log.append(topic, now, data)
            event.data_text, seq = text, event.seq
        self._wake()
        return seq

    def receive(self, events: Iterable[Event]) -> None:
        """Events numbered elsewhere, in order; those already here are skipped."""
        with self._lock:
            for event in events:
                if event.seq == self.log.seq + 1:
                    self.log.take(event)
        self._wake()

    def begin_at(self, stream: str, seq: int, state: StreamState, events: Iterable[Event]) -> None:
        """Follow another stream, or the same one from elsewhere; clients of the former get a snapshot."""
        with self._lock:
            self.log.begin_at(stream, seq, state, events)
        self._wake()

    def subscribe(self, stream: str | None = None, seq: int | None = None) -> Client:
        """A client that has seen `seq` of `stream`, or nothing. Call in the event loop, and `close` the client.

        Slow where there are too many clients already.
        """
        if len(self.clients) >= self.settings.max_clients:
            raise Slow
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._woken = loop, False
        client = Client(self, stream, seq)
        if self._beating is not loop:  # one heart for all, however often the last client leaves and another comes
            self._beating = loop
            loop.call_later(self.settings.heartbeat_s, self._beat, loop)
        self.clients.add(client)
        self._count()
        return client

    def drop(self, client: Client) -> None:
        """Forget a client. Idempotent."""
        if client in self.clients:
            self.clients.discard(client)
            self._count()

    def snapshot(self) -> tuple[str, int, str]:
        """(stream, number, message): the state behind event `number`."""
        with self._lock:
            key, found = (self.log.stream, self.log.seq), self._snapshot
            if found is None or found[:2] != key:
                head = json.dumps({"type": "snapshot", "stream": key[0], "seq": key[1]}, separators=(",", ":"))
                found = self._snapshot = (*key, f'{head[:-1]},"state":{self.log.state.text()}}}')
            return found

    def read(self, stream: str, cursor: int) -> list[Event] | None:
        """Some of the events after `cursor`, maybe none; None if what follows is not here and will not come."""
        with self._lock:
            log = self.log
            if stream != log.stream or not (log.holds_after(cursor) or (self.shared and cursor > log.seq)):
                return None
            return log.after(cursor, _BATCH)

    def backlog(self) -> int:
        """Events that the slowest client has still to read, clients that are about to be closed left out."""
        return max((self.log.seq - client.cursor for client in self.clients if not client.slow.done()), default=0)

    def _count(self) -> None:
        if self.on_clients is not None:
            self.on_clients(len(self.clients))

    def _wake(self) -> None:
        """Have the clients looked at once the present callback of the loop, the answer's, is through."""
        loop = self._loop
        if self.clients and not self._woken and loop is not None and not loop.is_closed():
            self._woken = True
            loop.call_soon_threadsafe(self._notify)

    def _notify(self) -> None:
        self._woken = False
        for client in tuple(self.clients):
            client.look()

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        for client in tuple(self.clients):
            client.beat()
        if self.clients and self._loop is loop:
            loop.call_later(self.settings.heartbeat_s, self._beat, loop)
        elif self._beating is loop:
            self._beating = None


class Client:
    """One reader of the stream, for one task of the event loop.

    `cursor` is the number of the last event handed out; `slow` is done once the client is too far behind.
    """

    def __init__(self, hub: StreamHub, stream: str | None, seq: int | None) -> None:
        self._hub = hub
        self._waiter: asyncio.Future[None] | None = None
        self._beat_due = False
        self._joined = time.monotonic()
        self.slow: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        log = hub.log
        known = stream == log.stream and seq is not None
        # another replica may have been further than this one is: wait for what is on its way
        self._ahead = known and hub.shared and seq is not None and seq > log.seq
        resumes = known and seq is not None and (log.holds_after(seq) or self._ahead)
        self._stream = log.stream if resumes else ""  # "": a snapshot is due
        self.cursor = seq if resumes and seq is not None else log.seq
        self._allowed = max(0, log.seq - self.cursor) + hub.settings.queue

    def look(self) -> None:
        """Something has been published."""
        hub = self._hub
        behind = hub.log.seq - self.cursor
        if self._waiter is not None and not self._waiter.done():
            # it has read everything there was: however much has come at once since, it is not slow
            self._allowed = max(self._allowed, behind + hub.settings.queue)
        if self._stream and self._stream == hub.log.stream and behind > self._allowed:
            if not self.slow.done():
                hub.slow_clients += 1
                self.slow.set_result(None)
        elif behind <= hub.settings.queue:
            self._allowed = hub.settings.queue
        self._set()

    def beat(self) -> None:
        """The heartbeat's time has come."""
        self._beat_due = True
        self._set()

    def _set(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self) -> list[str]:
        """The next messages, in order; waits for them. Slow if the client is too far behind."""
        while True:
            if self.slow.done():
                raise Slow
            texts = self._ready()
            if texts:
                self._beat_due = False
                return texts
            if self._beat_due:
                self._beat_due = False
                return [f'{{"type":"heartbeat","seq":{self.cursor}}}']
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def _ready(self) -> list[str]:
        events = self._hub.read(self._stream, self.cursor)
        waited = self._ahead and time.monotonic() - self._joined > _CATCH_UP_S
        if events is None or (not events and waited and self.cursor > self._hub.log.seq):
            self._stream, self.cursor, text = self._hub.snapshot()
            self._allowed, self._ahead = self._hub.settings.queue, False
            return [text]
        if events:
            self.cursor, self._ahead = events[-1].seq, False
        return [event.text for event in events]

    def close(self) -> None:
        """Leave. Idempotent."""
        self._hub.drop(self)
