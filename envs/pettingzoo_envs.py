"""PettingZoo environments: both half-steps in turn (AEC), and the votes alone in parallel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gymnasium import spaces
from pettingzoo import AECEnv, ParallelEnv

from algospace.types import Float32Array
from envs.core_env import EXECUTION, VOTERS, CoreEnv
from envs.core_kernels import EXECUTE, REJECT
from envs.gym_envs import boxes
from envs.observations import Observation
from envs.team_env import ACTIONS, AGENTS, TeamEnv


def execute_if_allowed(core: CoreEnv) -> int:
    """The simplest second stage: take every opportunity, leave exits to brackets and opposite votes."""
    return EXECUTE if core.action_mask[EXECUTE] else REJECT


class CoreAECEnv(AECEnv):  # type: ignore[misc]  # pettingzoo is untyped
    """The voters act in turn without seeing each other's votes; then execution, if it is asked. The team's
    reward goes to all four after the bar."""

    def __init__(self, core: CoreEnv, regime_vectors: Float32Array | None = None) -> None:
        super().__init__()
        self.metadata = {"name": "algospace_core_v0", "render_modes": [], "is_parallelizable": False}
        self.render_mode = None
        self.team = TeamEnv(core, regime_vectors)
        self.possible_agents = list(AGENTS)
        self.observation_spaces = {a: boxes(self.team.observation_shapes(a)) for a in AGENTS}
        self.action_spaces: dict[str, spaces.Discrete] = {a: spaces.Discrete(ACTIONS) for a in AGENTS}
        self.agents: list[str] = []

    def observation_space(self, agent: str) -> spaces.Dict:
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Discrete:
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        self.team.reset(seed)
        self.agents = list(AGENTS)
        self.rewards = dict.fromkeys(AGENTS, 0.0)
        self._cumulative_rewards = dict.fromkeys(AGENTS, 0.0)
        self.terminations = dict.fromkeys(AGENTS, False)
        self.truncations = dict.fromkeys(AGENTS, False)
        self.infos: dict[str, dict[str, Any]] = {agent: {} for agent in AGENTS}
        self._turn: dict[str, int] = {}
        self.agent_selection = VOTERS[0]

    def observe(self, agent: str) -> Observation:
        return self.team.observations((agent,))[agent]

    def step(self, action: int | None) -> None:
        agent = self.agent_selection
        if self.terminations[agent] or self.truncations[agent]:
            self._was_dead_step(action)
            return
        assert action is not None
        self._cumulative_rewards[agent] = 0.0
        self._clear_rewards()
        self._turn[agent] = int(action)
        waiting = [a for a in self.team.to_act if a not in self._turn]
        if waiting:
            self.agent_selection = waiting[0]
            return
        turn, self._turn = self._turn, {}
        _, rewards, terminated, truncated, _ = self.team.step(turn)
        self.rewards.update(rewards)
        self.terminations = {a: terminated[a] for a in AGENTS}
        self.truncations = {a: truncated[a] for a in AGENTS}
        self._accumulate_rewards()
        self.agent_selection = self.team.to_act[0]


class VotesParallelEnv(ParallelEnv):  # type: ignore[misc]  # pettingzoo is untyped
    """The three voters at once; the second stage is a rule of the caller's."""

    def __init__(self, core: CoreEnv, regime_vectors: Float32Array | None = None,
                 execution: Callable[[CoreEnv], int] = execute_if_allowed) -> None:
        self.metadata = {"name": "algospace_votes_v0", "render_modes": []}
        self.render_mode = None
        self.team, self.execution = TeamEnv(core, regime_vectors), execution
        self.possible_agents = list(VOTERS)
        self.agents: list[str] = []
        self.observation_spaces = {a: boxes(self.team.observation_shapes(a)) for a in VOTERS}
        self.action_spaces: dict[str, spaces.Discrete] = {a: spaces.Discrete(ACTIONS) for a in VOTERS}

    def observation_space(self, agent: str) -> spaces.Dict:
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Discrete:
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None
              ) -> tuple[dict[str, Observation], dict[str, dict[str, Any]]]:
        self.agents = list(VOTERS)
        return self.team.reset(seed), {agent: {} for agent in VOTERS}

    def step(self, actions: dict[str, int]) -> tuple[dict[str, Observation], dict[str, float], dict[str, bool],
                                                     dict[str, bool], dict[str, dict[str, Any]]]:
        _, rewards, terminated, truncated, _ = self.team.step(actions)
        if not rewards:
            chosen = {EXECUTION: self.execution(self.team.core)}
            _, rewards, terminated, truncated, _ = self.team.step(chosen)
        if terminated["__all__"] or truncated["__all__"]:
            self.agents = []
        return (self.team.observations(VOTERS), {a: rewards[a] for a in VOTERS},
                {a: terminated[a] for a in VOTERS}, {a: truncated[a] for a in VOTERS},
                {a: self.team.info() for a in VOTERS})
