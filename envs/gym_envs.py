"""Gymnasium environments: one agent controls the team's joint action.

    import gymnasium, envs.gym_envs
    env = gymnasium.make("AlgoSpace/Core-v0", bars=bars, instrument="ES")

Observations are a Dict of real windows, or a flat Box with `flatten=True`. `reset(seed=...)` starts the first
episode of that seed, `reset()` the next one.
"""

from __future__ import annotations

from typing import Any, Unpack

import gymnasium
import numpy as np
from gymnasium import spaces

from algospace.instruments import Instrument
from algospace.types import AnyArray, Bars, Float32Array
from envs.build import CoreOptions, MarketOptions, core_from_bars, market_from_bars
from envs.config import SIZE_CHOICES, STOP_CHOICES, TARGET_CHOICES, CoreEnvConfig, RiskEnvConfig
from envs.core_env import VOTERS, CoreEnv
from envs.core_kernels import ACCOUNT_FEATURES, REJECT
from envs.observations import Observation, Observer
from envs.risk_env import RiskEnv
from envs.risk_kernels import FIRST_SQUARE, RISK_FEATURES
from envs.team_env import ACTIONS, AGENTS, TeamEnv

CORE_ID, RISK_ID = "AlgoSpace/Core-v0", "AlgoSpace/Risk-v0"
MultiDiscreteAction = AnyArray


def boxes(shapes: dict[str, tuple[int, ...]]) -> spaces.Dict:
    """Unbounded float32 boxes of the given shapes; an `action_mask` is binary (int8)."""
    def space(name: str, shape: tuple[int, ...]) -> spaces.Space[Any]:
        if name == "action_mask":
            return spaces.MultiBinary(shape)
        return spaces.Box(-np.inf, np.inf, shape, np.float32)

    return spaces.Dict({name: space(name, shape) for name, shape in shapes.items()})


class _TeamGymEnv(gymnasium.Env[Any, MultiDiscreteAction]):
    """What both environments share: the observation, as a Dict or flattened."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  (declared so by gymnasium.Env)

    def _set_spaces(self, shapes: dict[str, tuple[int, ...]], choices: list[int], flatten: bool) -> None:
        self.parts = boxes(shapes)
        self.flatten = flatten
        self.observation_space = spaces.flatten_space(self.parts) if flatten else self.parts
        self.action_space = spaces.MultiDiscrete(choices)

    def _presented(self, observation: Observation) -> Any:
        return spaces.flatten(self.parts, observation) if self.flatten else observation


class CoreGymEnv(_TeamGymEnv):
    """The core: action (3 votes, execution), all at once. Execution's action counts if it is asked and allowed,
    and is a reject otherwise. Infos hold the row, the equity and what the votes led to."""

    def __init__(self, core: CoreEnv, regime_vectors: Float32Array | None = None, flatten: bool = False) -> None:
        self.team = TeamEnv(core, regime_vectors)
        shapes = self.team.observer.shapes() | {"account": (ACCOUNT_FEATURES,)}
        self._set_spaces(shapes, [ACTIONS] * len(AGENTS), flatten)

    def _observation(self) -> Any:
        core = self.team.core
        return self._presented(self.team.observer.market(core.row, core.sign) | {"account": core.observe()})

    def reset(self, *, seed: int | None = None,
              options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """A new episode."""
        super().reset(seed=seed)
        self.team.reset(seed)
        return self._observation(), self.team.info()

    def step(self, action: MultiDiscreteAction) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Both half-steps; `info["asked"]` says whether execution's action was asked for."""
        *votes, execution = (int(a) for a in action)
        result = self.team.step(dict(zip(VOTERS, votes, strict=True)))
        opportunity = self.team.core.opportunity
        asked = not result[1]
        if asked:
            mask = self.team.core.action_mask
            result = self.team.step({"execution": execution if mask[execution] else REJECT})
        _, rewards, terminated, truncated, _ = result
        info = self.team.info() | {"asked": asked, "opportunity": opportunity}
        return self._observation(), rewards["execution"], terminated["__all__"], truncated["__all__"], info


class RiskGymEnv(_TeamGymEnv):
    """The M-RMS: action (size, stop, target) for the opportunity whose direction is part of the observation."""

    def __init__(self, risk: RiskEnv, regime_vectors: Float32Array | None = None, flatten: bool = False) -> None:
        self.risk = risk
        self.observer = Observer(risk.table, regime_vectors)
        shapes = self.observer.shapes() | {"direction": (1,), "account": (RISK_FEATURES,)}
        self._set_spaces(shapes, [SIZE_CHOICES, STOP_CHOICES, TARGET_CHOICES], flatten)

    def _observation(self) -> Any:
        risk = self.risk
        own = {"direction": np.array([risk.direction], np.float32), "account": risk.observe()}
        return self._presented(self.observer.market(risk.row, risk.sign) | own)

    def _info(self) -> dict[str, Any]:
        return {"row": self.risk.row, "equity": float(self.risk.account["equity"]), "limit": self.risk.limit_code}

    def reset(self, *, seed: int | None = None,
              options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """A new episode."""
        super().reset(seed=seed)
        if seed is not None:
            self.risk.seed, self.risk.episode = seed, -1
            self.risk.mean, self.risk.square = 0.0, FIRST_SQUARE  # they outlive episodes, not a new seed
        self.risk.begin_episode()
        return self._observation(), self._info()

    def step(self, action: MultiDiscreteAction) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Play one bracket out."""
        reward, discount = self.risk.step(*(int(a) for a in action))
        return self._observation(), reward, discount == 0.0, self.risk.alive and self.risk.at_end, self._info()


def make_core(bars: Bars, instrument: Instrument | str, config: CoreEnvConfig | None = None, *,
              flatten: bool = False, **options: Unpack[CoreOptions]) -> CoreGymEnv:
    """The core environment on source bars, as `core_from_bars` makes it."""
    return CoreGymEnv(core_from_bars(bars, instrument, config, **options), flatten=flatten)


def make_risk(bars: Bars, instrument: Instrument | str, config: RiskEnvConfig | None = None, *, seed: int = 0,
              mirror: bool = False, flatten: bool = False, **options: Unpack[MarketOptions]) -> RiskGymEnv:
    """The M-RMS environment on source bars, as `market_from_bars` makes their market."""
    market = market_from_bars(bars, instrument, **options)
    return RiskGymEnv(RiskEnv(market.table, market.instrument, config or RiskEnvConfig(), market.start,
                              market.stop, seed, mirror), flatten=flatten)


for _name, _entry in ((CORE_ID, "envs.gym_envs:make_core"), (RISK_ID, "envs.gym_envs:make_risk")):
    if _name not in gymnasium.registry:
        gymnasium.register(_name, _entry)
