"""M-RMS: the risk team. Three cooperative agents size, stop and target answer an opportunity.

They see the market and the proposed direction, not the account: hard limits see the account, and so a frozen
M-RMS can be evaluated once for the whole table (frozen experts are columns). The critic, which exists in training
only, sees the account too and, in hindsight, what the following bars would have made of fixed brackets.
"""

from __future__ import annotations

import torch
from torch import nn

from agents.core import heads
from agents.embedders import make_embedder
from agents.settings import NUM_CRITIC, RISK_ACTIONS, RISK_AGENTS, RiskConfig, Shapes

_MASKED_LOGIT = -1e9


class RiskNet(nn.Module):
    """Actors and critic of the M-RMS."""

    one_hot: torch.Tensor
    allowed: torch.Tensor

    def __init__(self, shapes: Shapes, config: RiskConfig) -> None:
        super().__init__()
        self.shapes, self.config = shapes, config
        dim, hidden = config.embed_dim, config.hidden
        self.strategic = make_embedder(config.embedder, shapes.strategic, shapes.strategic_window, dim,
                                       config.channels)
        self.tactical = make_embedder(config.embedder, shapes.tactical, shapes.tactical_window, dim,
                                      config.channels)
        state = 2 * dim + shapes.regime + 1
        self.trunk_in = nn.Linear(2 * state - 1 + len(RISK_AGENTS), hidden)
        self.trunk_out = nn.Linear(hidden, hidden)
        self.head = nn.Parameter(torch.empty(len(RISK_AGENTS), hidden, max(RISK_ACTIONS)))
        self.head_bias = nn.Parameter(torch.zeros(len(RISK_AGENTS), max(RISK_ACTIONS)))
        self.critic = nn.Sequential(nn.Linear(2 * state - 1 + NUM_CRITIC, config.critic_hidden), nn.Tanh(),
                                    nn.Linear(config.critic_hidden, 1))
        self.register_buffer("one_hot", torch.eye(len(RISK_AGENTS)), persistent=False)
        allowed = torch.arange(max(RISK_ACTIONS))[None] < torch.tensor(RISK_ACTIONS)[:, None]
        allowed[0, : config.min_contracts] = False
        self.register_buffer("allowed", allowed, persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.orthogonal_(module.weight, 2 ** 0.5)
                nn.init.zeros_(module.bias)
        for head in self.head.data:
            nn.init.orthogonal_(head, 0.01)

    def state(self, strategic: torch.Tensor, tactical: torch.Tensor, regime: torch.Tensor,
              direction: torch.Tensor) -> torch.Tensor:
        """Windows (B, Ws, Fs), (B, Wt, Ft), regime (B, R), direction (B, 1) in {-1, +1} -> state (B, S)."""
        return torch.cat((self.strategic.embed_window(strategic), self.tactical.embed_window(tactical), regime,
                          direction), -1)

    def trunk(self, state: torch.Tensor) -> torch.Tensor:
        """(..., S) -> hidden (..., 3, H), one row per agent."""
        state = with_direction(state)
        lead = (*state.shape[:-1], len(RISK_AGENTS))
        x = torch.cat((state.unsqueeze(-2).expand(*lead, state.shape[-1]),
                       self.one_hot.expand(*lead, len(RISK_AGENTS))), -1)
        return torch.tanh(self.trunk_out(torch.tanh(self.trunk_in(x))))

    def logits(self, hidden: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """(..., 3, H) times masks -> (..., 3, 7); actions that an agent does not have are masked."""
        logits = heads(hidden * masks, self.head) + self.head_bias
        return logits.masked_fill(~self.allowed, _MASKED_LOGIT)

    def value(self, state: torch.Tensor, account: torch.Tensor) -> torch.Tensor:
        """Normalised value (...) of state (..., S) and account with hindsight (..., 10)."""
        return self.critic(torch.cat((with_direction(state), account), -1)).squeeze(-1)


def with_direction(state: torch.Tensor) -> torch.Tensor:
    """(..., S) -> (..., 2 S - 1): beside the state its product with the direction, the state's last entry.

    What the market says is a reason for or against the proposed direction, and a small network is slow to find
    products by itself.
    """
    return torch.cat((state, state[..., :-1] * state[..., -1:]), -1)
