"""MAPPO: the training loop. The driver owns the environment states; runners and learners can be replaced."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms.ppo import PPO, PPOConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    LEARNER_RESULTS,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
)

from agents.settings import VOTERS
from algospace.errors import ConfigError
from algospace.types import AnyArray
from training.mappo.finite import require_finite_rewards
from training.mappo.learner import MAPPOLearner
from training.mappo.module import MODULE_ID
from training.mappo.node_tables import offer_to_other_nodes
from training.mappo.recovery import LearnerGuard
from training.mappo.runner import TeamRunner
from training.mappo.sampling import ShardSampling
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
        self.learners(learner_class=MAPPOLearner, num_learners=settings.num_learners,
                      num_gpus_per_learner=settings.gpus_per_learner)
        self.rl_module(rl_module_spec=RLModuleSpec(module_class=TEAMS[team["kind"]].module,
                                                   model_config=self.team))
        self.training(train_batch_size_per_learner=settings.segments, num_epochs=settings.epochs,
                      minibatch_size=settings.segments // settings.minibatches, gamma=settings.gamma,
                      lambda_=settings.gae_lambda.start, lr=settings.learning_rate.start)
        return self


class MAPPO(PPO):
    """PPO's place in RLlib with MAPPO's loop."""

    @classmethod
    def get_default_config(cls) -> MAPPOConfig:
        """A MAPPOConfig without a team."""
        return MAPPOConfig()

    def setup(self, config: Any) -> None:
        """RLlib's setup, after empty environment states."""
        self._env_steps = 0
        self._average: tuple[int, dict[str, Any]] = (0, {})
        self.mappo_settings = MAPPOSettings(**config.settings)
        self._sampling = ShardSampling(self.mappo_settings.num_shards)
        self._offer = offer_to_other_nodes(config.team, self.mappo_settings.remote_actors)
        super().setup(config)
        self._learners = LearnerGuard(self)

    @property
    def env_steps(self) -> int:
        """Team decisions sampled so far."""
        return self._env_steps

    def training_step(self) -> None:
        """Sample every shard (or take the batch sampled beside the last update), and update."""
        settings, group = self.mappo_settings, self.env_runner_group
        begun = time.perf_counter()
        weights = self.team_weights()
        sampled = self._sampling.sample(group, weights, self._schedules(0))
        if settings.overlap:
            self._sampling.begin(group, weights, self._schedules(settings.steps_per_iteration))
        columns = sampled.columns
        require_finite_rewards(columns)
        steps = int(columns["rewards"].size)
        self._env_steps += steps
        batch = MultiAgentBatch({MODULE_ID: SampleBatch(columns)}, env_steps=settings.segments)
        started = time.perf_counter()
        results = self._learners.update(
            batch=batch, timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: self._env_steps})
        self.metrics.aggregate(results, key=LEARNER_RESULTS)
        self._average_weights()
        ended = time.perf_counter()
        self._log(columns, {"sample_seconds": sampled.seconds, "update_seconds": ended - started,
                            "env_steps_per_second": steps / (ended - begun)})

    def _average_weights(self) -> None:
        """Take the weights of the last part of training into their running mean."""
        settings = self.mappo_settings
        if self._env_steps <= (1.0 - settings.average_over) * settings.env_steps:
            return
        count, mean = self._average
        weights = self.team_weights()
        self._average = (count + 1, {name: w if count == 0 else mean[name] + (w - mean[name]) / (count + 1)
                                     for name, w in weights.items()})

    def final_weights(self) -> dict[str, Any]:
        """What training leaves: the mean over the last `average_over` of it, or the last weights."""
        return self._average[1] or self.team_weights()

    def _schedules(self, ahead: int) -> dict[str, float]:
        """What sampling needs of the schedules, `ahead` steps from now."""
        settings = self.mappo_settings
        progress = min((self._env_steps + ahead) / settings.env_steps, 1.0)
        return {"cost_scale": settings.cost_scale.at(progress), "gae_lambda": settings.gae_lambda.at(progress)}

    def cleanup(self) -> None:
        """End the sampling thread before the runners."""
        self._sampling.stop()
        super().cleanup()

    def _log(self, columns: dict[str, AnyArray], seconds: dict[str, float]) -> None:
        alive = columns["alive"]
        values = seconds | {
            "reward_mean": float(columns["rewards"][alive].mean()) if alive.any() else 0.0,
            "explained_variance": explained_variance(columns["value_targets"][alive], columns["values"][alive]),
            "alive": float(alive.mean()),
        }
        if self.config.team["kind"] in ("core", "joint"):
            values |= core_figures(columns)
        for name, value in values.items():
            self.metrics.log_value((ENV_RUNNER_RESULTS, name), value, window=1)
        self.metrics.log_value((ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME), int(alive.size),
                               reduce="lifetime_sum")

    def team_weights(self) -> dict[str, Any]:
        """The module's state dict, value norm included, as numpy-backed tensors."""
        weights = self._learners.weights(MODULE_ID)
        return {name: torch.as_tensor(np.array(value)) for name, value in weights.items()}

    def save_to_path(self, *args: Any, **kwargs: Any) -> str:
        """RLlib's checkpoint, also where a learner dies meanwhile."""
        return self._learners.call(lambda: str(PPO.save_to_path(self, *args, **kwargs)))

    def get_state(self, components: str | Collection[str] | None = None, *,
                  not_components: str | Collection[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        """RLlib's state and the driver's own: environment states and counters."""
        state = super().get_state(components, not_components=not_components, **kwargs)
        state[_STATE] = {"run": self._run(), "sampling": self._sampling.get_state(), "env_steps": self._env_steps,
                         "average": self._average}
        return state

    def _run(self) -> dict[str, Any]:
        """What a checkpoint must share with the run that goes on from it; hyperparameters may change."""
        team, settings = self.config.team, self.mappo_settings
        names = ("kind", "table_hash", "instrument", "start", "stop", "seed", "net", "env", "mirror")
        markets = [tuple(market[name] for name in ("table_hash", "instrument", "start", "stop"))
                   for market in team.get("markets", ())]
        return {name: team.get(name) for name in names} | {
            "num_shards": settings.num_shards, "envs_per_shard": settings.envs_per_shard, "markets": markets}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue bit for bit."""
        own = state.pop(_STATE, None)
        if own is not None:
            self._require_same_run(own)
        super().set_state(state)
        self._learners.refresh()
        if own is not None:
            self._env_steps, self._average = own["env_steps"], own["average"]
            self._sampling.set_state(own["sampling"])


    def _require_same_run(self, own: dict[str, Any]) -> None:
        if "run" not in own:
            raise ConfigError("the checkpoint was written by an earlier version; start the training again")
        differing = [name for name, value in self._run().items() if own["run"].get(name, value) != value]
        if differing:
            raise ConfigError(f"the checkpoint belongs to another run: {', '.join(differing)} "
                              f"{'differs' if len(differing) == 1 else 'differ'}; choose another folder")


def core_figures(columns: dict[str, AnyArray]) -> dict[str, float]:
    """Behaviour of a batch (B, T): share of bars in the market, change of position per bar, share of decisions
    that open or close something; `agreement`: size of the mean vote, 1 where all voters name one direction; per
    voter, the share of its directions that the team's majority shares."""
    position, votes = columns["account"][..., 0], columns["actions"][..., :3].astype(np.int8) - 1
    majority = np.sign((votes > 0).sum(-1) // 2 - (votes < 0).sum(-1) // 2)
    figures = {"exposure": float((np.abs(position) > 1e-6).mean()),
               "turnover": float(np.abs(np.diff(position, axis=1)).mean()),
               "opportunity": float((majority != 0).mean()),
               "accepted": _share(columns["actions"][..., 3] == 1, (majority != 0) & columns["valid"][..., 3]),
               "agreement": float(np.abs(votes.mean(-1)).mean())}
    for agent, name in enumerate(VOTERS):
        figures[f"agreement_{name}"] = _share(votes[..., agent] == majority, votes[..., agent] != 0)
    return figures


def _share(hits: AnyArray, among: AnyArray) -> float:
    return float(hits[among].mean()) if among.any() else 0.0


def explained_variance(targets: AnyArray, values: AnyArray) -> float:
    """1 - Var(targets - values) / Var(targets); 0 without variance."""
    variance = float(np.var(targets))
    return 1.0 - float(np.var(targets - values)) / variance if variance > 0.0 else 0.0
