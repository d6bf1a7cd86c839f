"""The regime network under RLlib's Learner: a self-supervised RLModule and a lean TorchLearner.

The driver sends row numbers, noise and mirror signs, not windows; every learner holds the rows and cuts the
windows itself. Randomness comes with the batch, so a learner has no generator state.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.rl_module.apis.self_supervised_loss_api import SelfSupervisedLossAPI
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch

from agents.regime import RegimeNet
from agents.settings import RegimeConfig
from algospace.errors import ConfigError, InternalError
from algospace.types import Float32Array, IntArray
from training.mappo.finite import NonFiniteError, first_nonfinite_parameter
from training.mappo.memory import owned

END, NOISE, MIRROR = "end", "noise", "mirror"
_VALIDATION_BATCH = 512


class RDEModule(TorchRLModule, SelfSupervisedLossAPI):  # type: ignore[misc]  # RLlib's classes are untyped
    """`RegimeNet` as an RLModule; `model_config` holds the regime configuration and the seed of the weights."""

    model_config: dict[str, Any]

    def setup(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.model_config["seed"])
            self.net = RegimeNet(RegimeConfig.model_validate(self.model_config["regime"]))

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """The loss is computed inside forward, so that gradients of wrapped (DDP) modules are synchronised."""
        total, parts = self.net.loss(batch["window"], batch["target_next"], batch["beta"], batch[NOISE])
        return {"loss": total, **parts}

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {"mean": self.net.encode_mean(batch["window"])}

    def compute_self_supervised_loss(
        self, *, learner: Any, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Any],
        **kwargs: Any,
    ) -> torch.Tensor:
        loss: torch.Tensor = fwd_out["loss"]
        return loss


def rde_module_spec(config: RegimeConfig, seed: int) -> RLModuleSpec:
    """The module of one training run: observations are windows, actions are not used."""
    shape = (config.window, config.features)
    return RLModuleSpec(
        module_class=RDEModule, observation_space=gym.spaces.Box(-np.inf, np.inf, shape, np.float32),
        action_space=gym.spaces.Discrete(1), model_config={"regime": config.model_dump(), "seed": seed})


def rde_batch(ends: IntArray, noise: Float32Array, mirror: Float32Array) -> MultiAgentBatch:
    """Row numbers (N,), noise (N, latent) and signs (N,): one epoch, in the order of the updates."""
    columns = SampleBatch({END: torch.from_numpy(ends), NOISE: torch.from_numpy(noise),
                           MIRROR: torch.from_numpy(mirror)})
    return MultiAgentBatch({DEFAULT_MODULE_ID: columns}, env_steps=len(ends))


class RDELearner(TorchLearner):  # type: ignore[misc]  # RLlib's classes are untyped
    """AdamW with warm-up of β and a cosine learning rate, both functions of the step count.

    Per minibatch it does forward, backward, clip and step, without RLlib's per-tensor checks and metrics,
    which cost several times as much as the update of a small network.
    """

    _device: Any
    _module: Any

    def build(self) -> None:
        super().build()
        self._regime = RegimeConfig.model_validate(self._module_of().model_config["regime"])
        if self._regime.precision == "bf16" and self._device.type == "cuda" and not torch.cuda.is_bf16_supported():
            raise ConfigError("this GPU does not know bfloat16; set rde.precision to float32")
        self._sums: dict[str, torch.Tensor] = {}
        self._minibatches = 0
        self._beta = 0.0

    def set_rows(
        self, rows: Float32Array, mirror_sign: Float32Array, centre: Float32Array, scale: Float32Array
    ) -> None:
        """The regime rows (m, F) that the row numbers of the batches mean, the sign of mirrored columns, and the
        columns' centre and scale."""
        self._module_of().net.set_scale(*(torch.from_numpy(a).to(self._device) for a in (centre, scale)))
        self._rows = torch.from_numpy(np.nan_to_num(rows)).to(self._device)
        self._mirror_sign = torch.from_numpy(mirror_sign).to(self._device)
        window, ahead = self._regime.window, self._regime.predict_steps
        self._offsets = torch.arange(1 - window, 1 + ahead, device=self._device)

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """AdamW (Loshchilov and Hutter 2019); biases and norms are not decayed."""
        regime = RegimeConfig.model_validate(self._module_of().model_config["regime"])
        params = self.get_parameters(self._module[module_id])
        groups = [{"params": [p for p in params if p.ndim >= 2], "weight_decay": regime.weight_decay},
                  {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(groups, lr=regime.learning_rate)
        self.register_optimizer(module_id=module_id, optimizer=self._optimizer, params=params)

    def _create_iterator_if_necessary(  # type: ignore[override]  # our update takes our arguments
        self, *, training_data: Any, minibatch_size: int, first_step: int, total_steps: int, **kwargs: Any
    ) -> Iterator[MultiAgentBatch]:
        """Minibatches in the order given; sets the schedules of each step."""
        columns = training_data.batch.policy_batches[DEFAULT_MODULE_ID]
        ends, noise, mirror = (torch.as_tensor(columns[k]).to(self._device) for k in (END, NOISE, MIRROR))
        self._sums, self._minibatches = {}, 0
        for index in range(len(ends) // minibatch_size):
            self._set_schedules(first_step + index, total_steps)
            part = slice(index * minibatch_size, (index + 1) * minibatch_size)
            window, target_next = self._windows(ends[part], mirror[part])
            columns = SampleBatch({"window": window, "target_next": target_next, NOISE: noise[part]})
            yield MultiAgentBatch({DEFAULT_MODULE_ID: columns}, env_steps=minibatch_size)

    def _set_schedules(self, step: int, total_steps: int) -> None:
        progress = step / total_steps
        rate = 0.5 * self._regime.learning_rate * (1.0 + math.cos(math.pi * progress))
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        warmup = self._regime.warmup_fraction
        self._beta = self._regime.beta * (min(1.0, progress / warmup) if warmup else 1.0)

    def _windows(self, ends: torch.Tensor, mirror: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Row numbers (B,) -> windows (B, W, F) and the rows after them (B, k, F)."""
        rows = self._rows[ends[:, None] + self._offsets]
        if mirror is not None:
            rows = torch.where(mirror[:, None, None] < 0, rows * self._mirror_sign, rows)
        return rows[:, : self._regime.window], rows[:, self._regime.window:]

    def _update(self, batch: dict[str, Any], **kwargs: Any) -> tuple[Any, Any, Any]:
        """One step, under bfloat16 autocast if configured; gradients are clipped by their global norm."""
        self._optimizer.zero_grad(set_to_none=True)
        batch = {DEFAULT_MODULE_ID: {**batch[DEFAULT_MODULE_ID], "beta": self._beta}}
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._regime.precision == "bf16"):
            forward = self.module.forward_train(batch)
            losses = self.compute_losses(fwd_out=forward, batch=batch)
        losses[DEFAULT_MODULE_ID].backward()
        norm = torch.nn.utils.clip_grad_norm_(list(self._params.values()), self._regime.grad_clip)
        if not torch.isfinite(norm):
            self._refuse(float(losses[DEFAULT_MODULE_ID].detach()))
        self._optimizer.step()
        for name, value in forward[DEFAULT_MODULE_ID].items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach()
        self._minibatches += 1
        return forward, losses, {}

    def _refuse(self, loss: float) -> None:
        where = first_nonfinite_parameter(self._module_of().net.named_parameters()) or "norm of the gradient"
        raise NonFiniteError(f"regime network: the {where} is not finite (loss {loss:.4g}); the checkpoint of the "
                             f"epoch before is intact: lower rde.learning_rate")

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> torch.Tensor:
        """Only asked of modules without a loss of their own; `RDEModule` has one."""
        raise InternalError(f"module '{module_id}' has no self-supervised loss; use RDEModule")

    def _log_metrics(self, batch: MultiAgentBatch) -> None:
        """Per-minibatch metrics are left out on purpose (see the class); `epoch_means` has the epoch's."""

    def _log_steps_trained_metrics(self, batch: MultiAgentBatch) -> None:
        """As `_log_metrics`."""

    def epoch_means(self) -> dict[str, float]:
        """Means of the loss and its parts over the last update call, and the schedules at its end."""
        if not self._minibatches:
            raise InternalError("no minibatch was trained: the batch is smaller than minibatch_size")
        means = {name: float(total) / self._minibatches for name, total in self._sums.items()}
        return {**means, "beta": self._beta, "learning_rate": self._optimizer.param_groups[0]["lr"]}

    @torch.inference_mode()
    def validate(self, ends: IntArray) -> dict[str, float]:
        """Loss at full β without noise over the windows that end at `ends`."""
        sums: dict[str, float] = {}
        net = self._module_of().net
        for start in range(0, len(ends), _VALIDATION_BATCH):
            part = torch.from_numpy(ends[start : start + _VALIDATION_BATCH]).to(self._device)
            window, target_next = self._windows(part, None)
            noise = torch.zeros(len(part), self._regime.latent, device=self._device)
            total, parts = net.loss(window, target_next, self._regime.beta, noise)
            for name, value in {"loss": total, **parts}.items():
                sums[name] = sums.get(name, 0.0) + float(value) * len(part)
        return {name: total / len(ends) for name, total in sums.items()}

    def net_state(self) -> dict[str, torch.Tensor]:
        """A copy of the network's weights on the CPU."""
        state = self._module_of().net.state_dict()
        return {name: value.detach().to("cpu", copy=True) for name, value in state.items()}

    def training_state(self) -> dict[str, Any]:
        """Everything that the next step depends on, apart from the batch."""
        return {"net": self.net_state(), "optimizer": self._optimizer.state_dict()}

    def set_training_state(self, state: dict[str, Any]) -> None:
        """The inverse of `training_state`."""
        self._module_of().net.load_state_dict(state["net"])
        self._optimizer.load_state_dict(owned(state["optimizer"]))

    def _module_of(self) -> Any:
        return self.module[DEFAULT_MODULE_ID].unwrapped()
