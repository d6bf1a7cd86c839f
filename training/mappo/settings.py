"""Hyperparameters of MAPPO and their schedules."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from algospace.config import FrozenConfig

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class Ramp(FrozenConfig):
    """Linear from `start` at fraction `since` to `end` at fraction `until` of training; constant outside.

    A plain number stands for a constant.
    """

    start: float
    end: float
    since: float = 0.0
    until: float = 1.0

    @model_validator(mode="before")
    @classmethod
    def _constant(cls, value: Any) -> Any:
        return {"start": value, "end": value} if isinstance(value, int | float) else value

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
    gae_lambda: Ramp = Ramp(start=0.95, end=0.95)
    clip_param: Positive = 0.2
    value_clip: float | None = Field(0.2, gt=0)
    """None: values are not clipped."""
    huber_delta: float | None = Field(10.0, gt=0)
    """None: squared errors."""
    value_coeff: float = Field(0.5, ge=0)
    value_norm: bool = True
    death_masking: bool = True
    """Agents that were not asked are left out of the objective: voters where the row is no decision (a filled
    bar), execution there and where it has neither an opportunity nor a position. Without this every agent counts
    on every row alive, where it was not asked with the one choice it had (pass, reject): ratio 1, entropy 0, no
    gradient, so that the means over decisions are diluted. Rows behind an episode's end are always left out, and
    so are votes that were asked but not pivotal (`pivotal_votes`). M-RMS: always asked, no effect."""
    epochs: Count = 2
    minibatches: Count = 8
    grad_clip: Positive = 10.0
    adam_epsilon: Positive = 1e-5
    learning_rate: Ramp = Ramp(start=1e-3, end=1e-4)
    entropy: Ramp = Ramp(start=0.01, end=0.0)
    cost_scale: Ramp = Ramp(start=1.0, end=1.0)
    mirror: bool = True
    num_env_runners: int = Field(0, ge=0)
    num_learners: int = Field(0, ge=0)
    pivotal_votes: bool = True
    """A vote is learnt from only where the other two differ: elsewhere it does not change the majority, and its
    share of the gradient is mostly noise. Not all of it: execution sees the votes themselves, and what a vote
    brings about by that way alone is left out, a bias."""
    gpus_per_learner: float = Field(0.0, ge=0)
    precision: Literal["float32", "bf16"] = "float32"
    """bf16: networks under autocast on a GPU, losses in float32."""
    torch_threads: Count = 1
    threads: Count = 1
    """Of the driver: shards are sampled beside each other without runners, and a minibatch's segments are
    differentiated beside each other without further learners. Batches stay equal to the bit; gradients differ in
    the order of their sums."""
    average_over: Share = 0.0
    """Share of training, at its end, whose weights are averaged into the final ones (Polyak and Juditsky 1992)."""
    overlap: bool = False
    """Sample the next batch beside the update, so with the weights from before it; ratios are against the policy
    that acted. One more core, one update of delay."""
    checkpoint_every: Count = 20

    @model_validator(mode="after")
    def _check(self) -> MAPPOSettings:
        if (self.num_shards * self.envs_per_shard) % self.minibatches:
            raise ValueError(f"minibatches ({self.minibatches}) must divide the number of segments "
                              f"({self.num_shards * self.envs_per_shard})")
        last = self.segments - max(self.num_learners - 1, 0) * -(-self.segments // max(self.num_learners, 1))
        if last < self.minibatches:
            raise ValueError(f"num_learners ({self.num_learners}) share {self.segments} segments, which leaves "
                              f"{max(last, 0)} to one of them, fewer than its minibatches ({self.minibatches}); "
                              f"lower either, or raise envs_per_shard")
        if not all(0.0 <= bound <= 1.0 for bound in (self.gae_lambda.start, self.gae_lambda.end)):
            raise ValueError(f"gae_lambda must lie in [0, 1], got {self.gae_lambda}")
        for name in ("learning_rate", "entropy", "cost_scale"):
            ramp: Ramp = getattr(self, name)
            if min(ramp.start, ramp.end) < 0.0:
                raise ValueError(f"{name} must not be negative, got {ramp}")
        if self.threads > 1 and (self.num_learners or self.gpus_per_learner):
            raise ValueError(f"threads ({self.threads}) share the driver's own learner: set num_learners and "
                              f"gpus_per_learner to 0, or threads to 1")
        if self.precision == "bf16" and self.gpus_per_learner == 0.0:
            raise ValueError("precision bf16 needs a GPU (gpus_per_learner above 0); on a CPU use float32")
        return self

    @property
    def remote_actors(self) -> int:
        """Runners and learners outside the driver's process."""
        return self.num_env_runners + self.num_learners

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
