"""Compiled entries of the live path: the same steps as history, called with what one event brings."""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np

from algospace.features import bars, pipeline
from algospace.features.unowned import unowned

# A waiting tick.
TICK = np.dtype([("ts", "i8"), ("price", "f8"), ("size", "f8"), ("contract", "i8")], align=True)


@nb.njit(cache=True)
def run_bars(state: Any, params: Any, out: Any, closed: Any) -> None:
    """Run base bars (records of `bars.BAR`, in order) through the pipeline; `out` must have room."""
    state, params, out = unowned(state), unowned(params), unowned(out)
    for j in range(closed.size):
        pipeline.step(state, params, closed[j], out)


@nb.njit(cache=True)
def take_ticks(
    generator: Any, queue: Any, width: int, max_fill: int, max_disorder: int, ticks: Any, begin: int, end: int
) -> tuple[int, int]:
    """Take ticks (records of TICK) [begin, end) up to the first that closes a bar.

    Returns (the next tick, bars now in `queue`).
    """
    g = generator[0]
    closed = 0
    i = begin
    while i < end and closed == 0:
        tick = ticks[i]
        closed = bars.push_tick(g, queue, width, max_fill, max_disorder, tick.ts, tick.price, tick.size,
                                tick.contract)  # fmt: skip
        i += 1
    return i, closed


@nb.njit(cache=True)
def mark_in_time(
    generator: Any, queue: Any, width: int, max_fill: int, max_disorder: int, grace: int, max_future: int, ts: Any,
    price: Any, size: Any, contract: Any, received: Any, in_time: Any,
) -> None:  # fmt: skip
    """Run ticks through a generator and its clock, the receive times; `in_time` (n,): those that were neither late
    nor stamped more than `max_future` after they were received."""
    g = generator[0]
    for i in range(ts.size):
        if received[i] != bars.NEVER:  # unknown: the clock has no say
            bars.advance(g, queue, width, received[i] - grace)
            if ts[i] - received[i] > max_future:
                in_time[i] = False
                continue
        late = g.late
        bars.push_tick(g, queue, width, max_fill, max_disorder, ts[i], price[i], size[i], contract[i])
        in_time[i] = g.late == late


@nb.njit(cache=True)
def take_bar(
    generator: Any, queue: Any, width: int, max_fill: int, source_width: int, ts: int, open_: float, high: float,
    low: float, close: float, volume: float, contract: int,
) -> int:  # fmt: skip
    """Take one source bar; the bars now in `queue`."""
    return int(bars.push_bar(generator[0], queue, width, max_fill, source_width, ts, open_, high, low, close,
                             volume, contract))


@nb.njit(cache=True)
def close_by_clock(generator: Any, queue: Any, width: int, now: int) -> int:
    """Close the open bar if its end is not after `now`; the bars now in `queue`."""
    return int(bars.advance(generator[0], queue, width, now))


@nb.njit(cache=True)
def add_to_slow(aggregator: Any, bar: Any, width: int, slow_width: int, before: Any, after: Any) -> int:
    """Add base bar bar[0] to the 30-minute bar, as the pipeline's step does.

    Returns 1 if a bar cut short by a break was closed first (copied to `before`), plus 2 if the base bar completed
    its own (copied to `after`).
    """
    slow = aggregator[0]
    emitted = 0
    if bars.belongs_later(slow, bar[0]):
        before[0] = slow
        slow.is_open = 0
        emitted = 1
    if bars.aggregate(slow, bar[0], width, slow_width):
        after[0] = slow
        slow.is_open = 0
        emitted += 2
    return emitted
