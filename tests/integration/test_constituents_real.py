"""An index of real shares: a monthly rebalanced basket of SPY and QQQ, minute by minute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from algospace.features.relative import relative_columns
from algospace.marketdata import read_source
from algospace.marketdata.constituents import Rebalance, build_index
from tests.relative_market import table_of


def test_a_monthly_rebalanced_basket_lies_between_its_constituents(data_root: Path):
    bars = {name: read_source(data_root / "equities" / f"{name}_1m_2025_09_2026_03.parquet", name.upper())
            for name in ("spy", "qqq")}
    months = [pd.Timestamp(f"{month}-01").as_unit("ns").value for month in
              ("2025-09", "2025-10", "2025-11", "2025-12", "2026-01", "2026-02", "2026-03")]
    weights = [Rebalance(month, month - 5 * 86_400 * 10**9, {"spy": 0.6, "qqq": 0.4}) for month in months]
    index = build_index(bars, weights, 1000.0)
    assert index.bars.open[0] == 1000.0
    assert index.rebalance[-1] == 6
    # minutes in which only one of them traded
    assert 100 < index.carried.sum() < 1000
    last = np.array([b.close[np.searchsorted(b.ts_open, index.bars.ts_open, side="right") - 1]
                     for b in bars.values()])
    own, each = np.diff(np.log(index.bars.close)), np.diff(np.log(last))
    assert (own <= each.max(axis=0) + 1e-12).all()
    assert (own >= each.min(axis=0) - 1e-12).all()
    columns = relative_columns(table_of(bars["spy"]), {"basket": index.bars})
    assert np.nanmedian(columns["basket_correlation"]) > 0.95
