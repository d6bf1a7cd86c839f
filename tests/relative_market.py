"""Random markets of several instruments for the tests of relative columns."""

from __future__ import annotations

import numpy as np

from algospace.features import FeatureTable
from algospace.types import MINUTE_NS, Bars

START = 1_600_000_200 // 86_400 * 86_400 * 10**9
BASE_NS = 5 * MINUTE_NS


def random_bars(seed: int, n: int, width_minutes: int = 5, rolls: float = 0.0, start: int = START) -> Bars:
    """n bars on the clock's grid with missing ones, breaks and, with probability `rolls` a bar, rolls."""
    rng = np.random.default_rng(seed)
    steps = rng.choice([1] * 30 + [2, 3, 13], n)
    contract = np.cumsum(rng.random(n) < rolls).astype(np.int32)
    close = 4000 * np.exp(np.cumsum(rng.standard_t(4, n) * 6e-4)) * 1.01**contract
    open_ = np.r_[close[:1], close[:-1]] * (1 + rng.normal(0, 1e-4, n))
    open_ *= np.where(np.r_[0, np.diff(contract)], 1.01, 1.0)
    width = width_minutes * MINUTE_NS
    high, low = np.maximum(open_, close) + 1, np.minimum(open_, close) - 1
    return Bars(start + np.cumsum(steps) * width, open_, high, low, close, np.full(n, np.nan), width, contract)


def table_of(bars: Bars, filled: np.ndarray | None = None) -> FeatureTable:
    """Base rows of 5-minute bars, with the close as their only column."""
    n = len(bars)
    none = np.zeros(0, np.int64)
    return FeatureTable("ES", bars.ts_open + bars.width_ns, np.zeros(n, np.bool_) if filled is None else filled,
                        np.zeros(n, np.int32), {"close": bars.close}, none, {}, np.full(n, -1, np.int32), "test")


def head(table: FeatureTable, n: int) -> FeatureTable:
    """The first n rows."""
    return FeatureTable(table.symbol, table.ts_close[:n], table.filled[:n], table.contract[:n],
                        {"close": table.base["close"][:n]}, table.ts_close_30m, {}, table.row_30m[:n], "test")
