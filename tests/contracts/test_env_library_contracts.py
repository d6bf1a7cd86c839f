"""The environments pass the checkers of Gymnasium and PettingZoo."""

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from pettingzoo.test import api_test, parallel_api_test

from algospace.instruments import INSTRUMENTS
from envs.config import CoreEnvConfig, RiskEnvConfig
from envs.core_env import CoreEnv
from envs.gym_envs import CORE_ID, RISK_ID, CoreGymEnv, RiskGymEnv
from envs.pettingzoo_envs import CoreAECEnv, VotesParallelEnv
from envs.risk_env import RiskEnv
from envs.team_env import TeamEnv
from tests.env_market import random_proposals, random_table, source_bars

SYNTH = INSTRUMENTS["SYNTH"]
TABLE = random_table(11, 500)
PROPOSALS = random_proposals(11, TABLE)


def core(**values: object) -> CoreEnv:
    config = CoreEnvConfig(**{"episode_bars": 40} | values)
    return CoreEnv(TABLE, SYNTH, config, PROPOSALS, 30, 500, 3, 500.0)


def risk() -> RiskEnv:
    return RiskEnv(TABLE, SYNTH, RiskEnvConfig(episode_trades=10, max_bars=30), 30, 500, 3)


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("env", [CoreGymEnv, RiskGymEnv])
def test_gymnasium_checker(env: type, flatten: bool) -> None:
    inner = core() if env is CoreGymEnv else risk()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # unbounded boxes and a missing spec are intended
        check_env(env(inner, flatten=flatten), skip_render_check=True)


# PettingZoo warns that observations are dictionaries and that there is no render(): both intended
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("points", ["bar", "synergy"])
def test_pettingzoo_turns(points: str) -> None:
    api_test(CoreAECEnv(core(decision_points=points)), num_cycles=300)


@pytest.mark.parametrize("mechanics", ["unit", "full"])
def test_pettingzoo_parallel_votes(mechanics: str) -> None:
    parallel_api_test(VotesParallelEnv(core(mechanics=mechanics)), num_cycles=300)


def test_team_dictionaries_carry_the_whole_reward_of_the_core() -> None:
    """The four agents' rewards add up to the equity curve, and a whole episode ends in a truncation."""
    env = TeamEnv(core(mechanics="unit"))
    rng = np.random.default_rng(0)
    for seed in range(5):
        env.reset(seed)
        total, over, turns = 0.0, False, 0
        while not over:
            names = env.to_act
            obs, rewards, terminated, truncated, _ = env.step({name: int(rng.integers(0, 3)) for name in names})
            if rewards:
                assert len(set(rewards.values())) == 1
                total += rewards["execution"]
            else:
                assert set(obs) == {"execution"}
                turns += 1
            over = terminated["__all__"] or truncated["__all__"]
        assert truncated["__all__"]
        assert turns > 0
        assert total == pytest.approx((env.core.account["equity"] - 1.0) / 500.0, abs=1e-12)


def test_a_missing_action_is_named() -> None:
    env = TeamEnv(core())
    env.reset(0)
    with pytest.raises(ValueError, match="tactical, arbitrage"):
        env.step({"strategic": 1})


@pytest.mark.parametrize("part", ["train", "test"])
def test_registered_environments_are_built_from_bars(part: str) -> None:
    bars = source_bars(6_000)
    for name, config in ((CORE_ID, CoreEnvConfig(episode_bars=64)), (RISK_ID, RiskEnvConfig(max_bars=30))):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            env = gymnasium.make(name, bars=bars, instrument="SYNTH", config=config, part=part, train_fraction=0.6)
        env.action_space.seed(0)
        first, _ = env.reset(seed=1)
        again, _ = env.reset(seed=1)
        assert all(np.array_equal(first[key], again[key]) for key in first)
        assert first["strategic"].shape == (48, 8)
        assert np.abs(first["tactical"]).sum() > 0.0
        for _ in range(20):
            observation, _, terminated, truncated, info = env.step(env.action_space.sample())
            assert env.observation_space.contains(observation)
            assert (info["row"] < 3_600) == (part == "train")
            if terminated or truncated:
                env.reset()


def test_an_agent_that_scales_its_observation_in_place_changes_nobody_elses() -> None:
    env = TeamEnv(core())
    seen = env.reset(1)
    for number in range(60):
        arrays = [array for parts in seen.values() for array in parts.values()]
        own = [env.core.proposal, *(np.asarray(column) for column in (TABLE.tactical, TABLE.strategic))]
        for place, array in enumerate(arrays):
            assert not any(np.shares_memory(array, other) for other in (*arrays[:place], *own))
        seen, *_ = env.step(dict.fromkeys(env.to_act, 2 if len(env.to_act) > 1 else number % 2))


@pytest.mark.parametrize("wrong", [-1, 3])
def test_an_action_that_does_not_exist_is_refused_by_the_agents_name(wrong: int) -> None:
    env = TeamEnv(core())
    env.reset(1)
    with pytest.raises(ValueError, match=f"tactical chose {wrong}; actions are 0 to 2"):
        env.step({"strategic": 2, "tactical": wrong, "arbitrage": 2})
