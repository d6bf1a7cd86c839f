"""The core environment for RLlib's stock algorithms: a `MultiAgentEnv` over real windows.

    env_config = team specification of a run (see training.phases) or part of it:
        market, experts, table_hash   the training table; without `experts`: the last regime matrix row and
                                      the fixed proposals of envs.build
        instrument, start, stop, risk_unit, env, seed, mirror, env_index

Two half-steps: the three voters act in one step; execution acts in the next, where it is asked. Who is not asked
is absent from the observations. The reward is the team's and goes to everyone who has acted in the episode.
"""

from __future__ import annotations

import itertools
from typing import Any

from gymnasium import spaces
from ray.rllib.env.multi_agent_env import MultiAgentEnv
from ray.tune.registry import register_env

from algospace.features.market_table import MarketTable
from algospace.instruments import instrument
from algospace.types import Float32Array
from envs.build import fixed_proposals
from envs.config import CoreEnvConfig
from envs.core_env import CoreEnv
from envs.gym_envs import boxes
from envs.observations import Observation
from envs.team_env import ACTIONS, AGENTS, TeamEnv
from envs.vector_core import risk_unit_of
from training.mappo.tables import open_training_table

ENV_NAME = "algospace_core"
_WORKER_ENVS = 1 << 16
_instances = itertools.count()

Step = tuple[dict[str, Observation], dict[str, float], dict[str, bool], dict[str, bool],
             dict[str, dict[str, Any]]]


class CoreMultiAgentEnv(MultiAgentEnv):  # type: ignore[misc]  # RLlib is untyped here
    """A TeamEnv as RLlib wants it. Episodes are drawn by (seed, env_index); RLlib gives every environment of a
    runner the same config, so `env_index` defaults to a number of its own per instance and worker."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.metadata: dict[str, Any] = {"render_modes": []}
        self.render_mode = None
        table, proposals, vectors = _open(config)
        start, stop = int(config.get("start", table.first_decision)), int(config.get("stop", len(table) - 1))
        rules = CoreEnvConfig(**config.get("env", {}))
        contract = instrument(config["instrument"])
        unit = config.get("risk_unit") or risk_unit_of(table, contract, rules, start, stop)
        worker = int(getattr(config, "worker_index", 0))
        index = config.get("env_index", worker * _WORKER_ENVS + next(_instances))
        core = CoreEnv(table, contract, rules, proposals, start, stop, int(config.get("seed", 0)), unit,
                       mirror=bool(config.get("mirror", True)), env_index=int(index))
        self.team = TeamEnv(core, vectors)
        self.possible_agents = list(AGENTS)
        self.agents = list(AGENTS)
        self.observation_spaces = {a: boxes(self.team.observation_shapes(a)) for a in AGENTS}
        self.action_spaces: dict[str, Any] = {a: spaces.Discrete(ACTIONS) for a in AGENTS}
        self._acted: set[str] = set()

    def reset(self, *, seed: int | None = None,
              options: dict[str, Any] | None = None) -> tuple[dict[str, Observation], dict[str, dict[str, Any]]]:
        """A new episode; with `seed` the first of that seed, else the next one."""
        super().reset(seed=seed)
        self.agents = list(AGENTS)
        self._acted = set()
        seen = self.team.reset(seed)
        return seen, {agent: {} for agent in seen}

    def step(self, action_dict: dict[str, Any]) -> Step:
        """One half-step; at the end only agents that have acted get a last observation.

        The end is told by `__all__` alone: given flags per agent, RLlib takes an episode whose agents are all
        truncated for a terminated one and would not bootstrap.
        """
        self._acted.update(self.team.to_act)
        seen, rewards, terminated, truncated, infos = self.team.step(action_dict)
        if terminated["__all__"] or truncated["__all__"]:
            seen = {agent: value for agent, value in seen.items() if agent in self._acted}
        return (seen, {agent: value for agent, value in rewards.items() if agent in self._acted},
                {"__all__": terminated["__all__"]}, {"__all__": truncated["__all__"]},
                {agent: value for agent, value in infos.items() if agent in seen})


def _open(config: Any) -> tuple[MarketTable, Float32Array, Float32Array | None]:
    """(market table, proposals (n, 2, 3), regime vectors or None)."""
    if config.get("experts"):
        table = open_training_table(config["market"], config["experts"], config.get("table_hash"))
        return table.market, table.proposals, table.regime_vectors
    market = MarketTable.load(config["market"], mmap=True, verify=False)
    return market, fixed_proposals(market), None


def register_core_env() -> str:
    """Register the environment with RLlib; returns its name, `algospace_core`. Again in every Ray session: a
    registration ends with the session it was made in."""
    register_env(ENV_NAME, CoreMultiAgentEnv)
    return ENV_NAME


register_core_env()
