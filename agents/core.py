"""The main core: voters strategic, tactical and arbitrage, and the execution agent, with a central critic.

matrix -> embedder -> shared trunk (agent one-hot) -> masked-dropout head, per agent.
Each agent's logits depend on its own observation only; the critic sees the global state before the votes
(a baseline that saw them would bias the voters' advantages).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from agents.embedders import EmbedderKind, make_embedder
from algospace.config import FrozenConfig

VOTERS = ("strategic", "tactical", "arbitrage")
AGENTS = (*VOTERS, "execution")
VOTES = ("short", "pass", "long")
EXECUTION_ACTIONS = ("reject", "execute", "close")
NUM_ACCOUNT, NUM_SYNERGY, NUM_PROPOSAL = 8, 3, 3
_MASKED_LOGIT = -1e9


class CoreConfig(FrozenConfig):
    """Sizes of the core's networks. `pass_bias` and `reject_bias` start the team near keeping its position."""

    embedder: EmbedderKind = "tcn"
    embed_dim: int = 16
    channels: int = 16
    hidden: int = 64
    critic_hidden: int = 64
    dropout: float = 0.1
    pass_bias: float = 1.0
    reject_bias: float = 0.0


class Shapes(NamedTuple):
    """Feature counts and windows of the matrices, and the size of the regime vector."""

    strategic: int
    strategic_window: int
    tactical: int
    tactical_window: int
    regime: int


class CoreNet(nn.Module):
    """Actor and critic of the main core. All methods take leading batch dimensions `...`."""

    def __init__(self, shapes: Shapes, config: CoreConfig) -> None:
        super().__init__()
        self.shapes, self.config = shapes, config
        dim, hidden = config.embed_dim, config.hidden

        def embedder(features: int, window: int) -> nn.Module:
            return make_embedder(config.embedder, features, window, dim, config.channels)

        self.strategic = embedder(shapes.strategic, shapes.strategic_window)
        self.tactical = embedder(shapes.tactical, shapes.tactical_window)
        self.arbitrage_slow = embedder(shapes.strategic, shapes.strategic_window)
        self.arbitrage_fast = embedder(shapes.tactical, shapes.tactical_window)
        self.arbitrage = nn.Linear(2 * dim, dim)
        self.execution = nn.Linear(len(VOTERS) * len(VOTES) + NUM_PROPOSAL, dim)
        context = shapes.regime + NUM_SYNERGY + NUM_ACCOUNT
        self.trunk_in = nn.Linear(dim + context + len(AGENTS), hidden)
        self.trunk_out = nn.Linear(hidden, hidden)
        self.head = nn.Parameter(torch.empty(len(AGENTS), hidden, 3))
        self.head_bias = nn.Parameter(torch.zeros(len(AGENTS), 3))
        self.critic = nn.Sequential(
            nn.Linear(3 * dim + context, config.critic_hidden), nn.Tanh(),
            nn.Linear(config.critic_hidden, config.critic_hidden), nn.Tanh(), nn.Linear(config.critic_hidden, 1))
        self.register_buffer("one_hot", torch.eye(len(AGENTS)), persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        """Orthogonal weights, policy gain .01 (Yu et al. 2022), biases that keep the position at first."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.orthogonal_(module.weight, 2 ** 0.5)
                nn.init.zeros_(module.bias)
        for head in self.head.data:
            nn.init.orthogonal_(head, 0.01)
        nn.init.orthogonal_(self.critic[-1].weight, 1.0)
        self.head_bias.data[:3, 1] = self.config.pass_bias
        self.head_bias.data[3, 0] = self.config.reject_bias

    def embed_voters(self, strategic: torch.Tensor, tactical: torch.Tensor, arbitrage_slow: torch.Tensor,
                     arbitrage_fast: torch.Tensor) -> torch.Tensor:
        """Own embeddings (..., D) of each matrix -> (..., 3, D)."""
        both = torch.tanh(self.arbitrage(torch.cat((arbitrage_slow, arbitrage_fast), -1)))
        return torch.stack((strategic, tactical, both), -2)

    def embed_windows(self, strategic: torch.Tensor, tactical: torch.Tensor) -> torch.Tensor:
        """Windows (B, 48, Fs) and (B, 60, Ft) -> voters' embeddings (B, 3, D)."""
        return self.embed_voters(
            self.strategic.embed_window(strategic), self.tactical.embed_window(tactical),
            self.arbitrage_slow.embed_window(strategic), self.arbitrage_fast.embed_window(tactical))

    def voter_trunk(self, embedded: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Embeddings (..., 3, D) and context (..., K) -> hidden (..., 3, H)."""
        lead = embedded.shape[:-1]
        spread = context.unsqueeze(-2).expand(*lead, context.shape[-1])
        agent = self.one_hot[:3].expand(*lead, len(AGENTS))
        return self._trunk(torch.cat((embedded, spread, agent), -1))

    def execution_trunk(self, votes: torch.Tensor, proposal: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """One-hot votes (..., 3, 3), proposal (..., 3), context (..., K) -> hidden (..., 1, H)."""
        own = torch.tanh(self.execution(torch.cat((votes.flatten(-2), proposal), -1)))
        agent = self.one_hot[3].expand(*own.shape[:-1], len(AGENTS))
        return self._trunk(torch.cat((own, context, agent), -1)).unsqueeze(-2)

    def _trunk(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.trunk_out(torch.tanh(self.trunk_in(x))))

    def voter_logits(self, hidden: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Hidden (..., 3, H) times dropout masks of the same shape -> logits (..., 3, 3)."""
        return _heads(hidden * masks, self.head[:3]) + self.head_bias[:3]

    def execution_logits(self, hidden: torch.Tensor, masks: torch.Tensor,
                         allowed: torch.Tensor) -> torch.Tensor:
        """Hidden (..., 1, H), masks, allowed actions (..., 3) bool -> logits (..., 1, 3)."""
        logits = _heads(hidden * masks, self.head[3:]) + self.head_bias[3:]
        return logits.masked_fill(~allowed.unsqueeze(-2), _MASKED_LOGIT)

    def value(self, embedded: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Normalised value of the global state: (..., 3, D), (..., K) -> (...)."""
        return self.critic(torch.cat((embedded.flatten(-2), context), -1)).squeeze(-1)


def _heads(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(..., A, H) @ (A, H, 3) -> (..., A, 3), one head per agent."""
    return (hidden.unsqueeze(-2) @ weight).squeeze(-2)
