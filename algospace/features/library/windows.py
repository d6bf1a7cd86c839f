"""Sums over moving windows that neither drift nor cancel, and averages seeded as TA-Lib seeds them.

A window sum is put together from sums over the last 1, 2, 4, 8, 16 values, each the sum of two halves of which the
older was stored when it was the newer: sum16(t) = sum8(t) + sum8(t-8). Nothing is ever subtracted, so that an
error neither grows with time nor survives its window, whatever the size of a value that has left it; each window
costs one addition per level. Windows of 7, 10, 14, 20 and 28 bars are two or three such sums end to end.
"""

from __future__ import annotations

from typing import Any

import numba as nb

LEVELS = 5  # sums of 1, 2, 4, 8 and 16 values
SLOTS = 32  # a power of two above the oldest value needed
_MASK = SLOTS - 1


@nb.njit(cache=True, error_model="numpy")
def push_sums(ring: Any, t: int, j: int, a: float, b: float, c: float, d: float) -> None:
    """Take the values a, b, c, d of series j .. j+3 at bar t; ring (LEVELS, SLOTS, series).

    Four at once, and from registers: the compiler then needs one instruction for the four of a level.
    """
    now = t & _MASK
    new = ring[0, now]
    new[j], new[j + 1], new[j + 2], new[j + 3] = a, b, c, d
    for level in range(LEVELS - 1):
        old = ring[level, (t - (1 << level)) & _MASK]
        a, b, c, d = a + old[j], b + old[j + 1], c + old[j + 2], d + old[j + 3]
        new = ring[level + 1, now]
        new[j], new[j + 1], new[j + 2], new[j + 3] = a, b, c, d


@nb.njit(cache=True, error_model="numpy")
def sum_7(ring: Any, t: int, j: int) -> float:
    """Sum of the last 7 values of series j."""
    return ring[2, t & _MASK, j] + ring[1, (t - 4) & _MASK, j] + ring[0, (t - 6) & _MASK, j]


@nb.njit(cache=True, error_model="numpy")
def sum_14(ring: Any, t: int, j: int) -> float:
    """Sum of the last 14 values of series j."""
    return ring[3, t & _MASK, j] + ring[2, (t - 8) & _MASK, j] + ring[1, (t - 12) & _MASK, j]


@nb.njit(cache=True, error_model="numpy")
def sum_20(ring: Any, t: int, j: int) -> float:
    """Sum of the last 20 values of series j."""
    return ring[4, t & _MASK, j] + ring[2, (t - 16) & _MASK, j]


@nb.njit(cache=True, error_model="numpy")
def sum_28(ring: Any, t: int, j: int) -> float:
    """Sum of the last 28 values of series j."""
    return ring[4, t & _MASK, j] + ring[3, (t - 16) & _MASK, j] + ring[2, (t - 24) & _MASK, j]


@nb.njit(cache=True, error_model="numpy")
def seeded(previous: float, value: float, age: int, period: int, weight: float) -> float:
    """A recursive average: `weight` of the new value; value number `period` - 1 is the mean of all so far.

    `age` counts values from 0, negative before the first. Until it is seeded the state is the sum so far.
    """
    if age >= period:
        return previous + (value - previous) * weight
    if age < 0:
        return 0.0
    total = previous + value
    return total / period if age == period - 1 else total


@nb.njit(cache=True, error_model="numpy")
def ema(previous: float, value: float, age: int, period: int) -> float:
    """Exponential moving average, weight 2/(period+1), see `seeded`."""
    return seeded(previous, value, age, period, 2.0 / (period + 1))


@nb.njit(cache=True, error_model="numpy")
def rma(previous: float, value: float, age: int, period: int) -> float:
    """Wilder's moving average, weight 1/period, see `seeded`."""
    return seeded(previous, value, age, period, 1.0 / period)


@nb.njit(cache=True, error_model="numpy")
def higher(a: float, b: float) -> float:
    """The larger of two numbers, neither NaN: one instruction, where `max` minds NaN with branches."""
    return a if a > b else b


@nb.njit(cache=True, error_model="numpy")
def lower(a: float, b: float) -> float:
    """The smaller of two numbers, neither NaN."""
    return a if a < b else b
