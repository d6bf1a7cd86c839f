"""Real windows of a market table as observations, mirrored where the environment's market is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from algospace.types import AnyArray, Float32Array

if TYPE_CHECKING:
    from algospace.features.market_table import MarketTable
    from algospace.features.matrix_schema import MatrixSpec

Observation = dict[str, AnyArray]
_SYNERGY_SIGN = np.array([1.0, -1.0, 1.0], np.float32)


class Observer:
    """Windows of row i, as known at its close; rows before the table's start are zeros.

    `regime_vectors` (2, m, R): the frozen RDE's output on the market and on its mirror image; without it the
    regime is the last row of the regime matrix.
    """

    def __init__(self, table: MarketTable, regime_vectors: Float32Array | None = None) -> None:
        self.table, self.schema, self.regime_vectors = table, table.schema, regime_vectors

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every part of `market`."""
        schema = self.schema
        regime = schema.regime.width if self.regime_vectors is None else self.regime_vectors.shape[2]
        return {"strategic": (schema.strategic.window, schema.strategic.width),
                "tactical": (schema.tactical.window, schema.tactical.width), "regime": (regime,), "synergy": (3,)}

    def market(self, row: int, sign: float) -> Observation:
        """strategic (Ws, Fs), tactical (Wt, Ft), regime (R,) and synergy (3,) of a row."""
        slow = int(self.table.row_30m[row])
        synergy = np.nan_to_num(np.asarray(self.table.synergy[row], np.float32))
        return {"strategic": _window(self.table.strategic, slow, self.schema.strategic, sign),
                "tactical": _window(self.table.tactical, row, self.schema.tactical, sign),
                "regime": self._regime(slow, sign), "synergy": synergy * _SYNERGY_SIGN if sign < 0.0 else synergy}

    def _regime(self, slow: int, sign: float) -> Float32Array:
        if self.regime_vectors is not None:
            vectors = self.regime_vectors[1 if sign < 0.0 else 0]
            return np.nan_to_num(np.asarray(vectors[max(slow, 0)], np.float32))
        return mirrored(_filled_rows(self.table.regime, slow, 1), self.schema.regime, sign)[0]


def _window(rows: Float32Array, last: int, spec: MatrixSpec, sign: float) -> Float32Array:
    return mirrored(_filled_rows(rows, last, spec.window), spec, sign)


def _filled_rows(rows: Float32Array, last: int, window: int) -> Float32Array:
    """Rows (last - window, last], zeros where there are none."""
    out = np.zeros((window, rows.shape[1]), np.float32)
    first = max(last + 1 - window, 0)
    if last >= 0:
        out[window - (last + 1 - first):] = rows[first:last + 1]
    return np.nan_to_num(out, copy=False)


def mirrored(rows: Float32Array, spec: MatrixSpec, sign: float) -> Float32Array:
    """The rows as the market with this sign shows them."""
    return rows if sign > 0.0 else rows[:, spec.mirror] * spec.sign
