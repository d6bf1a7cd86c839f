"""A trial's net reward is given in the base's risk unit, whatever unit its own size makes."""

from typing import Any

import numpy as np
import pytest

from training.dataset import Split
from training.evaluation import validation_score
from training.evaluation.validation_score import ValidationScorer


def test_a_smaller_unit_does_not_raise_the_score(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    money = np.random.default_rng(3).normal(5.0, 40.0, (6, 10))

    def score(unit_of_trial: float) -> dict[str, float]:
        monkeypatch.setattr(validation_score, "greedy_rewards", lambda *_: (money / unit_of_trial, 0.5))
        scorer = ValidationScorer.__new__(ValidationScorer)
        values = {"_spec": {"env": {"episode_bars": 10}}, "_module": None, "_split": Split(tmp_path, 0, 60),
                  "_truth": None, "_scale": unit_of_trial / 100.0}
        vars(scorer).update(values)
        return scorer._net_reward()

    assert score(25.0) == pytest.approx(score(100.0))
    assert score(100.0)["validation_score"] == pytest.approx(money.mean() / 100.0)
