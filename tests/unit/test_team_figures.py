"""Figures of a batch's behaviour, on votes counted by hand."""

import numpy as np
import pytest
import torch

from training.mappo.algorithm import core_figures
from training.mappo.learner import pivotal
from training.team_training import _summary

VOTES = [[2, 2, 2], [2, 0, 1], [1, 1, 1], [0, 0, 2]]


def test_agreement_and_majority() -> None:
    actions = np.array([[[*votes, 1] for votes in VOTES]], np.int8)
    figures = core_figures({"account": np.zeros((1, 4, 8), np.float32), "actions": actions,
                            "valid": np.ones((1, 4, 4), np.bool_)})
    assert figures["agreement"] == pytest.approx((1.0 + 0.0 + 0.0 + 1.0 / 3.0) / 4.0)
    assert figures["opportunity"] == pytest.approx(0.5)
    assert figures["agreement_strategic"] == pytest.approx(2 / 3)  # long with all, long alone, short with one
    assert figures["agreement_arbitrage"] == pytest.approx(1 / 2)


def test_a_vote_is_pivotal_exactly_where_another_would_change_the_majority() -> None:
    every = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), -1).reshape(-1, 3)

    def majority(votes: np.ndarray) -> int:
        return int((votes == 2).sum() >= 2) - int((votes == 0).sum() >= 2)

    found = pivotal(torch.from_numpy(np.pad(every, ((0, 0), (0, 1))))).numpy()
    for votes, row in zip(every, found, strict=True):
        for agent in range(3):
            others = [np.where(np.arange(3) == agent, choice, votes) for choice in range(3)]
            assert row[agent] == (len({majority(v) for v in others}) > 1)
        assert row[3]


def test_a_runs_summary_counts_wall_time_once_where_sampling_runs_beside_the_update() -> None:
    beside = {"sample_seconds": 4.0, "update_seconds": 4.0, "env_steps_per_second": 25.0}
    summary = _summary([{**beside, "env_steps_per_second": 10.0}, beside, beside], 100)
    assert summary == {"env_steps_per_s": 25.0, "train_seconds": 18.0, "env_steps": 300.0}
