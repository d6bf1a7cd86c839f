"""The one compiled step from a base bar to a feature row, composed of the indicators' updates.

`step` is all there is: history runs it in a compiled loop over many events, live in the same loop over one.
Adding an indicator: a module with a state and an `update(state, ..., out)`, its names in `columns`, a field in
`PipelineState`, and a line in `_base_row` or `_slow_row`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba as nb
import numpy as np

from algospace.calendars import utc_offsets
from algospace.features import (
    bars,
    basics,
    columns,
    fvg,
    heikin_ashi,
    lvn,
    mlmi,
    mmd,
    nwrqk,
    synergy,
    timefeatures,
)
from algospace.features.columns import (
    ATR_AT,
    FVG_AT,
    HA_AT,
    HA_CLOSE_AT,
    HELD_AT,
    LVN_AT,
    MITIGATION_AT,
    MLMI_AT,
    MLMI_SIGNAL_AT,
    MLMI_VALUE_AT,
    MMD_AT,
    MOMENTUM_AT,
    NWRQK_AT,
    NWRQK_SIGNAL_AT,
    NWRQK_SLOPE_AT,
    REGIME_END,
    SLOW_ATR_AT,
    SLOW_HELD_AT,
    SYNERGY_AT,
    TIME_AT,
)
from algospace.features.config import FeatureConfig
from algospace.features.smoothing import ATR_STATE, atr_update
from algospace.features.unowned import unowned
from algospace.instruments import Instrument
from algospace.types import MINUTE_NS, AnyArray, FloatArray, Int32Array, IntArray

ATR_PERIOD = 14
BARS, TICKS, CLOCK = 0, 1, 2  # kinds of events


class Params(NamedTuple):
    """What the compiled step reads of the configuration. `fvg_max_age` is -1 where gaps never expire."""

    width: int
    slow_width: int
    max_fill: int
    max_disorder: int
    use_ha: bool
    regime: bool
    fvg_threshold: float
    fvg_max_age: int
    mlmi_k: int
    mlmi_strength: float
    nwrqk_strength: float
    synergy_window: int
    synergy_cooldown: int
    zone_starts: IntArray
    zone_offsets: IntArray


class PipelineState(NamedTuple):
    """Everything the pipeline remembers; rows (1,) counts base and (1,) 30-minute rows written so far."""

    rows: IntArray
    generator: AnyArray
    queue: AnyArray
    aggregator: AnyArray
    base_atr: AnyArray
    slow_atr: AnyArray
    heikin_ashi: AnyArray
    nwrqk: nwrqk.NwrqkState
    mlmi: mlmi.MlmiState
    fvg: fvg.FvgState
    basics: basics.BasicsState
    synergy: AnyArray
    lvn: lvn.LvnState
    mmd: mmd.MmdState
    base_row: FloatArray
    slow_row: FloatArray


class Output(NamedTuple):
    """Where rows go: columns × capacity, so that every column is contiguous. size: (base rows, 30-minute rows)."""

    size: IntArray
    ts_close: IntArray
    filled: AnyArray
    contract: Int32Array
    row_30m: Int32Array
    base: FloatArray
    ts_close_30m: IntArray
    slow: FloatArray


def new_params(config: FeatureConfig, instrument: Instrument) -> Params:
    """Parameters of the compiled step; time features are in the instrument's exchange time."""
    starts, offsets = utc_offsets(instrument.session.zone)
    return Params(
        config.base_minutes * MINUTE_NS, config.slow_minutes * MINUTE_NS, config.max_fill_bars,
        config.max_disorder_ns, config.source == "ha_close", config.regime, config.fvg.threshold,
        -1 if config.fvg.max_age is None else config.fvg.max_age, config.mlmi.k, config.mlmi.strength,
        config.nwrqk.strength, config.synergy.window, config.synergy.cooldown, starts, offsets,
    )  # fmt: skip


def new_state(config: FeatureConfig, instrument: Instrument) -> PipelineState:
    """State before the first event."""
    return PipelineState(
        np.zeros(2, np.int64), bars.new_generator(), bars.new_queue(config.max_fill_bars),
        np.zeros(1, bars.AGGREGATOR), np.zeros(1, ATR_STATE), np.zeros(1, ATR_STATE),
        np.zeros(1, heikin_ashi.HA_STATE), nwrqk.init_state(config.nwrqk), mlmi.init_state(config.mlmi),
        fvg.init_state(config.fvg.max_age), basics.init_state(), synergy.init_state(),
        lvn.new_state(instrument.tick_size), mmd.new_state(),
        np.full(len(columns.base_columns(config.regime)), np.nan),
        np.full(len(columns.slow_columns(config.regime)), np.nan),
    )  # fmt: skip


def with_room(state: PipelineState, base_rows: int, slow_rows: int) -> PipelineState:
    """The same state with room in its growing stores for that many further rows."""
    return state._replace(fvg=fvg.with_room(state.fvg, base_rows), mlmi=mlmi.with_room(state.mlmi, slow_rows))


def new_output(config: FeatureConfig, base_rows: int, slow_rows: int) -> Output:
    """Empty output; memory that no row reaches is never touched."""
    return Output(
        np.zeros(2, np.int64), np.empty(base_rows, np.int64), np.empty(base_rows, np.bool_),
        np.empty(base_rows, np.int32), np.empty(base_rows, np.int32),
        np.empty((len(columns.base_columns(config.regime)), base_rows)), np.empty(slow_rows, np.int64),
        np.empty((len(columns.slow_columns(config.regime)), slow_rows)),
    )  # fmt: skip


