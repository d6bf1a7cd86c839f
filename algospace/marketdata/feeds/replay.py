"""Recorded ticks or source bars as a feed: at any speed, on a clock of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import repeat
from typing import Any

import numpy as np

from algospace.clock import ReplayClock
from algospace.errors import ConfigError, InputError
from algospace.events import NAN, UNKNOWN_TIME, NewSourceBar, NewTick
from algospace.marketdata.feeds.protocol import MarketEvent
from algospace.types import AnyArray, Bars, IntArray, Ticks

_BLOCK = 4096  # events made at a time: bounds memory, not the caller's concern
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
        clock: ReplayClock | None = None, wall: Callable[[], float] = time.perf_counter,
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
        self.clock = clock or ReplayClock()
        self._wall, self._sleep = wall, sleep
        self._at = 0  # the next event
        self._block: list[Any] = []
        self._block_start = 0

    @property
    def symbol(self) -> str:
        return self._symbol

    def connect(self) -> None:
        """Set the clock to the first event."""
        begin = int(self._received[0])
        if self.clock.now_ns() > begin:
            raise ConfigError(f"replay of {self._symbol} begins at {begin}, the clock is already at "
                              f"{self.clock.now_ns()}; give a clock that starts earlier")
        self.clock.set(begin)
        self._begin_ns, self._begin_wall = begin, self._wall()

    def poll(self, until: int) -> Iterator[MarketEvent] | None:
        stop = int(np.searchsorted(self._received, until, self._side))
        ended = stop == self._received.size
        if ended and self._at == stop and (self._end is None or self.clock.now_ns() >= self._end):
            return None
        if ended:  # the time ends with the data, or where it was told to
            last = int(self._received[-1])
            until = min(until, last if self._end is None else max(last, self._end))
        return self._unpaced(stop, until) if self._speed is None else self._paced(stop, until)

    def now_ns(self) -> int:
        return self.clock.now_ns()

    def close(self) -> None:
        self._block = []

    def _unpaced(self, stop: int, until: int) -> Iterator[MarketEvent]:
        set_clock = self.clock.set
        while self._at < stop:
            events = self._loaded()
            first = self._block_start
            part = slice(self._at - first, stop - first)
            for received, event in zip(self._received[first : first + _BLOCK][part].tolist(), events[part],
                                       strict=True):  # fmt: skip
                set_clock(received)
                self._at += 1  # before it is handed out: the caller may never come back for the next
                yield event
        set_clock(max(until, self.clock.now_ns()))

    def _paced(self, stop: int, until: int) -> Iterator[MarketEvent]:
        patience = self._wall() + _LOOK_AROUND_S
        while self._at < stop:
            received = int(self._received[self._at])
            if not self._wait(received, patience):
                return
            self.clock.set(received)
            event = self._loaded()[self._at - self._block_start]
            self._at += 1
            yield event
        if self._wait(until, patience):
            self.clock.set(max(until, self.clock.now_ns()))

    def _wait(self, moment: int, patience: float) -> bool:
        """Sleep until `moment` is due; False if that is after `patience`, which is then over."""
        assert self._speed is not None
        due = self._begin_wall + (moment - self._begin_ns) / 1e9 / self._speed
        pause = min(due, patience) - self._wall()
        if pause > 0.0:
            self._sleep(pause)
        return due <= patience

    def _loaded(self) -> list[Any]:
        """The block of events that holds the next one."""
        if not self._block or not self._block_start <= self._at < self._block_start + len(self._block):
            self._block_start = self._at
            part = slice(self._at, self._at + _BLOCK)
            make = _tick_events if isinstance(self._data, Ticks) else _bar_events
            self._block = make(self._symbol, self._data, self._received, part)  # type: ignore[arg-type]
        return self._block


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


def _tick_events(symbol: str, ticks: Ticks, received: IntArray, part: slice) -> list[NewTick]:
    columns = {name: column[part].tolist() for name, column in ticks.columns().items()}
    columns["ts_recv"] = received[part].tolist()
    values = [columns.get(name, repeat(_MISSING.get(name))) for name in NewTick._fields[1:]]
    # Straight to the tuple: half the time of calling the class.
    return list(map(partial(tuple.__new__, NewTick), zip(repeat(symbol), *values)))


def _bar_events(symbol: str, bars: Bars, received: IntArray, part: slice) -> list[NewSourceBar]:
    columns: list[AnyArray] = [getattr(bars, name) for name in NewSourceBar._fields[2:]]
    return [NewSourceBar(symbol, bars.width_ns, *row)
            for row in zip(*(column[part].tolist() for column in columns), strict=True)]  # fmt: skip
