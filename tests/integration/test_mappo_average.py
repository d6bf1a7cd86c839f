"""Averaged weights: the mean of the last part of training, kept over a restart."""

from pathlib import Path

import pytest
import torch

from tests.integration.test_mappo_training import algorithm
from tests.training_market import MarketOnDisk, small_settings

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_final_weights_are_the_mean_over_the_last_half(training_market: MarketOnDisk, tmp_path: Path) -> None:
    spec, settings = training_market.core_spec(), small_settings(average_over=0.5)
    assert settings.iterations == 4
    algo = algorithm(spec, settings)
    seen = []
    for number in range(3):
        algo.train()
        seen.append(algo.team_weights())
        if number == 1:
            assert all(torch.equal(w, seen[1][name]) for name, w in algo.final_weights().items())
    algo.save_to_path(str(tmp_path / "checkpoint"))
    algo.stop()
    algo = algorithm(spec, settings)
    try:
        algo.restore_from_path(str(tmp_path / "checkpoint"))
        algo.train()
        seen.append(algo.team_weights())
        for name, weights in algo.final_weights().items():
            torch.testing.assert_close(weights, (seen[2][name] + seen[3][name]) / 2.0)
    finally:
        algo.stop()
