"""Moving averages, MACD, directional movement, Aroon, regression, parabolic SAR and Ichimoku midpoints."""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np

from algospace.features.library.column import Column
from algospace.features.library.core import close_ago
from algospace.features.library.windows import ema, higher, lower, rma
from algospace.types import AnyArray, FloatArray

_FAMILY = "trend"
_WILDER = "Wilder 1978, New Concepts in Technical Trading Systems"
_APPEL = "Appel 1979, The Moving Average Convergence-Divergence Trading Method"
_CHANDE = "Chande 1995, Stocks & Commodities 13(9)"
_ICHIMOKU = "Hosoda 1968, Ichimoku Kinko Hyo"
_OLS = "ordinary least squares of 20 closes on 0..19"
_FLAT = 1e-14  # TA-Lib's TA_EPSILON


def _column(name: str, warm_up: int, formula: str, source: str, talib: str | None, **more: Any) -> Column:
    return Column(name=name, family=_FAMILY, warm_up=warm_up, formula=formula, source=source, talib=talib,
                  **{"unit": "price", **more})  # fmt: skip


COLUMNS = (
    _column("sma_20", 19, "mean of 20 closes", "Murphy 1999, Technical Analysis", "SMA(c, 20)"),
    _column("ema_20", 19, "EMA(close, 20), α = 2/21, seeded with the mean of the first 20", "Murphy 1999",
            "EMA(c, 20)"),
    _column("wma_20", 19, "Σ(20-i)·close[i] / 210, i = 0..19", "Murphy 1999", "WMA(c, 20)"),
    _column("dema_20", 38, "2·e1 - e2, e1 = EMA(close, 20), e2 = EMA(e1, 20)",
            "Mulloy 1994, Stocks & Commodities 12(1)", "DEMA(c, 20)"),
    _column("tema_20", 57, "3·e1 - 3·e2 + e3, e3 = EMA(e2, 20)", "Mulloy 1994, Stocks & Commodities 12(1)",
            "TEMA(c, 20)"),
    _column("kama_10", 10, "k += (ER·(2/3 - 2/31) + 2/31)²·(close - k), ER over 10, k starts as close[1]",
            "Kaufman 1995, Smarter Trading", "KAMA(c, 10)"),
    _column("macd_12_26_9", 25, "EMA(close, 12) - EMA(close, 26), both seeded at bar 25", _APPEL,
            "MACD(c, 12, 26, 9)[0]", parity="odd"),
    _column("macd_signal_12_26_9", 33, "EMA(macd, 9)", _APPEL, "MACD(c, 12, 26, 9)[1]", parity="odd"),
    _column("macd_hist_12_26_9", 33, "macd - signal", _APPEL, "MACD(c, 12, 26, 9)[2]", parity="odd"),
    _column("adx_14", 27, "RMA of 100·|+DI - -DI| / (+DI + -DI), 14", _WILDER, "ADX(h, l, c, 14)",
            unit="0..100", parity="even"),
    _column("plus_di_14", 14, "100·Wilder sum of +DM / Wilder sum of true range, 14", _WILDER,
            "PLUS_DI(h, l, c, 14)", unit="0..100"),
    _column("minus_di_14", 14, "100·Wilder sum of -DM / Wilder sum of true range, 14", _WILDER,
            "MINUS_DI(h, l, c, 14)", unit="0..100"),
    _column("aroon_up_25", 25, "100·(25 - bars since the latest highest high of 26) / 25", _CHANDE,
            "AROON(h, l, 25)[1]", unit="0..100"),
    _column("aroon_down_25", 25, "100·(25 - bars since the latest lowest low of 26) / 25", _CHANDE,
            "AROON(h, l, 25)[0]", unit="0..100"),
    _column("aroon_osc_25", 25, "aroon_up - aroon_down", _CHANDE, "AROONOSC(h, l, 25)", unit="-100..100",
            parity="odd"),
    _column("linreg_slope_20", 19, f"slope: {_OLS}", "Gauss 1809", "LINEARREG_SLOPE(c, 20)",
            unit="price per bar", parity="odd"),
    _column("linreg_r2_20", 19, f"coefficient of determination: {_OLS}; 0 if flat", "Wright 1921", None,
            unit="0..1", parity="even"),
    _column("psar", 1, "parabolic stop and reverse, acceleration 0.02, maximum 0.2", _WILDER,
            "SAR(h, l, 0.02, 0.2)"),
    _column("tenkan_9", 8, "(highest high + lowest low) / 2 of 9", _ICHIMOKU, "MIDPRICE(h, l, 9)"),
    _column("kijun_26", 25, "(highest high + lowest low) / 2 of 26", _ICHIMOKU, "MIDPRICE(h, l, 26)"),
)  # fmt: skip

TREND = np.dtype(
    [(name, "f8") for name in (
        "e2", "e3", "kama", "fast", "slow", "signal", "last_high", "last_low", "plus", "minus", "range", "adx",
        "sar", "extreme", "step", "is_long",
    )],
    align=True,
)  # fmt: skip
_SXX_20 = 20.0 * (20.0 * 20.0 - 1.0) / 12.0
_KAMA_SLOW = 2.0 / 31.0
_KAMA_FAST = 2.0 / 3.0
_SAR_STEP, _SAR_MAXIMUM = 0.02, 0.2


