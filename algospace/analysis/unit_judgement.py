"""One market's judgement of a policy: its unit score beside the limit and every baseline, the alarm, the regimes.

Nothing here knows how the positions came about, so a rule that sees the future is judged like a trained team.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from algospace.analysis.regime_table import RegimeSums, regime_sums
from algospace.analysis.trend_bayes import trend_positions
from algospace.analysis.unit_baselines import baseline_positions
from algospace.analysis.unit_score import (
    LeakVerdict,
    Segments,
    UnitScore,
    fraction_of_limit,
    leak_alarm,
    limit_score,
    next_returns,
    score_unit_run,
    unit_pnl,
)
from algospace.errors import ConfigError
from algospace.marketdata.synthetic import SCENARIOS, Scenario, SyntheticTruth
from algospace.types import AnyArray, FloatArray

POLICY, LIMIT, TREND, CLAIRVOYANT = "policy", "bayes_limit", "trend_bayes", "clairvoyant"


@dataclass(frozen=True)
class Judgement:
    """scores: by contender, `policy` and `bayes_limit` among them; fraction: of the limit, None where it earns
    nothing; realised: the policy's P&L (bars,) in ticks, decision after decision."""

    seed: int
    scores: dict[str, UnitScore]
    verdict: LeakVerdict
    regimes: RegimeSums
    realised: FloatArray

    @property
    def policy(self) -> UnitScore:
        """The judged policy's score."""
        return self.scores[POLICY]

    def fraction(self, contender: str = POLICY) -> float | None:
        """The contender's score as a fraction of the limit's."""
        return fraction_of_limit(self.scores[contender], self.scores[LIMIT])

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a JSON report."""
        return {"seed": self.seed, "bars": self.policy.bars, "fraction_of_limit": self.fraction(),
                "policy": self.policy.as_dict(), "limit": self.scores[LIMIT].score,
                "leak": {"rang": self.verdict.leaking, "reasons": list(self.verdict.reasons),
                         "above_limit_se": _finite(self.verdict.above_limit_se),
                         "disagreement_se": _finite(self.verdict.disagreement_se)}}


def require_limit(scenario: Scenario) -> None:
    """ConfigError for a scenario whose limit is not solved."""
    if not scenario.has_limit:
        solved = ", ".join(name for name, known in SCENARIOS.items() if known.has_limit)
        raise ConfigError(f"scenario '{scenario.name}' has no solved limit to judge by; choose one of {solved}")


def judge(scenario: Scenario, truth: SyntheticTruth, close: FloatArray, positions: AnyArray, segments: Segments,
          seed: int) -> Judgement:
    """Judge positions (n,) decided at each close of one market of `scenario`; `segments` are the scored rows."""
    require_limit(scenario)
    expected, belief = truth.expected_return, truth.belief
    if expected is None or belief is None:
        raise ValueError(f"the truth of scenario '{scenario.name}' lacks the filter's belief")
    rules = {TREND: trend_positions(scenario.hmm(), belief, close)} | baseline_positions(close, positions, seed)
    scores = {POLICY: score_unit_run(positions, expected, close, segments),
              LIMIT: limit_score(truth, close, segments)}
    scores |= {name: score_unit_run(held, expected, close, segments) for name, held in rules.items()}
    # what the clairvoyant expects is what happens: the market's expectation does not measure it
    scores[CLAIRVOYANT] = replace(scores[CLAIRVOYANT], score=scores[CLAIRVOYANT].realised)
    return Judgement(seed, scores, leak_alarm(scores[POLICY], scores[LIMIT]),
                     regime_sums(truth, close, positions, segments),
                     unit_pnl(positions, next_returns(close), segments))


def _finite(value: float) -> float | None:
    """None where a policy that never trades has no noise to measure a gap by."""
    return value if np.isfinite(value) else None
