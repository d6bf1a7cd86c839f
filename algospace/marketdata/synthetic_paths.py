"""Compiled paths of synthetic markets: portable random draws, planted returns, and the inside of bars.

Every draw is a hash of (key, stream, bar, step), so that the same seed gives the same market on any machine
and a longer market starts with the shorter one. Draws use +, -, *, / and square roots only (exactly rounded
by IEEE 754), never a mathematics library whose last digit differs between systems.
"""

from __future__ import annotations

import math
from typing import Any

import numba as nb
import numpy as np

from algospace.seeding import combine, to_unit
from algospace.types import AnyArray

STEPS_PER_BAR = 10  # of the bridge inside a base bar: 30 seconds each
REGIME, RETURN, BRIDGE, VOLUME, EVENT = 1, 2, 3, 4, 5  # streams
_LN2 = math.log(2.0)
_SQRT_HALF = math.sqrt(0.5)


@nb.njit(cache=True)
def portable_log(x: float) -> float:
    """Natural logarithm of x > 0 to about 1e-16, by 2·artanh of the mantissa."""
    mantissa, exponent = math.frexp(x)
    if mantissa < _SQRT_HALF:
        mantissa *= 2.0
        exponent -= 1
    s = (mantissa - 1.0) / (mantissa + 1.0)
    square = s * s
    total = 0.0
    for k in range(11, -1, -1):  # |s| < 0.172: the next term is below 1e-19
        total = total * square + 1.0 / (2 * k + 1)
    return 2.0 * s * total + exponent * _LN2


@nb.njit(cache=True)
def normal_pair(key: Any) -> tuple[float, float]:
    """Two independent N(0, 1) (Marsaglia and Bray 1964, polar method)."""
    attempt = 0
    while True:
        u = 2.0 * to_unit(combine(key, attempt)) - 1.0
        v = 2.0 * to_unit(combine(key, attempt + 1)) - 1.0
        square = u * u + v * v
        if 0.0 < square < 1.0:
            factor = math.sqrt(-2.0 * portable_log(square) / square)
            return u * factor, v * factor
        attempt += 2


@nb.njit(cache=True)
def exponential(key: Any) -> float:
    """Exp(1) on (0, 36.8]."""
    return -portable_log(1.0 - to_unit(key))


@nb.njit(cache=True)
def unit_t6(key: Any) -> float:
    """Student-t(6) scaled to unit variance: N · √(4/χ²_6), with χ²_6 = 2·(E_1 + E_2 + E_3)."""
    normal, _ = normal_pair(key)
    chi_square = 0.0
    for k in range(3):
        chi_square += 2.0 * exponential(combine(key, -1 - k))
    return normal * math.sqrt(4.0 / chi_square)


@nb.njit(cache=True)
def first_regime(key: Any, stationary: AnyArray) -> int:
    """A draw from the stationary distribution."""
    u = to_unit(combine(combine(key, REGIME), -1))
    state = 0
    while state < stationary.size - 1 and u >= stationary[state]:
        u -= stationary[state]
        state += 1
    return state


@nb.njit(cache=True)
def next_regime(key: Any, t: int, state: int, leave: AnyArray) -> int:
    """The regime of bar t after `state` in bar t-1; leaving goes to each other state with equal probability."""
    u = to_unit(combine(combine(key, REGIME), t))
    if u >= leave[state]:
        return state
    others = leave.size - 1
    step = 1 + min(int(u / leave[state] * others), others - 1)
    return (state + step) % leave.size


@nb.njit(cache=True)
def planted_returns(key: Any, stationary: AnyArray, leave: AnyArray, mu: AnyArray, phi: AnyArray,
                    sigma: AnyArray, regime: AnyArray, returns: AnyArray) -> None:
    """Fill regime (n,) int8 and simple returns (n,); the return before the first bar counts as 0."""
    state = first_regime(key, stationary)
    return_key = combine(key, RETURN)
    r_tm1 = 0.0
    for t in range(returns.size):
        if t > 0:
            state = next_regime(key, t, state, leave)
        regime[t] = state
        r_tm1 = mu[state] + phi[state] * r_tm1 + sigma[state] * unit_t6(combine(return_key, t))
        returns[t] = r_tm1


@nb.njit(cache=True)
def bridge_path(key: Any, open_: float, close: float, volatility: float, tick: float, path: AnyArray) -> None:
    """Fill path (steps + 1,) from open to close by a Brownian bridge; rounded to `tick` inside unless it is 0.

    `volatility` is the bridge's own, as a fraction of the open per bar.
    """
    steps = path.size - 1
    path[0] = 0.0
    for pair in range((steps + 1) // 2):
        first, second = normal_pair(combine(key, pair))
        path[2 * pair + 1] = path[2 * pair] + first
        if 2 * pair + 2 <= steps:
            path[2 * pair + 2] = path[2 * pair + 1] + second
    scale = volatility * open_ / math.sqrt(steps)
    end = path[steps]
    for k in range(1, steps):
        share = k / steps
        price = open_ + share * (close - open_) + scale * (path[k] - share * end)
        path[k] = math.floor(price / tick + 0.5) * tick if tick > 0.0 else price
    path[0] = open_
    path[steps] = close


@nb.njit(cache=True)
def write_bars(path: AnyArray, volume_key: Any, volume_scale: float, first: int, count: int, open_: AnyArray,
               high: AnyArray, low: AnyArray, close: AnyArray, volume: AnyArray) -> None:
    """Cut one base bar's path into `count` bars at rows first, first + 1, …; volumes are drawn per minute."""
    steps = (path.size - 1) // count
    minutes = 5 // count
    for part in range(count):
        row = first + part
        piece = path[part * steps:(part + 1) * steps + 1]
        open_[row], close[row] = piece[0], piece[steps]
        high[row], low[row] = piece.max(), piece.min()
        volume[row] = 0.0
        for minute in range(part * minutes, (part + 1) * minutes):
            volume[row] += 1.0 + math.floor(volume_scale * exponential(combine(volume_key, minute)))


@nb.njit(cache=True)
def planted_bars(key: Any, start_price: float, returns: AnyArray, volatility: float, volume_scale: float,
                 parts: int, open_: AnyArray, high: AnyArray, low: AnyArray, close: AnyArray,
                 volume: AnyArray) -> None:
    """Prices are never rounded: half a tick of noise would hide part of what the filter knows."""
    path = np.empty(STEPS_PER_BAR + 1)
    price = start_price
    bridge_key, volume_key = combine(key, BRIDGE), combine(key, VOLUME)
    for t in range(returns.size):
        following = price * (1.0 + returns[t])
        bridge_path(combine(bridge_key, t), price, following, volatility, 0.0, path)
        write_bars(path, combine(volume_key, t), volume_scale, t * parts, parts, open_, high, low, close, volume)
        price = following
