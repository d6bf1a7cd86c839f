"""What a feed is: a replay of recorded data, or a live connection."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from algospace.events import NewSourceBar, NewTick

MarketEvent = NewTick | NewSourceBar


class Feed(Protocol):
    """Ticks or source bars of one instrument, in the order in which they were received, and the time they live in.

    Every tick carries its receive time; receive times never go back, and agree with `now_ns`.
    """

    @property
    def symbol(self) -> str: ...

    def connect(self) -> None:
        """Get ready; called once, before the first `poll`."""
        ...

    def poll(self, until: int) -> Iterable[MarketEvent] | None:
        """Events as they are received, up to the time `until` (ns UTC); None when the feed has ended.

        The caller may leave some untaken; they come again with the next `poll`. May stop earlier, with or without
        events, so that the caller can look around; only if `now_ns` then is `until` or later has that time come.
        """
        ...

    def now_ns(self) -> int:
        """The feed's time, ns UTC: never before the receipt of an event that it has given out."""
        ...

    def close(self) -> None:
        """Let go of everything; `poll` is not called again."""
        ...


def received_at(event: MarketEvent) -> int:
    """When an event became known: a tick's receive time, a source bar's end."""
    return event.ts_recv if isinstance(event, NewTick) else event.ts_open + event.width_ns
