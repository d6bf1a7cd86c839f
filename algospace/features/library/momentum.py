"""Oscillators: RSI, stochastics, CCI, money flow, rates of change, Williams' %R, CMO, TRIX, ULTOSC, PPO, BOP."""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np

from algospace.features.library.column import Column
from algospace.features.library.core import close_ago
from algospace.features.library.windows import (
    LEVELS,
    SLOTS,
    ema,
    higher,
    lower,
    push_sums,
    rma,
    sum_7,
    sum_14,
    sum_28,
)
from algospace.types import AnyArray, FloatArray

_FAMILY = "momentum"
_LANE = "Lane 1984, Stocks & Commodities 2(3)"
_CHANDE_KROLL = "Chande, Kroll 1994, The New Technical Trader"
_PERCENT = "0..100"


def _column(name: str, warm_up: int, formula: str, source: str, talib: str | None, **more: Any) -> Column:
    return Column(name=name, family=_FAMILY, warm_up=warm_up, formula=formula, source=source, talib=talib,
                  **{"unit": _PERCENT, "parity": "odd", "centre": 50.0, **more})  # fmt: skip


COLUMNS = (
    _column("rsi_14", 14, "100·g / (g + l), g, l = RMA of rises and falls, 14; 0 if flat",
            "Wilder 1978, New Concepts in Technical Trading Systems", "RSI(c, 14)"),
    _column("stoch_k_14_3", 15, "SMA(100·(close - LL) / (HH - LL), 3), LL, HH of 14; 0 if flat", _LANE,
            "STOCH(h, l, c, 14, 3, 0, 3, 0)[0]"),
    _column("stoch_d_14_3_3", 17, "SMA(stoch_k, 3)", _LANE, "STOCH(h, l, c, 14, 3, 0, 3, 0)[1]"),
    _column("stochrsi_k_14_14", 27, "100·(RSI - lowest RSI of 14) / (highest - lowest), RSI(14); 0 if flat",
            _CHANDE_KROLL, "STOCHRSI(c, 14, 14, 3, 0)[0]"),
    _column("stochrsi_d_14_14_3", 29, "SMA(stochrsi_k, 3)", _CHANDE_KROLL, "STOCHRSI(c, 14, 14, 3, 0)[1]"),
    _column("cci_20", 19, "(tp - SMA(tp, 20)) / (0.015·mean absolute deviation), tp = (h+l+c)/3; 0 if flat",
            "Lambert 1980, Commodities", "CCI(h, l, c, 20)", unit="1", centre=0.0),
    _column("mfi_14", 14, "100·(tp·volume of bars with rising tp) / (of rising and falling tp), 14; 0 if none",
            "Quong, Soudack 1989, Stocks & Commodities 7(3)", "MFI(h, l, c, v, 14)", parity="none"),
    _column("roc_10", 10, "100·(close / close[10] - 1)", "Murphy 1999, Technical Analysis", "ROC(c, 10)",
            unit="percent", parity="none"),
    _column("mom_10", 10, "close - close[10]", "Murphy 1999, Technical Analysis", "MOM(c, 10)", unit="price",
            centre=0.0),
    _column("willr_14", 13, "-100·(HH - close) / (HH - LL), of 14; 0 if flat",
            "Williams 1973, How I Made One Million Dollars", "WILLR(h, l, c, 14)", unit="-100..0", centre=-50.0),
    _column("cmo_14", 14, "100·(g - l) / (g + l), g, l as for RSI; 0 if flat", _CHANDE_KROLL, "CMO(c, 14)",
            unit="-100..100", centre=0.0),
    _column("trix_15", 43, "100·(e3 / e3[1] - 1), e3 the threefold EMA(15) of close",
            "Hutson 1983, Stocks & Commodities 1(5)", "TRIX(c, 15)", unit="percent", parity="none"),
    _column("ultosc_7_14_28", 28, "100·(4·r7 + 2·r14 + r28) / 7, r = Σ(close - true low) / Σ true range",
            "Williams 1985, Stocks & Commodities 3(4)", "ULTOSC(h, l, c, 7, 14, 28)"),
    _column("ppo_12_26", 25, "100·(EMA(close, 12) / EMA(close, 26) - 1)", "Appel 2005, Technical Analysis",
            "PPO(c, 12, 26, 1)", unit="percent", parity="none"),
    _column("bop", 0, "(close - open) / (high - low); 0 if flat", "Livshin 2001, Stocks & Commodities 19(8)",
            "BOP(o, h, l, c)", unit="-1..1", centre=0.0),
)  # fmt: skip

