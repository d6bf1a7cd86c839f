"""The peer of benchmarks.training: RLlib's stock PPO with our embedders in ordinary RLModules, one per agent.

Default EnvRunner, connectors and Learner. One module per agent, because a shared one would need the union of all
observations for every agent: both windows to copy and embed four times instead of twice.
"""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import ValueFunctionAPI
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import nn

from agents.embedders import make_embedder
from agents.settings import AGENTS, CoreConfig
from training.mappo.multi_agent_env import register_core_env
from training.mappo.settings import MAPPOSettings

_ACTIONS = 3
_CONTEXT = ("regime", "synergy", "account")
_WINDOWS = ("strategic", "tactical")
_MASKED_LOGIT = -1e9


class StockAgentModule(TorchRLModule, ValueFunctionAPI):
    """One agent as an ordinary RLModule: embedders, trunk and critic of CoreNet's sizes, one pass per batch."""

    def setup(self) -> None:
        """RLlib's constructor hook."""
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        config = CoreConfig(**self.model_config["net"])
        parts = self.observation_space.spaces
        dim = config.embed_dim
        self.windows = [name for name in _WINDOWS if name in parts]
        self.embedders = nn.ModuleList(
            make_embedder(config.embedder, parts[name].shape[1], parts[name].shape[0], dim, config.channels)
            for name in self.windows)
        own = sum(int(torch.Size(parts[name].shape).numel()) for name in ("votes", "proposal") if name in parts)
        self.join = nn.Linear(own, dim) if own else nn.Linear(2 * dim, dim) if len(self.windows) > 1 else None
        inputs = dim + sum(parts[name].shape[0] for name in _CONTEXT)
        self.trunk = nn.Sequential(nn.Linear(inputs, config.hidden), nn.Tanh(),
                                   nn.Linear(config.hidden, config.hidden), nn.Tanh(),
                                   nn.Linear(config.hidden, _ACTIONS))
        self.critic = nn.Sequential(nn.Linear(inputs, config.critic_hidden), nn.Tanh(),
                                    nn.Linear(config.critic_hidden, config.critic_hidden), nn.Tanh(),
                                    nn.Linear(config.critic_hidden, 1))

    def _features(self, observed: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.windows:
            own = torch.cat([embed.embed_window(observed[name])
                             for name, embed in zip(self.windows, self.embedders, strict=True)], -1)
        else:
            own = torch.cat((observed["votes"].flatten(-2), observed["proposal"]), -1)
        if self.join is not None:
            own = torch.tanh(self.join(own))
        return torch.cat((own, *(observed[name] for name in _CONTEXT)), -1)

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        observed = batch[Columns.OBS]
        features = self._features(observed)
        logits = self.trunk(features)
        if "action_mask" in observed:
            logits = logits.masked_fill(observed["action_mask"] == 0, _MASKED_LOGIT)
        return {Columns.ACTION_DIST_INPUTS: logits, Columns.EMBEDDINGS: features}

    def _forward_inference(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTION_DIST_INPUTS: self._forward(batch)[Columns.ACTION_DIST_INPUTS]}

    def _forward_exploration(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return self._forward_inference(batch)

    def compute_values(self, batch: dict[str, Any], embeddings: Any | None = None) -> torch.Tensor:
        """Values (B,); reuses the features of the forward pass where RLlib hands them over."""
        features = self._features(batch[Columns.OBS]) if embeddings is None else embeddings
        return self.critic(features).squeeze(-1)


def peer_module_spec(net: dict[str, Any]) -> RLModuleSpec:
    """One agent's module with the sizes of CoreConfig(**net)."""
    return RLModuleSpec(module_class=StockAgentModule, model_config={"net": net})


def stock_config(spec: dict[str, Any], settings: MAPPOSettings, envs: int, batch: int,
                 minibatch: int) -> PPOConfig:
    """Stock PPO on the team specification of ours; sizes in RLlib's units (half-steps; rows of one module)."""
    env_config = {name: spec[name] for name in ("market", "experts", "table_hash", "instrument", "start", "stop",
                                                "seed", "risk_unit", "env")} | {"mirror": settings.mirror}
    return (
        PPOConfig()
        .environment(register_core_env(), env_config=env_config)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=envs)
        .learners(num_learners=0)
        .multi_agent(policies=set(AGENTS), policy_mapping_fn=own_policy)
        .rl_module(rl_module_spec=MultiRLModuleSpec(
            rl_module_specs={agent: peer_module_spec(spec["net"]) for agent in AGENTS}))
        .training(train_batch_size_per_learner=batch, minibatch_size=minibatch, num_epochs=settings.epochs,
                  gamma=settings.gamma, lambda_=settings.gae_lambda.start, lr=settings.learning_rate.start,
                  clip_param=settings.clip_param, entropy_coeff=settings.entropy.start, use_kl_loss=False,
                  grad_clip=settings.grad_clip)
    )


def own_policy(agent: str, episode: Any, **kwargs: Any) -> str:
    """Each agent has its own module."""
    return agent
