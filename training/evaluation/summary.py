"""Judgements of many markets as one document: means, intervals, tables, and what failed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from algospace.analysis.intervals import Interval, bootstrap_interval, stationary_interval
from algospace.analysis.regime_table import pooled
from algospace.analysis.unit_judgement import CLAIRVOYANT, LIMIT, POLICY, TREND, Judgement
from training.evaluation.config import Judging

_FIGURES = ("score", "realised", "sharpe", "exposure", "turnover")
_PROFIT_CONFIDENCE = 0.98  # one-sided 1 %


def summary(judgements: Sequence[Judgement], judging: Judging) -> dict[str, Any]:
    """One policy over all judging markets."""
    fractions = [j.fraction() for j in judgements]
    interval = fraction_interval(fractions, judging)
    return {
        "fraction_of_limit": None if interval is None else {**interval.as_dict(), "over": "judging markets"},
        "score": _over_seeds([j.policy.score for j in judgements], judging).as_dict(),
        "markets": [j.as_dict() for j in judgements],
        "policies": _policies(judgements, judging),
        "regimes": pooled([j.regimes for j in judgements]).rows(),
        "realised": _profit(judgements).as_dict(),
        "alarms": [j.seed for j in judgements if j.verdict.leaking],
        "above_trend_bayes": all(j.policy.score > j.scores[TREND].score for j in judgements),
    }


def fraction_interval(fractions: Sequence[float | None], judging: Judging) -> Interval | None:
    """Mean fraction and its interval; None where the limit earns nothing."""
    known = [f for f in fractions if f is not None]
    return _over_seeds(known, judging) if len(known) == len(fractions) else None


def _over_seeds(values: Sequence[float], judging: Judging) -> Interval:
    return bootstrap_interval(np.array(values), judging.confidence)


def _policies(judgements: Sequence[Judgement], judging: Judging) -> dict[str, dict[str, Any]]:
    """Every contender's mean figures over the markets, the policy first and the rest by falling score."""
    table: dict[str, dict[str, Any]] = {}
    for name in judgements[0].scores:
        scores = [j.scores[name] for j in judgements]
        interval = fraction_interval([j.fraction(name) for j in judgements], judging)
        table[name] = {figure: float(np.mean([getattr(s, figure) for s in scores])) for figure in _FIGURES} | {
            "trades": sum(s.trades for s in scores),
            "fraction_of_limit": None if interval is None else interval.as_dict()}
    order = sorted(table, key=lambda name: (name != POLICY, -table[name]["score"]))
    return {name: table[name] for name in order}


def _profit(judgements: Sequence[Judgement]) -> Interval:
    """Realised P&L per bar of all markets in a row, by the stationary bootstrap."""
    return stationary_interval(np.concatenate([j.realised for j in judgements]), _PROFIT_CONFIDENCE)


def failures_of_run(name: str, document: dict[str, Any], judging: Judging) -> list[str]:
    """What is wrong with an honest run's summary."""
    found = [f"{name}: the leak alarm rings on market {market['seed']}: {'; '.join(market['leak']['reasons'])}"
             for market in document["markets"] if market["leak"]["rang"]]
    fraction = document["fraction_of_limit"]
    if judging.least_fraction is not None and fraction is not None and (
            fraction["estimate"] < judging.least_fraction):
        found.append(f"{name}: {fraction['estimate']:.1%} of the limit, below the required "
                     f"{judging.least_fraction:.1%}")
    return found


def failures_of_martingale(document: dict[str, Any], judging: Judging) -> list[str]:
    """A team that trades, or seems to earn, where nothing can be earned."""
    found = failures_of_run("martingale control", document, judging.model_copy(update={"least_fraction": None}))
    exposure, profit = document["policies"][POLICY]["exposure"], document["realised"]
    if exposure > judging.max_idle_exposure:
        found.append(f"martingale control: in the market on {exposure:.1%} of bars, more than "
                     f"{judging.max_idle_exposure:.1%}")
    if profit["low"] is not None and profit["low"] > 0.0:
        found.append(f"martingale control: significant profit of {profit['estimate']:.4f} ticks per bar where "
                     "there is none to be had")
    return found


def failures_of_oracle(document: dict[str, Any], judging: Judging) -> list[str]:
    """A learner that cannot use the next return, or an alarm that does not notice."""
    policy, limit = document["policies"][POLICY], document["policies"][LIMIT]
    found = []
    if policy["realised"] < judging.oracle_multiple * limit["score"]:
        found.append(f"oracle control: shown the next return, the team earns {policy['realised']:.3f} ticks per "
                     f"bar, below {judging.oracle_multiple:g} times the limit's {limit['score']:.3f}: the learner "
                     "is broken")
    silent = [str(market["seed"]) for market in document["markets"] if not market["leak"]["rang"]]
    if silent:
        found.append(f"oracle control: the leak alarm stays silent on market {', '.join(silent)}: it is broken")
    return found


def oracle_figures(document: dict[str, Any]) -> dict[str, float | None]:
    """How much of what the next return is worth the team took."""
    policies = document["policies"]
    earned, limit = policies[POLICY]["realised"], policies[LIMIT]["score"]
    return {"multiple_of_limit": earned / limit if limit > 0.0 else None,
            "share_of_clairvoyant": earned / policies[CLAIRVOYANT]["realised"]}
