"""Scores of the unit run on synthetic test markets: policy, baselines and clairvoyant against the Bayes limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from algospace.analysis.unit_baselines import baseline_positions
from algospace.analysis.unit_score import (
    UnitScore,
    fraction_of_limit,
    limit_score,
    require_no_leak,
    score_unit_run,
)
from algospace.errors import InternalError
from envs.config import CoreEnvConfig
from training.dataset import Split
from training.evaluation.unit_run import unit_run
from training.experts import expert_columns
from training.mappo.core_team import CoreTeamModule
from training.mappo.module import build_team_module
from training.team_training import load_team

_MEANS = ("score", "realised", "sharpe", "exposure", "turnover")


def evaluate_units(run_dir: Path, splits: Sequence[Split], seed: int) -> dict[str, Any]:
    """Mean figures over the test markets. Raises LeakError if the policy's scores cannot both be true."""
    rows = [_evaluate(run_dir, split, seed) for split in splits]
    names = rows[0]["scores"].keys()
    policies = {name: _mean([row["scores"][name] for row in rows]) for name in names}
    limit, policy = policies.pop("bayes_limit"), policies.pop("policy")
    return {
        "policy": policy, "baselines": policies, "bayes_limit": limit,
        "fraction_of_limit": policy["score"] / limit["score"] if limit["score"] > 0.0 else None,
        "fractions": {str(row["seed"]): row["fraction"] for row in rows},
        "bars": sum(row["bars"] for row in rows),
        "leak": {str(row["seed"]): row["leak"] for row in rows},
    }


def _mean(scores: list[UnitScore]) -> dict[str, float]:
    figures = {name: float(np.mean([getattr(score, name) for score in scores])) for name in _MEANS}
    return figures | {"trades": float(sum(score.trades for score in scores)),
                      "score_se": float(np.sqrt(np.sum([s.score_se ** 2 for s in scores])) / len(scores))}


def load_core_for(run_dir: Path, split: Split) -> tuple[CoreTeamModule, dict[str, Any]]:
    """The trained core over another market table, its experts' columns computed beside it."""
    folder = run_dir / "evaluation" / f"{split.table.name}.experts"
    team = load_team(run_dir / "core" / "team")
    digest = expert_columns(run_dir, split.market(), split.table, folder)
    spec = {**team.spec, "market": str(split.table.resolve()), "experts": str(folder.resolve()),
            "table_hash": digest}
    module = build_team_module(spec)
    module.load_state_dict(team.module.state_dict())
    assert isinstance(module, CoreTeamModule)
    return module, spec


def _evaluate(run_dir: Path, split: Split, seed: int) -> dict[str, Any]:
    truth, table = split.truth(), split.market()
    if truth is None or truth.expected_return is None:
        raise InternalError(f"{split.table}: a unit run needs a planted market with a solved limit")
    module, spec = load_core_for(run_dir, split)
    spec["env"] = CoreEnvConfig(**{**spec["env"], "mechanics": "unit", "decision_points": "bar"}).model_dump()
    positions, segments = unit_run(module, spec, split.start, split.stop)
    close = np.asarray(table.close)
    expected = truth.expected_return
    scores = {"policy": score_unit_run(positions, expected, close, segments),
              "bayes_limit": limit_score(truth, close, segments)}
    for name, rule in baseline_positions(close, positions, seed).items():
        scores[name] = score_unit_run(rule, expected, close, segments)
    # what the clairvoyant expects is what happens: the market's expectation does not measure it
    scores["clairvoyant"] = replace(scores["clairvoyant"], score=scores["clairvoyant"].realised)
    verdict = require_no_leak(scores["policy"], scores["bayes_limit"], "the policy")
    return {"seed": split.seed, "scores": scores, "bars": scores["policy"].bars,
            "fraction": fraction_of_limit(scores["policy"], scores["bayes_limit"]),
            "leak": {"above_limit_se": _finite(verdict.above_limit_se),
                     "disagreement_se": _finite(verdict.disagreement_se)}}


def _finite(value: float) -> float | None:
    """None where a policy that never trades has no noise to measure a gap by."""
    return value if np.isfinite(value) else None
