"""Compiled refinement of one-minute bars into trade prints: portable draws, prices, times, sizes, sides, quotes.

A minute of n prints walks from the bar's open to its close, touches its high and its low and never leaves them,
so the prints aggregate to exactly that bar. As in synthetic_paths, every draw is a hash of (key, stream, minute,
print) and only exactly rounded arithmetic is used, so the same seed gives the same prints on any machine.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numba as nb
import numpy as np

from algospace.marketdata.synthetic_paths import exponential, normal_pair
from algospace.marketdata.synthetic_session import HOURLY_VOLUME, hourly
from algospace.seeding import combine, splitmix64, to_unit
from algospace.types import MINUTE_NS, AnyArray

FEWEST = 4  # prints in a minute: open, high, low, close
MINUTES = 5  # in a base bar
_COUNT, _PRINTS = 16, 17  # streams; 1 to 5 are those of the bars
_GAP, _SIZE, _STEP, _SIDE, _QUOTE, _LATENCY, _WAY = 1, 2, 3, 4, 5, 6, 7  # kinds of draws of a minute
_REQUOTE = 0.1  # probability per print that the spread is drawn again
_RANGE_TO_SIGMA = 0.6  # E(range) of a Brownian motion is 1.6 standard deviations (Parkinson 1980)
_NERVOUS, _FASTEST = 2.5, 20.0  # multiples of the calm range: spreads widen above the first, up to the second


class Flow(NamedTuple):
    """What the prints' side, number and quotes follow; see TickOptions. calm_range: a usual high/low - 1."""

    contracts_per_tick: float
    most: int
    seasonal: bool
    persistence: float
    tick_rule: float
    latency_ns: float
    calm_range: float


def new_state() -> tuple[AnyArray, AnyArray]:
    """(spread in ticks, smoothed range, last side, last price), (last receive time): before the first print."""
    return np.array([1.0, 0.0, 1.0, 0.0]), np.array([np.iinfo(np.int64).min])


