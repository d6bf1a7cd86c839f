"""One compiled step over all columns, its drivers over history, and the library as an `Indicator`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numba as nb
import numpy as np

from algospace.errors import ConfigError
from algospace.features.bars import BAR
from algospace.features.indicator import Indicator
from algospace.features.library import core, momentum, relative, returns, temporal, trend, volatility, volume
from algospace.features.library.registry import FAMILIES, NAMES, REGISTRY
from algospace.features.unowned import unowned
from algospace.instruments import AROUND_THE_CLOCK, Instrument
from algospace.types import AnyArray, Bars, FloatArray, IntArray

_VERSION = "1"
_BLOCK = 256  # rows computed before they are turned into columns

# Where each family's columns start, and the first row in which all columns have values.
_RETURNS, _TREND, _MOMENTUM, _VOLATILITY, _VOLUME, _TEMPORAL, _RELATIVE, _END = (
    int(place) for place in np.cumsum([0, *(len(columns) for columns in FAMILIES.values())])
)
_WARM_UPS = np.array([REGISTRY[name].warm_up for name in NAMES])
_WARM = int(_WARM_UPS.max())


class LibraryState(NamedTuple):
    """Everything the library remembers: flat arrays and one record per family.

    pick (columns,): positions in `row` of the wanted columns; wanted (groups,): 1 for each family, and for the
    costly parts of two, that is computed; warm_ups, row (all columns,).
    """

    pick: IntArray
    wanted: IntArray
    warm_ups: IntArray
    row: FloatArray
    core: AnyArray
    temporal: AnyArray
    trend: AnyArray
    momentum: AnyArray
    volatility: AnyArray
    volume: AnyArray
    relative: AnyArray


def new_state(columns: Sequence[str], instrument: Instrument | None) -> LibraryState:
    """State before the first bar; sessions of an unknown instrument are UTC days."""
    groups = [{column.name for column in family} for family in FAMILIES.values()]
    wanted = [not group.isdisjoint(columns) for group in (*groups, {*volatility.FROM_LOGS}, {relative.RANK})]
    session = instrument.session if instrument is not None else AROUND_THE_CLOCK
    return LibraryState(
        np.array([NAMES.index(name) for name in columns], np.int64), np.array(wanted, np.int64), _WARM_UPS.copy(),
        np.full(_END, np.nan), core.new_state(), temporal.new_state(session), trend.new_state(),
        momentum.new_state(), volatility.new_state(), volume.new_state(), relative.new_state(),
    )  # fmt: skip


# Inlined, because a call would copy the tuple of arrays; the families take records, which are pointers.
@nb.njit(cache=True, error_model="numpy", inline="always")
def _step(state: Any, bar: Any, row: FloatArray) -> None:
    """All wanted families' columns at one bar, into row (all columns,)."""
    wanted = state.wanted
    now, session = state.core[0], state.temporal[0]
    last_close = now.close
    core.update(now, bar)
    if wanted[0] or wanted[4] or wanted[5]:
        temporal.new_session(session, bar, last_close)
    if wanted[0]:
        returns.update(now, session, bar, row[_RETURNS:_TREND])
    if wanted[1]:
        trend.update(state.trend[0], now, row[_TREND:_MOMENTUM])
    if wanted[2]:
        momentum.update(state.momentum[0], now, bar, row[_MOMENTUM:_VOLATILITY])
    if wanted[3]:
        volatility.update(state.volatility[0], now, bar, wanted[7], row[_VOLATILITY:_VOLUME])
    if wanted[4]:
        volume.update(state.volume[0], now, session, row[_VOLUME:_TEMPORAL])
    if wanted[5]:
        temporal.update(session, row[_TEMPORAL:_RELATIVE])
    if wanted[6]:
        relative.update(state.relative[0], now, wanted[8], row[_RELATIVE:_END])
    if now.t < _WARM:
        for c in range(_END):
            if now.t < state.warm_ups[c]:
                row[c] = np.nan


