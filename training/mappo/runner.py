"""TeamRunner: rolls shards of environments forward. Sampling is stateless: state in, batch and state out.

Shards are fixed, whatever the number of runners, so the same seed gives bit-equal batches on 0, 1 or 2 runners;
a lost runner's shards are simply sent again.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import gymnasium as gym
import numpy as np
import ray
import torch
from ray.rllib.env import INPUT_ENV_SPACES
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.utils.checkpoints import Checkpointable

from algospace.types import AnyArray
from training.mappo.gae import gae
from training.mappo.memory import keep_freed_memory
from training.mappo.module import MODULE_ID, TeamModule, build_team_module
from training.mappo.settings import MAPPOSettings
from training.mappo.teams import TEAMS

_SPACES = (gym.spaces.Box(-np.inf, np.inf, (1,)), gym.spaces.MultiDiscrete([3]))
EnvState = dict[str, AnyArray]


class TeamRunner(EnvRunner, Checkpointable):
    """Holds the module and one sampler per shard it has been asked for."""

    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        super().__init__(config=config, **kwargs)
        self.spec: dict[str, Any] = dict(config.team)
        self.settings = MAPPOSettings(**config.settings)
        torch.set_num_threads(self.settings.torch_threads)
        keep_freed_memory()
        self.module: TeamModule = build_team_module(self.spec)
        self._samplers: dict[int, Any] = {}

    def sample(self, *, shard: int = 0, env_state: EnvState | None = None, tick: int = 0, cost_scale: float = 1.0,
               gae_lambda: float = 0.95, weights: dict[str, Any] | None = None,
               **kwargs: Any) -> tuple[dict[str, AnyArray], EnvState]:
        """One segment of every environment of `shard`, with advantages; returns (columns, new state)."""
        if weights is not None:
            self.module.load_state_dict(weights)
        sampler = self._samplers.get(shard)
        if sampler is None or env_state is None:  # a run's first segment starts from fresh environments
            sampler = self._samplers[shard] = TEAMS[self.spec["kind"]].sampler(self.module, self.spec, shard)
        if env_state is not None:
            sampler.env.set_state(env_state)
        settings = self.settings
        batch = sampler.sample(settings.segment, tick, cost_scale)
        values = batch.pop("values_all")
        advantages, targets = gae(batch["rewards"], values, batch["discounts"], batch["alive"],
                                  settings.gamma, gae_lambda)
        batch |= {"advantages": advantages, "value_targets": targets,
                  "values": np.ascontiguousarray(values[:, :-1])}
        return batch, sampler.env.get_state()

    def assert_healthy(self) -> None:
        """Raises if construction did not finish."""
        if not isinstance(self.module, TeamModule):
            raise RuntimeError("the runner has no module")

    def get_spaces(self) -> dict[str, Any]:
        """Observations are row numbers; the spaces only satisfy RLlib's bookkeeping."""
        return {INPUT_ENV_SPACES: _SPACES, MODULE_ID: _SPACES}

    def get_metrics(self) -> dict[str, Any]:
        """Metrics travel with the batches."""
        return self.metrics.reduce()

    def get_state(self, components: str | Collection[str] | None = None, *,
                  not_components: str | Collection[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        """Nothing of its own: weights belong to the learner, environment states to the driver."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Weights, if RLlib sends them, by value or by reference."""
        modules = state.get("rl_module", {})
        if isinstance(modules, ray.ObjectRef):
            modules = ray.get(modules)
        if modules.get(MODULE_ID):
            self.module.set_state(modules[MODULE_ID])

    def get_ctor_args_and_kwargs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """How to build this runner again."""
        return (), {"config": self.config}

    def get_checkpointable_components(self) -> list[tuple[str, Any]]:
        """None: see `get_state`."""
        return []

    def stop(self) -> None:
        """Nothing to release."""

    def __del__(self) -> None:
        """EnvRunner's own destructor expects an environment object."""
