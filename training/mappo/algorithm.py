"""MAPPO: the training loop. The driver owns the environment states; runners and learners can be replaced."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

import numpy as np
import ray
import torch
from ray.rllib.algorithms.ppo import PPO, PPOConfig
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    LEARNER_RESULTS,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
)

from algospace.errors import InternalError
from algospace.types import AnyArray
from training.mappo.learner import MAPPOLearner
from training.mappo.module import MODULE_ID
from training.mappo.runner import EnvState, TeamRunner
from training.mappo.settings import MAPPOSettings
from training.mappo.teams import TEAMS

_STATE = "mappo_state"


class MAPPOConfig(PPOConfig):
    """PPOConfig with a team specification and MAPPOSettings (both plain dicts, so that checkpoints hold them)."""

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or MAPPO)
        self.team: dict[str, Any] = {}
        self.settings: dict[str, Any] = {}

    def train_team(self, team: dict[str, Any], settings: MAPPOSettings) -> MAPPOConfig:
        """Configure runners, learners and module for `team` (see training.mappo.teams)."""
        self.team = {**team, "envs_per_shard": settings.envs_per_shard, "mirror": settings.mirror}
        self.settings = settings.model_dump()
        self.api_stack(enable_rl_module_and_learner=True, enable_env_runner_and_connector_v2=True)
        self.debugging(log_level="ERROR")
        self.env_runners(env_runner_cls=TeamRunner, num_env_runners=settings.num_env_runners,
                         num_cpus_per_env_runner=1, create_local_env_runner=True)
        self.fault_tolerance(restart_failed_env_runners=True, delay_between_env_runner_restarts_s=1.0,
                             max_num_env_runner_restarts=100)
        self.learners(learner_class=MAPPOLearner, num_learners=settings.num_learners)
        self.rl_module(rl_module_spec=RLModuleSpec(module_class=TEAMS[team["kind"]].module,
                                                   model_config=self.team))
        self.training(train_batch_size_per_learner=settings.segments, num_epochs=settings.epochs,
                      minibatch_size=settings.segments // settings.minibatches, gamma=settings.gamma,
                      lambda_=settings.gae_lambda, lr=settings.learning_rate.start)
        return self


class MAPPO(PPO):
    """PPO's place in RLlib with MAPPO's loop."""

    @classmethod
    def get_default_config(cls) -> MAPPOConfig:
        """A MAPPOConfig without a team."""
        return MAPPOConfig()

    def setup(self, config: Any) -> None:
        """RLlib's setup, then empty environment states."""
        self._env_states: dict[int, EnvState | None] = {}
        self._tick = 0
        self._env_steps = 0
        super().setup(config)
        self.mappo_settings = MAPPOSettings(**self.config.settings)

    @property
    def env_steps(self) -> int:
        """Team decisions sampled so far."""
        return self._env_steps

    def training_step(self) -> None:
        """Sample every shard, join, update."""
        settings = self.mappo_settings
        progress = min(self._env_steps / settings.env_steps, 1.0)
        started = time.perf_counter()
        segments = self._sample_shards(settings.cost_scale.at(progress))
        sampled = time.perf_counter()
        columns = {name: np.concatenate([part[name] for part in segments]) for name in segments[0]}
        steps = int(columns["rewards"].size)
        self._env_steps += steps
        self._tick += 1
        batch = MultiAgentBatch({MODULE_ID: SampleBatch(columns)}, env_steps=settings.segments)
        results = self.learner_group.update(
            batch=batch, timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: self._env_steps})
        self.metrics.aggregate(results, key=LEARNER_RESULTS)
        self._log(columns, steps, sampled - started, time.perf_counter() - sampled)

    def _log(self, columns: dict[str, AnyArray], steps: int, sample_s: float, update_s: float) -> None:
        alive = columns["alive"]
        values = {
            "reward_mean": float(columns["rewards"][alive].mean()) if alive.any() else 0.0,
            "sample_seconds": sample_s, "update_seconds": update_s,
            "env_steps_per_second": steps / (sample_s + update_s),
            "explained_variance": explained_variance(columns["value_targets"][alive], columns["values"][alive]),
            "alive": float(alive.mean()),
        }
        if self.config.team["kind"] == "core":
            position = columns["account"][..., 0]
            values["exposure"] = float((np.abs(position) > 1e-6).mean())
            values["agreement"] = float((np.abs(columns["actions"][..., :3].astype(np.float32) - 1.0)
                                         .mean(-1)).mean())
        for name, value in values.items():
            self.metrics.log_value((ENV_RUNNER_RESULTS, name), value, window=1)
        self.metrics.log_value((ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME), steps,
                               reduce="lifetime_sum")

    def _sample_shards(self, cost_scale: float) -> list[dict[str, AnyArray]]:
        """Every shard's segments in shard order; shards of lost runners are sent again."""
        weights = self.team_weights()
        todo = set(range(self.mappo_settings.num_shards))
        done: dict[int, dict[str, AnyArray]] = {}
        attempts = 0
        while todo:
            for shard, (batch, state) in self._dispatch(sorted(todo), cost_scale, weights):
                done[shard], self._env_states[shard] = batch, state
                todo.discard(shard)
            attempts += 1
            if todo and attempts > 100:
                raise InternalError(f"shards {sorted(todo)} could not be sampled: every runner failed")
        return [done[shard] for shard in sorted(done)]

    def _dispatch(self, shards: list[int], cost_scale: float,
                  weights: dict[str, Any]) -> list[tuple[int, tuple[dict[str, AnyArray], EnvState]]]:
        calls = {s: {"shard": s, "env_state": self._env_states.get(s), "tick": self._tick,
                     "cost_scale": cost_scale} for s in shards}
        group = self.env_runner_group
        if not group.num_remote_env_runners():
            return [(s, group.local_env_runner.sample(**call, weights=weights)) for s, call in calls.items()]
        workers = group.healthy_env_runner_ids()
        if not workers:
            time.sleep(0.5)
            group.probe_unhealthy_env_runners()
            return []
        reference = ray.put(weights)
        results = []
        for first in range(0, len(shards), len(workers)):
            part = shards[first: first + len(workers)]
            answers = group.foreach_env_runner(
                [_remote_sample(calls[s], reference) for s in part], local_env_runner=False,
                remote_worker_ids=workers[: len(part)])
            results += answers
        return results

    def team_weights(self) -> dict[str, Any]:
        """The module's state dict, value norm included, as numpy-backed tensors."""
        state = self.learner_group.get_state(components=f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}")
        weights = state[COMPONENT_LEARNER][COMPONENT_RL_MODULE][MODULE_ID]
        return {name: torch.as_tensor(np.array(value)) for name, value in weights.items()}

    def get_state(self, components: str | Collection[str] | None = None, *,
                  not_components: str | Collection[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        """RLlib's state and the driver's own: environment states and counters."""
        state = super().get_state(components, not_components=not_components, **kwargs)
        state[_STATE] = {"env_states": self._env_states, "tick": self._tick, "env_steps": self._env_steps}
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue bit for bit."""
        own = state.pop(_STATE, None)
        super().set_state(state)
        if own is not None:
            self._env_states, self._tick, self._env_steps = own["env_states"], own["tick"], own["env_steps"]


def _remote_sample(call: dict[str, Any], weights: Any) -> Any:
    """A function for one remote runner: sample one shard."""
    shard = call["shard"]

    def sample(runner: TeamRunner) -> tuple[int, tuple[dict[str, AnyArray], EnvState]]:
        return shard, runner.sample(**call, weights=ray.get(weights))

    return sample


def explained_variance(targets: AnyArray, values: AnyArray) -> float:
    """1 - Var(targets - values) / Var(targets); 0 without variance."""
    variance = float(np.var(targets))
    return 1.0 - float(np.var(targets - values)) / variance if variance > 0.0 else 0.0