@nb.njit(cache=True)
def count_prints(key: Any, first_row: int, ts: AnyArray, volume: AnyArray, flow: Any, allotted: AnyArray,
                 counts: AnyArray) -> None:
    """Fill `allotted`, the contracts, and `counts`, the prints of each minute (rows: whole base bars).

    `first_row` is the number of the first row in the whole market. A minute of less than FEWEST contracts borrows
    from the largest one of its base bar, so that every print has a contract and base volumes stay the same.
    """
    count_key = combine(key, _COUNT)
    for bar in range(ts.size // MINUTES):
        rows = allotted[bar * MINUTES:(bar + 1) * MINUTES]
        rows[:] = volume[bar * MINUTES:(bar + 1) * MINUTES]
        for minute in range(MINUTES):
            missing = FEWEST - rows[minute]
            donor = np.argmax(rows)
            if missing > 0.0 and rows[donor] >= FEWEST + missing:
                rows[donor] -= missing
                rows[minute] = FEWEST
        for minute in range(MINUTES):
            row = bar * MINUTES + minute
            busy = hourly(ts[row], HOURLY_VOLUME) if flow.seasonal else 1.0
            u = to_unit(combine(count_key, first_row + row))
            wanted = int(rows[minute] * busy / flow.contracts_per_tick * (0.5 + u))
            counts[row] = max(FEWEST, min(wanted, int(min(rows[minute], float(flow.most)))))


@nb.njit(cache=True)
def _waypoints(key: Any, open_: float, high: float, low: float, close: float, n: int, at: AnyArray,
               price: AnyArray) -> int:
    """Prints that must stand at given prices, into (at, price); returns how many: open, extremes, close.

    Where both extremes lie beyond open and close, a falling bar has its high first, a rising one its low.
    """
    at[0], price[0], used = 0, open_, 1
    has_high, has_low = high > max(open_, close), low < min(open_, close)
    inner = int(has_high) + int(has_low)
    if inner == 2:
        at[1] = 1 + int(to_unit(combine(key, 1)) * (n - 3))
        at[2] = at[1] + 1 + int(to_unit(combine(key, 2)) * (n - 2 - at[1]))
        price[1], price[2] = (high, low) if close < open_ else (low, high)
    elif inner == 1:
        at[1] = 1 + int(to_unit(combine(key, 1)) * (n - 2))
        price[1] = high if has_high else low
    used += inner
    at[used], price[used] = n - 1, close
    return used + 1


@nb.njit(cache=True)
def minute_prices(key: Any, open_: float, high: float, low: float, close: float, n: int, tick: float,
                  out: AnyArray) -> None:
    """Fill out[:n] with a bar's prints; between waypoints a Brownian bridge, held inside [low, high].

    Rounded to `tick` unless it is 0; the bar itself must then be on the grid.
    """
    at, price = np.empty(4, np.int64), np.empty(4)
    used = _waypoints(combine(key, _WAY), open_, high, low, close, n, at, price)
    sigma = (high - low) * _RANGE_TO_SIGMA / math.sqrt(n)
    step_key, spare, has_spare = combine(key, _STEP), 0.0, False
    for leg in range(used - 1):
        x, end = price[leg], price[leg + 1]
        out[at[leg]] = x
        for i in range(at[leg] + 1, at[leg + 1]):
            if has_spare:
                shock, has_spare = spare, False
            else:
                shock, spare = normal_pair(combine(step_key, i))
                has_spare = True
            left = at[leg + 1] - i + 1.0
            x += (end - x) / left + sigma * math.sqrt((left - 1.0) / left) * shock
            x = min(max(x, low), high)
            out[i] = math.floor(x / tick + 0.5) * tick if tick > 0.0 else x
    out[n - 1] = close


@nb.njit(cache=True)
def _minute_times(key: Any, start: int, n: int, out: AnyArray, gaps: AnyArray) -> None:
    """Fill out[:n] with ordered times in [start, start + 1 minute).

    Spacings are eighth powers of uniforms: prints come in bursts (coefficient of variation 1.9; Poisson's is 1).
    """
    gap_key, total = combine(key, _GAP), 0.0
    for i in range(n + 1):
        u = to_unit(combine(gap_key, i))
        u *= u
        u *= u
        total += u * u
        gaps[i] = total
    for i in range(n):
        out[i] = start + min(int(gaps[i] / total * MINUTE_NS), MINUTE_NS - 1)


@nb.njit(cache=True)
def _minute_sizes(key: Any, contracts: float, n: int, out: AnyArray, weights: AnyArray) -> None:
    """Fill out[:n] with whole contracts that sum to `contracts`: one each, the rest by uniforms' fourth powers."""
    rest = contracts - n
    if rest < 0.0:  # fewer contracts than prints in a whole base bar: about one bar in 10⁷
        for i in range(n):
            out[i] = 1.0 if i < contracts else 0.0
        return
    size_key, total = combine(key, _SIZE), 0.0
    for i in range(n):
        u = to_unit(combine(size_key, i))
        u *= u
        total += u * u
        weights[i] = total
    given = 0.0
    for i in range(n):
        upto = math.floor(rest * (weights[i] / total))
        out[i] = 1.0 + upto - given
        given = upto


@nb.njit(cache=True)
def _side(key: Any, change: float, last: float, buy: float, flow: Any) -> float:
    """+1 a buyer, -1 a seller crossed the spread; `key` is a fresh hash."""
    if change != 0.0 and to_unit(key) < flow.tick_rule:
        return 1.0 if change > 0.0 else -1.0
    second = splitmix64(key)
    if to_unit(second) < flow.persistence:
        return last
    return 1.0 if to_unit(splitmix64(second)) < buy else -1.0


@nb.njit(cache=True)
def _spread(key: Any, last: float, quiet: float, nerves: float) -> float:
    """Spread in ticks: one, wider by an exponential draw whose mean grows in quiet hours and in a crash."""
    if to_unit(key) >= _REQUOTE:
        return last
    mean = 0.25 + 0.5 * quiet + 0.5 * max(nerves - _NERVOUS, 0.0)
    return 1.0 + math.floor(mean * exponential(splitmix64(key)))


@nb.njit(cache=True)
def fill_prints(key: Any, first_row: int, ts_open: AnyArray, open_: AnyArray, high: AnyArray, low: AnyArray,
                close: AnyArray, allotted: AnyArray, counts: AnyArray, buy: AnyArray, grid: float, tick: float,
                flow: Any, state: AnyArray, received: AnyArray, ts: AnyArray, price: AnyArray, size: AnyArray,
                bid: AnyArray, ask: AnyArray, aggressor: AnyArray, ts_recv: AnyArray) -> None:
    """Fill the prints of all minutes, counts.sum() of them; `buy` is the buy probability of each minute.

    `grid` rounds prices (0: not at all), `tick` is the unit of the spread. A buyer's print is the ask, a seller's
    the bid. `state` and `received` (`new_state`) carry on from one block of rows to the next.
    """
    longest = counts.max()
    scratch = np.empty(longest + 1)
    print_key, at = combine(key, _PRINTS), 0
    for row in range(ts_open.size):
        n = counts[row]
        minute_key = combine(print_key, first_row + row)
        minute_prices(minute_key, open_[row], high[row], low[row], close[row], n, grid, price[at:at + n])
        _minute_times(minute_key, ts_open[row], n, ts[at:at + n], scratch)
        _minute_sizes(minute_key, allotted[row], n, size[at:at + n], scratch)
        quiet = max(1.0 - hourly(ts_open[row], HOURLY_VOLUME), 0.0)
        state[1] += 0.3 * ((high[row] / low[row] - 1.0) / flow.calm_range - state[1])
        nerves = min(state[1], _FASTEST)
        latency_key = combine(minute_key, _LATENCY)
        quote_key, side_key = combine(minute_key, _QUOTE), combine(minute_key, _SIDE)
        for i in range(at, at + n):
            state[0] = _spread(combine(quote_key, i - at), state[0], quiet, nerves)
            state[2] = _side(combine(side_key, i - at), price[i] - state[3], state[2], buy[row], flow)
            state[3] = price[i]
            width = min(state[0] * tick, 0.5 * price[i])  # a bid is positive
            bid[i] = price[i] if state[2] < 0.0 else price[i] - width
            ask[i] = price[i] if state[2] > 0.0 else price[i] + width
            aggressor[i] = np.int8(state[2])
            arrival = ts[i]
            if flow.latency_ns > 0.0:
                delay = 0.5 * (1.0 + exponential(combine(latency_key, i - at)))
                arrival += int(flow.latency_ns * delay)
            received[0] = max(received[0], arrival)  # one connection: what was sent first arrives first
            ts_recv[i] = received[0]
        at += n
