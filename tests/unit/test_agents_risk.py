"""The risk team's choices: only those that an agent has, and no size below the smallest allowed."""

from __future__ import annotations

import pytest
import torch

from agents.risk import RiskNet
from agents.settings import RISK_ACTIONS, RiskConfig, Shapes

SHAPES = Shapes(8, 48, 10, 60, 8)


@pytest.mark.parametrize("least", [0, 1, 3])
def test_forbidden_choices_have_no_probability(least: int) -> None:
    net = RiskNet(SHAPES, RiskConfig(min_contracts=least))
    hidden = torch.randn(64, 3, net.config.hidden) * 50.0
    p = torch.softmax(net.logits(hidden, torch.ones(())), -1)
    assert torch.all(p[:, 0, :least] == 0.0)
    for agent, count in enumerate(RISK_ACTIONS):
        assert torch.all(p[:, agent, count:] == 0.0)
        assert torch.all(p[:, agent, least if agent == 0 else 0: count] >= 0.0)
    assert torch.allclose(p.sum(-1), torch.ones(64, 3))


def test_the_sizer_must_keep_a_choice() -> None:
    with pytest.raises(ValueError, match="less than 6"):
        RiskConfig(min_contracts=6)
