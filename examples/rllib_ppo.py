"""RLlib's stock PPO on the team environment: four agents, RLlib's default networks, connectors and learner.

    python -m examples.rllib_ppo --steps 40000

Each of the three voters and the execution agent has a policy of its own, an MLP over its flattened observation
(`training.mappo.multi_agent_env.CoreMultiAgentEnv`). No line of our own training code takes part; only
the curriculum of costs is set from outside.
"""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from ray.rllib.algorithms.ppo import PPO, PPOConfig
from ray.rllib.connectors.env_to_module import FlattenObservations
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from algospace.types import FloatArray
from envs.config import CoreEnvConfig
from envs.gym_envs import boxes
from envs.observations import Observation
from envs.team_env import AGENTS, TeamEnv
from examples.market import (
    SYMBOL,
    ExampleMarket,
    chunk_cores,
    chunks,
    cost_scale,
    make_market,
    options,
    report,
    unit_core,
)
from training.mappo.multi_agent_env import register_core_env
from training.ray_session import ray_session

ENVS, EPISODE_BARS, CHUNKS = 16, 512, 64


def ppo_config(env_config: dict[str, Any], batch: int, seed: int) -> PPOConfig:
    """PPO as RLlib ships it; only sizes and coefficients are chosen. `batch` counts half-steps."""
    return (
        PPOConfig()
        .environment(register_core_env(), env_config=env_config)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=ENVS,
                     env_to_module_connector=lambda env, spaces, device: FlattenObservations(multi_agent=True))
        .multi_agent(policies=set(AGENTS), policy_mapping_fn=lambda agent, episode, **kwargs: agent)
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[64, 64]))
        .training(train_batch_size_per_learner=batch, minibatch_size=min(2048, batch), num_epochs=4,
                  lr=1e-4, lambda_=0.5, entropy_coeff=0.01, use_kl_loss=False)
        .debugging(seed=seed)
    )


def train(algorithm: PPO, steps: int) -> int:
    """Iterations until `steps` half-steps have been sampled; returns how many were. Costs come in slowly."""
    sampled = 0
    while sampled < steps:
        scale = cost_scale(sampled / steps)
        algorithm.env_runner_group.foreach_env_runner(partial(set_costs, scale=scale))
        sampled = int(algorithm.train()["env_runners"]["num_env_steps_sampled_lifetime"])
    return sampled


def set_costs(runner: Any, scale: float) -> None:
    """All environments of one env runner."""
    for env in runner.env.envs:
        env.unwrapped.team.core.cost_scale = scale


class TeamPolicies:
    """The trained networks outside RLlib: the most probable action of each agent."""

    def __init__(self, algorithm: PPO, team: TeamEnv) -> None:
        self.modules = {agent: algorithm.get_module(agent) for agent in AGENTS}
        self.spaces = {agent: boxes(team.observation_shapes(agent)) for agent in AGENTS}

    @torch.no_grad()
    def act(self, agent: str, seen: list[Observation]) -> list[int]:
        """One action per observation of `agent`."""
        rows = np.stack([spaces.flatten(self.spaces[agent], part) for part in seen]).astype(np.float32)
        out = self.modules[agent].forward_inference({Columns.OBS: torch.from_numpy(rows)})
        return [int(a) for a in out[Columns.ACTION_DIST_INPUTS].argmax(-1)]


def positions_of(algorithm: PPO, market: ExampleMarket, risk_unit: float,
                 count: int = CHUNKS) -> tuple[FloatArray, list[tuple[int, int]]]:
    """Positions (n,) that the team holds after each row, and the stretches that were played side by side."""
    segments = chunks(market, count)
    teams = [TeamEnv(core) for core in chunk_cores(market, segments, risk_unit)]
    policies = TeamPolicies(algorithm, teams[0])
    seen = [team.reset() for team in teams]
    positions = np.zeros(len(market.table))
    for t in range(segments[0][1] - segments[0][0]):
        while waiting := [e for e, team in enumerate(teams) if team.core.row == segments[e][0] + t]:
            _half_step(policies, teams, seen, waiting)
        for (start, _), team in zip(segments, teams, strict=True):
            positions[start + t] = float(team.core.account["position"])
    return positions, segments


def _half_step(policies: TeamPolicies, teams: list[TeamEnv], seen: list[dict[str, Observation]],
               which: list[int]) -> None:
    """The agents whose turn it is act in the environments `which`; whoever has acted moves on."""
    actions: dict[int, dict[str, int]] = {e: {} for e in which}
    for agent in AGENTS:
        asked = [e for e in which if agent in teams[e].to_act]
        if asked:
            for e, action in zip(asked, policies.act(agent, [seen[e][agent] for e in asked]), strict=True):
                actions[e][agent] = action
    for e in which:
        seen[e] = teams[e].step(actions[e])[0]


def main(steps: int = 40_000, seed: int = 0, train_bars: int = 200_000, test_bars: int = 20_000,
         test_seed: int = 9001, scenario: str = "easy", batch: int = 8192) -> dict[str, Any]:
    """Train, play an unseen market, print the scores; returns them."""
    torch.set_num_threads(1)
    market = make_market(seed + 1, train_bars, scenario)
    unseen = make_market(test_seed, test_bars, scenario, market.table.schema)
    config = CoreEnvConfig(mechanics="unit", episode_bars=EPISODE_BARS)
    risk_unit = unit_core(market, config, seed).risk_unit
    with tempfile.TemporaryDirectory() as folder, ray_session():
        market.table.save(Path(folder) / "table")
        env_config = {"market": str(Path(folder) / "table"), "instrument": SYMBOL, "seed": seed,
                      "start": market.start, "stop": market.stop, "risk_unit": risk_unit,
                      "env": config.model_dump()}
        algorithm = ppo_config(env_config, batch, seed).build_algo()
        try:
            started = time.perf_counter()
            sampled = train(algorithm, steps)
            seconds = time.perf_counter() - started
            print(f"RLlib PPO: {sampled:,} half-steps in {seconds:.1f} s")
            positions, segments = positions_of(algorithm, unseen, risk_unit)
        finally:
            algorithm.stop()
    return report(unseen, positions, segments, "rllib ppo") | {"steps": sampled, "seconds": seconds}


if __name__ == "__main__":
    main(**options(__doc__, 40_000, "environment half-steps"))
