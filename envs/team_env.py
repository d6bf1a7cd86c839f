"""The core environment as a team of four agents with dictionaries: a base for any multi-agent library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from algospace.types import Float32Array
from envs.core_env import ALL_PASS, EXECUTION, VOTERS, CoreEnv
from envs.core_kernels import ACCOUNT_FEATURES, REJECT
from envs.observations import Observation, Observer

AGENTS = (*VOTERS, EXECUTION)
ACTIONS = 3
_CONTEXT = ("regime", "synergy", "account")
_VOTER_PARTS: dict[str, tuple[str, ...]] = {
    "strategic": ("strategic", *_CONTEXT), "tactical": ("tactical", *_CONTEXT),
    "arbitrage": ("strategic", "tactical", *_CONTEXT)}

StepResult = tuple[dict[str, Observation], dict[str, float], dict[str, bool], dict[str, bool],
                   dict[str, dict[str, Any]]]


class TeamEnv:
    """Turns of a CoreEnv: the keys of the observations name who acts next, either the three voters or execution.

    `reset` and `step` give dictionaries per agent. The reward is the team's, the same for every agent, and comes
    with the observation after the bar. Rows where nobody is asked are played without the policy, their rewards
    added up. At the end everyone gets a last observation; `terminations` and `truncations` hold the flag for
    all four agents and `"__all__"`.
    """

    def __init__(self, core: CoreEnv, regime_vectors: Float32Array | None = None) -> None:
        self.core = core
        self.observer = Observer(core.table, regime_vectors)
        self._asks_execution = False

    @property
    def to_act(self) -> tuple[str, ...]:
        """Agents whose actions the next `step` takes."""
        return (EXECUTION,) if self._asks_execution else VOTERS

    def observation_shapes(self, agent: str) -> dict[str, tuple[int, ...]]:
        """Shape of every part of the agent's observation."""
        shapes = self.observer.shapes() | {"account": (ACCOUNT_FEATURES,)}
        if agent == EXECUTION:
            return {name: shapes[name] for name in _CONTEXT} | {
                "votes": (len(VOTERS), ACTIONS), "proposal": (3,), "action_mask": (ACTIONS,)}
        return {name: shapes[name] for name in _VOTER_PARTS[agent]}

    def reset(self, seed: int | None = None) -> dict[str, Observation]:
        """A new episode; with `seed` the first of that seed, else the next one."""
        core = self.core
        if seed is not None:
            core.seed, core.episode = seed, -1
        core.begin_episode()
        self._asks_execution, self._votes = False, ALL_PASS
        while not core.voting and not core.at_end:
            core.vote(ALL_PASS)
            core.execute(REJECT)
        return self.observations(VOTERS)

    def step(self, actions: Mapping[str, int]) -> StepResult:
        """Take the actions of `to_act`; (observations, rewards, terminations, truncations, infos)."""
        missing = [agent for agent in self.to_act if agent not in actions]
        if missing:
            raise ValueError(f"no action of {', '.join(missing)}: it is the turn of {', '.join(self.to_act)}")
        for agent in self.to_act:
            if not 0 <= int(actions[agent]) < ACTIONS:
                raise ValueError(f"{agent} chose {actions[agent]}; actions are 0 to {ACTIONS - 1}")
        if self._asks_execution:
            return self._play(int(actions[EXECUTION]))
        first, second, third = (int(actions[voter]) for voter in VOTERS)
        self._votes = (first, second, third)
        self.core.vote(self._votes)
        if not self.core.asked:
            return self._play(REJECT)
        self._asks_execution = True
        going_on = dict.fromkeys((*AGENTS, "__all__"), False)
        return self.observations((EXECUTION,)), {}, going_on, dict(going_on), {EXECUTION: self.info()}

    def _play(self, action: int) -> StepResult:
        """One bar, and on to the next row where voters are asked."""
        core, total = self.core, 0.0
        while True:
            reward, discount = core.execute(action)
            total += reward
            terminated = discount == 0.0
            truncated = core.at_end and not terminated
            if terminated or truncated or core.voting:
                break
            core.vote(ALL_PASS)
            action = REJECT
        self._asks_execution = False
        over = AGENTS if terminated or truncated else VOTERS
        return (self.observations(over), dict.fromkeys(AGENTS, total),
                dict.fromkeys((*AGENTS, "__all__"), terminated), dict.fromkeys((*AGENTS, "__all__"), truncated),
                {agent: self.info() for agent in over})

    def observations(self, agents: tuple[str, ...]) -> dict[str, Observation]:
        """What each of `agents` sees now, in arrays of its own."""
        core = self.core
        parts = self.observer.market(core.row, core.sign) | {"account": core.observe()}
        out: dict[str, Observation] = {}
        for agent in agents:
            if agent == EXECUTION:
                out[agent] = {name: parts[name].copy() for name in _CONTEXT} | {
                    "votes": np.eye(ACTIONS, dtype=np.float32)[list(self._votes)],
                    "proposal": core.proposal.copy(),
                    "action_mask": np.array(core.action_mask, np.int8)}
            else:
                out[agent] = {name: parts[name].copy() for name in _VOTER_PARTS[agent]}
        return out

    def info(self) -> dict[str, Any]:
        """Where the environment stands; not for the policy."""
        core = self.core
        return {"row": core.row, "sign": core.sign, "opportunity": core.opportunity,
                "equity": float(core.account["equity"]), "position": float(core.account["position"])}
