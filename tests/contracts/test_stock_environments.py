"""Stock libraries take our environments as their own: every checker they ship passes, on every rule set."""

import pickle
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from pettingzoo.test import parallel_seed_test, seed_test

from algospace.instruments import INSTRUMENTS
from algospace.types import AnyArray
from envs.config import CoreEnvConfig, RiskEnvConfig
from envs.core_env import CoreEnv
from envs.core_kernels import CLOSE, EXECUTE, REJECT
from envs.gym_envs import CORE_ID, RISK_ID, CoreGymEnv
from envs.pettingzoo_envs import CoreAECEnv, VotesParallelEnv
from envs.single_agent import FLAT, LONG, POSITION_ID, SHORT, PositionEnv
from tests.env_market import random_proposals, random_table, source_bars

SYNTH = INSTRUMENTS["SYNTH"]
TABLE = random_table(12, 500)
PROPOSALS = random_proposals(12, TABLE)
VECTORS = np.random.default_rng(1).normal(size=(2, TABLE.strategic.shape[0], 5)).astype(np.float32)


def core(**values: Any) -> CoreEnv:
    config = CoreEnvConfig(**{"episode_bars": 40} | values)
    return CoreEnv(TABLE, SYNTH, config, PROPOSALS, 30, 500, 3, 500.0)


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("mechanics", ["unit", "full"])
@pytest.mark.parametrize("points", ["bar", "synergy"])
def test_single_agent_passes_gymnasiums_checker(flatten: bool, mechanics: str,
                                                                 points: str) -> None:
    def env() -> PositionEnv:
        return PositionEnv(core(mechanics=mechanics, decision_points=points), VECTORS, flatten)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # unbounded boxes and a missing spec are intended
        check_env(env(), skip_render_check=True)


@pytest.mark.parametrize("flatten", [False, True])
def test_stable_baselines_checker(flatten: bool) -> None:
    checker = pytest.importorskip("stable_baselines3.common.env_checker", reason="pip install -e '.[examples]'")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it says by warnings what would train badly
        checker.check_env(PositionEnv(core(), flatten=flatten), skip_render_check=True)


@pytest.mark.parametrize("name", [CORE_ID, RISK_ID, POSITION_ID])
def test_registered_environments_pass_gymnasiums_checker(name: str) -> None:
    """Made by name, the checker also makes it anew and compares."""
    config = RiskEnvConfig(max_bars=30) if name == RISK_ID else CoreEnvConfig(episode_bars=64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = gymnasium.make(name, bars=source_bars(4_000), instrument="SYNTH", config=config, flatten=True)
        check_env(env.unwrapped, skip_render_check=True)


@pytest.mark.filterwarnings("ignore::UserWarning")  # dictionaries as observations, no render(): intended
@pytest.mark.parametrize("points", ["bar", "synergy"])
def test_pettingzoo_seeds_and_cycles(points: str) -> None:
    seed_test(lambda: CoreAECEnv(core(decision_points=points)), num_cycles=200)
    parallel_seed_test(lambda: VotesParallelEnv(core(decision_points=points)), num_cycles=200)


@pytest.mark.parametrize("mechanics", ["unit", "full"])
def test_a_wanted_position_is_what_the_unanimous_team_would_take(mechanics: str) -> None:
    """Bar by bar the same rewards as the joint-action environment with three equal votes."""
    single, joint = PositionEnv(core(mechanics=mechanics)), CoreGymEnv(core(mechanics=mechanics), flatten=True)
    rng = np.random.default_rng(0)
    for seed in range(8):
        first, _ = single.reset(seed=seed)
        other, _ = joint.reset(seed=seed)
        over = False
        while not over:
            assert np.array_equal(first, other)
            wanted = int(rng.integers(0, 3))
            votes = [wanted] * 3
            first, reward, terminated, truncated, info = single.step(wanted)
            other, same, *flags, seen = joint.step(np.array([*votes, CLOSE if wanted == FLAT else EXECUTE]))
            assert (reward, terminated, truncated, info["equity"]) == (same, *flags, seen["equity"])
            over = terminated or truncated


def test_unit_positions_follow_the_action() -> None:
    """Where bars are real, the position after a step is the one asked for, turned around in a mirrored market."""
    env, rng = PositionEnv(core(mechanics="unit")), np.random.default_rng(1)
    signs = set()
    for seed in range(6):
        _, info = env.reset(seed=seed)
        signs.add(info["sign"])
        over = False
        while not over:
            asked, wanted = env.team.core.voting, int(rng.integers(0, 3))
            _, _, terminated, truncated, info = env.step(wanted)
            if asked and not TABLE.filled[info["row"]]:
                assert info["position"] == {SHORT: -1.0, FLAT: 0.0, LONG: 1.0}[wanted] * info["sign"]
            over = terminated or truncated
    assert signs == {-1.0, 1.0}


def test_a_position_beyond_the_limits_is_not_opened() -> None:
    """Proposals of no contracts: the mask forbids to execute, and the agent stays flat."""
    nothing = PROPOSALS.copy()
    nothing[:, :, 0] = 0.0
    inner = CoreEnv(TABLE, SYNTH, CoreEnvConfig(episode_bars=40), nothing, 30, 500, 3, 500.0)
    env = PositionEnv(inner)
    env.reset(seed=0)
    assert [env.step(LONG)[4]["position"] for _ in range(30)] == [0.0] * 30
    assert env._execution(LONG) == REJECT


def test_cost_scale_reaches_the_account() -> None:
    env = PositionEnv(core(mechanics="unit"))
    env.cost_scale = 0.0
    rewards: list[float] = []
    for scale in (0.0, 1.0):
        env.cost_scale = scale
        env.reset(seed=4)
        rewards.append(sum(float(env.step(action)[1]) for action in (LONG, SHORT) * 19))
    assert env.cost_scale == 1.0
    assert rewards[0] > rewards[1]


def test_copies_and_vectors_of_environments() -> None:
    """A pickled environment lives the same life; Gymnasium's vector environment steps several."""
    env = PositionEnv(core())
    env.reset(seed=1)
    twin = pickle.loads(pickle.dumps(env))
    actions = np.random.default_rng(2).integers(0, 3, 100)
    assert _trace(env, actions) == _trace(twin, actions)
    vector = gymnasium.vector.SyncVectorEnv([lambda i=i: PositionEnv(core(episode_bars=20 + i)) for i in range(3)])
    seen, _ = vector.reset(seed=5)
    assert seen.shape == (3, *env.observation_space.shape)
    for action in actions:
        seen, rewards, *_ = vector.step(np.full(3, action))
        assert np.isfinite(seen).all()
        assert np.isfinite(rewards).all()


def _trace(env: PositionEnv, actions: AnyArray) -> list[tuple[float, int]]:
    out = []
    for action in actions:
        _, reward, terminated, truncated, info = env.step(action)
        out.append((reward, info["row"]))
        if terminated or truncated:
            env.reset()
    return out