# Inlined, because the state is a tuple of some hundred words that every call would copy (a quarter of the time).
@nb.njit(cache=True, inline="always")
def step(state: Any, params: Any, bar: Any, out: Any) -> None:
    """One base bar: 30-minute bars that it completes, then its own row."""
    seen = state.rows[1]
    slow = state.aggregator[0]
    if bars.belongs_later(slow, bar):
        _slow_row(state, params, slow, out)
    if bars.aggregate(slow, bar, params.width, params.slow_width):
        _slow_row(state, params, slow, out)
    _base_row(state, params, bar, state.rows[1] > seen, out)


@nb.njit(cache=True)
def _write_bar(bar: Any, row: FloatArray) -> None:
    row[0], row[1], row[2], row[3] = bar.open, bar.high, bar.low, bar.close
    row[4], row[5], row[6] = bar.volume, bar.filled, bar.factor


@nb.njit(cache=True, inline="always")
def _slow_row(state: Any, params: Any, bar: Any, out: Any) -> None:
    """Close the 30-minute bar and write its row."""
    bar.is_open = 0
    row = state.slow_row
    _write_bar(bar, row)
    timefeatures.update(bar.end, params.zone_starts, params.zone_offsets, row[TIME_AT:SLOW_HELD_AT])
    row[SLOW_ATR_AT] = atr_update(state.slow_atr[0], bar.high, bar.low, bar.close, ATR_PERIOD)
    heikin_ashi.update(state.heikin_ashi[0], bar.open, bar.high, bar.low, bar.close, row[HA_AT : HA_CLOSE_AT + 1])
    source = row[HA_CLOSE_AT] if params.use_ha else bar.close
    nwrqk.update(state.nwrqk, source, row[NWRQK_AT:MLMI_AT])
    mlmi.update(state.mlmi, params.mlmi_k, source, row[MLMI_AT : MLMI_SIGNAL_AT + 1])
    if params.regime:
        lvn.update(state.lvn, bar.high, bar.low, bar.close, bar.volume, bar.factor, row[LVN_AT:MMD_AT])
        mmd.update(state.mmd, bar.high, bar.low, bar.close, bar.volume, row[MMD_AT:REGIME_END])
    i = out.size[1]
    out.ts_close_30m[i] = bar.end
    for c in range(row.size):
        out.slow[c, i] = row[c]
    out.size[1] = i + 1
    state.rows[1] += 1


@nb.njit(cache=True, inline="always")
def _base_row(state: Any, params: Any, bar: Any, new_slow: bool, out: Any) -> None:
    row = state.base_row
    held = state.slow_row
    _write_bar(bar, row)
    timefeatures.update(bar.ts_close, params.zone_starts, params.zone_offsets, row[TIME_AT:ATR_AT])
    row[ATR_AT] = atr_update(state.base_atr[0], bar.high, bar.low, bar.close, ATR_PERIOD)
    fvg.update(state.fvg, params.fvg_threshold, params.fvg_max_age, bar.high, bar.low, bar.close,
               row[FVG_AT:MOMENTUM_AT])  # fmt: skip
    basics.update(state.basics, bar.close, bar.volume, row[MOMENTUM_AT:SYNERGY_AT])
    m = n = 0.0
    if new_slow:
        if abs(held[MLMI_VALUE_AT] - 50.0) > params.mlmi_strength:
            m = held[MLMI_SIGNAL_AT]
        if abs(held[NWRQK_SLOPE_AT]) > params.nwrqk_strength * held[SLOW_ATR_AT]:
            n = held[NWRQK_SIGNAL_AT]
    synergy.update(state.synergy[0], m, n, row[MITIGATION_AT], params.synergy_window, params.synergy_cooldown,
                   row[SYNERGY_AT:HELD_AT])  # fmt: skip
    row[HELD_AT:] = held[SLOW_HELD_AT:]
    i = out.size[0]
    out.ts_close[i] = bar.ts_close
    out.filled[i] = bar.filled != 0
    out.contract[i] = bar.contract
    out.row_30m[i] = state.rows[1] - 1
    for c in range(row.size):
        out.base[c, i] = row[c]
    out.size[0] = i + 1
    state.rows[0] += 1


@nb.njit(cache=True)
def run(
    state: Any, params: Any, out: Any, kind: int, source_width: int, ts: IntArray, open_: FloatArray,
    high: FloatArray, low: FloatArray, close: FloatArray, volume: FloatArray, contract: Int32Array,
) -> None:  # fmt: skip
    """Run events of one kind through the pipeline; `out` must have room (see `bound_rows`).

    BARS: source bars of `source_width`. TICKS: `close` is the price, `volume` the size. CLOCK: `ts` is now.
    """
    state, params, out = unowned(state), unowned(params), unowned(out)
    g = state.generator[0]
    width, max_fill = params.width, params.max_fill
    for i in range(ts.size):
        if kind == BARS:
            closed = bars.push_bar(g, state.queue, width, max_fill, source_width, ts[i], open_[i], high[i], low[i],
                                   close[i], volume[i], contract[i])  # fmt: skip
        elif kind == TICKS:
            closed = bars.push_tick(g, state.queue, width, max_fill, params.max_disorder, ts[i], close[i],
                                    volume[i], contract[i])  # fmt: skip
        else:
            closed = bars.advance(g, state.queue, width, ts[i])
        for j in range(closed):
            step(state, params, state.queue[j], out)


@nb.njit(cache=True)
def bound_rows(ts: IntArray, width: int, max_fill: int) -> int:
    """How many bars of `width` events at `ts` touch, with gaps of up to `max_fill` bars between them filled."""
    rows = 0
    last = bars.NEVER
    for i in range(ts.size):
        start = ts[i] - ts[i] % width
        if start >= last:
            missing = (start - last) // width if rows > 0 else 0
            rows += 1 + (missing if missing <= max_fill else 0)
            last = start + width
    return rows
