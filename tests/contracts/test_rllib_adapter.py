"""The core environment is an ordinary RLlib MultiAgentEnv: RLlib's checker passes, stock PPO trains on it."""

from typing import Any

import numpy as np
import pytest
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.env.multi_agent_episode import MultiAgentEpisode
from ray.rllib.utils.pre_checks.env import check_multiagent_environments

from benchmarks._stock_ppo import peer_module_spec
from envs.core_env import VOTERS
from envs.team_env import AGENTS
from tests.env_market import random_proposals, random_table
from training.mappo.multi_agent_env import CoreMultiAgentEnv, register_core_env
from training.mappo.tables import save_experts

EPISODE = 24
NET = {"embed_dim": 4, "channels": 4, "hidden": 8, "critic_hidden": 8, "dropout": 0.0}


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A small team specification with a market table and experts' columns on disk."""
    folder = tmp_path_factory.mktemp("market")
    table = random_table(5, 500)
    table.save(folder / "table")
    vectors = np.random.default_rng(0).normal(size=(2, table.strategic.shape[0], 8)).astype(np.float32)
    digest = save_experts(folder / "experts", folder / "table", vectors, random_proposals(5, table))
    return {"market": str(folder / "table"), "experts": str(folder / "experts"), "table_hash": digest,
            "instrument": "SYNTH", "start": 30, "stop": 499, "seed": 3, "risk_unit": 500.0, "env_index": 0,
            "net": NET, "env": {"mechanics": "unit", "episode_bars": EPISODE}}


def random_actions(rng: np.random.Generator, agents: Any) -> dict[str, int]:
    return {agent: int(rng.integers(0, 3)) for agent in agents}


@pytest.mark.parametrize("mechanics", ["unit", "full"])
@pytest.mark.parametrize("points", ["bar", "synergy"])
def test_rllibs_checker(spec: dict[str, Any], mechanics: str, points: str) -> None:
    rules = {"mechanics": mechanics, "decision_points": points, "episode_bars": 60}
    check_multiagent_environments(CoreMultiAgentEnv(spec | {"env": rules}))


def test_only_asked_agents_are_observed_and_see_their_spaces(spec: dict[str, Any]) -> None:
    env, rng = CoreMultiAgentEnv(spec), np.random.default_rng(1)
    seen, _ = env.reset(seed=7)
    turns = set()
    for _ in range(300):
        assert set(seen) in ({*VOTERS}, {"execution"})
        turns.add(tuple(sorted(seen)))
        assert all(env.observation_spaces[agent].contains(value) for agent, value in seen.items())
        if set(seen) == {"execution"}:
            assert seen["execution"]["votes"].sum() == 3.0
        asked = tuple(seen)
        seen, rewards, terminated, truncated, _ = env.step(random_actions(rng, asked))
        assert len(set(rewards.values())) <= 1
        assert bool(rewards) != ("execution" in seen and len(seen) == 1)
        if terminated["__all__"] or truncated["__all__"]:
            seen, _ = env.reset()
    assert len(turns) == 2


def test_observations_are_the_tables_windows(spec: dict[str, Any]) -> None:
    """Row by row the tactical window ends in the table's own (mirrored) row."""
    env = CoreMultiAgentEnv(spec | {"mirror": False})
    seen, _ = env.reset(seed=2)
    core = env.team.core
    assert np.array_equal(seen["tactical"]["tactical"],
                          core.table.tactical[core.row - 5: core.row + 1])
    slow = core.table.row_30m[core.row]
    assert np.array_equal(seen["strategic"]["regime"], env.team.observer.regime_vectors[0, slow])


def test_episodes_repeat_by_seed_and_differ_between_instances(spec: dict[str, Any]) -> None:
    first, same = CoreMultiAgentEnv(spec), CoreMultiAgentEnv(spec)
    one, two = first.reset(seed=4)[0], same.reset(seed=4)[0]
    assert all(np.array_equal(one[a][k], two[a][k]) for a in VOTERS for k in one[a])
    free = {key: value for key, value in spec.items() if key != "env_index"}
    rows = [[_row(env) for _ in range(5)] for env in (CoreMultiAgentEnv(free), CoreMultiAgentEnv(free))]
    assert rows[0] != rows[1]


def _row(env: CoreMultiAgentEnv) -> int:
    env.reset()
    return env.team.core.row


@pytest.mark.parametrize("mechanics", ["unit", "full"])
def test_rllib_episode_is_truncated_not_terminated_and_keeps_the_whole_reward(spec: dict[str, Any],
                                                                              mechanics: str) -> None:
    """RLlib's own episode object must bootstrap at an episode's last bar, and lose none of the team's reward."""
    env = CoreMultiAgentEnv(spec | {"env": {"mechanics": mechanics, "episode_bars": EPISODE}})
    rng = np.random.default_rng(3)
    for seed in range(4):
        seen, infos = env.reset(seed=seed)
        episode = MultiAgentEpisode(observation_space=env.observation_spaces, action_space=env.action_spaces)
        episode.add_env_reset(observations=seen, infos=infos)
        over = False
        while not over:
            actions = random_actions(rng, seen)
            seen, rewards, terminated, truncated, infos = env.step(actions)
            episode.add_env_step(seen, actions, rewards, infos, terminateds=terminated, truncateds=truncated)
            over = terminated["__all__"] or truncated["__all__"]
        assert episode.is_terminated == terminated["__all__"]
        assert episode.is_truncated == truncated["__all__"]
        account = env.team.core.account
        start = 1.0 if mechanics == "unit" else 100_000.0
        for voter in VOTERS:
            assert episode.agent_episodes[voter].is_terminated == terminated["__all__"]
            assert episode.agent_episodes[voter].get_return() == pytest.approx(
                (float(account["equity"]) - start) / 500.0, abs=1e-9)


def test_stock_ppo_trains_on_it(spec: dict[str, Any], ray_cluster: None) -> None:
    """One iteration of RLlib's PPO with default runner, connectors and learner, our embedders in its modules."""
    config = (
        PPOConfig()
        .environment(register_core_env(), env_config={k: v for k, v in spec.items() if k != "env_index"})
        .env_runners(num_env_runners=0, num_envs_per_env_runner=2)
        .multi_agent(policies=set(AGENTS), policy_mapping_fn=lambda agent, episode, **kwargs: agent)
        .rl_module(rl_module_spec=MultiRLModuleSpec(
            rl_module_specs={agent: peer_module_spec(NET) for agent in AGENTS}))
        .training(train_batch_size_per_learner=160, minibatch_size=64, num_epochs=1)
        .debugging(seed=1)
    )
    algorithm = config.build_algo()
    try:
        before = {agent: algorithm.get_module(agent).get_state() for agent in AGENTS}
        results = algorithm.train()
        after = {agent: algorithm.get_module(agent).get_state() for agent in AGENTS}
    finally:
        algorithm.stop()
    assert results["env_runners"]["num_env_steps_sampled"] >= 160
    for agent in AGENTS:
        assert np.isfinite(results["learners"][agent]["total_loss"])
        assert any(not np.array_equal(before[agent][k], after[agent][k]) for k in before[agent])
