"""Features for callers who hold raw bars: a state of the pipeline by its id, and the decision inputs behind it.

A state is a value: the pipeline's snapshot behind some bar, and as many of the last feature rows as a decision
looks back on. Its id says through when, and is a hash of the configuration and of every bar before, so two
replicas that hold the same id decide on the same features. No state is ever only here: the first is built from the
catalog, each further one from a state and the bars of a request, and a replica that does not know an id says from
where on it needs the bars again.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field

from algospace.config import FrozenConfig
from algospace.errors import ConfigError, InputError, SchemaError
from algospace.features import FeatureStream, FeatureTable
from algospace.features.market_table import MarketTable
from algospace.features.matrices import assemble
from algospace.features.matrix_schema import MatrixSchema
from algospace.marketdata.catalog import Catalog
from algospace.types import Bars
from envs.opportunities import low_volume_nodes
from serving.bundle import Bundle
from serving.decider import DecisionInputs, MarketState

_HASH = 32
_ROW = np.dtype([("ts_open", "<i8"), ("open", "<f8"), ("high", "<f8"), ("low", "<f8"), ("close", "<f8"),
                 ("volume", "<f8"), ("contract", "<i4")])
_MOST_ABSENT = 10_000
"""Ids that were not found, kept so that nothing is built for them again."""
_LOOK_BACK = 3
"""Base rows before the first one whose 30-minute bar is kept: a node's level refers to the row before its bar."""


class FeatureSettings(FrozenConfig):
    """`catalog`: folder of bars (`algospace data import`); without it the service takes features only."""

    catalog: Path | None = None
    start: date | None = None
    """First day of the history, UTC; all of it by default. Another start is another state."""
    states: int = Field(default=32, ge=2)
    """States that a replica keeps."""
    bars: int = Field(default=1000, ge=1)
    """Bars in one request; more of them need a larger `max_body_bytes`, too (up to 240 bytes each)."""


class UnknownState(Exception):
    """A state_id that this replica neither holds nor can build from the catalog."""


class Building(Exception):
    """A state is being built for someone else; known states are given meanwhile."""


@dataclass(frozen=True)
class FeatureState:
    """The pipeline behind the last source bar that closed at `through_ns` (UTC). `history`: SHA-256 so far of the
    configuration and all bars (not of the snapshot, whose spare room depends on how the bars were divided)."""

    id: str
    through_ns: int
    width_ns: int
    snapshot: bytes
    tail: Tail
    history: Any


class FeatureStates:
    """The states of one bundle's pipeline. Calls may come from several threads; ConfigError where there is no
    catalog, or the bundle's features are not those of its configuration alone."""

    def __init__(self, bundle: Bundle, settings: FeatureSettings) -> None:
        self._instrument, self._config = bundle.instrument, bundle.manifest.features
        self._schema, self._settings = bundle.schema, settings
        self.schema_hash = bundle.manifest.schema_hash
        self._known: OrderedDict[str, FeatureState] = OrderedDict()
        self._absent: OrderedDict[str, None] = OrderedDict()
        self._base: FeatureState | None = None
        self._lock, self._builds = threading.Lock(), threading.Lock()

    def base(self) -> FeatureState:
        """The state behind the catalog's last bar, built on first use."""
        if self._base is None:
            with self._builds:
                if self._base is None:
                    self._base = self._keep(self._build(None))
        return self._base

    def get(self, state_id: str) -> FeatureState:
        """The state with this id, built from the catalog if need be; UnknownState otherwise, Building if it would
        have to be built while another is."""
        with self._lock:
            known = self._known.get(state_id)
            if known is not None:
                self._known.move_to_end(state_id)
                return known
            absent = state_id in self._absent
        base = self.base()
        if state_id == base.id:
            return base
        through = state_id.partition("-")[0]
        plausible = through.isascii() and through.isdigit() and len(through) < _HASH
        if absent or not plausible or int(through) >= base.through_ns:
            raise UnknownState(state_id)
        return self._rebuild(state_id, int(through))

    def _rebuild(self, state_id: str, through_ns: int) -> FeatureState:
        """The catalog's state at that time if it has this id. Half a minute of work for years of bars that anyone
        who may decide can ask for: so only one at a time, and never twice in vain."""
        if not self._builds.acquire(blocking=False):
            raise Building(state_id)
        try:
            built = self._build(through_ns)
        except UnknownState:
            built = None
        finally:
            self._builds.release()
        if built is not None and built.id == state_id:
            return self._keep(built)
        with self._lock:
            self._absent[state_id] = None
            while len(self._absent) > _MOST_ABSENT:
                self._absent.popitem(last=False)
        raise UnknownState(state_id)

    def advance(self, state: FeatureState, bars: Bars) -> FeatureState:
        """The state behind these bars; InputError if one does not follow, or breaks a rule."""
        if len(bars) == 0:
            return state
        if int(bars.ts_open[0]) < state.through_ns:
            raise InputError("bars", f"the first opens at {int(bars.ts_open[0])}, the state holds all until "
                             f"{state.through_ns}", "send only what is behind the state")
        stream = self._stream(state.width_ns)
        stream.restore(state.snapshot)
        before = stream.late, stream.invalid
        table = stream.extend(bars)
        if (stream.late, stream.invalid) != before:
            raise InputError("bars", "a bar is out of order, or a price breaks a rule", "send them as they closed")
        return self._keep(_state(stream, state.tail.then(table, self._schema), bars, state.history.copy()))

    def _build(self, until_ns: int | None) -> FeatureState:
        if self._settings.catalog is None:
            raise ConfigError("no catalog is configured (features.catalog): send feature matrices")
        start, symbol = self._settings.start, self._instrument.symbol
        start_ns = None if start is None else int(
            datetime(start.year, start.month, start.day, tzinfo=UTC).timestamp()) * 10**9
        bars = Catalog(self._settings.catalog).read(symbol, start_ns, as_of_ns=until_ns)
        if len(bars) == 0 and until_ns is not None:
            raise UnknownState(str(until_ns))
        if len(bars) == 0:
            raise ConfigError(f"{self._settings.catalog}: holds no bars of {symbol} there")
        stream = self._stream(bars.width_ns)
        history = hashlib.sha256(f"{symbol} {stream.digest} {bars.width_ns}".encode())
        return _state(stream, Tail(stream.extend(bars), 0).cut(self._schema), bars, history)

    def _stream(self, width_ns: int) -> FeatureStream:
        stream = FeatureStream(self._instrument, self._config, width_ns)
        if stream.digest != self._schema.features:
            raise ConfigError("the bundle's features hold more than its configuration knows (further columns): "
                              "send feature matrices")
        return stream

    def _keep(self, state: FeatureState) -> FeatureState:
        with self._lock:
            self._known[state.id] = state
            self._known.move_to_end(state.id)
            while len(self._known) > self._settings.states:
                self._known.popitem(last=False)
            return state

    def market(self, state: FeatureState) -> MarketTable:
        """The last rows as a backtest would see them."""
        return assemble(state.tail.table, self._schema, self._instrument)


