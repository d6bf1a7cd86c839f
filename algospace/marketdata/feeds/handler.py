"""The component that drives the live system: from a feed to events, and the time in between."""

from __future__ import annotations

import structlog

from algospace.events import EventBus, FeedResumed, FeedStale, NewSourceBar, TimeAdvanced
from algospace.kernel import Driver
from algospace.marketdata.feeds.protocol import Feed, MarketEvent, received_at
from algospace.types import SECOND_NS

_LOG = structlog.get_logger(__name__)
DEFAULT_STALE_NS = 30 * SECOND_NS


class DataHandler(Driver):
    """Publishes the feed's events as they are received, and TimeAdvanced when a bar's grace period ends.

    The clock wakes at every multiple of `width_ns` plus `grace_ns`, whether ticks come or not, so a bar closes on
    time when its feed stops in the middle. After `stale_after_ns` without an event (beyond the width of source
    bars) it publishes FeedStale, once, and FeedResumed before the next event. `events` counts what was published.
    """

    def __init__(self, feed: Feed, width_ns: int, grace_ns: int, stale_after_ns: int = DEFAULT_STALE_NS) -> None:
        self.feed = feed
        self.events = 0
        self._width, self._grace, self._stale_after = width_ns, grace_ns, stale_after_ns
        self._patience = stale_after_ns
        self._stopping = self._stale = False

    def register(self, bus: EventBus) -> None:
        self._bus = bus

    def connect(self) -> None:
        self.feed.connect()
        self._now = self._last_recv = self.feed.now_ns()

    def run(self) -> None:
        publish = self._bus.publish
        while not self._stopping:
            until = self._next_wake()
            events = self.feed.poll(until)
            if events is None:
                break
            event: MarketEvent | None = None
            count = 0
            for count, event in enumerate(events, 1):  # noqa: B007 - read behind the loop
                resumed = self._stale
                if resumed:
                    self._resume(event)
                publish(event)
                if self._stopping or resumed:  # behind a silence the next wake comes earlier: ask again
                    break
            if event is not None:
                self.events += count
                self._last_recv = received_at(event)
                if isinstance(event, NewSourceBar):  # the next one cannot come before its own end
                    self._patience = event.width_ns + self._stale_after
            self._now = self.feed.now_ns()
            if self._now >= until and not self._stopping:
                self._wake()
        self._stopping = False
        _LOG.info("feed done", symbol=self.feed.symbol, events=self.events)

    def stop(self) -> None:
        self._stopping = True

    def shutdown(self) -> None:
        self.feed.close()

    def _next_wake(self) -> int:
        """The next end of a grace period, or of the patience with a silent feed."""
        now = self._now - self._grace
        bar_end = now - now % self._width + self._width + self._grace
        return bar_end if self._stale else min(bar_end, max(self._last_recv + self._patience, self._now + 1))

    def _wake(self) -> None:
        self._bus.publish(TimeAdvanced(self._now))
        silent = self._now - self._last_recv
        if not self._stale and silent >= self._patience:
            self._stale = True
            _LOG.warning("feed silent", symbol=self.feed.symbol, seconds=silent / SECOND_NS)
            self._bus.publish(FeedStale(self.feed.symbol, self._last_recv, silent))

    def _resume(self, event: MarketEvent) -> None:
        self._stale = False
        received = received_at(event)
        silent = received - self._last_recv
        _LOG.warning("feed resumed", symbol=self.feed.symbol, seconds=silent / SECOND_NS)
        self._bus.publish(FeedResumed(self.feed.symbol, received, silent))
