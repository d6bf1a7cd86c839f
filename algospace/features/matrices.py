"""From feature rows to the float32 matrices of the networks: fitting on the training split, batch and stream.

Strategic and regime rows are 30-minute bars scaled by their own close and ATR, tactical rows base bars by theirs.
`assemble` scales whole columns and `MatrixAssembler` one row at a time; both run `scale_value`, so they are equal
to the bit. A row that is not complete (warm-up) is all zeros, and `decision` is False while a window holds one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numba as nb
import numpy as np

from algospace.calendars import trading_day
from algospace.errors import ConfigError, SchemaError
from algospace.features.market_table import MarketTable
from algospace.features.matrix_schema import (
    KINDS,
    ODD,
    ColumnSpec,
    MatrixConfig,
    MatrixSchema,
    MatrixSpec,
    column_rule,
    column_specs,
)
from algospace.features.table import FeatureTable
from algospace.instruments import Instrument
from algospace.types import BoolArray, Float32Array, FloatArray, IntArray

if TYPE_CHECKING:
    from algospace.features.driver import FeatureRow

__all__ = ["ColumnSpec", "MatrixAssembler", "MatrixConfig", "MatrixSchema", "MatrixSpec", "Normaliser", "assemble"]

BASE_ATR, SLOW_ATR = "atr_5m", "atr_30m"
_LEVEL, _DIFFERENCE, _MLMI, _AGE, _RATIO, _FLAG, _ROBUST = range(len(KINDS))
_MAD_TO_SIGMA = 1.482602218505602  # of a normal distribution


class Normaliser:
    """Fits the scaling of the robust columns."""

    @staticmethod
    def fit(table: FeatureTable, config: MatrixConfig, train_end_ns: int) -> MatrixSchema:
        """Schema with the statistics of the rows that were closed by `train_end_ns` (UTC ns).

        centre: median; for odd columns the value that mirroring keeps (it must stay a change of sign). scale:
        median absolute deviation from the centre as a normal sigma; where more than half of the values are equal,
        the root mean square deviation; 1 for a constant. ConfigError if a column is absent or has no value in the
        training split.
        """
        base_rows, slow_rows = table.ts_close <= train_end_ns, table.ts_close_30m <= train_end_ns
        tactical = config.tactical + config.tactical_extra

        def spec(names: tuple[str, ...], window: int, columns: Mapping[str, FloatArray], rows: BoolArray
                 ) -> MatrixSpec:
            robust = [name for name in names if column_rule(name)[0] == "robust"]
            statistics = {name: _robust(name, _column(columns, name)[rows]) for name in robust}
            return MatrixSpec(window, column_specs(names, statistics))

        return MatrixSchema(
            strategic=spec(config.strategic, config.strategic_window, table.slow, slow_rows),
            tactical=spec(tactical, config.tactical_window, table.base, base_rows),
            regime=spec(config.regime, config.regime_window, table.slow, slow_rows),
            clip=config.clip, atr_clip=config.atr_clip, features=table.config_digest)


def _column(columns: Mapping[str, FloatArray], name: str) -> FloatArray:
    try:
        return columns[name]
    except KeyError:
        raise ConfigError(f"the feature table has no column '{name}' (without the regime columns there are no LVN "
                          f"and MMD columns); compute it or leave it out of the matrices") from None


def _robust(name: str, values: FloatArray) -> tuple[float, float]:
    """(centre, scale) of the finite values."""
    values = values[np.isfinite(values)]
    if values.size == 0:
        raise ConfigError(f"column '{name}' has no value in the training split; the warm-up takes about 7 trading "
                          f"days of 30-minute bars: give more history or a later end of training")
    _, sign, middle = column_rule(name)
    centre = middle if sign == ODD else float(np.median(values))
    deviation = np.abs(values - centre)
    tiny = 1e-9 * max(abs(centre), float(deviation.max()))
    for scale in (_MAD_TO_SIGMA * float(np.median(deviation)), float(np.sqrt(np.mean(deviation**2)))):
        if scale > tiny:
            return centre, scale
    return centre, 1.0


@nb.njit(inline="always")
def _bounded(value: float, bound: float) -> Any:
    return -bound if value < -bound else (bound if value > bound else value)


@nb.njit(cache=True)
def scale_value(
    kind: int, value: float, close: float, atr: float, centre: float, scale: float, clip: float, atr_clip: float
) -> Any:
    """One value scaled by its kind (see `matrix_schema.KINDS`); `atr` in points, > 0."""
    if kind == _ROBUST:
        return _bounded((value - centre) / scale, clip)
    if kind == _LEVEL:
        return _bounded((value - close) / atr, atr_clip)
    if kind == _DIFFERENCE:
        return _bounded(value / atr, atr_clip)
    if kind == _MLMI:
        return (value - 50.0) / 50.0
    if kind == _AGE:
        return math.exp(-value / 10.0)
    if kind == _RATIO:
        return math.log1p(value)
    return value


@nb.njit(cache=True)
def _scale_column(
    kind: int, values: FloatArray, close: FloatArray, atr: FloatArray, tick: float, centre: float, scale: float,
    clip: float, atr_clip: float, out: Float32Array
) -> None:
    for i in range(values.size):
        unit = tick if atr[i] == 0.0 else atr[i]  # a market without any range: measure in ticks
        out[i] = scale_value(kind, values[i], close[i], unit, centre, scale, clip, atr_clip)


@nb.njit(cache=True)
def _scale_row(
    row: FloatArray, places: IntArray, kinds: IntArray, centres: FloatArray, scales: FloatArray, close_at: int,
    atr_at: int, tick: float, clip: float, atr_clip: float, out: Float32Array
) -> bool:
    """Scale one feature row into `out`; False, and zeros, if it is not complete."""
    unit = tick if row[atr_at] == 0.0 else row[atr_at]
    complete = bool(np.isfinite(unit))
    for c in range(places.size):
        out[c] = scale_value(kinds[c], row[places[c]], row[close_at], unit, centres[c], scales[c], clip, atr_clip)
        complete = complete and bool(np.isfinite(out[c]))
    if not complete:
        out[:] = 0.0
    return complete


def _scale_matrix(
    columns: Mapping[str, FloatArray], spec: MatrixSpec, atr_name: str, schema: MatrixSchema, tick: float
) -> tuple[Float32Array, BoolArray]:
    """(n, F) normalised rows and which of them are complete."""
    close, atr = _column(columns, "close"), _column(columns, atr_name)
    by_column = np.empty((spec.width, close.size), np.float32)
    for out, column in zip(by_column, spec.columns, strict=True):
        values = np.ascontiguousarray(_column(columns, column.name))
        _scale_column(KINDS.index(column.kind), values, close, atr, tick, column.centre, column.scale, schema.clip,
                      schema.atr_clip, out)
    complete = np.isfinite(by_column).all(axis=0) & np.isfinite(atr)
    by_column[:, ~complete] = 0.0
    return np.ascontiguousarray(by_column.T), complete


def _window_complete(complete: BoolArray, window: int) -> BoolArray:
    """Row i: the last `window` rows up to i exist and are complete."""
    good = np.concatenate([np.zeros(1, np.int64), np.cumsum(complete)])
    result = np.zeros(complete.size, np.bool_)
    if complete.size >= window:
        result[window - 1:] = good[window:] - good[:-window] == window
    return result


def assemble(table: FeatureTable, schema: MatrixSchema, instrument: Instrument) -> MarketTable:
    """The market table of a feature table: normalised matrices, raw prices, decision rows.

    ConfigError if a column of the schema is absent; SchemaError if the table is of another instrument or of
    another feature configuration than the schema was fitted on.
    """
    if table.symbol != instrument.symbol:
        raise SchemaError(f"feature table of {table.symbol} given with {instrument.symbol}; give its instrument")
    if table.config_digest != schema.features:
        raise SchemaError(f"feature table of configuration {table.config_digest[:12]}, but the schema was fitted "
                          f"on {schema.features[:12]}; build the features with the model's configuration")
    base, tick = table.base, instrument.tick_size
    tactical, tactical_complete = _scale_matrix(base, schema.tactical, BASE_ATR, schema, tick)
    strategic, strategic_complete = _scale_matrix(table.slow, schema.strategic, SLOW_ATR, schema, tick)
    regime, regime_complete = _scale_matrix(table.slow, schema.regime, SLOW_ATR, schema, tick)
    slow_ready = (_window_complete(strategic_complete, schema.strategic.window)
                  & _window_complete(regime_complete, schema.regime.window))
    visible = table.row_30m >= 0
    decision = ~table.filled & _window_complete(tactical_complete, schema.tactical.window) & visible
    decision[visible] &= slow_ready[table.row_30m[visible]]

    factor = base["roll_factor"]
    roll = np.ones(len(table))
    roll[1:] = factor[:-1] / factor[1:]
    session = instrument.session
    return MarketTable(
        symbol=table.symbol, schema=schema, ts_close=table.ts_close, open=base["open"] / factor,
        high=base["high"] / factor, low=base["low"] / factor, close=base["close"] / factor, roll=roll,
        atr=base[BASE_ATR] / factor, atr_30m=base[SLOW_ATR] / factor,
        # The bar's own day: a bar that closes at the session's start belongs to the day that ends there.
        day=trading_day(table.ts_close - 1, session.zone, session.day_start_hour).astype(np.int32),
        clock=np.stack([base["hour_sin"], base["hour_cos"]], axis=1).astype(np.float32),
        filled=np.asarray(table.filled, np.bool_), decision=decision,
        synergy=np.stack([base["synergy_type"] / 4.0, base["synergy_direction"], base["synergy_bars"] / 10.0],
                         axis=1).astype(np.float32),
        synergy_event=base["synergy_type"] > 0.0, row_30m=table.row_30m, tactical=tactical, strategic=strategic,
        regime=regime)


class _Window:
    """The last rows of one matrix, scaled as they come."""

    def __init__(self, spec: MatrixSpec, columns: Sequence[str], atr_name: str, schema: MatrixSchema,
                 tick: float) -> None:
        places = {name: place for place, name in enumerate(columns)}
        missing = [name for name in (*spec.names, "close", atr_name) if name not in places]
        if missing:
            raise SchemaError(f"feature rows have no column '{missing[0]}' that the schema needs")
        self.rows = np.zeros((spec.window, spec.width), np.float32)
        self.complete = 0  # rows in sequence up to the last
        at = np.array([places[name] for name in spec.names], np.int64)
        self._scaling = (at, spec.kinds, spec.centres, spec.scales, places["close"], places[atr_name], tick,
                         schema.clip, schema.atr_clip)

    def push(self, row: FloatArray) -> Float32Array:
        self.rows[:-1] = self.rows[1:]
        complete = _scale_row(row, *self._scaling, self.rows[-1])
        self.complete = self.complete + 1 if complete else 0
        return self.rows[-1]

    @property
    def ready(self) -> bool:
        return self.complete >= len(self.rows)


class MatrixAssembler:
    """The matrices of a live market, row by row; equal to the rows of `assemble` to the bit.

    `push` takes a row of the feature stream; by hand, 30-minute rows go before the base row in which they become
    visible. `strategic`, `tactical`, `regime` are (window, F) float32, oldest row first; they, and the rows that
    the methods return, are views that the next push changes.
    """

    def __init__(self, schema: MatrixSchema, instrument: Instrument, base_columns: Sequence[str],
                 slow_columns: Sequence[str]) -> None:
        """`base_columns`, `slow_columns`: names of the values in the rows that will be pushed."""
        tick = instrument.tick_size
        self.schema = schema
        self._tactical = _Window(schema.tactical, base_columns, BASE_ATR, schema, tick)
        self._strategic = _Window(schema.strategic, slow_columns, SLOW_ATR, schema, tick)
        self._regime = _Window(schema.regime, slow_columns, SLOW_ATR, schema, tick)
        self._filled = True
        self._filled_at = list(base_columns).index("filled")

    def push(self, row: FeatureRow) -> Float32Array:
        """Take one row of a `FeatureStream`; returns its tactical row."""
        for slow in row.slow:
            self.push_slow(slow)
        return self.push_base(row.base)

    def push_slow(self, row: FloatArray) -> tuple[Float32Array, Float32Array]:
        """Take a 30-minute feature row (float64); returns its strategic and regime row."""
        return self._strategic.push(row), self._regime.push(row)

    def push_base(self, row: FloatArray) -> Float32Array:
        """Take a base feature row (float64); returns its tactical row."""
        self._filled = bool(row[self._filled_at] != 0.0)
        return self._tactical.push(row)

    @property
    def decision(self) -> bool:
        """The last base row is a real bar and all windows are complete."""
        return not self._filled and self._tactical.ready and self._strategic.ready and self._regime.ready

    @property
    def strategic(self) -> Float32Array:
        return self._strategic.rows

    @property
    def tactical(self) -> Float32Array:
        return self._tactical.rows

    @property
    def regime(self) -> Float32Array:
        return self._regime.rows
