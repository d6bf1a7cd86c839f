"""Plain base-bar columns: momentum, volume ratio, returns and their short-window statistics."""

from __future__ import annotations

from typing import Any, NamedTuple

import numba as nb
import numpy as np

from algospace.features.smoothing import ema_update, window_push, window_view
from algospace.types import AnyArray, FloatArray

MOMENTUM_BARS = 5
VOLUME_PERIOD = 20
RETURN_WINDOW = 60

_SCALARS = np.dtype(
    [("count", "i8"), ("return_count", "i8"), ("last_close", "f8"), ("volume_average", "f8")], align=True
)


class BasicsState(NamedTuple):
    """scalars (1,); window buffers of closes (last six) and of log returns (last 60)."""

    scalars: AnyArray
    closes: FloatArray
    returns: FloatArray


def init_state() -> BasicsState:
    """State before the first base bar."""
    scalars = np.zeros(1, _SCALARS)
    scalars["last_close"] = scalars["volume_average"] = np.nan
    return BasicsState(scalars, np.zeros(2 * (MOMENTUM_BARS + 1)), np.zeros(2 * RETURN_WINDOW))


@nb.njit(cache=True)
def update(state: Any, close: float, volume: float, out: FloatArray) -> None:
    """out = (price_momentum_5, volume_ratio, return_1, volatility_60, autocorr1_60)."""
    s = state.scalars[0]
    window_push(state.closes, s.count, close)
    s.count += 1
    out[:] = np.nan
    if s.count > MOMENTUM_BARS:
        out[0] = 100.0 * (close / window_view(state.closes, s.count)[0] - 1.0)
    out[1] = _volume_ratio(s, volume)
    if s.count > 1:
        out[2] = np.log(close / s.last_close)
        window_push(state.returns, s.return_count, out[2])
        s.return_count += 1
    s.last_close = close
    if s.return_count >= RETURN_WINDOW:
        _return_statistics(window_view(state.returns, s.return_count), out[3:5])


@nb.njit(cache=True)
def _volume_ratio(s: Any, volume: float) -> float:
    """volume / EMA(volume, 20) of the bar before; 1 on the first row, without volume, or for an average of 0."""
    if np.isnan(volume):
        return 1.0
    average = s.volume_average
    s.volume_average = ema_update(average, volume, VOLUME_PERIOD)
    return volume / average if average > 0.0 else 1.0


@nb.njit(cache=True)
def _return_statistics(returns: FloatArray, out: FloatArray) -> None:
    """Standard deviation (ddof 0) and lag-1 autocorrelation (0 where the returns do not vary)."""
    n = returns.size
    # two sums, even and odd places: half the length of the chain of additions, which is what this costs
    even, odd = 0.0, 0.0
    for i in range(0, n, 2):
        even += returns[i]
        odd += returns[i + 1]
    mean = (even + odd) / n
    before = 0.0
    squares_even, squares_odd, products_even, products_odd = 0.0, 0.0, 0.0, 0.0
    for i in range(0, n, 2):
        first = returns[i] - mean
        second = returns[i + 1] - mean
        squares_even += first * first
        squares_odd += second * second
        products_even += before * first
        products_odd += first * second
        before = second
    squares = squares_even + squares_odd
    products = products_even + products_odd
    out[0] = np.sqrt(squares / n)
    out[1] = products / squares if squares > 0.0 else 0.0