def _state(stream: FeatureStream, tail: Tail, bars: Bars, history: Any) -> FeatureState:
    """The state of `stream` behind `bars`, its last ones; `history` is of the bars before."""
    rows = np.zeros(len(bars), _ROW)
    for name in _ROW.names or ():
        rows[name] = getattr(bars, name)
    history.update(rows.tobytes())
    through = int(bars.ts_open[-1]) + bars.width_ns
    state_id = f"{through}-{history.hexdigest()[:_HASH]}"
    return FeatureState(state_id, through, bars.width_ns, stream.snapshot(), tail, history)


class Tail(NamedTuple):
    """The last feature rows of a history; `slow_first` is the number, in the whole history, of the first 30-minute
    row that is here."""

    table: FeatureTable
    slow_first: int

    def then(self, block: FeatureTable, schema: MatrixSchema) -> Tail:
        """The last rows once the history goes on with `block`, whose `row_30m` count in the whole history."""

        def both(a: Any, b: Any) -> Any:
            return np.concatenate((a, b))

        mine = self.table
        seen = np.maximum(block.row_30m - self.slow_first, -1)
        return Tail(replace(
            mine, ts_close=both(mine.ts_close, block.ts_close), filled=both(mine.filled, block.filled),
            contract=both(mine.contract, block.contract),
            base={name: both(values, block.base[name]) for name, values in mine.base.items()},
            ts_close_30m=both(mine.ts_close_30m, block.ts_close_30m),
            slow={name: both(values, block.slow[name]) for name, values in mine.slow.items()},
            row_30m=both(mine.row_30m, seen).astype(np.int32)), self.slow_first).cut(schema)

    def cut(self, schema: MatrixSchema) -> Tail:
        """As much of the end as the last row's decision looks back on."""
        table = self.table
        n, m = len(table), int(table.ts_close_30m.size)
        slow = max(0, m - max(schema.strategic.window, schema.regime.window))
        reached = np.flatnonzero(table.row_30m >= slow)
        first = min(n - schema.tactical.window, int(reached[0]) if reached.size else n)
        first = max(0, first - _LOOK_BACK)
        return Tail(replace(
            table, ts_close=table.ts_close[first:].copy(), filled=table.filled[first:].copy(),
            contract=table.contract[first:].copy(),
            base={name: values[first:].copy() for name, values in table.base.items()},
            ts_close_30m=table.ts_close_30m[slow:].copy(),
            slow={name: values[slow:].copy() for name, values in table.slow.items()},
            row_30m=np.maximum(table.row_30m[first:] - slow, -1).astype(np.int32)), self.slow_first + slow)


def row_inputs(market: MarketTable, row: int, account: Any, seed: int) -> DecisionInputs:
    """What a decision at `row` takes, with the regime window for the bundle's RDE (see BundlePolicy.inputs).

    SchemaError if the windows before the row are not complete.
    """
    schema = market.schema
    if len(market) == 0 or not market.decision[row]:
        raise SchemaError("the last row is no decision point: its windows are incomplete, or nothing traded in it")

    def window(values: Any, last: int, length: int) -> Any:
        return np.ascontiguousarray(values[last - length + 1:last + 1])

    slow = int(market.row_30m[row])
    sin, cos = market.clock[row].tolist()
    distance, strength = low_volume_nodes(market)[row].tolist()
    state = MarketState(float(market.close[row]), float(market.atr[row]), (sin, cos),
                        np.array(market.synergy[row], np.float32), (distance, strength), int(market.ts_close[row]))
    return DecisionInputs(window(market.strategic, slow, schema.strategic.window),
                          window(market.tactical, row, schema.tactical.window),
                          window(market.regime, slow, schema.regime.window), state, account, seed)
