"""Our indicators against outputs of slow, literal code on real NQ bars, and against TA-Lib.

The golden bars were resampled without gap filling, so the indicators run on the files' own bars, one update each.
"""

from pathlib import Path

import numba as nb
import numpy as np
import pandas as pd
import pytest
import talib

from algospace.features import MlmiConfig, NwrqkConfig, fvg, heikin_ashi, mlmi, nwrqk
from algospace.features.smoothing import ATR_STATE, RSI_STATE, atr_update, ema_update, rsi_update, wma

RELATIVE = 1e-9


@nb.njit
def _slow_columns(ha, rqk, index, k, open_, high, low, close, use_ha, out):
    for i in range(close.size):
        heikin_ashi.update(ha[0], open_[i], high[i], low[i], close[i], out[i, 0:4])
        source = out[i, 3] if use_ha else close[i]
        nwrqk.update(rqk, source, out[i, 4:8])
        mlmi.update(index, k, source, out[i, 8:12])


def slow_columns(golden: pd.DataFrame, k: int = 200, use_ha: bool = False) -> np.ndarray:
    bars = [golden[name].to_numpy(np.float64) for name in ("open", "high", "low", "close")]
    out = np.full((len(golden), 12), np.nan)
    config = MlmiConfig(k=k)
    index = mlmi.with_room(mlmi.init_state(config), len(golden))
    _slow_columns(np.zeros(1, heikin_ashi.HA_STATE), nwrqk.init_state(NwrqkConfig()), index, k, *bars, use_ha, out)
    return out


@nb.njit
def _fvg_columns(state, threshold, max_age, high, low, close, out, counts):
    for i in range(close.size):
        fvg.update(state, threshold, max_age, high[i], low[i], close[i], out[i])
        counts[i] = state.scalars[0].count


@pytest.fixture(scope="module")
def golden_30m(data_root: Path) -> pd.DataFrame:
    return pd.read_parquet(data_root / "golden" / "nq_30m_indicators.parquet")


@pytest.fixture(scope="module")
def golden_columns(golden_30m: pd.DataFrame) -> np.ndarray:
    return slow_columns(golden_30m)


@pytest.mark.parametrize(
    ("name", "column"),
    [("ha_open", 0), ("ha_high", 1), ("ha_low", 2), ("ha_close", 3), ("nw_yhat1", 4), ("nw_yhat2", 5), ("mlmi", 8),
     ("mlmi_ma", 10)],
)  # fmt: skip
def test_thirty_minute_values_equal_the_golden_file(golden_30m, golden_columns, name, column):
    np.testing.assert_allclose(golden_columns[:, column], golden_30m[name], rtol=RELATIVE, equal_nan=True)


def test_slope_signals_equal_the_golden_file(golden_30m, golden_columns):
    expected = golden_30m["nw_bull_change"].astype(int) - golden_30m["nw_bear_change"].astype(int)
    np.testing.assert_array_equal(golden_columns[:, 7], expected)


def test_mlmi_signals_equal_the_golden_file(golden_30m, golden_columns):
    np.testing.assert_array_equal(golden_columns[:, 11], golden_30m["mlmi_ma_cross"])


@pytest.mark.parametrize(("prefix", "threshold"), [("fvg_thr0", 0.0), ("fvg_thr10bp", 0.001)])
def test_fair_value_gaps_equal_the_golden_file(data_root, prefix, threshold):
    golden = pd.read_parquet(data_root / "golden" / "nq_5m_fvg.parquet")
    high, low, close = (golden[name].to_numpy(np.float64) for name in ("high", "low", "close"))
    out, counts = np.zeros((len(golden), 7)), np.zeros(len(golden), np.int64)
    state = fvg.with_room(fvg.init_state(None), len(golden))
    _fvg_columns(state, threshold, -1, high, low, close, out, counts)
    np.testing.assert_array_equal(out[:, 4], golden[f"{prefix}_bull_mitigated"])
    np.testing.assert_array_equal(out[:, 5], golden[f"{prefix}_bear_mitigated"])
    np.testing.assert_array_equal(counts, golden[f"{prefix}_n_active"])
    ended = out[:, 4] + out[:, 5]
    created = np.diff(counts, prepend=0) + ended
    np.testing.assert_array_equal(created, golden[f"{prefix}_bull"].astype(int) + golden[f"{prefix}_bear"])


