"""How the risk agents draw their actions."""

import numpy as np
import torch

from agents.settings import RISK_ACTIONS, RISK_AGENTS
from training.mappo.risk_team import gumbel


def test_the_largest_of_logits_and_noise_is_a_draw_of_the_categorical() -> None:
    steps, size = 40, 250
    noise = gumbel(7, size, steps)
    assert noise.shape == (steps, size, len(RISK_AGENTS), max(RISK_ACTIONS))
    logits = torch.linspace(-1.0, 1.5, max(RISK_ACTIONS))
    drawn = (logits + noise).argmax(-1).flatten()
    observed = torch.bincount(drawn, minlength=max(RISK_ACTIONS)) / drawn.numel()
    np.testing.assert_allclose(observed, torch.softmax(logits, 0), atol=0.01)
    assert torch.equal(gumbel(7, size, steps), noise)
    assert not torch.equal(gumbel(8, size, steps), noise)
