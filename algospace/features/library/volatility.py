"""Ranges, bands and volatility estimators."""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np

from algospace.features.library.column import Column
from algospace.features.library.windows import LEVELS, SLOTS, push_sums, rma, sum_20
from algospace.types import AnyArray, FloatArray

_FAMILY = "volatility"
_WILDER = "Wilder 1978, New Concepts in Technical Trading Systems"
_BOLLINGER = "Bollinger 2001, Bollinger on Bollinger Bands"
_PER_BAR = "log per bar"


def _column(name: str, warm_up: int, formula: str, source: str, unit: str, **more: Any) -> Column:
    return Column(name=name, family=_FAMILY, warm_up=warm_up, formula=formula, source=source, unit=unit,
                  **{"parity": "even", **more})  # fmt: skip


COLUMNS = (
    _column("atr_14", 14, "RMA(true range, 14)", _WILDER, "price", talib="ATR(h, l, c, 14)"),
    _column("natr_14", 14, "100·atr_14 / close", "Forman 2006, Stocks & Commodities 24(5)", "percent",
            talib="NATR(h, l, c, 14)", parity="none"),
    _column("trange", 1, "max(high, close[1]) - min(low, close[1])", _WILDER, "price", talib="TRANGE(h, l, c)"),
    _column("bb_width_20", 19, "4·stdev_20 / sma_20", _BOLLINGER, "1", parity="none",
            talib="BBANDS(c, 20, 2, 2, 0)"),
    _column("bb_pctb_20", 19, "(close - lower) / (upper - lower), bands sma_20 ± 2·stdev_20; 0.5 if flat",
            _BOLLINGER, "1", parity="odd", centre=0.5, talib="BBANDS(c, 20, 2, 2, 0)"),
    _column("stdev_20", 19, "standard deviation of 20 closes, ddof 0", "Pearson 1894", "price",
            talib="STDDEV(c, 20)"),
    _column("parkinson_20", 19, "√(mean of ln(h/l)² over 20 / (4·ln 2))", "Parkinson 1980, J. Business 53(1)",
            _PER_BAR, mirror="ratio"),
    _column("garman_klass_20", 19, "√ mean over 20 of ln(h/l)²/2 - (2·ln 2 - 1)·ln(c/o)²",
            "Garman, Klass 1980, J. Business 53(1)", _PER_BAR, mirror="ratio"),
    _column("rogers_satchell_20", 19, "√ mean over 20 of ln(h/c)·ln(h/o) + ln(l/c)·ln(l/o)",
            "Rogers, Satchell 1991, Ann. Appl. Prob. 1(4)", _PER_BAR, mirror="ratio"),
    _column("yang_zhang_20", 20, "√(var ln(o/c[1]) + k·var ln(c/o) + (1-k)·rogers_satchell²), ddof 1, of 20, "
            "k = 0.34 / (1.34 + 21/19)", "Yang, Zhang 2000, J. Business 73(3)", _PER_BAR, mirror="ratio"),
    _column("realized_vol_20", 20, "√ mean of ln(close / close[1])² over 20",
            "Andersen, Bollerslev 1998, Int. Econ. Rev. 39(4)", _PER_BAR, mirror="ratio"),
    _column("keltner_position_20", 19, "(close - EMA(close, 20)) / (2·RMA(true range, 10)); 0 if flat",
            "Raschke, Connors 1995, Street Smarts", "1", parity="odd"),
    _column("donchian_width_20", 19, "highest high - lowest low, of 20", "Donchian 1960, Commodities", "price",
            talib="DONCHIAN(h, l, 20)"),
)  # fmt: skip