@nb.njit
def _plain(rsi, atr, high, low, close, period, out):
    average = np.nan
    for i in range(close.size):
        out[0, i] = rsi_update(rsi[0], close[i], period)
        out[1, i] = atr_update(atr[0], high[i], low[i], close[i], period)
        average = ema_update(average, close[i], period)
        out[2, i] = average
        out[3, i] = wma(close[i - period + 1 : i + 1]) if i >= period - 1 else np.nan


@pytest.mark.parametrize("period", [5, 14, 20])
def test_plain_indicators_agree_with_talib(period):
    rng = np.random.default_rng(period)
    close = 4000.0 * np.exp(np.cumsum(rng.normal(0, 1e-3, 4000)))
    close[100:160] = close[100]
    high, low = close + rng.uniform(0, 3, 4000), close - rng.uniform(0, 3, 4000)
    out = np.zeros((4, close.size))
    _plain(np.zeros(1, RSI_STATE), np.zeros(1, ATR_STATE), high, low, close, period, out)
    np.testing.assert_allclose(out[0], talib.RSI(close, period), rtol=RELATIVE, equal_nan=True)
    np.testing.assert_allclose(out[1], talib.ATR(high, low, close, period), rtol=RELATIVE, equal_nan=True)
    np.testing.assert_allclose(out[3], talib.WMA(close, period), rtol=RELATIVE, equal_nan=True)
    settled = 11 * (period + 1)  # seeded differently there
    np.testing.assert_allclose(out[2][settled:], talib.EMA(close, period)[settled:], rtol=RELATIVE)


def test_rsi_of_a_flat_series_is_zero():
    out = np.zeros((4, 100))
    flat = np.full(100, 50.0)
    _plain(np.zeros(1, RSI_STATE), np.zeros(1, ATR_STATE), flat, flat, flat, 14, out)
    np.testing.assert_array_equal(out[0][14:], 0.0)


def literal_mlmi(source: np.ndarray, k: int, window: int = 20) -> np.ndarray:
    """mlmi_raw by brute force over every stored point."""
    slow = talib.WMA(talib.RSI(source, 20)[20:], window)
    quick = talib.WMA(talib.RSI(source, 5)[5:], window)
    x = np.concatenate([np.full(20, np.nan), slow])
    y = np.concatenate([np.full(5, np.nan), quick])
    fast, long = talib.WMA(source, 5), talib.WMA(source, 20)
    points, last, raw = [(0.0, 0.0, 0)], 0.0, np.full(source.size, np.nan)
    for i in range(source.size):
        if np.isnan(x[i]) or np.isnan(y[i]):
            continue
        up = fast[i] > long[i] and fast[i - 1] <= long[i - 1]
        down = fast[i] < long[i] and fast[i - 1] >= long[i - 1]
        if up or down:
            points.append((x[i], y[i], 1 if source[i] >= last else -1))
            last = source[i]
        stored = np.array(points)
        distance = (stored[:, 0] - x[i]) ** 2 + (stored[:, 1] - y[i]) ** 2
        kth = np.sort(distance)[min(k, distance.size) - 1]
        raw[i] = stored[distance <= kth, 2].sum()
    return raw


@nb.njit
def _mlmi(state, k, source, out):
    for i in range(source.size):
        mlmi.update(state, k, source[i], out[i])


@pytest.mark.parametrize(("k", "volatility"), [(3, 1e-3), (20, 1e-3), (200, 2e-3), (20, 0.05)])
def test_grid_search_finds_exactly_the_nearest_points(k, volatility):
    rng = np.random.default_rng(k)
    source = 4000.0 * np.exp(np.cumsum(rng.normal(0, volatility, 5000)))
    out = np.zeros((source.size, 4))
    _mlmi(mlmi.with_room(mlmi.init_state(MlmiConfig(k=k)), source.size), k, source, out)
    np.testing.assert_array_equal(out[:, 0], literal_mlmi(source, k))


def test_ties_count_in_full_and_the_value_stays_within_its_scale():
    period = np.array([100.0] * 30 + [101.0] * 30)
    source = np.tile(period, 40)
    out = np.zeros((source.size, 4))
    _mlmi(mlmi.with_room(mlmi.init_state(MlmiConfig(k=4)), source.size), 4, source, out)
    assert np.nanmax(np.abs(out[:, 0])) > 4
    assert np.nanmin(out[:, 1]) >= 0
    assert np.nanmax(out[:, 1]) <= 100
