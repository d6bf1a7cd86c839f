"""From ticks or source bars to base bars, from base bars to 30-minute bars: the gap, break and roll rules.

One state machine serves ticks, source bars and the clock. An event may close several bars (the open one, then the
filled ones of a gap, then its own), so bars are written to a queue that the caller empties before the next event.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba as nb
import numpy as np

from algospace.types import AnyArray

NEVER = np.iinfo(np.int64).min

# A bar: adjusted prices, roll factor and contract at its close; filled: no trade happened in it.
BAR = np.dtype(
    [("ts_close", "i8"), ("open", "f8"), ("high", "f8"), ("low", "f8"), ("close", "f8"), ("volume", "f8"),
     ("factor", "f8"), ("contract", "i8"), ("filled", "i8")],
    align=True,
)  # fmt: skip

# `start` of the open bar; `end` of the last emitted bar; `last_ts` of the last accepted event.
GENERATOR = np.dtype(
    [("is_open", "i8"), ("start", "i8"), ("end", "i8"), ("last_ts", "i8"), ("contract", "i8"), ("started", "i8"),
     ("open", "f8"), ("high", "f8"), ("low", "f8"), ("close", "f8"), ("volume", "f8"), ("last_volume", "f8"),
     ("factor", "f8"), ("raw_close", "f8"), ("late", "i8"), ("invalid", "i8")],
    align=True,
)  # fmt: skip

AGGREGATOR = np.dtype(
    [("is_open", "i8"), ("end", "i8"), ("open", "f8"), ("high", "f8"), ("low", "f8"), ("close", "f8"),
     ("volume", "f8"), ("factor", "f8"), ("contract", "i8"), ("filled", "i8")],
    align=True,
)  # fmt: skip


class SourceBar(NamedTuple):
    """One source bar of a live feed; volume NaN where unknown, `contract` as in `Bars`."""

    ts_open: int
    open: float
    high: float
    low: float
    close: float
    volume: float = np.nan
    contract: int = 0


def new_generator() -> AnyArray:
    """State before the first event."""
    state = np.zeros(1, GENERATOR)
    state["end"] = state["last_ts"] = NEVER
    state["factor"] = 1.0
    return state


def new_queue(max_fill: int) -> AnyArray:
    """Room for all bars that one event can close."""
    return np.zeros(max_fill + 2, BAR)


@nb.njit(cache=True)
def push_bar(
    g: Any, queue: Any, width: int, max_fill: int, source_width: int, ts: int, open_: float, high: float,
    low: float, close: float, volume: float, contract: int,
) -> int:  # fmt: skip
    """Take one source bar [ts, ts + source_width), source_width dividing width; returns the bars now in `queue`.

    A bar that is not later than the last one, or breaks a price rule, changes nothing but its counter.
    """
    # no min or max: they may hide a NaN, which fails every comparison
    possible = low > 0.0 and low <= open_ <= high and low <= close <= high and high < np.inf
    if not possible or volume < 0.0 or volume == np.inf:
        g.invalid += 1
        return 0
    start = ts - ts % width
    if ts < g.last_ts or start < g.end:
        g.late += 1
        return 0
    closed = _open_for(g, queue, width, max_fill, start, open_, contract)
    _add(g, open_ * g.factor, high * g.factor, low * g.factor, close * g.factor, volume)
    g.raw_close = close
    g.last_ts = ts + source_width
    if g.last_ts >= start + width:
        closed = _close(g, queue, closed, width)
    return closed


@nb.njit(cache=True)
def push_tick(
    g: Any, queue: Any, width: int, max_fill: int, max_disorder: int, ts: int, price: float, size: float,
    contract: int,
) -> int:  # fmt: skip
    """Take one tick (size NaN where unknown); returns the bars now in `queue`.

    Late is a tick of a closed bar, or older than the last accepted one by more than `max_disorder`.
    """
    if not (price > 0.0 and price < np.inf) or size < 0.0 or size == np.inf:
        g.invalid += 1
        return 0
    start = ts - ts % width
    if (g.started and ts + max_disorder < g.last_ts) or start < g.end or (g.is_open and start < g.start):
        g.late += 1
        return 0
    closed = _open_for(g, queue, width, max_fill, start, price, contract)
    adjusted = price * g.factor
    _add(g, adjusted, adjusted, adjusted, adjusted, size)
    g.raw_close = price
    g.last_ts = ts
    return closed


@nb.njit(cache=True)
def advance(g: Any, queue: Any, width: int, now: int) -> int:
    """Close the open bar by the clock if its end is not after `now`; returns the bars now in `queue`."""
    if g.is_open and now >= g.start + width:
        return int(_close(g, queue, 0, width))
    return 0


@nb.njit(cache=True)
def _open_for(g: Any, queue: Any, width: int, max_fill: int, start: int, first_raw: float, contract: int) -> int:
    """Close and fill up to `start`, apply a roll, and have a bar open there; returns the bars in `queue`."""
    closed = 0
    if g.is_open and start > g.start:
        closed = _close(g, queue, 0, width)
    if not g.is_open:
        if g.end != NEVER:
            closed = _fill(g, queue, closed, width, max_fill, start)
        g.start = start
    if g.started and contract != g.contract:
        g.factor *= g.raw_close / first_raw
    g.contract = contract
    g.started = 1
    return closed


@nb.njit(cache=True)
def _fill(g: Any, queue: Any, closed: int, width: int, max_fill: int, start: int) -> int:
    missing = (start - g.end) // width
    if missing > max_fill:
        return closed
    for _ in range(missing):
        bar = queue[closed]
        bar.open = bar.high = bar.low = bar.close = g.close
        bar.volume = np.nan if np.isnan(g.last_volume) else 0.0
        bar.filled = 1
        bar.factor = g.factor
        bar.contract = g.contract
        g.end += width
        bar.ts_close = g.end
        closed += 1
    return closed


@nb.njit(cache=True)
def _add(g: Any, open_: float, high: float, low: float, close: float, volume: float) -> None:
    if not g.is_open:
        g.is_open = 1
        g.open, g.high, g.low, g.volume = open_, high, low, volume
    else:
        g.high = max(g.high, high)
        g.low = min(g.low, low)
        g.volume = add_volume(g.volume, volume)
    g.close = close


@nb.njit(cache=True)
def _close(g: Any, queue: Any, closed: int, width: int) -> int:
    bar = queue[closed]
    bar.ts_close = g.start + width
    bar.open, bar.high, bar.low, bar.close, bar.volume = g.open, g.high, g.low, g.close, g.volume
    bar.factor = g.factor
    bar.contract = g.contract
    bar.filled = 0
    g.is_open = 0
    g.end = g.start + width
    g.last_volume = g.volume
    return closed + 1


@nb.njit(cache=True)
def add_volume(a: float, b: float) -> float:
    """Sum of two volumes; an unknown one counts as 0 beside a known one."""
    if np.isnan(a):
        return b
    if np.isnan(b):
        return a
    return a + b


@nb.njit(cache=True)
def belongs_later(a: Any, bar: Any) -> bool:
    """Whether the open 30-minute bar must be closed before base bar `bar` is added (a break cut it short)."""
    return bool(a.is_open and bar.ts_close > a.end)


@nb.njit(cache=True)
def aggregate(a: Any, bar: Any, width: int, slow_width: int) -> bool:
    """Add a base bar to the 30-minute bar; True where that completes it (the caller then sets is_open to 0)."""
    if not a.is_open:
        a.is_open = 1
        start = bar.ts_close - width
        a.end = start - start % slow_width + slow_width
        a.open, a.high, a.low, a.volume, a.filled = bar.open, bar.high, bar.low, bar.volume, bar.filled
    else:
        a.high = max(a.high, bar.high)
        a.low = min(a.low, bar.low)
        a.volume = add_volume(a.volume, bar.volume)
        a.filled = min(a.filled, bar.filled)
    a.close = bar.close
    a.factor = bar.factor
    a.contract = bar.contract
    return bool(bar.ts_close == a.end)
