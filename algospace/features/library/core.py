"""What several families read: true range and ATR, moments of the last 20 closes, highest highs and lowest lows.

Moments are merged from halves (Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance"): with
sums a and b of two neighbouring runs of k values, squares about the mean add up as q = q_a + q_b + (a-b)²/(2k) and
products with time as c = c_a + c_b + (k/2)(b-a), b the newer. No large numbers cancel, and a flat window gives
exactly 0. Extremes over 2k bars are those of two runs of k, which may overlap. See `windows` for the halves.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np

from algospace.features.library.windows import ema, higher, lower
from algospace.types import AnyArray

SLOTS = 32  # a power of two above the oldest bar needed
_MASK = SLOTS - 1
_SQUARES_OF_20 = 16.0 * 4.0 / 20.0  # weight of the squared distance of the means of 16 and 4 values

# Of the bar and of the last 2, 4, 8, 16 (32) bars: sums s, squares q and products with time p of closes, sums a of
# absolute changes, highest h and lowest l, and the bar numbers (latest of equals) x of h and n of l.
HISTORY = np.dtype(
    [(name, "f8") for name in (
        "close", "s2", "q2", "p2", "s4", "q4", "p4", "s8", "q8", "p8", "s16", "q16", "p16",
        "a1", "a2", "a4", "a8",
        "h1", "h2", "h4", "h8", "h16", "h32", "l1", "l2", "l4", "l8", "l16", "l32",
        "x1", "x2", "x4", "x8", "x16", "n1", "n2", "n4", "n8", "n16",
    )],
    align=True,
)  # fmt: skip

# The newest bar, `t` its number, and what the families read; history by bar number modulo SLOTS.
CORE = np.dtype(
    [("t", "i8")] + [(name, "f8") for name in (
        "close", "last_close", "high", "low", "volume", "has_volume", "change", "true_range", "ema_20", "mean_20",
        "squares_20", "products_20", "path_10", "high_9", "low_9", "high_14", "low_14", "high_20", "low_20",
        "high_26", "low_26", "high_50", "low_50", "high_26_at", "low_26_at",
    )] + [("history", HISTORY, (SLOTS,))],
    align=True,
)  # fmt: skip


def new_state() -> AnyArray:
    """State (1,) before the first bar."""
    state = np.zeros(1, CORE)
    state["t"] = -1
    for name in HISTORY.names or ():
        if name[0] in "hl":
            state["history"][name] = -np.inf if name[0] == "h" else np.inf
    return state


@nb.njit(cache=True, error_model="numpy")
def update(v: Any, bar: Any) -> None:
    """Take one bar; a missing volume counts as 1 (every bar weighs the same)."""
    v.t += 1
    t = v.t
    v.last_close = v.close if t > 0 else bar.close
    v.close, v.high, v.low = bar.close, bar.high, bar.low
    v.has_volume = 0.0 if np.isnan(bar.volume) else 1.0
    v.volume = 1.0 if np.isnan(bar.volume) else bar.volume
    v.change = v.close - v.last_close
    highest = v.high if v.high > v.last_close else v.last_close
    lowest = v.low if v.low < v.last_close else v.last_close
    v.true_range = highest - lowest
    v.ema_20 = ema(v.ema_20, v.close, t, 20)
    _moments(v, t)
    _extremes(v, t)


@nb.njit(cache=True, error_model="numpy")
def _moments(v: Any, t: int) -> None:
    history = v.history
    now = history[t & _MASK]
    b1, b2, b4 = history[(t - 1) & _MASK], history[(t - 2) & _MASK], history[(t - 4) & _MASK]
    b8, b16 = history[(t - 8) & _MASK], history[(t - 16) & _MASK]
    now.close = v.close
    d = now.close - b1.close
    now.s2, now.q2, now.p2 = now.close + b1.close, d * d / 2.0, d / 2.0
    d = now.s2 - b2.s2
    now.s4, now.q4, now.p4 = now.s2 + b2.s2, now.q2 + b2.q2 + d * d / 4.0, now.p2 + b2.p2 + d
    d = now.s4 - b4.s4
    now.s8, now.q8, now.p8 = now.s4 + b4.s4, now.q4 + b4.q4 + d * d / 8.0, now.p4 + b4.p4 + 2.0 * d
    d = now.s8 - b8.s8
    now.s16, now.q16, now.p16 = now.s8 + b8.s8, now.q8 + b8.q8 + d * d / 16.0, now.p8 + b8.p8 + 4.0 * d
    d = now.s16 / 16.0 - b16.s4 / 4.0
    v.mean_20 = (now.s16 + b16.s4) / 20.0
    v.squares_20 = now.q16 + b16.q4 + _SQUARES_OF_20 * d * d
    v.products_20 = now.p16 + b16.p4 + 10.0 * _SQUARES_OF_20 * d
    now.a1 = abs(v.change)
    now.a2 = now.a1 + b1.a1
    now.a4 = now.a2 + b2.a2
    now.a8 = now.a4 + b4.a4
    v.path_10 = now.a8 + b8.a2


@nb.njit(cache=True, error_model="numpy")
def _extremes(v: Any, t: int) -> None:
    history = v.history
    now = history[t & _MASK]
    b1, b2, b4 = history[(t - 1) & _MASK], history[(t - 2) & _MASK], history[(t - 4) & _MASK]
    b8, b16 = history[(t - 8) & _MASK], history[(t - 16) & _MASK]
    now.h1, now.l1, now.x1, now.n1 = v.high, v.low, float(t), float(t)
    now.h2, now.l2 = higher(now.h1, b1.h1), lower(now.l1, b1.l1)
    now.x2, now.n2 = now.x1 if now.h1 >= b1.h1 else b1.x1, now.n1 if now.l1 <= b1.l1 else b1.n1
    now.h4, now.l4 = higher(now.h2, b2.h2), lower(now.l2, b2.l2)
    now.x4, now.n4 = now.x2 if now.h2 >= b2.h2 else b2.x2, now.n2 if now.l2 <= b2.l2 else b2.n2
    now.h8, now.l8 = higher(now.h4, b4.h4), lower(now.l4, b4.l4)
    now.x8, now.n8 = now.x4 if now.h4 >= b4.h4 else b4.x4, now.n4 if now.l4 <= b4.l4 else b4.n4
    now.h16, now.l16 = higher(now.h8, b8.h8), lower(now.l8, b8.l8)
    now.x16, now.n16 = now.x8 if now.h8 >= b8.h8 else b8.x8, now.n8 if now.l8 <= b8.l8 else b8.n8
    now.h32, now.l32 = higher(now.h16, b16.h16), lower(now.l16, b16.l16)
    v.high_9, v.low_9 = higher(now.h8, b1.h8), lower(now.l8, b1.l8)
    old = history[(t - 6) & _MASK]
    v.high_14, v.low_14 = higher(now.h8, old.h8), lower(now.l8, old.l8)
    v.high_20, v.low_20 = higher(now.h16, b4.h16), lower(now.l16, b4.l16)
    old = history[(t - 10) & _MASK]
    v.high_26, v.low_26 = higher(now.h16, old.h16), lower(now.l16, old.l16)
    v.high_26_at = now.x16 if now.h16 >= old.h16 else old.x16
    v.low_26_at = now.n16 if now.l16 <= old.l16 else old.n16
    old = history[(t - 18) & _MASK]
    v.high_50, v.low_50 = higher(now.h32, old.h32), lower(now.l32, old.l32)


@nb.njit(cache=True, error_model="numpy")
def close_ago(v: Any, bars: int) -> float:
    """The close `bars` (below SLOTS) bars ago."""
    return v.history[(v.t - bars) & _MASK].close
