"""Moving windows, averages, RSI and ATR as causal state machines.

Windows are recomputed rather than carried as running sums: a running sum drifts, and history and live would then
differ in the last bits after a restart. A window of n values is a buffer of 2n in which every value is written
twice, n apart, so that the last n are always contiguous.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np

from algospace.types import FloatArray

RSI_STATE = np.dtype([("count", "i8"), ("last", "f8"), ("gain", "f8"), ("loss", "f8")], align=True)
ATR_STATE = np.dtype([("count", "i8"), ("last_close", "f8"), ("value", "f8")], align=True)

# TA-Lib's TA_EPSILON: a movement below it counts as flat.
_FLAT = 1e-14


@nb.njit(cache=True)
def window_push(buffer: FloatArray, count: int, value: float) -> None:
    """Write the value number `count` (from 0) into a window buffer of length 2n."""
    n = buffer.size // 2
    slot = count % n
    buffer[slot] = value
    buffer[slot + n] = value


@nb.njit(cache=True)
def window_view(buffer: FloatArray, count: int) -> FloatArray:
    """The last n of `count` values, oldest first; call only with count ≥ n."""
    n = buffer.size // 2
    start = count % n
    return buffer[start : start + n]


@nb.njit(cache=True)
def wma(values: FloatArray) -> float:
    """Linearly weighted mean of `values`, oldest first: weights 1 .. n."""
    n = values.size
    total = 0.0
    for i in range(n):
        total += (i + 1) * values[i]
    return total / (0.5 * n * (n + 1))


@nb.njit(cache=True)
def ema_update(previous: float, value: float, period: int) -> float:
    """α = 2/(period+1), seeded with the first value (`previous` NaN)."""
    if np.isnan(previous):
        return value
    return previous + (value - previous) * (2.0 / (period + 1))


@nb.njit(cache=True)
def rsi_update(state: Any, value: float, period: int) -> float:
    """Wilder's RSI: mean of the first `period` changes, then RMA; NaN before, 0 for a flat series."""
    count = state.count
    state.count = count + 1
    if count == 0:
        state.last = value
        return np.nan
    change = value - state.last
    state.last = value
    gain = max(change, 0.0)
    loss = max(-change, 0.0)
    if count <= period:
        state.gain += gain
        state.loss += loss
        if count < period:
            return np.nan
        state.gain /= period
        state.loss /= period
    else:
        state.gain = (state.gain * (period - 1) + gain) / period
        state.loss = (state.loss * (period - 1) + loss) / period
    total = state.gain + state.loss
    return 100.0 * (state.gain / total) if total >= _FLAT else 0.0


@nb.njit(cache=True)
def atr_update(state: Any, high: float, low: float, close: float, period: int) -> float:
    """Wilder's average true range; the true range starts at bar 1, the first value is at bar `period`."""
    count = state.count
    state.count = count + 1
    last = state.last_close
    state.last_close = close
    if count == 0:
        return np.nan
    true_range = max(high - low, abs(high - last), abs(low - last))
    if count <= period:
        state.value += true_range
        if count < period:
            return np.nan
        state.value /= period
    else:
        state.value = (state.value * (period - 1) + true_range) / period
    return float(state.value)


@nb.njit(cache=True)
def crossing(a: float, b: float, a_before: float, b_before: float) -> float:
    """+1 where a crosses above b (a > b, before a ≤ b), -1 where below, else 0; NaN never crosses."""
    if a > b and a_before <= b_before:
        return 1.0
    if a < b and a_before >= b_before:
        return -1.0
    return 0.0
