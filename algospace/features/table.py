"""The feature table: what is known at every base bar's close, before normalisation."""

from __future__ import annotations

from dataclasses import dataclass

from algospace.types import BoolArray, FloatArray, Int32Array, IntArray


@dataclass(frozen=True)
class FeatureTable:
    """Feature rows of one instrument.

    base: column -> (n,) float64, one row per base bar; prices `open, high, low, close` are roll-adjusted,
        raw price = adjusted / `roll_factor`; the 30-minute columns are there too, held until the next one.
    slow: column -> (m,) float64, one row per 30-minute bar (its own close, its own time features).
    row_30m: (n,) index of the last 30-minute bar visible at each base row, -1 before the first.
    contract: (n,) contract code at the bar's close.
    config_digest: of the FeatureConfig that the rows were computed with; part of the schema hash.
    Rows of the warm-up are kept, with NaN.
    """

    symbol: str
    ts_close: IntArray
    filled: BoolArray
    contract: Int32Array
    base: dict[str, FloatArray]
    ts_close_30m: IntArray
    slow: dict[str, FloatArray]
    row_30m: Int32Array
    config_digest: str = ""

    def __len__(self) -> int:
        return int(self.ts_close.size)
