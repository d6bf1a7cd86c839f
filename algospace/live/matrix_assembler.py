"""From feature rows to the agents' windows, as events."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from algospace.errors import SchemaError
from algospace.events import EventBus, IndicatorsReady, MatricesReady
from algospace.features import FeatureTable
from algospace.features.matrices import MatrixAssembler, MatrixSchema
from algospace.instruments import Instrument
from algospace.kernel import Component
from algospace.snapshots import pack_arrays, unpack_arrays
from algospace.types import AnyArray, Float32Array


class LiveMatrices(MatrixAssembler):
    """A MatrixAssembler whose state can be saved."""

    def arrays(self) -> dict[str, AnyArray]:
        """The windows, and (4,) how many rows of each are complete and whether the last bar was filled."""
        windows = (self._strategic, self._tactical, self._regime)
        counts = np.array([*(w.complete for w in windows), self._filled], np.int64)
        return {"strategic": self.strategic, "tactical": self.tactical, "regime": self.regime, "counts": counts}

    def adopt(self, strategic: Float32Array, tactical: Float32Array, regime: Float32Array, counts: AnyArray
              ) -> None:
        """Continue from `arrays`."""
        self._filled = bool(counts[3])
        for window, rows, complete in zip((self._strategic, self._tactical, self._regime),
                                          (strategic, tactical, regime), counts[:3], strict=True):  # fmt: skip
            window.rows[:] = rows
            window.complete = int(complete)


class MatrixComponent(Component):
    """Publishes MatricesReady for every feature row."""

    def __init__(self, instrument: Instrument, schema: MatrixSchema, features: str, base_columns: Sequence[str],
                 slow_columns: Sequence[str]) -> None:
        """`features`: the digest of the feature configuration; SchemaError if the schema was fitted on another."""
        if features != schema.features:
            raise SchemaError(f"features of configuration {features[:12]}, but the matrices' schema was fitted on "
                              f"{schema.features[:12]}; use the model's configuration")
        self.assembler = LiveMatrices(schema, instrument, base_columns, slow_columns)
        self._symbol = instrument.symbol
        self._base_columns, self._slow_columns = tuple(base_columns), tuple(slow_columns)

    def register(self, bus: EventBus) -> None:
        self._bus = bus
        bus.subscribe(IndicatorsReady, self.on_indicators, "matrix_assembler.on_indicators")

    def on_indicators(self, event: IndicatorsReady) -> None:
        """Move the windows on by one row."""
        if event.symbol != self._symbol:
            return
        windows = self.assembler
        windows.push(event.row)
        # Copies: the event may be kept, or delivered after the next row.
        copies = (windows.strategic.copy(), windows.tactical.copy(), windows.regime.copy())
        self._bus.publish(MatricesReady(self._symbol, event.row.ts_close, windows.decision, *copies))

    def push_history(self, table: FeatureTable) -> None:
        """Fill the windows with the last rows of a history."""
        schema = self.assembler.schema
        slow = _last_rows(table.slow, self._slow_columns, max(schema.strategic.window, schema.regime.window))
        for row in slow:
            self.assembler.push_slow(row)
        for row in _last_rows(table.base, self._base_columns, schema.tactical.window):
            self.assembler.push_base(row)

    def snapshot(self) -> bytes:
        return pack_arrays(self._identity(), self.assembler.arrays())

    def restore(self, blob: bytes) -> None:
        self.assembler.adopt(**unpack_arrays(self._identity(), blob, "matrices", self.assembler.arrays()))

    def _identity(self) -> dict[str, object]:
        return {"symbol": self._symbol, "schema": self.assembler.schema.digest()}


def _last_rows(columns: dict[str, AnyArray], names: Sequence[str], n: int) -> AnyArray:
    """(at most n, columns): the last rows, contiguous."""
    return np.ascontiguousarray(np.stack([columns[name][-n:] for name in names], axis=1))
