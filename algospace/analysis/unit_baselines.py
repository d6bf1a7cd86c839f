"""Baselines of the unit run: positions (n,) int8 decided at each close from closes up to it.

`clairvoyant` alone knows the future; `random_positions` knows nothing. Before its window is full a rule is flat.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np

from algospace.analysis.unit_score import Segments, UnitScore, limit_score, next_returns, score_unit_run
from algospace.marketdata.bayes_limit import COST_TICKS, TICK_RETURN
from algospace.marketdata.synthetic import SyntheticTruth
from algospace.seeding import combine, stream_key, to_unit
from algospace.types import AnyArray, FloatArray

MOMENTUM_BARS = 24
SMA_BARS = (20, 100)
EMA_BARS = (12, 48)


def buy_and_hold(close: FloatArray) -> AnyArray:
    """Always long."""
    return np.ones(close.size, np.int8)


def momentum(close: FloatArray, bars: int = MOMENTUM_BARS) -> AnyArray:
    """Sign of the return over the last `bars` bars."""
    out = np.zeros(close.size, np.int8)
    out[bars:] = np.sign(close[bars:] - close[:-bars])
    return out


def ma_cross(close: FloatArray, fast: int = SMA_BARS[0], slow: int = SMA_BARS[1]) -> AnyArray:
    """Long while the fast simple average of closes is above the slow one, short while below."""
    out = np.sign(_sma(close, fast) - _sma(close, slow))
    return np.nan_to_num(out).astype(np.int8)


def ema_cross(close: FloatArray, fast: int = EMA_BARS[0], slow: int = EMA_BARS[1]) -> AnyArray:
    """The same with exponential averages, α = 2/(n+1), seeded with the first close; flat for `slow` bars."""
    out = np.sign(_ema(close, fast) - _ema(close, slow)).astype(np.int8)
    out[:slow] = 0
    return out


def random_positions(like: AnyArray, seed: int) -> AnyArray:
    """Random positions with the exposure and, in expectation, the turnover of `like`.

    At each bar, with the probability that matches the turnover, the position is drawn anew: flat as often as
    `like` is, otherwise long or short with equal chances.
    """
    exposure = float(np.mean(like != 0))
    turnover = float(np.abs(np.diff(like.astype(np.float64), prepend=0.0)).mean())
    # expected |change| of one fresh draw: long <-> short 2 units, flat <-> either 1 unit
    per_draw = 2.0 * (exposure / 2.0) ** 2 * 2.0 + 2.0 * exposure * (1.0 - exposure)
    draw_probability = min(turnover / per_draw, 1.0) if per_draw > 0.0 else 0.0
    out = np.zeros(like.size, np.int8)
    _random(np.uint64(stream_key("random baseline", seed)), exposure, draw_probability, out)
    return out


def clairvoyant(close: FloatArray, cost_ticks: float = COST_TICKS) -> AnyArray:
    """The best positions in hindsight, costs included, by dynamic programming: the bound of all bounds."""
    out = np.zeros(close.size, np.int8)
    returns = close[1:] / close[:-1] - 1.0
    _best_in_hindsight(returns, cost_ticks * TICK_RETURN, np.empty((returns.size, 3), np.int8), out)
    return out


def baseline_positions(close: FloatArray, like: AnyArray, seed: int = 0) -> dict[str, AnyArray]:
    """All baselines by name; `like` gives the random one its turnover."""
    return {
        "buy_and_hold": buy_and_hold(close),
        "momentum": momentum(close),
        "ma_cross": ma_cross(close),
        "ema_cross": ema_cross(close),
        "random": random_positions(like, seed),
        "clairvoyant": clairvoyant(close),
    }


def score_baselines(truth: SyntheticTruth, close: FloatArray, like: AnyArray | None = None,
                    segments: Segments | None = None, seed: int = 0) -> dict[str, UnitScore]:
    """Unit scores of every baseline and of `bayes_limit`; `like` defaults to the limit's positions.

    The clairvoyant's `score` equals its `realised`: what it expects, knowing every return, is what happens.
    """
    if truth.limit_position is None or truth.expected_return is None:
        raise ValueError("this scenario has no known expected return; score a planted one")
    reference = truth.limit_position if like is None else like
    gains = {"clairvoyant": next_returns(close)}
    scores = {name: score_unit_run(held, gains.get(name, truth.expected_return), close, segments)
              for name, held in baseline_positions(close, reference, seed).items()}
    return scores | {"bayes_limit": limit_score(truth, close, segments)}


def _sma(values: FloatArray, bars: int) -> FloatArray:
    out = np.full(values.size, np.nan)
    sums = np.cumsum(values)
    out[bars - 1:] = (sums[bars - 1:] - np.concatenate(([0.0], sums[:-bars]))) / bars
    return out


@nb.njit(cache=True)
def _ema(values: AnyArray, bars: int) -> AnyArray:
    out = np.empty(values.size)
    alpha = 2.0 / (bars + 1)
    level = values[0]
    for t in range(values.size):
        level += alpha * (values[t] - level)
        out[t] = level
    return out


@nb.njit(cache=True)
def _random(key: Any, exposure: float, draw_probability: float, out: AnyArray) -> None:
    position = 0
    for t in range(out.size):
        row = combine(key, t)
        if to_unit(combine(row, 0)) < draw_probability:
            u = to_unit(combine(row, 1))
            position = 0 if u >= exposure else (1 if 2.0 * u < exposure else -1)
        out[t] = position


@nb.njit(cache=True)
def _best_in_hindsight(returns: AnyArray, cost: float, choice: AnyArray, out: AnyArray) -> None:
    """Backward values of standing at -1, 0, +1 before decision t; ties keep the position."""
    value, before = np.zeros(3), np.empty(3)
    for t in range(returns.size - 1, -1, -1):
        for held in range(3):
            best, action = value[held] + (held - 1) * returns[t], held
            for other in range(3):
                candidate = value[other] + (other - 1) * returns[t] - cost * abs(other - held)
                if candidate > best:
                    best, action = candidate, other
            before[held] = best
            choice[t, held] = action
        value[:] = before
    held = 1
    for t in range(returns.size):
        held = choice[t, held]
        out[t] = held - 1
