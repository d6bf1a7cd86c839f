"""Hyperparameters of MAPPO and their schedules."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from algospace.config import FrozenConfig

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class Ramp(FrozenConfig):
    """Linear from `start` at fraction `since` to `end` at fraction `until` of training; constant outside."""

    start: float
    end: float
    since: float = 0.0
    until: float = 1.0

    def at(self, progress: float) -> float:
        """Value at `progress` in [0, 1]."""
        if progress <= self.since:
            return self.start
        if progress >= self.until:
            return self.end
        return self.start + (self.end - self.start) * (progress - self.since) / (self.until - self.since)


class MAPPOSettings(FrozenConfig):
    """Defaults: the paper's, with the schedules that kept a trading team from collapsing to flat.

    A batch has num_shards · envs_per_shard segments of `segment` decisions; `minibatches` splits segments.
    """

    env_steps: Count = 4_000_000
    num_shards: Count = 2
    envs_per_shard: Count = 128
    segment: Count = 128
    gamma: Share = 0.99
    gae_lambda: Share = 0.95
    clip_param: float = 0.2
    value_clip: float = 0.2
    huber_delta: float = 10.0
    value_coeff: float = 0.5
    epochs: Count = 2
    minibatches: Count = 8
    grad_clip: float = 10.0
    adam_epsilon: float = 1e-5
    learning_rate: Ramp = Ramp(start=1e-3, end=1e-4)
    entropy: Ramp = Ramp(start=0.01, end=0.0)
    cost_scale: Ramp = Ramp(start=1.0, end=1.0)
    mirror: bool = True
    num_env_runners: int = Field(0, ge=0)
    num_learners: int = Field(0, ge=0)
    torch_threads: Count = 1
    checkpoint_every: Count = 20

    @model_validator(mode="after")
    def _check(self) -> MAPPOSettings:
        if (self.num_shards * self.envs_per_shard) % self.minibatches:
            raise ValueError(f"minibatches ({self.minibatches}) must divide the number of segments "
                              f"({self.num_shards * self.envs_per_shard})")
        return self

    @property
    def segments(self) -> int:
        """Batch rows of one iteration."""
        return self.num_shards * self.envs_per_shard

    @property
    def steps_per_iteration(self) -> int:
        """Team decisions of one iteration."""
        return self.segments * self.segment

    @property
    def iterations(self) -> int:
        """Iterations until `env_steps` are reached."""
        return -(-self.env_steps // self.steps_per_iteration)
