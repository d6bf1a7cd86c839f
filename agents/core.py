"""The main core: voters strategic, tactical and arbitrage, and the execution agent, with a central critic.

matrix -> embedder -> shared trunk (agent one-hot) -> masked-dropout head, per agent.
Each agent's logits depend on its own observation only; the critic sees the global state before the votes
(a baseline that saw them would bias the voters' advantages).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from agents.embedders import Embedder, make_embedder
from agents.fused import dense_tanh, masked_heads, trunk_in
from agents.settings import AGENTS, NUM_ACCOUNT, NUM_PROPOSAL, NUM_SYNERGY, VOTERS, VOTES, CoreConfig, Shapes

_MASKED_LOGIT = -1e9


class CoreNet(nn.Module):
    """Actor and critic of the main core. All methods take leading batch dimensions `...`."""

    def __init__(self, shapes: Shapes, config: CoreConfig) -> None:
        super().__init__()
        self.shapes, self.config = shapes, config
        dim, hidden = config.embed_dim, config.hidden

        def embedder(features: int, window: int) -> Embedder:
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
        last = nn.Linear(config.critic_hidden, 1)
        self.critic = nn.Sequential(
            nn.Linear(3 * dim + context, config.critic_hidden), nn.Tanh(),
            nn.Linear(config.critic_hidden, config.critic_hidden), nn.Tanh(), last)
        self._initialise(last)

    def _initialise(self, last: nn.Linear) -> None:
        """Orthogonal weights, policy gain .01 (Yu et al. 2022), biases that keep the position at first."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.orthogonal_(module.weight, 2 ** 0.5)
                nn.init.zeros_(module.bias)
        for head in self.head.data:
            nn.init.orthogonal_(head, 0.01)
        nn.init.orthogonal_(last.weight, 1.0)
        self.head_bias.data[:3, 1] = self.config.pass_bias
        bias = self.config.execute_bias
        self.head_bias.data[3] = torch.tensor([self.config.reject_bias - bias, 0.0, -bias])

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

    def shared_input(self, context: torch.Tensor) -> torch.Tensor:
        """The trunk's first layer on the context (..., K) that all agents share -> (..., H)."""
        dim = self.config.embed_dim
        weight = self.trunk_in.weight[:, dim: dim + context.shape[-1]]
        return nn.functional.linear(context, weight, self.trunk_in.bias)

    def voter_trunk(self, embedded: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
        """Embeddings (..., 3, D) and `shared_input` (..., H) -> hidden (..., 3, H)."""
        return self._trunk(embedded, shared.unsqueeze(-2), self._agent_input()[:3])

    def execution_trunk(self, votes: torch.Tensor, proposal: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
        """One-hot votes (..., 3, 3), proposal (..., 3), `shared_input` (..., H) -> hidden (..., 1, H)."""
        own = torch.tanh(self.execution(torch.cat((votes.flatten(-2), proposal), -1)))
        return self._trunk(own, shared, self._agent_input()[3]).unsqueeze(-2)

    def _agent_input(self) -> torch.Tensor:
        """The first layer's columns of the agent one-hot, (4, H)."""
        return self.trunk_in.weight[:, -len(AGENTS):].T

    def _trunk(self, own: torch.Tensor, shared: torch.Tensor, agent: torch.Tensor) -> torch.Tensor:
        """First layer on (own, context, agent one-hot), as a sum of its parts; then the second."""
        first = nn.functional.linear(own, self.trunk_in.weight[:, : self.config.embed_dim])
        return torch.tanh(self.trunk_out(torch.tanh(first + shared + agent)))

    def voter_logits(self, hidden: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Hidden (..., 3, H) times dropout masks of the same shape -> logits (..., 3, 3)."""
        return heads(hidden * masks, self.head[:3]) + self.head_bias[:3]

    def execution_logits(self, hidden: torch.Tensor, masks: torch.Tensor,
                         allowed: torch.Tensor) -> torch.Tensor:
        """Hidden (..., 1, H), masks, allowed actions (..., 3) bool -> logits (..., 1, 3)."""
        logits = heads(hidden * masks, self.head[3:]) + self.head_bias[3:]
        return logits.masked_fill(~allowed.unsqueeze(-2), _MASKED_LOGIT)

    def value(self, embedded: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Normalised value of the global state: (..., 3, D), (..., K) -> (...)."""
        return self.central_value(torch.cat((embedded.flatten(-2), context), -1))

    def central_value(self, state: torch.Tensor) -> torch.Tensor:
        """Normalised value (...) of the joined global state (..., 3 D + K)."""
        hidden, layers = state, (self.critic[0], self.critic[2])
        layer: Any
        for layer in layers:
            hidden = dense_tanh(hidden, layer.weight, layer.bias)
        return self.critic[4](hidden).squeeze(-1)

    def team_logits(self, own: torch.Tensor, context: torch.Tensor, decision: torch.Tensor, allowed: torch.Tensor,
                    bank: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """All agents' logits (N, 4, 3) at once: what the methods above compute, laid out for speed.

        own (3, N, D) voters' embeddings, context (N, K), decision (N, 12) one-hot votes and proposal, allowed
        (N, 3), bank (R, H) dropout masks and their rows (N, 4).
        """
        dim = self.config.embed_dim
        own_weight, middle = self.trunk_in.weight[:, :dim], self.trunk_in.weight[:, dim: dim + context.shape[-1]]
        shared = torch.mm(context, middle.t())
        agent = self._agent_input() + self.trunk_in.bias
        acting = dense_tanh(decision, self.execution.weight, self.execution.bias).unsqueeze(0)
        parts = []
        for inputs, who in ((own, slice(0, 3)), (acting, slice(3, 4))):
            hidden = trunk_in(inputs, own_weight, shared, agent[who])
            parts.append(masked_heads(hidden, self.trunk_out.weight, self.trunk_out.bias, bank, rows[:, who],
                                      self.head[who], self.head_bias[who]))
        parts[1] = parts[1].masked_fill(~allowed.unsqueeze(1), _MASKED_LOGIT)
        return torch.cat(parts, 1)


def heads(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(..., A, H) times (A, H, n) -> (..., A, n): one plain matrix product per agent (a batched one is slower)."""
    return torch.stack([hidden[..., a, :] @ w for a, w in enumerate(weight)], -2)
