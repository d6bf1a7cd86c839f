"""MMD, market microstructure dynamics: what the regime engine sees, on 30-minute bars.

logsig_1..5        log-signature to depth 3 of the path (time 0..1, log price from 0 over stdev * sqrt(32)) of the
                   last 32 returns, Lyndon basis 1, 2, [1,2], [1,[1,2]], [[1,2],2]; all 0 where the stdev is 0
mmd_score          sqrt(max(0, unbiased MMD^2)) between the last 32 returns and the 128 before them, kernel
                   exp(-d^2 / (2 b^2)), b the median pairwise distance of the 160 returns; 0 if b = 0
                   (Gretton et al. 2012, "A Kernel Two-Sample Test", eq. 3)
volatility_30      stdev of 30 log returns
volatility_ratio   stdev of 10 over stdev of 60 returns
price_acceleration second difference of EMA(8) of the log close, over volatility_30; 0 without volatility
return_autocorr_20 lag-1 autocorrelation of 20 returns (one mean, the sum over 19 pairs over the sum of squares)
range_ratio        mean true range of 10 over 60 bars

Standard deviations have ddof 0. A zero denominator gives 1 in a ratio and 0 in an autocorrelation; a stdev below
1e-12 of the mean absolute return is rounding and counts as 0. `volume_profile_skew`, the twelfth regime column,
comes from `lvn`.

Contract: `state = new_state()`, then `update(state, high, low, close, volume, out)` once for every 30-minute bar
writes `COLUMNS` into `out` (float64, each column NaN until its window is full; mmd_score is last, after 160
returns). The state is a tuple of arrays: copying them is a snapshot. `volume` is not used.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba as nb
import numpy as np

from algospace.features.mmd_kernel import median_distance, mmd_squared, replace_sorted
from algospace.types import FloatArray, IntArray

PATH = 32
RECENT = 32
PAST = 128
RETURNS = RECENT + PAST
RANGES = 60
EMA_ALPHA = 2.0 / 9.0
COLUMNS = ("logsig_1", "logsig_2", "logsig_3", "logsig_4", "logsig_5", "mmd_score", "volatility_30",
           "volatility_ratio", "price_acceleration", "return_autocorr_20", "range_ratio")

_NO_VARIATION = 1e-12
# Places in `MmdState.last`.
_LOG, _CLOSE, _EMA, _EMA_1, _EMA_2, _MEDIAN = 0, 1, 2, 3, 4, 5


class MmdState(NamedTuple):
    """returns, ranges: rings of log returns and true ranges written twice, so that every window is one slice.
    ordered: the 160 returns by size. last: log close, close, three EMA values, last median distance.
    seen: (1,) bars so far. scratch: (160,) work space."""

    returns: FloatArray
    ranges: FloatArray
    ordered: FloatArray
    last: FloatArray
    seen: IntArray
    scratch: FloatArray


def new_state() -> MmdState:
    """State before the first bar."""
    return MmdState(np.zeros(2 * RETURNS), np.zeros(2 * RANGES), np.zeros(RETURNS), np.full(6, np.nan),
                    np.zeros(1, np.int64), np.zeros(RETURNS))


@nb.njit(cache=True)
def update(state: MmdState, high: float, low: float, close: float, volume: float, out: FloatArray) -> None:
    """Take one 30-minute bar and write `COLUMNS` into `out` (11,)."""
    out[:] = np.nan
    last, bar = state.last, state.seen[0]
    state.seen[0] = bar + 1
    log_close = np.log(close)
    if bar == 0:
        last[_EMA] = log_close
        last[_LOG], last[_CLOSE] = log_close, close
        return
    change = log_close - last[_LOG]
    true_range = max(high, last[_CLOSE]) - min(low, last[_CLOSE])
    last[_LOG], last[_CLOSE] = log_close, close
    last[_EMA_2], last[_EMA_1] = last[_EMA_1], last[_EMA]
    last[_EMA] += EMA_ALPHA * (log_close - last[_EMA])

    slot = (bar - 1) % RETURNS
    replace_sorted(state.ordered, state.returns[slot], change, min(bar - 1, RETURNS))
    state.returns[slot] = state.returns[slot + RETURNS] = change
    end = slot + 1 + RETURNS
    slot = (bar - 1) % RANGES
    state.ranges[slot] = state.ranges[slot + RANGES] = true_range

    _write_path(state, bar, end, out)
    _write_statistics(state, bar, end, slot + 1 + RANGES, out)
    if bar >= RETURNS:
        median = median_distance(state.ordered, last[_MEDIAN])
        last[_MEDIAN] = median
        out[5] = 0.0
        if median > 0.0:
            square = mmd_squared(state.returns[end - RETURNS:end], RECENT, median, state.scratch)
            out[5] = np.sqrt(max(0.0, square))


@nb.njit(cache=True)
def stdev(values: FloatArray) -> Any:
    """Population standard deviation; 0 where the values differ only by rounding."""
    mean, size = 0.0, 0.0
    for value in values:
        mean += value
        size += abs(value)
    mean /= values.size
    squares = 0.0
    for value in values:
        squares += (value - mean) ** 2
    deviation = np.sqrt(squares / values.size)
    return deviation if deviation > _NO_VARIATION * size / values.size else 0.0


@nb.njit(cache=True)
def _write_path(state: MmdState, bar: int, end: int, out: FloatArray) -> None:
    """Log-signature of the piecewise linear path, from its iterated integrals.

    With t time and p scaled log price, a = S(1) = 1 and b = S(2): the coefficients of [1,2], [1,[1,2]] and
    [[1,2],2] are those of the words 12, 112 and 122 in log S, because no other bracket of their degree holds
    them: S12 - ab/2, S112 - a S12/2 + a^2 b/12, S122 - b S12/2 + a b^2/12.
    """
    if bar < PATH:
        return
    window = state.returns[end - PATH:end]
    scale = stdev(window) * np.sqrt(PATH)
    out[0:5] = 0.0
    if scale == 0.0:
        return
    h, t = 1.0 / PATH, 0.0
    b, s12, s112, s122 = 0.0, 0.0, 0.0, 0.0
    for change in window:
        dp = change / scale
        s122 += s12 * dp + (0.5 * t + h / 6.0) * dp * dp
        s112 += (t * t + t * (t + h) + (t + h) * (t + h)) / 6.0 * dp
        s12 += (t + 0.5 * h) * dp
        b += dp
        t += h
    out[0] = 1.0
    out[1] = b
    out[2] = s12 - 0.5 * b
    out[3] = s112 - 0.5 * s12 + b / 12.0
    out[4] = s122 - 0.5 * b * s12 + b * b / 12.0


@nb.njit(cache=True)
def _write_statistics(state: MmdState, bar: int, end: int, range_end: int, out: FloatArray) -> None:
    returns, last = state.returns, state.last
    if bar >= 30:
        out[6] = stdev(returns[end - 30:end])
        second = last[_EMA] - 2.0 * last[_EMA_1] + last[_EMA_2]
        out[8] = second / out[6] if out[6] > 0.0 else 0.0
    if bar >= 60:
        slow = stdev(returns[end - 60:end])
        out[7] = stdev(returns[end - 10:end]) / slow if slow > 0.0 else 1.0
    if bar >= 20:
        out[9] = _autocorrelation(returns[end - 20:end])
    if bar >= RANGES:
        slow_range = np.mean(state.ranges[range_end - RANGES:range_end])
        fast_range = np.mean(state.ranges[range_end - 10:range_end])
        out[10] = fast_range / slow_range if slow_range > 0.0 else 1.0


@nb.njit(cache=True)
def _autocorrelation(values: FloatArray) -> Any:
    if stdev(values) == 0.0:
        return 0.0
    mean = np.mean(values)
    products, squares = 0.0, (values[0] - mean) ** 2
    for i in range(1, values.size):
        products += (values[i] - mean) * (values[i - 1] - mean)
        squares += (values[i] - mean) ** 2
    return products / squares
