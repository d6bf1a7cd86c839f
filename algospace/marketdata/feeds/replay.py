"""Recorded ticks or source bars as a feed: at any speed, on a clock of its own."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import repeat
from typing import Any

import numpy as np

from algospace.errors import ConfigError, InputError
from algospace.events import NAN, UNKNOWN_TIME, NewSourceBar, NewTick
from algospace.marketdata.feeds.protocol import MarketEvent
from algospace.types import Bars, IntArray, Ticks

_BLOCK = 4096  # events per poll: bounds the copies made of the data
_RECV_AT = NewTick._fields.index("ts_recv") - 1
_LOOK_AROUND_S = 0.1  # a paced feed returns to its caller at least this often
_MISSING: dict[str, Any] = {"bid": NAN, "ask": NAN, "aggressor": 0, "contract": 0}


class ReplayFeed:
    """Replays Ticks by receive time, or Bars by their end.

    Ticks without receive times are received at their own time, or with the latest valid tick before them where
    they are out of order. `speed`: times real time; None: as fast as the subscribers allow. `end_ns`: the clock
    runs on to there after the last event; without it the replay ends at the last event, an open bar stays open.
    An event received at the very instant of a clock event comes behind it, a source bar before it.
    """

    def __init__(
        self, symbol: str, data: Ticks | Bars, speed: float | None = None, end_ns: int | None = None,
        wall: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        if len(data) == 0:
            raise InputError(f"replay of {symbol}", "no data", "give a range that holds data")
        if speed is not None and not speed > 0.0:
            raise ConfigError(f"replay speed {speed}: give a positive factor of real time, or none for full speed")
        self._symbol, self._data, self._speed = symbol, data, speed
        self._received = _received(data)
        self._side: Any = "left" if isinstance(data, Ticks) else "right"
        self._end = end_ns
        self._wall, self._sleep = wall, sleep
        self._left: Iterator[int] = iter(())  # of the events handed out, those not yet taken
        self._stop = 0  # the event behind the last one handed out
        self._now = self._then = int(self._received[0])

    @property
    def symbol(self) -> str:
        return self._symbol

    def connect(self) -> None:
        """The replay's time starts to run."""
        self._begin_ns, self._begin_wall = self._now, self._wall()

    def poll(self, until: int) -> Iterator[MarketEvent] | None:
        at, now = self._next(), self.now_ns()
        size = self._received.size
        if at == size and (self._end is None or now >= self._end):
            return None
        if self._speed is not None:
            until = self._paced(until)
        stop = int(np.searchsorted(self._received, until, self._side))
        if stop == size:  # the time ends with the data, or where it was told to
            last = int(self._received[-1])
            until = min(until, last if self._end is None else max(last, self._end))
        self._stop = max(at, min(stop, at + _BLOCK))
        self._now = now
        self._then = max(now, until if self._stop == stop else int(self._received[self._stop - 1]))
        return self._events(slice(at, self._stop))

    def now_ns(self) -> int:
        """The receive time of the last event taken; behind the last of a poll, the time of its end."""
        at = self._next()
        if at == self._stop:
            return self._then
        return max(self._now, int(self._received[at - 1])) if at else self._now

    def close(self) -> None:
        """Nothing to let go of."""

    def _next(self) -> int:
        """The next event that the caller has not taken; it may stop anywhere, and no event pays for counting."""
        return self._stop - operator.length_hint(self._left)

    def _paced(self, until: int) -> int:
        """Sleep until `until`, the next event or the end of patience; how far the replay's time then is."""
        assert self._speed is not None
        at = self._next()
        # An event received at t is given out once the time is past t (see `poll`).
        target = until if at == self._received.size else min(until, int(self._received[at]) + 1)
        due = self._begin_wall + (target - self._begin_ns) / 1e9 / self._speed
        pause = due - self._wall()
        if pause > 0.0:
            self._sleep(min(pause, _LOOK_AROUND_S))
        reached = self._begin_ns + int((self._wall() - self._begin_wall) * 1e9 * self._speed)
        if pause <= _LOOK_AROUND_S:
            reached = max(reached, target)  # whatever rounding says
        return min(until, reached)

    def _events(self, part: slice) -> Iterator[MarketEvent]:
        """Events made as they are taken: none waits, so the garbage collector has nothing to look through."""
        received = self._received[part].tolist()
        self._left = iter(received)  # a list's iterator knows how much is left of it
        if isinstance(self._data, Ticks):
            columns = {name: column[part].tolist() for name, column in self._data.columns().items()}
            values = [columns.get(name, repeat(_MISSING.get(name))) for name in NewTick._fields[1:]]
            values[_RECV_AT] = self._left
            # Straight to the tuple: half the time of calling the class.
            return map(partial(tuple.__new__, NewTick), zip(repeat(self._symbol), *values))
        rows = [getattr(self._data, name)[part].tolist() for name in NewSourceBar._fields[2:]]
        make = partial(NewSourceBar, self._symbol, self._data.width_ns)
        return (make(*row) for _, *row in zip(self._left, *rows, strict=True))


def _received(data: Ticks | Bars) -> IntArray:
    """(n,) when each event became known, never going back."""
    if isinstance(data, Bars):
        known = data.ts_open + data.width_ns
    elif data.ts_recv is not None and np.any(data.ts_recv != UNKNOWN_TIME):
        known = data.ts_recv
    else:
        # An invalid tick has no say: its time may be nonsense, and history ignores it as well.
        valid = (data.price > 0.0) & (data.price < np.inf) & ~(data.size < 0.0) & (data.size != np.inf)
        known = np.where(valid, data.ts, UNKNOWN_TIME)
        if not valid.any():
            known = data.ts
    known = np.maximum.accumulate(known)
    return np.maximum(known, known[known > UNKNOWN_TIME][0])  # what comes before the first known time
