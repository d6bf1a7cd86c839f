"""The core environment for one agent that names the position it wants: short, flat or long.

    env = make_position(bars, "ES")                    # or PositionEnv(core)
    stable_baselines3.PPO("MlpPolicy", env)            # flat Box; "MultiInputPolicy" with flatten=False

The smallest way into the market for libraries of single agents. The three voters cast the same vote and execution
carries it out, so the agent trades by exactly the rules and costs of the team.
"""

from __future__ import annotations

from typing import Any, Unpack

import gymnasium
import numpy as np
from gymnasium import spaces

from algospace.instruments import Instrument
from algospace.types import Bars, Float32Array
from envs.build import CoreOptions, core_from_bars
from envs.config import CoreEnvConfig
from envs.core_env import EXECUTION, VOTERS, CoreEnv
from envs.core_kernels import ACCOUNT_FEATURES, CLOSE, EXECUTE, PASS, REJECT
from envs.gym_envs import boxes
from envs.observations import Observation
from envs.team_env import TeamEnv

POSITION_ID = "AlgoSpace/Position-v0"
SHORT, FLAT, LONG = 0, 1, 2


class PositionEnv(gymnasium.Env[Any, Any]):
    """Action: 0 short, 1 flat, 2 long, in the frame of the episode (mirrored or not). A position that the hard
    limits forbid is not opened; one that is held already is left alone.

    Observation: the strategic and tactical windows, the regime, the synergy columns and the account, each as a
    vector, in a Dict or (`flatten`) one after another in a Box. Reward: the team's. `reset(seed=...)` starts the
    first episode of that seed, `reset()` the next one.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  (declared so by gymnasium.Env)

    def __init__(self, core: CoreEnv, regime_vectors: Float32Array | None = None, flatten: bool = True) -> None:
        self.team = TeamEnv(core, regime_vectors)
        shapes = self.team.observer.shapes() | {"account": (ACCOUNT_FEATURES,)}
        self.parts = boxes({name: (int(np.prod(shape)),) for name, shape in shapes.items()})
        self.flatten = flatten
        self.observation_space = spaces.flatten_space(self.parts) if flatten else self.parts
        self.action_space = spaces.Discrete(3)

    @property
    def cost_scale(self) -> float:
        """Factor on all costs: a curriculum of costs sets it between episodes."""
        return self.team.core.cost_scale

    @cost_scale.setter
    def cost_scale(self, value: float) -> None:
        self.team.core.cost_scale = value

    def reset(self, *, seed: int | None = None,
              options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """A new episode."""
        super().reset(seed=seed)
        self.team.reset(seed)
        return self._observation(), self.team.info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One bar (or, with `decision_points: synergy`, on to the next decision)."""
        wanted = int(action)
        result = self.team.step(dict.fromkeys(VOTERS, wanted))
        if not result[1]:  # no rewards yet: execution is asked
            result = self.team.step({EXECUTION: self._execution(wanted)})
        _, rewards, terminated, truncated, _ = result
        return (self._observation(), float(rewards[EXECUTION]), bool(terminated["__all__"]),
                bool(truncated["__all__"]), self.team.info())

    def _execution(self, wanted: int) -> int:
        if wanted == PASS:
            return CLOSE
        return EXECUTE if self.team.core.action_mask[EXECUTE] else REJECT

    def _observation(self) -> Any:
        core = self.team.core
        parts: Observation = self.team.observer.market(core.row, core.sign) | {"account": core.observe()}
        flat = {name: np.ravel(values) for name, values in parts.items()}
        return spaces.flatten(self.parts, flat) if self.flatten else flat


def make_position(bars: Bars, instrument: Instrument | str, config: CoreEnvConfig | None = None, *,
                  flatten: bool = True, **options: Unpack[CoreOptions]) -> PositionEnv:
    """The environment on source bars, as `core_from_bars` makes it."""
    return PositionEnv(core_from_bars(bars, instrument, config, **options), flatten=flatten)


if POSITION_ID not in gymnasium.registry:
    gymnasium.register(POSITION_ID, "envs.single_agent:make_position")