@nb.njit(cache=True, error_model="numpy")
def update(state: Any, bar: Any, out: FloatArray) -> None:
    """Take one bar (a record of `bars.BAR`) and fill out (columns,), NaN in the warm-up."""
    state = unowned(state)
    _step(state, bar, state.row)
    for c in range(state.pick.size):
        out[c] = state.row[state.pick[c]]


@nb.njit(cache=True, error_model="numpy")
def run(state: Any, bars: Any, out: FloatArray) -> None:
    """`update` over bars (n,) into out (columns, n), in blocks of rows: each column is written in runs."""
    state, bars, out = unowned(state), unowned(bars), unowned(out)
    block = np.empty((_BLOCK, _END))
    rows = unowned(block)
    for start in range(0, bars.size, _BLOCK):
        size = min(_BLOCK, bars.size - start)
        for i in range(size):
            _step(state, bars[start + i], rows[i])
        for c in range(state.pick.size):
            place = state.pick[c]
            for i in range(size):
                out[c, start + i] = rows[i, place]


def library_indicator(columns: Sequence[str] | None = None, instrument: Instrument | None = None) -> Indicator:
    """The library, or some of its columns, as one `Indicator`; families without a wanted column cost nothing.

    `instrument` gives the session hours (without one: UTC days). ConfigError names an unknown column.
    """
    chosen = _chosen(columns)
    hours = instrument.session if instrument is not None else AROUND_THE_CLOCK
    version = hashlib.sha256(f"{_VERSION} {hours}".encode()).hexdigest()[:12]
    return Indicator("library", chosen, lambda: new_state(chosen, instrument), update, run, version)


def _chosen(columns: Sequence[str] | None) -> tuple[str, ...]:
    chosen = NAMES if columns is None else tuple(columns)
    for name in chosen:
        if name not in REGISTRY:
            raise ConfigError(f"unknown library column '{name}'; `algospace features --list` prints all")
    if len(set(chosen)) < len(chosen):
        raise ConfigError(f"a library column is named twice in {', '.join(chosen)}; name each once")
    return chosen


def compute(
    bars: Bars, columns: Sequence[str] | None = None, instrument: Instrument | None = None,
    ts_close: IntArray | None = None,
) -> dict[str, FloatArray]:
    """Columns (n,) by name over bars of any kind: by clock, by ticks, by volume.

    ts_close (n,): when each bar closed; without it `ts_open + width_ns`. Prices behind a change of contract are
    scaled to go on from the contract before (forward ratio), as the pipeline does. ConfigError for an unknown
    column.
    """
    chosen = _chosen(columns)
    state = new_state(chosen, instrument)
    out = np.empty((len(chosen), len(bars)))
    ends = bars.ts_open + bars.width_ns if ts_close is None else ts_close
    run(state, records_of(bars, ends), out)
    return dict(zip(chosen, out, strict=True))


def roll_factor(bars: Bars) -> FloatArray:
    """Product (n,) of (last close of the old contract / first open of the new) up to each bar."""
    factor = np.ones(len(bars))
    rolls = np.flatnonzero(bars.contract[1:] != bars.contract[:-1]) + 1
    for roll in rolls:
        factor[roll:] *= bars.close[roll - 1] / bars.open[roll]
    return factor


def records_of(bars: Bars, ts_close: IntArray) -> AnyArray:
    """Records (n,) of `bars.BAR` with forward ratio-adjusted prices."""
    records = np.empty(len(bars), BAR)
    factor = roll_factor(bars)
    _fill(records, ts_close, bars.contract, factor, bars.open, bars.high, bars.low, bars.close, bars.volume)
    return records


@nb.njit(cache=True)
def _fill(records: Any, ts_close: Any, contract: Any, factor: Any, open_: Any, high: Any, low: Any, close: Any,
          volume: Any) -> None:  # fmt: skip
    for i in range(records.size):
        bar, scale = records[i], factor[i]
        bar.ts_close, bar.contract, bar.factor, bar.filled = ts_close[i], contract[i], scale, 0
        bar.open, bar.high = open_[i] * scale, high[i] * scale
        bar.low, bar.close, bar.volume = low[i] * scale, close[i] * scale, volume[i]
