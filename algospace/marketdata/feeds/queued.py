"""A live feed that other threads push into: what every connection to an exchange or broker ends in."""

from __future__ import annotations

import queue
from collections.abc import Iterator

from algospace.clock import Clock
from algospace.events import NewTick
from algospace.marketdata.feeds.protocol import MarketEvent

_LOOK_AROUND_S = 0.05


class QueueFeed:
    """Hands on what was `put`, stamped with the receive time of the moment at which it is handed on.

    Stamping in the one thread that also tells the time makes the order of events and clock part of the recording:
    a replay decides as the live run did. The time never goes back, whatever the machine's clock does.
    """

    def __init__(self, symbol: str, clock: Clock) -> None:
        self._symbol, self._clock = symbol, clock
        self._last = clock.now_ns()
        self._queue: queue.SimpleQueue[MarketEvent | None] = queue.SimpleQueue()
        self._ended = False

    @property
    def symbol(self) -> str:
        return self._symbol

    def put(self, event: MarketEvent) -> None:
        """Give an event to the feed; from any thread."""
        self._queue.put(event)

    def end(self) -> None:
        """Nothing more will come; from any thread."""
        self._queue.put(None)

    def connect(self) -> None:
        self._last = max(self._last, self._clock.now_ns())

    def poll(self, until: int) -> Iterator[MarketEvent] | None:
        return None if self._ended else self._events(until)

    def now_ns(self) -> int:
        self._last = max(self._last, self._clock.now_ns())
        return self._last

    def close(self) -> None:
        self._ended = True

    def _events(self, until: int) -> Iterator[MarketEvent]:
        while (now := self.now_ns()) < until:
            try:
                event = self._queue.get(timeout=min(_LOOK_AROUND_S, (until - now) / 1e9))
            except queue.Empty:
                return
            if event is None:
                self._ended = True
                return
            yield event._replace(ts_recv=self.now_ns()) if isinstance(event, NewTick) else event