# The estimators from logs.
FROM_LOGS = ("parkinson_20", "garman_klass_20", "rogers_satchell_20", "yang_zhang_20", "realized_vol_20")
# Series of the window sums: squares of range, Garman-Klass and Rogers-Satchell terms, gap and body and their
# squares, squares of returns.
_RANGE, _GK, _RS, _GAP, _GAP2, _BODY, _BODY2, _RETURN2, _SERIES = 0, 1, 2, 3, 4, 5, 6, 7, 8
_N = 20.0
_BODY_WEIGHT = 2.0 * np.log(2.0) - 1.0
_PARKINSON = 4.0 * np.log(2.0)
_YANG_ZHANG = 0.34 / (1.34 + (_N + 1.0) / (_N - 1.0))
_FLAT = 1e-14  # TA-Lib's TA_EPSILON

# sums as of `windows`.
VOLATILITY = np.dtype([("atr_14", "f8"), ("atr_10", "f8"), ("sums", "f8", (LEVELS, SLOTS, _SERIES))], align=True)


def new_state() -> AnyArray:
    """State (1,) before the first bar."""
    return np.zeros(1, VOLATILITY)


@nb.njit(cache=True, error_model="numpy")
def update(s: Any, v: Any, bar: Any, from_logs: int, out: FloatArray) -> None:
    """out as of COLUMNS, those of FROM_LOGS only if wanted: they cost twice the others."""
    _bands(s, v, out)
    if from_logs:
        _push(s.sums, v, bar.open)
        _estimators(s.sums, v.t, out)


@nb.njit(cache=True, error_model="numpy")
def _bands(s: Any, v: Any, out: FloatArray) -> None:
    """All but the estimators from logs."""
    s.atr_14 = rma(s.atr_14, v.true_range, v.t - 1, 14)
    s.atr_10 = rma(s.atr_10, v.true_range, v.t - 1, 10)
    out[0] = s.atr_14
    out[1] = 100.0 * s.atr_14 / v.close
    out[2] = v.true_range
    deviation = np.sqrt(v.squares_20 / _N)
    out[3] = 4.0 * deviation / v.mean_20
    out[4] = (v.close - v.mean_20) / (4.0 * deviation) + 0.5 if deviation > 0.0 else 0.5
    out[5] = deviation
    out[11] = (v.close - v.ema_20) / (2.0 * s.atr_10) if s.atr_10 >= _FLAT else 0.0
    out[12] = v.high_20 - v.low_20


@nb.njit(cache=True, error_model="numpy")
def _push(sums: Any, v: Any, open_: float) -> None:
    high = np.log(v.high / open_)
    low = np.log(v.low / open_)
    body = np.log(v.close / open_)
    gap = np.log(open_ / v.last_close) if v.t > 0 else 0.0
    spread = (high - low) * (high - low)
    push_sums(sums, v.t, _RANGE, spread, 0.5 * spread - _BODY_WEIGHT * (body * body),
              high * (high - body) + low * (low - body), gap)  # fmt: skip
    push_sums(sums, v.t, _GAP2, gap * gap, body, body * body, (gap + body) * (gap + body))


@nb.njit(cache=True, error_model="numpy")
def _estimators(sums: Any, t: int, out: FloatArray) -> None:
    rogers_satchell = sum_20(sums, t, _RS) / _N
    gap, body = sum_20(sums, t, _GAP), sum_20(sums, t, _BODY)
    # returns have means near 0, so that these differences do not cancel
    gap_variance = max(sum_20(sums, t, _GAP2) - gap * gap / _N, 0.0) / (_N - 1.0)
    body_variance = max(sum_20(sums, t, _BODY2) - body * body / _N, 0.0) / (_N - 1.0)
    out[6] = np.sqrt(sum_20(sums, t, _RANGE) / _N / _PARKINSON)
    out[7] = np.sqrt(sum_20(sums, t, _GK) / _N)
    out[8] = np.sqrt(rogers_satchell)
    out[9] = np.sqrt(gap_variance + _YANG_ZHANG * body_variance + (1.0 - _YANG_ZHANG) * rogers_satchell)
    out[10] = np.sqrt(sum_20(sums, t, _RETURN2) / _N)
