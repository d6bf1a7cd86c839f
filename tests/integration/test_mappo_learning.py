"""The learner finds what is there: a column that shows the next return must be exploited."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training_market import MarketOnDisk, save_market, small_settings, with_next_return
from training.evaluation.unit_run import unit_run
from training.mappo.core_team import CoreTeamModule
from training.mappo.settings import Ramp
from training.team_training import train_team

SETTINGS = small_settings(
    env_steps=150_000, num_shards=1, envs_per_shard=64, segment=32, minibatches=4, gae_lambda=0.5,
    learning_rate=Ramp(start=1e-2, end=1e-3), cost_scale=Ramp(start=0.0, end=1.0, since=0.25, until=0.55))


def score(market: MarketOnDisk, folder: Path) -> float:
    """Mean of position times the next return, in standard deviations of returns, after training."""
    spec = market.core_spec(env={"episode_bars": 128}, net={"hidden": 16})
    team = train_team(spec, SETTINGS, folder)
    assert isinstance(team.module, CoreTeamModule)
    positions, _ = unit_run(team.module, team.spec, market.start, market.stop - 1, 64)
    close = np.asarray(market.table.close)
    returns = np.append(np.diff(np.log(close)), 0.0)
    rows = slice(market.start, market.stop - 1)
    return float((positions * returns)[rows].mean() / returns[rows].std())


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_an_oracle_column_is_exploited(training_market: MarketOnDisk, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    oracle = save_market(tmp_path / "oracle", with_next_return(training_market.table))
    seen, unseen = score(oracle, tmp_path / "seen"), score(training_market, tmp_path / "unseen")
    assert seen > 0.4  # perfect foresight is about 0.8: the mean absolute value of a normal
    assert seen > unseen + 0.3
