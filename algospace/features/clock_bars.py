"""Base and 30-minute bars from ticks by the pipeline's gap and break rules, and clock bars from source bars.

Same rules and same bits as the state machines in `bars` (`push_tick` with `aggregate`, and `push_bar`), at the
speed of `tick_bars`: ticks are reduced to the few bars that hold any, and only those go through the rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numba as nb
import numpy as np

from algospace.errors import ConfigError
from algospace.features import bars as rules
from algospace.features.bar_frames import BarFrame, BarSeries, as_frames, new_states
from algospace.features.checks import check_bars
from algospace.features.tick_bars import build_bars
from algospace.features.tick_bars_kernels import TICK_BAR
from algospace.types import BASE_BAR_NS, HOUR_NS, SLOW_BAR_NS, AnyArray, Bars, Int32Array, Ticks


class BarPair(NamedTuple):
    """base (n,) and slow (m,) bars as records of `bars.BAR`; row_slow (n,) the last slow bar visible at each base
    bar's close, -1 before the first."""

    base: AnyArray
    slow: AnyArray
    row_slow: Int32Array


def base_and_slow_bars(
    ticks: Ticks, base_width_ns: int = BASE_BAR_NS, slow_width_ns: int = SLOW_BAR_NS, *,
    max_fill_bars: int | None = None, max_disorder_ns: int = 0,
) -> BarPair:  # fmt: skip
    """The bars that the feature pipeline would see: short gaps filled, partial 30-minute buckets closed at breaks.

    max_fill_bars: longest run of missing base bars that is filled, by default what is short of an hour.
    ConfigError if the widths do not nest.
    """
    if base_width_ns <= 0 or slow_width_ns % base_width_ns:
        raise ConfigError(f"bars of {slow_width_ns} ns are no multiple of bars of {base_width_ns} ns")
    fill = max(HOUR_NS // base_width_ns - 1, 0) if max_fill_bars is None else max_fill_bars
    frame = BarFrame.clock(base_width_ns)
    series = build_bars(ticks, [frame], max_disorder_ns=max_disorder_ns)[frame.name]
    starts = series.ts_open
    if series.open_start is not None:  # the gap before the open bar is known, the bar is not
        starts = np.append(starts, series.open_start)
    missing = np.diff(starts) // base_width_ns - 1
    missing[missing > fill] = 0
    base = np.zeros(len(series) + int(missing.sum()), rules.BAR)
    slow = np.zeros(base.size + 1, rules.BAR)
    row_slow = np.empty(base.size, np.int32)
    real = np.arange(len(series)) + np.concatenate([[0], np.cumsum(missing)])[: len(series)]
    for name in ("ts_close", "open", "high", "low", "close", "volume", "factor", "contract"):
        base[name][real] = getattr(series, name)
    _fill(base, real, missing, base_width_ns)
    m = _aggregate(base, np.zeros(1, rules.AGGREGATOR), slow, row_slow, base_width_ns, slow_width_ns)
    return BarPair(base, slow[:m], row_slow)


@nb.njit(cache=True)
def _fill(base: Any, real: AnyArray, missing: AnyArray, width: int) -> None:
    """Write the filled bars: missing[i] of them follow the bar in place real[i]."""
    for i in range(min(real.size, missing.size)):
        last = base[real[i]]
        for j in range(1, missing[i] + 1):
            bar = base[real[i] + j]
            bar.ts_close = last.ts_close + j * width
            bar.open = bar.high = bar.low = bar.close = last.close
            bar.volume = np.nan if np.isnan(last.volume) else 0.0
            bar.factor, bar.contract, bar.filled = last.factor, last.contract, 1


@nb.njit(cache=True)
def _aggregate(base: Any, state: Any, slow: Any, row_slow: Any, width: int, slow_width: int) -> int:
    a = state[0]
    m = 0
    for i in range(base.size):
        if rules.belongs_later(a, base[i]):
            _write(a, slow[m])
            m += 1
        if rules.aggregate(a, base[i], width, slow_width):
            _write(a, slow[m])
            m += 1
        row_slow[i] = m - 1
    return m


@nb.njit(cache=True)
def _write(a: Any, bar: Any) -> None:
    a.is_open = 0
    bar.ts_close = a.end
    bar.open, bar.high, bar.low, bar.close, bar.volume = a.open, a.high, a.low, a.close, a.volume
    bar.factor, bar.contract, bar.filled = a.factor, a.contract, a.filled


def resample(bars: Bars, frames: Sequence[BarFrame | str]) -> dict[str, BarSeries]:
    """Wider clock bars from source bars, by name; nothing is filled, prices are roll-adjusted as in the pipeline.

    `count` is the number of source bars in a bar, first_row and last_row are their places. A bar is emitted once
    its end is known to have passed: with a source bar that reaches it or a later one. InputError names a faulty
    row, ConfigError a width that source bars do not fit into.
    """
    found: dict[str, BarSeries] = {}
    for name, frame in as_frames(frames).items():
        if frame.kind != "clock":
            raise ConfigError(f"bars {name} need ticks; source bars give clock bars only")
        check_bars(bars, frame.width_ns)
        state = new_states([frame])
        out = np.zeros(len(bars), TICK_BAR)
        prices = [np.array(column, np.float64) for column in (bars.open, bars.high, bars.low, bars.close)]
        n = _resample(state, out, bars.width_ns, np.array(bars.ts_open, np.int64), prices[0], prices[1], prices[2],
                      prices[3], np.array(bars.volume, np.float64), np.array(bars.contract, np.int32))  # fmt: skip
        found[name] = BarSeries.of_records(frame, [out[:n]], state[0])
    return found


@nb.njit(cache=True)
def _resample(
    state: Any, out: Any, source_width: int, ts: Any, open_: Any, high: Any, low: Any, close: Any, volume: Any,
    contract: Any,
) -> int:  # fmt: skip
    f = state[0]
    n = 0
    for i in range(ts.size):
        start = ts[i] - ts[i] % f.width
        if f.is_open and start > f.start:
            n = _emit(f, out, n)
        if i > 0 and contract[i] != contract[i - 1]:
            f.factor *= close[i - 1] / open_[i]
        if not f.is_open:
            f.is_open, f.start, f.first_row, f.count = 1, start, i, 0
            f.open, f.high, f.low, f.volume = open_[i] * f.factor, high[i] * f.factor, low[i] * f.factor, volume[i]
        else:
            f.high = max(f.high, high[i] * f.factor)
            f.low = min(f.low, low[i] * f.factor)
            f.volume = rules.add_volume(f.volume, volume[i])
        f.close, f.contract, f.last_row = close[i] * f.factor, contract[i], i
        f.count += 1
        if ts[i] + source_width >= start + f.width:
            n = _emit(f, out, n)
    return n


@nb.njit(cache=True)
def _emit(f: Any, out: Any, n: int) -> int:
    bar = out[n]
    bar.ts_open, bar.ts_close = f.start, f.start + f.width
    bar.open, bar.high, bar.low, bar.close, bar.volume = f.open, f.high, f.low, f.close, f.volume
    bar.count, bar.factor, bar.contract = f.count, f.factor, f.contract
    bar.first_row, bar.last_row = f.first_row, f.last_row
    f.is_open = 0
    return n + 1
