"""The examples run end to end, and their scores are what the positions earn."""

import importlib
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.utils.numpy import flatten_inputs_to_1d_tensor
from ray.rllib.utils.spaces.space_utils import get_base_struct_from_space
from ray.tune.registry import register_env

from algospace.analysis.unit_baselines import buy_and_hold
from algospace.analysis.unit_score import LeakError
from envs.config import CoreEnvConfig
from envs.gym_envs import boxes
from envs.single_agent import LONG, PositionEnv
from envs.team_env import AGENTS, TeamEnv
from examples.market import ExampleMarket, chunks, make_market, report, unit_core

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TINY = {"train_bars": 3_000, "test_bars": 2_500, "test_seed": 701}


@pytest.fixture(scope="module")
def market() -> ExampleMarket:
    return make_market(701, 3_000)


def sb3() -> Any:
    pytest.importorskip("stable_baselines3", reason="pip install -e '.[examples]'")
    return importlib.import_module("examples.sb3_ppo")


def always_long(seen: Any, deterministic: bool) -> tuple[Any, None]:
    return np.full(len(seen), LONG), None


def test_stable_baselines_example(capsys: pytest.CaptureFixture[str]) -> None:
    figures = sb3().main(2_048, rollout=64, **TINY)
    told = capsys.readouterr().out
    assert figures["steps"] >= 2_048
    assert all(name in told for name in ("sb3 ppo", "bayes limit", "buy_and_hold", "ma_cross", "clairvoyant"))
    assert figures["score"] < figures["limit"]
    assert np.isfinite([figures["score"], figures["score_se"], *figures["baselines"].values()]).all()


def test_stable_baselines_example_repeats_by_seed() -> None:
    first, second = (sb3().main(1_024, 3, rollout=32, **TINY) for _ in range(2))
    assert first | {"seconds": 0.0} == second | {"seconds": 0.0}


def test_rllib_example(ray_cluster: None, capsys: pytest.CaptureFixture[str]) -> None:
    figures = importlib.import_module("examples.rllib_ppo").main(256, batch=256, **TINY)
    told = capsys.readouterr().out
    assert figures["steps"] >= 256
    assert all(name in told for name in ("rllib ppo", "bayes limit", "buy_and_hold"))
    assert np.isfinite([figures["score"], figures["score_se"]]).all()


def test_rllib_trains_on_the_single_agent_environment(market: ExampleMarket, ray_cluster: None) -> None:
    """One iteration of stock single-agent PPO, default networks and connectors."""
    rules = CoreEnvConfig(mechanics="unit", episode_bars=32)
    register_env("position_for_test", lambda config: PositionEnv(unit_core(market, rules, 1)))
    algorithm = (
        PPOConfig().environment("position_for_test").env_runners(num_env_runners=0)
        .training(train_batch_size_per_learner=128, minibatch_size=64, num_epochs=1).build_algo()
    )
    try:
        results = algorithm.train()
    finally:
        algorithm.stop()
    assert results["env_runners"]["num_env_steps_sampled"] >= 128
    assert np.isfinite(results["learners"]["default_policy"]["total_loss"])


def test_a_long_agent_scores_what_buy_and_hold_does(market: ExampleMarket) -> None:
    """The stretches that an example plays are those it scores, row by row."""
    model = SimpleNamespace(predict=always_long)
    positions, segments = sb3().positions_of(model, market, 1.0, 5)
    held = np.zeros(len(market.table))
    for start, stop in segments:
        held[start:stop] = buy_and_hold(np.asarray(market.table.close))[start:stop]
    assert np.array_equal(positions, held)
    figures = report(market, positions, segments, "long")
    assert figures["score"] == pytest.approx(figures["baselines"]["buy_and_hold"], abs=1e-12)


def test_the_reports_alarm_rings_for_a_seer(market: ExampleMarket) -> None:
    close = np.asarray(market.table.close)
    seer = np.append(np.sign(np.diff(close)), 0.0)
    with pytest.raises(LeakError, match="seer sees the future"):
        report(market, seer, chunks(market, 5), "seer")


def test_rllibs_flattening_is_gymnasiums(market: ExampleMarket) -> None:
    """Outside RLlib the example feeds its networks by gymnasium.spaces.flatten: the same vector."""
    team = TeamEnv(unit_core(market, CoreEnvConfig(mechanics="unit", episode_bars=64), 3))
    seen = team.reset()
    while len(seen) > 1:
        seen = team.step(dict.fromkeys(team.to_act, LONG))[0]
    for agent in AGENTS:
        observation = team.observations((agent,))[agent]
        space = boxes(team.observation_shapes(agent))
        theirs = flatten_inputs_to_1d_tensor(observation, get_base_struct_from_space(space), batch_axis=False)
        assert np.array_equal(theirs, spaces.flatten(space, observation))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*_ppo.py")), ids=lambda p: p.stem)
def test_docstrings_say_how_to_run(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert f"python -m examples.{path.stem}" in text.split('"""')[1]
    named = set(re.findall(r"--[a-z-]+", text.split('"""')[1]))
    shared = (EXAMPLES / "market.py").read_text(encoding="utf-8")
    assert named <= set(re.findall(r'add_argument\("(--[a-z-]+)"', shared))
