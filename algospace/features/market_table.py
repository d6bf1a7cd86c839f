"""The market table: everything that environments, agents and backtests read, row by row, without copying.

Built once from a feature table and a normaliser fitted on the training split; saved as a folder of `.npy` files
that every process maps into memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from algospace.features.matrices import MatrixSchema
from algospace.types import BoolArray, Float32Array, FloatArray, Int32Array, IntArray


@dataclass(frozen=True)
class MarketTable:
    """n base rows, m 30-minute rows. Observations are row numbers into these arrays.

    Prices are raw (unadjusted) points. `roll[i]` is 1 except on the first row of a new contract, where a price
    level of the old contract times `roll[i]` is the same level in the new one.
    `atr` and `atr_30m` are in raw points. `day` is the trading day (days since 1970).
    `clock` is (hour_sin, hour_cos) of ts_close in exchange time.
    `decision[i]` is True where the policy may act: a real (not filled) bar whose windows are complete.
    `synergy` is (type/4, direction, bars/10); `synergy_event[i]` is True where a synergy was detected on row i.
    `tactical` (n, Ft), `strategic` (m, Fs), `regime` (m, Fr) are normalised feature rows; the window of row i
    is tactical[i-window+1 : i+1], and for 30-minute matrices rows row_30m[i]-window+1 : row_30m[i]+1.
    """

    symbol: str
    schema: MatrixSchema
    ts_close: IntArray
    open: FloatArray
    high: FloatArray
    low: FloatArray
    close: FloatArray
    roll: FloatArray
    atr: FloatArray
    atr_30m: FloatArray
    day: Int32Array
    clock: Float32Array
    decision: BoolArray
    synergy: Float32Array
    synergy_event: BoolArray
    row_30m: Int32Array
    tactical: Float32Array
    strategic: Float32Array
    regime: Float32Array

    def __len__(self) -> int:
        return int(self.ts_close.size)
