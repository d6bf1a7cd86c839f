"""TeamModule: the RLModule that a runner samples from and the learner trains."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from ray.rllib.core.rl_module.apis import ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import nn

MODULE_ID = "default_policy"


class ValueNorm(nn.Module):
    """Running mean and variance of value targets, debiased (the paper's PopArt-free value normalisation)."""

    mean: torch.Tensor
    square: torch.Tensor
    weight: torch.Tensor

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        for name in ("mean", "square", "weight"):
            self.register_buffer(name, torch.zeros(()))

    def update(self, mean: torch.Tensor, square: torch.Tensor) -> None:
        """Blend in a batch's mean and mean square."""
        self.mean.mul_(self.decay).add_((1.0 - self.decay) * mean)
        self.square.mul_(self.decay).add_((1.0 - self.decay) * square)
        self.weight.mul_(self.decay).add_(1.0 - self.decay)

    def statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Debiased mean and standard deviation; (0, 1) before the first update."""
        if float(self.weight) == 0.0:
            return torch.zeros(()), torch.ones(())
        mean = self.mean / self.weight
        variance = (self.square / self.weight - mean * mean).clamp(min=1e-4)
        return mean, variance.sqrt()

    def normalise(self, x: torch.Tensor) -> torch.Tensor:
        """Reward units -> normalised."""
        mean, deviation = self.statistics()
        return (x - mean) / deviation

    def denormalise(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised -> reward units."""
        mean, deviation = self.statistics()
        return x * deviation + mean


class TeamModule(TorchRLModule, ValueFunctionAPI):
    """A cooperative team: per-agent logits, one central value per decision.

    A subclass builds `self.net` and the data it reads in `build`, and implements `evaluate`.
    """

    net: nn.Module

    def setup(self) -> None:
        """RLlib's constructor hook."""
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        seed = int(self.model_config["seed"])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.build(self.model_config)
        self.value_norm = ValueNorm()

    @abstractmethod
    def build(self, spec: dict[str, Any]) -> None:
        """Create `self.net` from the team's plain-dict specification."""

    @abstractmethod
    def evaluate(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Stored segments -> logits (B, T, A, n) under the stored masks and actions, values (B, T)."""

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        logits, values = self.evaluate(batch)
        return {"logits": logits, "values": values}

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return self._forward_train(batch)

    def compute_values(self, batch: dict[str, Any], embeddings: Any | None = None) -> torch.Tensor:
        """Values (B, T) in reward units."""
        return self.value_norm.denormalise(self.evaluate(batch)[1])


def build_team_module(spec: dict[str, Any]) -> TeamModule:
    """The module of a team specification, outside RLlib's own construction path."""
    from training.mappo.teams import TEAMS  # the registry imports this module

    return TEAMS[spec["kind"]].module(observation_space=None, action_space=None, inference_only=False,
                                      model_config=spec)
