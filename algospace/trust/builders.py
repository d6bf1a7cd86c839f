"""What the checks compute of a history: all feature columns, and the matrices and decision mask made of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from algospace.errors import ConfigError
from algospace.features import FeatureConfig, FeatureStream, FeatureTable, Indicator, SourceBar
from algospace.features.driver import FeatureRow, build
from algospace.features.market_table import MarketTable
from algospace.features.matrices import MatrixAssembler, MatrixConfig, MatrixSchema, Normaliser, assemble
from algospace.features.matrix_schema import MatrixSpec
from algospace.features.own import FrameIndicator, build_with_own, step_indicators
from algospace.instruments import Instrument
from algospace.trust.lookahead import Live, Rows
from algospace.types import AnyArray, Bars, IntArray

BASE, SLOW, TACTICAL, STRATEGIC, REGIME, MARKET = "base", "30m", "tactical", "strategic", "regime", "market"


@dataclass
class Features:
    """Builder of all columns of one instrument, to be cut and pushed by the checks.

    schema: of the matrices; fixed, because its statistics are part of the model, not of the history. None leaves
    the matrices out.

    Indicators of the frame form are loaded anew for every table: what a file keeps of one run in a global (a
    fitted scaler, say) would make the whole history and its parts equal, and hide that it comes from the whole.
    """

    instrument: Instrument
    config: FeatureConfig = field(default_factory=FeatureConfig)
    indicators: Sequence[Indicator | FrameIndicator] = ()
    schema: MatrixSchema | None = None
    _fitted_here: bool = field(default=False, init=False)

    def table(self, bars: Bars) -> FeatureTable:
        fresh = [i.anew() if isinstance(i, FrameIndicator) else i for i in self.indicators]
        return build_with_own(bars, self.instrument, self.config, fresh)

    def __call__(self, bars: Bars) -> dict[str, Rows]:
        """Everything computed of `bars`."""
        table = self.table(bars)
        groups = table_rows(table)
        if self.schema is not None and len(table):
            schema = replace(self.schema, features=table.config_digest) if self._fitted_here else self.schema
            groups |= market_rows(assemble(table, schema, self.instrument), groups)
        return groups

    def fit(self, bars: Bars) -> str | None:
        """Fit the matrices' schema on the first half of `bars`; the reason if that is impossible.

        The indicators do not take part: they must not have seen these bars when the first table is built.
        """
        if not self.config.regime:
            return "matrices not checked: they need the regime columns"
        table = build(bars, self.instrument, self.config)
        try:
            self.schema = Normaliser.fit(table, MatrixConfig(), int(table.ts_close[len(table) // 2]))
        except (ConfigError, IndexError) as error:
            return f"matrices not checked: {error}"
        self._fitted_here = True
        return None


def table_rows(table: FeatureTable) -> dict[str, Rows]:
    """Both groups of a feature table. A base row is known at its close, a 30-minute row when a base row first sees
    it: one that a break cut short is closed by the first base bar after the break."""
    seen = np.searchsorted(table.row_30m, np.arange(table.ts_close_30m.size))
    visible = np.append(table.ts_close, np.iinfo(np.int64).max)[seen]
    index: dict[str, AnyArray] = {"row_30m": table.row_30m, "contract": table.contract}
    return {BASE: Rows(table.ts_close, {**index, **table.base}),
            SLOW: Rows(visible, {"ts_close": table.ts_close_30m, **table.slow})}


def market_rows(market: MarketTable, groups: Mapping[str, Rows]) -> dict[str, Rows]:
    """The matrices column by column, and what an environment reads beside them."""
    base, slow = groups[BASE].ts_known, groups[SLOW].ts_known
    scalars: dict[str, AnyArray] = {name: getattr(market, name) for name in (
        "decision", "open", "high", "low", "close", "roll", "atr", "atr_30m", "day", "synergy_event")}
    scalars |= {f"clock_{i}": market.clock[:, i] for i in range(market.clock.shape[1])}
    scalars |= {f"synergy_{i}": market.synergy[:, i] for i in range(market.synergy.shape[1])}
    return {TACTICAL: _matrix(base, market.tactical, market.schema.tactical),
            STRATEGIC: _matrix(slow, market.strategic, market.schema.strategic),
            REGIME: _matrix(slow, market.regime, market.schema.regime), MARKET: Rows(base, scalars)}


def _matrix(ts_known: IntArray, rows: AnyArray, spec: MatrixSpec) -> Rows:
    return Rows(ts_known, {name: rows[:, place] for place, name in enumerate(spec.names)})


def live_twin(features: Features) -> Features:
    """`features` without frame indicators, which cannot run in a stream."""
    steps = [i for i in features.indicators if isinstance(i, Indicator)]
    digest = FeatureStream(features.instrument, features.config, indicators=steps).digest
    schema = None if features.schema is None else replace(features.schema, features=digest)
    return Features(features.instrument, features.config, steps, schema)


def live_builder(features: Features) -> Live:
    """Of a `live_twin`: history warms a stream, which then takes the stretch event by event."""

    def live(bars: Bars, start: int, stop: int) -> tuple[dict[str, Rows], dict[str, int]]:
        steps = step_indicators(features.indicators)
        stream = FeatureStream(features.instrument, features.config, bars.width_ns, steps)
        warm = stream.extend(bars.slice(0, start)) if start else None
        base, slow = (len(warm), warm.ts_close_30m.size) if warm is not None else (0, 0)
        recorder = _Recorder(features, stream)
        if warm is not None:
            recorder.warm(warm)
        for event in _events(bars.slice(start, stop)):
            for row in stream.push(event):
                recorder.take(row)
        first = {BASE: base, MARKET: base, TACTICAL: base, SLOW: slow, STRATEGIC: slow, REGIME: slow}
        return recorder.groups(), first

    return live


class _Recorder:
    """Collects what a stream emits, as the groups that `Features` builds of a history."""

    def __init__(self, features: Features, stream: FeatureStream) -> None:
        self._names, self._slow_names = stream.base_columns, stream.slow_columns
        self._schema = features.schema
        self._assembler = None if features.schema is None else MatrixAssembler(
            features.schema, features.instrument, self._names, self._slow_names)
        self._rows: list[FeatureRow] = []
        self._matrices: dict[str, list[AnyArray]] = {TACTICAL: [], STRATEGIC: [], REGIME: []}
        self._decisions: list[bool] = []

    def warm(self, table: FeatureTable) -> None:
        """Fill the matrices' windows with the last rows of a history."""
        if self._assembler is None or self._schema is None:
            return
        slow_window = max(self._schema.strategic.window, self._schema.regime.window)
        slow = np.stack([table.slow[name] for name in self._slow_names], axis=1)
        base = np.stack([table.base[name][-self._schema.tactical.window:] for name in self._names], axis=1)
        for row in slow[-slow_window:]:
            self._assembler.push_slow(row)
        for row in base:
            self._assembler.push_base(row)

    def take(self, row: FeatureRow) -> None:
        """One row of the stream."""
        self._rows.append(row)
        if self._assembler is None:
            return
        for slow in row.slow:
            strategic, regime = self._assembler.push_slow(slow)
            self._matrices[STRATEGIC].append(strategic.copy())
            self._matrices[REGIME].append(regime.copy())
        self._matrices[TACTICAL].append(self._assembler.push_base(row.base).copy())
        self._decisions.append(self._assembler.decision)

    def groups(self) -> dict[str, Rows]:
        """Everything taken so far."""
        ts = np.array([row.ts_close for row in self._rows], np.int64)
        base = np.array([row.base for row in self._rows]).reshape(ts.size, len(self._names))
        slow = np.concatenate([np.zeros((0, len(self._slow_names))), *(row.slow for row in self._rows)])
        seen = np.repeat(ts, [row.ts_close_30m.size for row in self._rows])
        index: dict[str, AnyArray] = {name: np.array([getattr(row, name) for row in self._rows], np.int32)
                                      for name in ("row_30m", "contract")}
        closes = np.concatenate([np.zeros(0, np.int64), *(row.ts_close_30m for row in self._rows)])
        groups = {BASE: Rows(ts, {**index, **_named(self._names, base)}),
                  SLOW: Rows(seen, {"ts_close": closes, **_named(self._slow_names, slow)})}
        if self._schema is not None:
            for name, known in ((TACTICAL, ts), (STRATEGIC, seen), (REGIME, seen)):
                spec: MatrixSpec = getattr(self._schema, name)
                rows = np.array(self._matrices[name], np.float32).reshape(known.size, spec.width)
                groups[name] = _matrix(known, rows, spec)
            groups[MARKET] = Rows(ts, {"decision": np.array(self._decisions, np.bool_)})
        return groups


def live_whole(features: Features, bars: Bars) -> dict[str, Rows]:
    """What history says about everything that a live stream emits: of the market's columns the decision mask."""
    groups = features(bars)
    if MARKET in groups:
        groups[MARKET] = Rows(groups[MARKET].ts_known, {"decision": groups[MARKET].columns["decision"]})
    return groups


def _named(names: Sequence[str], values: AnyArray) -> dict[str, AnyArray]:
    return {name: values[:, place] for place, name in enumerate(names)}


def _events(bars: Bars) -> Iterator[SourceBar]:
    columns = (bars.ts_open, bars.open, bars.high, bars.low, bars.close, bars.volume, bars.contract)
    return (SourceBar(*event) for event in zip(*(column.tolist() for column in columns), strict=True))
