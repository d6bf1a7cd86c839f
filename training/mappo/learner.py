"""MAPPOLearner: whole-batch statistics, then lean segment minibatches.

RLlib's per-minibatch bookkeeping (gradient copies, isfinite twice per tensor, metrics, a cyclic iterator on
numpy's global generator) costs 1.4-1.7 ms; this loop replaces it. Schedules are functions of the step count, so
nothing but weights, optimiser moments and the value norm needs to be in a checkpoint.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core.columns import Columns
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME

from algospace.seeding import stream_key
from training.mappo.finite import NonFiniteError, first_nonfinite_parameter
from training.mappo.loss import LossParts, mappo_loss, standardise
from training.mappo.memory import keep_freed_memory, owned
from training.mappo.module import MODULE_ID, TeamModule
from training.mappo.replicas import Replicas
from training.mappo.settings import MAPPOSettings

CRITIC_PREFIX = "net.critic"
INDICES = ("actions", "rows", "mask_rows")


class MAPPOLearner(PPOTorchLearner):
    """The clipped, per-agent update of one team."""

    def build(self) -> None:
        """RLlib's build, then our thread count and settings."""
        self.settings = MAPPOSettings(**self.config.settings)
        torch.set_num_threads(self.settings.torch_threads)
        keep_freed_memory()
        super().build()
        module = self.team_module()
        named = list(module.named_parameters())
        self._actor = [p for name, p in named if not name.startswith(CRITIC_PREFIX)]
        self._critic = [p for name, p in named if name.startswith(CRITIC_PREFIX)]
        threads = self.settings.threads
        self._replicas = Replicas(module, self.config.team, threads) if threads > 1 else None

    def team_module(self) -> TeamModule:
        """The module without DDP's wrapper."""
        return self.module[MODULE_ID].unwrapped()

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """One Adam with the paper's epsilon."""
        params = self.get_parameters(self._module[module_id])
        # one kernel for all parameters: 0.3 ms a step instead of 2
        optimizer = torch.optim.Adam(params, eps=self.settings.adam_epsilon, fused=True)
        self.register_optimizer(module_id=module_id, optimizer=optimizer, params=params,
                                lr_or_lr_schedule=self.settings.learning_rate.start)

    def set_state(self, state: dict[str, Any]) -> None:
        """RLlib's, with arrays of this process's own."""
        super().set_state(owned(state))
        if self._replicas is not None:
            self._replicas.share()

    def update(self, batch: Any = None, training_data: Any = None, *, timesteps: dict[str, Any] | None = None,
               **kwargs: Any) -> dict[str, Any]:
        """All epochs over one batch of segments; returns the mean of every figure over the minibatches."""
        columns = (batch or training_data.batch).policy_batches[MODULE_ID]
        data = {name: _tensor(name, columns[name], self._device) for name in columns if name != Columns.SEQ_LENS}
        steps = int((timesteps or {})[NUM_ENV_STEPS_SAMPLED_LIFETIME])
        progress = min(steps / self.settings.env_steps, 1.0)
        self._set_learning_rate(self.settings.learning_rate.at(progress))
        self._weights_seq_no += 1
        self._normalise(data)
        parts = [self._minibatch({name: value[index] for name, value in data.items()}, progress)
                 for index in self._order(data["rows"].shape[0], steps)]
        mean, deviation = self.team_module().value_norm.statistics()
        figures = _means(parts) | {"value_norm_mean": float(mean), "value_norm_deviation": float(deviation)}
        for name, value in figures.items():
            self.metrics.log_value((MODULE_ID, name), value, window=1)
        return self.metrics.reduce()

    def _set_learning_rate(self, rate: float) -> None:
        for optimizer in self._named_optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = rate

    def _normalise(self, data: dict[str, torch.Tensor]) -> None:
        """Value norm and advantage statistics over the whole batch, and over all learners."""
        norm = self.team_module().value_norm
        alive = data["alive"]
        pivots = self.settings.pivotal_votes and self.config.team["kind"] in ("core", "joint")
        mattered = pivotal(data["actions"]).to(alive.device) if pivots else torch.ones_like(data["valid"])
        data["counted"] = counted(data["valid"], alive, mattered, self.settings.death_masking)
        data["valid"] = data["valid"] & mattered
        targets = data["value_targets"][alive]
        moments = self._moments(targets)
        data["values"] = norm.normalise(data["values"])
        if self.settings.value_norm:
            norm.update(moments[0], moments[1])
        data["value_targets"] = norm.normalise(data["value_targets"])
        acting = data["counted"].any(-1)
        if self.distributed:
            mean, square, count = self._moments(data["advantages"][acting])
            variance = (square - mean ** 2) * count / (count - 1.0)  # of a sample, as `standardise` takes it
            deviation = variance.clamp(min=1e-12).sqrt()
            data["advantages"] = torch.where(acting, (data["advantages"] - mean) / (deviation + 1e-8), 0.0)
        else:
            data["advantages"] = standardise(data["advantages"], acting)

    def _moments(self, x: torch.Tensor) -> torch.Tensor:
        """Mean, mean square and number (3,) of all learners' values, of which each may have another number."""
        count = torch.tensor(float(x.numel()), device=x.device)
        sums = torch.stack((x.sum(), (x * x).sum(), count))
        if self.distributed:
            torch.distributed.all_reduce(sums)
        return torch.cat((sums[:2] / sums[2], sums[2:]))

    def _mean_over_learners(self, x: torch.Tensor) -> torch.Tensor:
        if self.distributed:
            torch.distributed.all_reduce(x)
            x = x / torch.distributed.get_world_size()
        return x

    def _order(self, segments: int, steps: int) -> list[torch.Tensor]:
        """Minibatches of segment numbers, shuffled by (seed, step count) in every epoch."""
        generator = np.random.default_rng(stream_key("minibatches", self.config.team["seed"], steps))
        count = max(self.settings.minibatches, 1)
        order = []
        for _ in range(self.settings.epochs):
            order += [torch.from_numpy(part) for part in np.array_split(generator.permutation(segments), count)]
        return order

    def _minibatch(self, data: dict[str, torch.Tensor], progress: float) -> torch.Tensor:
        """One gradient step; returns its figures (8,), see `_means`."""
        settings = self.settings
        counts = self._mean_over_learners(torch.stack((data["counted"].sum(), data["alive"].sum())).float())

        def loss(module: Any, segments: dict[str, torch.Tensor]) -> LossParts:
            return self._loss(module, segments, counts, progress)

        (optimizer,) = self._named_optimizers.values()
        optimizer.zero_grad(set_to_none=True)
        if self._replicas is None:
            parts = loss(self.module[MODULE_ID], data)
            parts.total.backward()
        else:
            parts = self._replicas.backward(loss, data)
        actor = torch.nn.utils.clip_grad_norm_(self._actor, settings.grad_clip, foreach=True)
        critic = torch.nn.utils.clip_grad_norm_(self._critic, settings.grad_clip, foreach=True)
        if not torch.isfinite(actor + critic):
            self._refuse(parts)
        optimizer.step()
        return torch.stack((*(part.detach() for part in parts), actor, critic))

    def _loss(self, module: Any, data: dict[str, torch.Tensor], counts: torch.Tensor,
              progress: float) -> LossParts:
        settings = self.settings
        with torch.autocast(self._device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            out = module.forward_train(data)
        return mappo_loss(
            logits=out["logits"].float(), values=out["values"].float(), actions=data["actions"],
            log_p_old=data["log_p"], valid=data["valid"], advantages=data["advantages"],
            value_targets=data["value_targets"], values_old=data["values"], decided=data["alive"],
            clip_param=settings.clip_param, value_clip=settings.value_clip, huber_delta=settings.huber_delta,
            entropy_coeff=settings.entropy.at(progress), value_coeff=settings.value_coeff, counts=counts)

    def _refuse(self, parts: LossParts) -> None:
        where = (first_nonfinite_parameter(self.team_module().named_parameters())
                 or "norm of the gradient, too large for float32,")
        losses = ", ".join(f"{name} {float(part.detach()):.4g}" for name, part in parts._asdict().items())
        raise NonFiniteError(f"the {where} is not finite ({losses}); the last checkpoint is intact: lower "
                             f"the learning rate and resume")


def counted(asked: torch.Tensor, alive: torch.Tensor, mattered: torch.Tensor,
            death_masking: bool) -> torch.Tensor:
    """Decisions (B, T, A) that the objective's means are over; asked and mattered (B, T, A), alive (B, T).

    Those that were asked and mattered; without death masking also those that were not asked. They had one choice,
    so they add nothing to any sum.
    """
    if death_masking:
        return asked & mattered
    return alive.unsqueeze(-1) & (mattered | ~asked)


def pivotal(actions: torch.Tensor) -> torch.Tensor:
    """Actions (..., 4) of the core team -> bool, the same shape: whether a vote could have changed the majority.

    Two of three decide, so that is exactly where the other two differ. Execution always counts. Execution reads
    all votes, so a vote outside can still matter a little: leaving it out trades that bias for less noise.
    """
    first, second, third, _ = actions.unbind(-1)
    always = torch.ones_like(first, dtype=torch.bool)
    return torch.stack((second != third, first != third, first != second, always), -1)


def _tensor(name: str, array: Any, device: torch.device) -> torch.Tensor:
    """Row numbers stay with the tables, on the CPU."""
    tensor = torch.as_tensor(array)
    return tensor.long() if name in INDICES else tensor.to(device)


def _means(figures: list[torch.Tensor]) -> dict[str, float]:
    """Mean of each figure over the minibatches, fetched once."""
    names = ("total_loss", "policy_loss", "value_loss", "entropy", "kl", "clip_fraction", "actor_grad_norm",
             "critic_grad_norm")
    return dict(zip(names, torch.stack(figures).mean(0).tolist(), strict=True))