def new_state() -> AnyArray:
    """State (1,) before the first bar."""
    return np.zeros(1, TREND)


@nb.njit(cache=True, error_model="numpy")
def update(s: Any, v: Any, out: FloatArray) -> None:
    """out as of COLUMNS."""
    _averages(s, v, out)
    _directional(s, v, out)
    out[12] = 4.0 * (25.0 - (v.t - v.high_26_at))
    out[13] = 4.0 * (25.0 - (v.t - v.low_26_at))
    out[14] = out[12] - out[13]
    out[15] = v.products_20 / _SXX_20
    out[16] = v.products_20 * v.products_20 / (_SXX_20 * v.squares_20) if v.squares_20 > 0.0 else 0.0
    out[17] = _parabolic(s, v)
    out[18] = 0.5 * (v.high_9 + v.low_9)
    out[19] = 0.5 * (v.high_26 + v.low_26)
    s.last_high, s.last_low = v.high, v.low


@nb.njit(cache=True, error_model="numpy")
def _averages(s: Any, v: Any, out: FloatArray) -> None:
    t, close = v.t, v.close
    s.e2 = ema(s.e2, v.ema_20, t - 19, 20)
    s.e3 = ema(s.e3, s.e2, t - 38, 20)
    out[0] = v.mean_20
    out[1] = v.ema_20
    out[2] = v.mean_20 + v.products_20 / 210.0
    out[3] = 2.0 * v.ema_20 - s.e2
    out[4] = 3.0 * v.ema_20 - 3.0 * s.e2 + s.e3
    if t >= 10:
        moved = abs(close - close_ago(v, 10))
        ratio = moved / v.path_10 if v.path_10 > moved else 1.0
        weight = ratio * (_KAMA_FAST - _KAMA_SLOW) + _KAMA_SLOW
        s.kama += (close - s.kama) * (weight * weight)
    else:
        s.kama = close
    out[5] = s.kama
    s.fast = ema(s.fast, close, t - 14, 12)
    s.slow = ema(s.slow, close, t, 26)
    macd = s.fast - s.slow
    s.signal = ema(s.signal, macd, t - 25, 9)
    out[6] = macd
    out[7] = s.signal
    out[8] = macd - s.signal


@nb.njit(cache=True, error_model="numpy")
def _directional(s: Any, v: Any, out: FloatArray) -> None:
    """Wilder's sums: s - s/14 + x; those of the first 13 changes are plain."""
    if v.t == 0:
        return
    up = v.high - s.last_high
    down = s.last_low - v.low
    plus = up if up > 0.0 and up > down else 0.0
    minus = down if down > 0.0 and down > up else 0.0
    kept = 1.0 - 1.0 / 14.0 if v.t >= 14 else 1.0
    s.plus = s.plus * kept + plus
    s.minus = s.minus * kept + minus
    s.range = s.range * kept + v.true_range
    out[10] = out[11] = 0.0
    if s.range >= _FLAT:
        per_range = 100.0 / s.range
        out[10] = s.plus * per_range
        out[11] = s.minus * per_range
    total = out[10] + out[11]
    if total >= _FLAT:
        s.adx = rma(s.adx, 100.0 * abs(out[10] - out[11]) / total, v.t - 14, 14)
    elif v.t == 27:
        s.adx /= 14.0
    out[9] = s.adx


@nb.njit(cache=True, error_model="numpy")
def _parabolic(s: Any, v: Any) -> float:
    """The stop of this bar; the state then holds the next one's."""
    if v.t == 0:
        return np.nan
    high, low = v.high, v.low
    last_high, last_low = s.last_high, s.last_low
    if v.t == 1:
        down = last_low - low
        s.is_long = 0.0 if down > 0.0 and down > high - last_high else 1.0
        s.sar = last_low if s.is_long > 0.0 else last_high
        s.extreme = high if s.is_long > 0.0 else low
        s.step = _SAR_STEP
        last_high, last_low = high, low
    if s.is_long > 0.0:
        if low <= s.sar:
            s.is_long = 0.0
            stop = higher(higher(s.extreme, last_high), high)
            s.step, s.extreme = _SAR_STEP, low
            s.sar = higher(higher(stop + s.step * (low - stop), last_high), high)
            return stop
        stop = s.sar
        if high > s.extreme:
            s.extreme = high
            s.step = lower(s.step + _SAR_STEP, _SAR_MAXIMUM)
        s.sar = lower(lower(stop + s.step * (s.extreme - stop), last_low), low)
        return stop
    if high >= s.sar:
        s.is_long = 1.0
        stop = lower(lower(s.extreme, last_low), low)
        s.step, s.extreme = _SAR_STEP, high
        s.sar = lower(lower(stop + s.step * (high - stop), last_low), low)
        return stop
    stop = s.sar
    if low < s.extreme:
        s.extreme = low
        s.step = lower(s.step + _SAR_STEP, _SAR_MAXIMUM)
    s.sar = higher(higher(stop + s.step * (s.extreme - stop), last_high), high)
    return stop
