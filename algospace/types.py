"""Central types. The glossary of the project, used literally in names:

tick       one trade print: ts (int64 UTC ns), price, size
bar        OHLCV over the half-open interval [ts_open, ts_close); known only from ts_close on
base bar   the 5-minute bar: the clock of decisions
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]
Int8Array = npt.NDArray[np.int8]
BoolArray = npt.NDArray[np.bool_]
AnyArray = npt.NDArray[Any]

SECOND_NS = 1_000_000_000
MINUTE_NS = 60 * SECOND_NS
HOUR_NS = 60 * MINUTE_NS
DAY_NS = 24 * HOUR_NS
BASE_BAR_NS = 5 * MINUTE_NS
SLOW_BAR_NS = 30 * MINUTE_NS


@dataclass(frozen=True)
class Bars:
    """Source bars of one instrument as parallel arrays of length n, in time order.

    ts_open int64 ns UTC; width_ns the nominal width; prices float64; volume float64 (NaN where the data
    has none); contract int32 codes (a change marks a futures roll; all zero without contracts).
    """

    ts_open: IntArray
    open: FloatArray
    high: FloatArray
    low: FloatArray
    close: FloatArray
    volume: FloatArray
    width_ns: int
    contract: Int32Array = field(default_factory=lambda: np.zeros(0, np.int32))

    def __post_init__(self) -> None:
        if self.contract.size == 0:
            object.__setattr__(self, "contract", np.zeros(self.ts_open.size, np.int32))
        sizes = {a.size for a in (self.ts_open, self.open, self.high, self.low, self.close, self.volume,
                                  self.contract)}
        if len(sizes) != 1:
            raise ValueError(f"columns of a bar table must be equally long, got lengths {sorted(sizes)}")

    def __len__(self) -> int:
        return int(self.ts_open.size)

    def slice(self, start: int, stop: int) -> Bars:
        """Rows [start, stop) as views."""
        return Bars(self.ts_open[start:stop], self.open[start:stop], self.high[start:stop],
                    self.low[start:stop], self.close[start:stop], self.volume[start:stop], self.width_ns,
                    self.contract[start:stop])


@dataclass(frozen=True)
class Ticks:
    """Trade prints of one instrument, n of them, in the order in which they became known.

    ts int64 ns UTC (event time), price float64, size float64 (NaN if unknown). Where the data has them: bid and
    ask float64, the best quotes just before the trade (NaN where unknown); aggressor int8, +1 the buyer crossed
    the spread, -1 the seller, 0 unknown; ts_recv int64 ns UTC, when the tick was received; contract int32 codes.
    """

    ts: IntArray
    price: FloatArray
    size: FloatArray
    bid: FloatArray | None = None
    ask: FloatArray | None = None
    aggressor: Int8Array | None = None
    ts_recv: IntArray | None = None
    contract: Int32Array | None = None

    def __post_init__(self) -> None:
        sizes = {column.size for column in self.columns().values()}
        if len(sizes) != 1:
            raise ValueError(f"columns of ticks must be equally long, got lengths {sorted(sizes)}")

    def __len__(self) -> int:
        return int(self.ts.size)

    def columns(self) -> dict[str, AnyArray]:
        """The columns that this data has, by name."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: column for name, column in found.items() if column is not None}

    def take(self, rows: slice | AnyArray) -> Ticks:
        """Some rows, by slice (views), mask or index."""
        return Ticks(**{name: column[rows] for name, column in self.columns().items()})


@dataclass(frozen=True)
class Quotes:
    """Best bid and ask of one instrument, n updates in the order in which they became known.

    ts int64 ns UTC (event time); bid, ask float64 points; bid_size, ask_size float64, the depth at the best price
    (NaN if unknown); ts_recv int64 ns UTC, when the update was received, or None.
    """

    ts: IntArray
    bid: FloatArray
    ask: FloatArray
    bid_size: FloatArray
    ask_size: FloatArray
    ts_recv: IntArray | None = None

    def __len__(self) -> int:
        return int(self.ts.size)