# Series of the window sums.
_RISING, _FALLING, _PRESSURE, _RANGE, _SERIES = 0, 1, 2, 3, 4
_CCI_BARS = 20
_FLAT = 1e-14  # TA-Lib's TA_EPSILON
_NOISE = 1e-10  # over flat prices the RSI stands still but for its roundings, which are no signal

# sums as of `windows`; totals (h + l + c) by bar number modulo their length; rsi: extremes of the last 1, 2, 4, 8
# values.
MOMENTUM = np.dtype(
    [(name, "f8") for name in (
        "gain", "loss", "k1", "k2", "slow1", "slow2", "rsi_k1", "rsi_k2", "typical", "t1", "t2", "t3", "fast",
        "slow",
    )] + [("sums", "f8", (LEVELS, SLOTS, _SERIES)), ("totals", "f8", (_CCI_BARS,)),
          ("rsi", "f8", (4, SLOTS, 2))],
    align=True,
)  # fmt: skip


def new_state() -> AnyArray:
    """State (1,) before the first bar."""
    return np.zeros(1, MOMENTUM)


@nb.njit(cache=True, error_model="numpy")
def update(s: Any, v: Any, bar: Any, out: FloatArray) -> None:
    """out as of COLUMNS."""
    t, close = v.t, v.close
    _strength(s, v, out)
    _stochastic(s, v, out)
    _stochastic_rsi(s, s.rsi, t, out[0], out[3:5])
    typical = (v.high + v.low + close) / 3.0
    _push(s, v, s.sums, typical)
    out[5] = _commodity_channel(s, t, v.high + v.low + close)
    flow = sum_14(s.sums, t, _RISING)
    total = flow + sum_14(s.sums, t, _FALLING)
    out[6] = 100.0 * flow / total if total > 0.0 else 0.0
    before = close_ago(v, 10)
    out[7] = 100.0 * (close / before - 1.0)
    out[8] = close - before
    spread = v.high_14 - v.low_14
    out[9] = -100.0 * (v.high_14 - close) / spread if spread > 0.0 else 0.0
    last = s.t3
    s.t1 = ema(s.t1, close, t, 15)
    s.t2 = ema(s.t2, s.t1, t - 14, 15)
    s.t3 = ema(s.t3, s.t2, t - 28, 15)
    out[11] = 100.0 * (s.t3 / last - 1.0)
    out[12] = _ultimate(s.sums, t)
    s.fast = ema(s.fast, close, t, 12)
    s.slow = ema(s.slow, close, t, 26)
    out[13] = 100.0 * (s.fast / s.slow - 1.0)
    spread = v.high - v.low
    out[14] = (close - bar.open) / spread if spread >= _FLAT else 0.0


@nb.njit(cache=True, error_model="numpy")
def _strength(s: Any, v: Any, out: FloatArray) -> None:
    """RSI and CMO from one pair of averages."""
    s.gain = rma(s.gain, v.change if v.change > 0.0 else 0.0, v.t - 1, 14)
    s.loss = rma(s.loss, -v.change if v.change < 0.0 else 0.0, v.t - 1, 14)
    total = s.gain + s.loss
    out[0] = out[10] = 0.0
    if total >= _FLAT:
        out[0] = 100.0 * (s.gain / total)
        out[10] = 100.0 * ((s.gain - s.loss) / total)


