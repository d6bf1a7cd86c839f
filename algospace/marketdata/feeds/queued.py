"""A live feed that other threads push into: what every connection to an exchange or broker ends in."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator

from algospace.clock import Clock
from algospace.events import NewTick
from algospace.marketdata.feeds.protocol import MarketEvent

_LOOK_AROUND_S = 0.05


class QueueFeed:
    """Hands on what was `put`, stamped with the receive time: the moment of the `put`.

    However long the reader was away (a warm-up, a slow handler), an event keeps the time at which it came, and the
    feed's own time does not pass an event that waits: no bar closes before its ticks were handed on. One lock
    orders stamps and looks at the clock, so a replay of the stamps decides as the live run did. The time never
    goes back, whatever the machine's clock does.
    """

    def __init__(self, symbol: str, clock: Clock) -> None:
        self._symbol, self._clock = symbol, clock
        self._waiting: deque[tuple[int, MarketEvent | None]] = deque()
        self._changed = threading.Condition()
        self._last = clock.now_ns()  # the latest stamp or look
        self._now = self._last  # how far the reader is
        self._ended = False
        self._error: Exception | None = None

    @property
    def symbol(self) -> str:
        return self._symbol

    def put(self, event: MarketEvent) -> None:
        """Give an event to the feed; from any thread."""
        self._append(event)

    def end(self, error: Exception | None = None) -> None:
        """Nothing more will come; from any thread. With `error` the reader's `poll` raises it: a connection that
        broke must not look like a feed that was done."""
        self._error = error
        self._append(None)

    def connect(self) -> None:
        self._ended = False
        with self._changed:
            if not self._waiting:
                self._now = self._look()

    def poll(self, until: int) -> Iterator[MarketEvent] | None:
        if self._ended and self._error is not None:
            raise self._error
        return None if self._ended else self._events(until)

    def now_ns(self) -> int:
        return self._now

    def close(self) -> None:
        self._ended = True

    def _append(self, event: MarketEvent | None) -> None:
        with self._changed:
            self._waiting.append((self._look(), event))
            self._changed.notify()

    def _look(self) -> int:
        """The machine's time; only under the lock."""
        self._last = max(self._last, self._clock.now_ns())
        return self._last

    def _events(self, until: int) -> Iterator[MarketEvent]:
        while (taken := self._take(until)) is not None:
            yield taken

    def _take(self, until: int) -> MarketEvent | None:
        """The next event received before `until`, after a short wait for one; None if there is none yet."""
        with self._changed:
            if not self._waiting:
                self._now = self._look()  # nothing earlier can come any more
                if self._now >= until:
                    return None
                self._changed.wait(min(_LOOK_AROUND_S, (until - self._now) / 1e9))
                if not self._waiting:
                    self._now = self._look()
                    return None
            received, event = self._waiting[0]
            if received >= until:
                self._now = max(self._now, until)
                return None
            self._waiting.popleft()
            self._now = max(self._now, received)
        if event is None:
            self._ended = True
            return None
        return event._replace(ts_recv=received) if isinstance(event, NewTick) else event
