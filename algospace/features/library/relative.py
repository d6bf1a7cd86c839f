"""Where the close stands in its own recent history."""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np

from algospace.features.library.column import Column
from algospace.features.library.core import close_ago
from algospace.types import AnyArray, FloatArray

_FAMILY = "relative"
RANK_BARS = 100
RANK = "percent_rank_100"

COLUMNS = (
    Column(name="zscore_20", family=_FAMILY, unit="standard deviations", warm_up=19, parity="odd",
           formula="(close - sma_20) / stdev_20; 0 if flat", source="Chan 2013, Algorithmic Trading"),
    Column(name="percent_rank_100", family=_FAMILY, unit="0..1", warm_up=99, parity="odd", centre=0.5,
           formula="(closes below + half the other closes equal to close) / 99, of the last 100",
           source="mid-rank, Conover 1999, Practical Nonparametric Statistics"),
    Column(name="distance_high_50", family=_FAMILY, unit="log", warm_up=49,
           formula="ln(close / highest high of 50)", source="George, Hwang 2004, The 52-week high and momentum"),
    Column(name="distance_low_50", family=_FAMILY, unit="log", warm_up=49,
           formula="ln(close / lowest low of 50)", source="George, Hwang 2004, The 52-week high and momentum"),
    Column(name="range_position_50", family=_FAMILY, unit="0..1", warm_up=49, parity="odd", centre=0.5,
           formula="(close - lowest low of 50) / (highest high of 50 - lowest low of 50); 0.5 if flat",
           source="Donchian channel"),
    Column(name="efficiency_ratio_10", family=_FAMILY, unit="0..1", warm_up=10, parity="even",
           formula="|close - close[10]| / Σ|close - close[1]| over 10; 1 if flat",
           source="Kaufman 1995, Smarter Trading", talib="ER(c, 10)"),
)  # fmt: skip


# Closes by bar number modulo RANK_BARS.
RELATIVE = np.dtype([("closes", "f8", (RANK_BARS,))])


def new_state() -> AnyArray:
    """State (1,) before the first bar."""
    return np.zeros(1, RELATIVE)


@nb.njit(cache=True, error_model="numpy")
def update(s: Any, v: Any, rank: int, out: FloatArray) -> None:
    """out as of COLUMNS, RANK only if wanted: it compares with a hundred closes."""
    close = v.close
    closes = s.closes
    closes[v.t % RANK_BARS] = close
    out[0] = (close - v.mean_20) / np.sqrt(v.squares_20 / 20.0) if v.squares_20 > 0.0 else 0.0
    if rank:
        below = 0
        equal = -1  # itself
        for i in range(RANK_BARS):
            below += closes[i] < close
            equal += closes[i] == close
        out[1] = (below + 0.5 * equal) / (RANK_BARS - 1)
    out[2] = np.log(close / v.high_50)
    out[3] = np.log(close / v.low_50)
    spread = v.high_50 - v.low_50
    out[4] = (close - v.low_50) / spread if spread > 0.0 else 0.5
    out[5] = abs(close - close_ago(v, 10)) / v.path_10 if v.path_10 > 0.0 else 1.0