@nb.njit(cache=True, error_model="numpy")
def _stochastic(s: Any, v: Any, out: FloatArray) -> None:
    spread = v.high_14 - v.low_14
    raw = 100.0 * (v.close - v.low_14) / spread if spread > 0.0 else 0.0
    slow = (raw + s.k1 + s.k2) / 3.0
    s.k1, s.k2 = raw, s.k1
    out[1] = slow
    out[2] = (slow + s.slow1 + s.slow2) / 3.0
    s.slow1, s.slow2 = slow, s.slow1


@nb.njit(cache=True, error_model="numpy")
def _stochastic_rsi(s: Any, rsi: Any, t: int, value: float, out: FloatArray) -> None:
    """Extremes over 14 from runs of 1, 2, 4 and 8, see `core`."""
    now = t & (SLOTS - 1)
    high = low = value
    rsi[0, now, 0] = rsi[0, now, 1] = value
    for level in range(3):
        before = (t - (1 << level)) & (SLOTS - 1)
        high = higher(high, rsi[level, before, 0])
        low = lower(low, rsi[level, before, 1])
        rsi[level + 1, now, 0] = high
        rsi[level + 1, now, 1] = low
    before = (t - 6) & (SLOTS - 1)
    high = higher(high, rsi[3, before, 0])
    low = lower(low, rsi[3, before, 1])
    k = 100.0 * (value - low) / (high - low) if high - low > _NOISE else 0.0
    out[0] = k
    out[1] = (k + s.rsi_k1 + s.rsi_k2) / 3.0
    s.rsi_k1, s.rsi_k2 = k, s.rsi_k1


@nb.njit(cache=True, error_model="numpy")
def _push(s: Any, v: Any, sums: Any, typical: float) -> None:
    moved = typical - s.typical if v.t > 0 else 0.0
    s.typical = typical
    flow = typical * v.volume
    pressure = v.close - (v.low if v.low < v.last_close else v.last_close)
    push_sums(sums, v.t, 0, flow if moved > 0.0 else 0.0, flow if moved < 0.0 else 0.0, pressure, v.true_range)


@nb.njit(cache=True, error_model="numpy")
def _commodity_channel(s: Any, t: int, total: float) -> float:
    # of h + l + c instead of a third of it: the ratio is the same, and sums of ticks have no roundings
    values = s.totals
    values[t % _CCI_BARS] = total
    # four sums: a quarter of the length of the chain of additions, which is what this costs
    a = b = c = d = 0.0
    for i in range(0, _CCI_BARS, 4):
        a += values[i]
        b += values[i + 1]
        c += values[i + 2]
        d += values[i + 3]
    mean = (a + b + c + d) / _CCI_BARS
    a = b = c = d = 0.0
    for i in range(0, _CCI_BARS, 4):
        a += abs(values[i] - mean)
        b += abs(values[i + 1] - mean)
        c += abs(values[i + 2] - mean)
        d += abs(values[i + 3] - mean)
    deviation = (a + b + c + d) / _CCI_BARS
    # the mean of equal numbers may miss them by a rounding
    return (total - mean) / (0.015 * deviation) if deviation > 1e-15 * total else 0.0


@nb.njit(cache=True, error_model="numpy")
def _ultimate(sums: Any, t: int) -> float:
    total = 0.0
    spread = sum_7(sums, t, _RANGE)
    if spread > 0.0:
        total += 4.0 * (sum_7(sums, t, _PRESSURE) / spread)
    spread = sum_14(sums, t, _RANGE)
    if spread > 0.0:
        total += 2.0 * (sum_14(sums, t, _PRESSURE) / spread)
    spread = sum_28(sums, t, _RANGE)
    if spread > 0.0:
        total += sum_28(sums, t, _PRESSURE) / spread
    return 100.0 * total / 7.0
