"""Volume and money flow. Without volume every bar counts 1, so that the columns weigh all bars alike."""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np

from algospace.features.library.column import Column
from algospace.features.library.windows import LEVELS, SLOTS, ema, push_sums, sum_14, sum_20
from algospace.types import AnyArray, FloatArray

_FAMILY = "volume"
_CHAIKIN = "Chaikin, in Achelis 2000, Technical Analysis from A to Z"
_FLOW = "((close - low) - (high - close)) / (high - low)·volume"


def _column(name: str, warm_up: int, formula: str, source: str, unit: str, **more: Any) -> Column:
    return Column(name=name, family=_FAMILY, warm_up=warm_up, formula=formula, source=source, unit=unit,
                  **{"parity": "odd", **more})  # fmt: skip


COLUMNS = (
    _column("obv", 0, "Σ sign(close - close[1])·volume, starts as the first volume",
            "Granville 1963, New Key to Stock Market Profits", "volume", talib="OBV(c, v)", parity="none"),
    _column("ad", 0, f"Σ {_FLOW}; a flat bar adds 0", _CHAIKIN, "volume", talib="AD(h, l, c, v)"),
    _column("adosc_3_10", 9, "EMA(ad, 3) - EMA(ad, 10), both seeded with the first ad", _CHAIKIN, "volume",
            talib="ADOSC(h, l, c, v, 3, 10)"),
    _column("cmf_20", 19, f"Σ {_FLOW} over 20 / Σ volume over 20; 0 without volume", _CHAIKIN, "-1..1",
            talib="CMF(h, l, c, v, 20)"),
    _column("vwap_session", 0, "Σ tp·volume / Σ volume of the session, tp = (h+l+c)/3; tp if no volume yet",
            "Berkowitz, Logue, Noser 1988, J. Finance 43(1)", "price", parity="none"),
    _column("vwap_distance", 0, "close / vwap_session - 1", "Berkowitz, Logue, Noser 1988, J. Finance 43(1)",
            "1", parity="none"),
    _column("volume_zscore_20", 19, "(volume - mean) / stdev of 20 volumes, ddof 0; 0 if equal or without volume",
            "Karpoff 1987, J. Fin. Quant. Analysis 22(1)", "standard deviations", parity="even"),
    _column("force_index_13", 13, "EMA((close - close[1])·volume, 13)", "Elder 1993, Trading for a Living",
            "price·volume", talib="EFI(c, v, 13)"),
    _column("eom_14", 14, "mean of 14 of (mid - mid[1])·(high - low)·10000 / volume, mid = (h+l)/2; "
            "a bar without volume adds 0", "Arms 1983, Volume Cycles in the Stock Market", "price²/volume"),
)  # fmt: skip

# Sums and squares about the mean of the last 1 .. 16 volumes, see `core`.
VOLUMES = np.dtype([(name, "f8") for name in ("s1", "s2", "q2", "s4", "q4", "s8", "q8", "s16", "q16")], align=True)
_FLOWS, _EASE, _SERIES = 0, 1, 4
_ARMS = 10_000.0
_VOLUME_MASK = SLOTS - 1

# sums as of `windows`; volumes by bar number modulo SLOTS.
VOLUME = np.dtype(
    [(name, "f8") for name in ("obv", "ad", "fast", "slow", "force", "middle")]
    + [("sums", "f8", (LEVELS, SLOTS, _SERIES)), ("volumes", VOLUMES, (SLOTS,))],
    align=True,
)


def new_state() -> AnyArray:
    """State (1,) before the first bar."""
    return np.zeros(1, VOLUME)


@nb.njit(cache=True, error_model="numpy")
def update(s: Any, v: Any, session: Any, out: FloatArray) -> None:
    """out as of COLUMNS."""
    t = v.t
    flow = _lines(s, v, out)
    middle = 0.5 * (v.high + v.low)
    moved = middle - s.middle if t > 0 else 0.0
    s.middle = middle
    ease = moved * (v.high - v.low) * _ARMS / v.volume if v.volume > 0.0 else 0.0
    push_sums(s.sums, t, 0, flow, ease, 0.0, 0.0)
    out[3] = out[6] = 0.0
    total, squares = _volume_moments(s.volumes, t, v.volume)
    if total > 0.0:
        out[3] = sum_20(s.sums, t, _FLOWS) / total
    if squares > 0.0 and v.has_volume > 0.0:
        out[6] = (v.volume - total / 20.0) / np.sqrt(squares / 20.0)
    _session_average(session, v, out)
    s.force = ema(s.force, v.change * v.volume, t - 1, 13)
    out[7] = s.force
    out[8] = sum_14(s.sums, t, _EASE) / 14.0


@nb.njit(cache=True, error_model="numpy")
def _lines(s: Any, v: Any, out: FloatArray) -> float:
    """On-balance volume, accumulation/distribution and its oscillator; returns the bar's money flow."""
    spread = v.high - v.low
    flow = ((v.close - v.low) - (v.high - v.close)) / spread * v.volume if spread > 0.0 else 0.0
    s.ad += flow
    if v.t == 0:
        s.obv = v.volume
        s.fast = s.slow = s.ad
    else:
        s.obv += v.volume if v.change > 0.0 else (-v.volume if v.change < 0.0 else 0.0)
        s.fast += (s.ad - s.fast) * (2.0 / 4.0)
        s.slow += (s.ad - s.slow) * (2.0 / 11.0)
    out[0] = s.obv
    out[1] = s.ad
    out[2] = s.fast - s.slow
    return flow


@nb.njit(cache=True, error_model="numpy")
def _volume_moments(volumes: Any, t: int, volume: float) -> tuple[float, float]:
    """Sum and squares about the mean of the last 20 volumes."""
    now = volumes[t & _VOLUME_MASK]
    b1, b2, b4 = volumes[(t - 1) & _VOLUME_MASK], volumes[(t - 2) & _VOLUME_MASK], volumes[(t - 4) & _VOLUME_MASK]
    b8, b16 = volumes[(t - 8) & _VOLUME_MASK], volumes[(t - 16) & _VOLUME_MASK]
    now.s1 = volume
    d = now.s1 - b1.s1
    now.s2, now.q2 = now.s1 + b1.s1, d * d / 2.0
    d = now.s2 - b2.s2
    now.s4, now.q4 = now.s2 + b2.s2, now.q2 + b2.q2 + d * d / 4.0
    d = now.s4 - b4.s4
    now.s8, now.q8 = now.s4 + b4.s4, now.q4 + b4.q4 + d * d / 8.0
    d = now.s8 - b8.s8
    now.s16, now.q16 = now.s8 + b8.s8, now.q8 + b8.q8 + d * d / 16.0
    d = now.s16 / 16.0 - b16.s4 / 4.0
    return now.s16 + b16.s4, now.q16 + b16.q4 + 3.2 * d * d


@nb.njit(cache=True, error_model="numpy")
def _session_average(session: Any, v: Any, out: FloatArray) -> None:
    typical = (v.high + v.low + v.close) / 3.0
    session.volume += v.volume
    session.turnover += typical * v.volume
    average = session.turnover / session.volume if session.volume > 0.0 else typical
    out[4] = average
    out[5] = v.close / average - 1.0
