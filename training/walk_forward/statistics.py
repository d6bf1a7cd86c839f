"""Figures of a contender's days: what it earned, how surely, and how likely by luck.

Returns are daily profits over the initial equity, not reinvested. Intervals are of the stationary bootstrap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from algospace.analysis.metrics import sharpe_ratio, sortino_ratio, stationary_bootstrap
from algospace.analysis.overfitting import (
    deflated_sharpe_of_count,
    probabilistic_sharpe,
    probability_of_overfitting,
    random_p_value,
)
from algospace.instruments import Instrument
from algospace.types import FloatArray, IntArray

_DAYS_OF_WEEKDAYS, _DAYS_OF_WEEK = 252.0, 365.0
_ROWS_PER_BLOCK = 2


@dataclass(frozen=True)
class Days:
    """Trading days (days since 1970, ascending, each once) and the profit of each in money."""

    day: IntArray
    profit: FloatArray


@dataclass(frozen=True)
class Judgement:
    """What all contenders are judged with."""

    initial_equity: float
    days_per_year: float
    trials: int
    samples: int
    seed: int


def days_per_year(instrument: Instrument) -> float:
    """Trading days in a year of the instrument's session."""
    return _DAYS_OF_WEEK if instrument.session.days == "Mon-Sun" else _DAYS_OF_WEEKDAYS


def join(parts: Sequence[Days]) -> Days:
    """The parts in time order as one series; a trading day that two parts share is one day."""
    day = np.concatenate([part.day for part in parts])
    profit = np.concatenate([part.profit for part in parts])
    days, place = np.unique(day, return_inverse=True)
    joined = np.zeros(days.size)
    np.add.at(joined, place, profit)
    return Days(days, joined)


def join_draws(days: Sequence[IntArray], draws: Sequence[FloatArray]) -> FloatArray:
    """(S, D) daily profits of every random seed, joined as `join` joins: seed s of each part is one trader."""
    return np.stack([join([Days(day, part[s]) for day, part in zip(days, draws, strict=True)]).profit
                     for s in range(len(draws[0]))])


def judge(series: Days, rule: Judgement) -> dict[str, Any]:
    """Net, Sharpe, Sortino, drawdown of the daily curve, intervals, probabilistic and deflated Sharpe ratio."""
    returns = series.profit / rule.initial_equity
    intervals = stationary_bootstrap(returns, rule.days_per_year, samples=rule.samples, seed=rule.seed)
    mean, sharpe = intervals["mean"], intervals["sharpe"]
    years = returns.size / rule.days_per_year
    money = rule.initial_equity * years
    curve = np.concatenate([[0.0], np.cumsum(series.profit)])
    return {
        "net": float(series.profit.sum()), "days": int(returns.size),
        "net_low": None if mean.low is None else mean.low * money,
        "net_high": None if mean.high is None else mean.high * money,
        "sharpe": sharpe_ratio(returns, rule.days_per_year), "sharpe_low": sharpe.low, "sharpe_high": sharpe.high,
        "sortino": sortino_ratio(returns, rule.days_per_year),
        "max_drawdown": float(np.max(np.maximum.accumulate(curve) - curve)),
        "probabilistic_sharpe": probabilistic_sharpe(returns),
        "deflated_sharpe": deflated_sharpe_of_count(returns, rule.trials),
    }


def difference(mine: Days, theirs: Days, rule: Judgement) -> dict[str, Any]:
    """My profit less theirs over the same days, with its interval; `sure` where that leaves out zero."""
    returns = (mine.profit - theirs.profit) / rule.initial_equity
    interval = stationary_bootstrap(returns, rule.days_per_year, samples=rule.samples, seed=rule.seed)["mean"]
    money = rule.initial_equity * returns.size / rule.days_per_year
    low, high = (None if bound is None else bound * money for bound in (interval.low, interval.high))
    return {"net": float(returns.sum() * rule.initial_equity), "low": low, "high": high,
            "sure": low is not None and high is not None and (low > 0.0 or high < 0.0)}


def against_random(series: Days, draws: FloatArray, rule: Judgement) -> dict[str, Any]:
    """Where the series' Sharpe ratio and net lie among those of random traders (S, D)."""
    nets = draws.sum(axis=1)
    ratios = np.array([sharpe_ratio(row, rule.days_per_year) or 0.0 for row in draws])
    traded = bool(np.any(series.profit != 0.0))  # who never trades is not compared with those who do
    own = sharpe_ratio(series.profit, rule.days_per_year) if traded else None
    low, middle, high = (float(value) for value in np.quantile(nets, (0.025, 0.5, 0.975)))
    return {"seeds": int(nets.size), "net_median": middle, "net_low": low, "net_high": high,
            "sharpe_median": float(np.median(ratios)), "p_sharpe": random_p_value(own, ratios),
            "p_net": random_p_value(float(series.profit.sum()) if traded else None, nets)}


def overfitting(series: Mapping[str, Days], blocks: int) -> dict[str, Any]:
    """Probability that the best of these contenders in one half of the days is below the median in the other.

    Contenders that never trade are left out; with fewer than two, or too few days, there is nothing to say.
    """
    moving = {name: days.profit for name, days in series.items() if np.any(days.profit != 0.0)}
    rows = len(next(iter(moving.values()))) if moving else 0
    if len(moving) < 2 or rows < _ROWS_PER_BLOCK * blocks:
        return {"pbo": None, "contenders": sorted(moving), "splits": 0}
    found = probability_of_overfitting(np.stack(list(moving.values()), axis=1), blocks)
    return {"pbo": found.pbo, "contenders": sorted(moving), "splits": found.splits}
