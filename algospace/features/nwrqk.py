"""NW-RQK: Nadaraya-Watson regression with a rational quadratic kernel, non-repainting (after jdehorty)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numba as nb
import numpy as np

from algospace.features.config import NwrqkConfig
from algospace.features.smoothing import crossing, window_push, window_view
from algospace.types import AnyArray, FloatArray

_SCALARS = np.dtype([("count", "i8"), ("last_value", "f8"), ("last_slope", "f8")], align=True)


class NwrqkState(NamedTuple):
    """scalars (1,); window (2·taps,) of the source; weights (2, taps), newest tap last, of both lines."""

    scalars: AnyArray
    window: FloatArray
    weights: FloatArray


def init_state(config: NwrqkConfig) -> NwrqkState:
    """w_i = (1 + i²/(2·r·h²))^(-r) for i = 0 .. x0+1, for h and h - lag."""
    taps = config.x0 + 2
    i = np.arange(taps - 1, -1, -1, dtype=np.float64)
    widths = (config.h, config.h - config.lag)
    weights = np.stack([(1.0 + i**2 / (2.0 * config.r * h**2)) ** -config.r for h in widths])
    scalars = np.zeros(1, _SCALARS)
    scalars["last_value"] = scalars["last_slope"] = np.nan
    return NwrqkState(scalars, np.zeros(2 * taps), weights)


@nb.njit(cache=True)
def update(state: Any, source: float, out: FloatArray) -> None:
    """out = (value, fast, slope, signal); the signal is ±1 where the slope crosses 0."""
    s = state.scalars[0]
    window_push(state.window, s.count, source)
    s.count += 1
    out[0:3] = np.nan
    out[3] = 0.0
    taps = state.weights.shape[1]
    if s.count < taps:
        return
    values = window_view(state.window, s.count)
    out[0] = _regress(values, state.weights[0])
    out[1] = _regress(values, state.weights[1])
    slope = out[0] - s.last_value
    out[2] = slope
    out[3] = crossing(slope, 0.0, s.last_slope, 0.0)
    s.last_value = out[0]
    s.last_slope = slope


@nb.njit(cache=True)
def _regress(values: FloatArray, weights: FloatArray) -> float:
    total = 0.0
    mass = 0.0
    for i in range(values.size):
        total += values[i] * weights[i]
        mass += weights[i]
    return total / mass
