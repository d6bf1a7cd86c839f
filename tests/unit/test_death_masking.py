"""`death_masking` means one thing for every agent that was not asked."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.mappo.learner import counted, pivotal
from training.mappo.loss import mappo_loss

AGENTS = 4


def decisions(seed: int, rows: int = 24) -> dict[str, torch.Tensor]:
    """Random asked and unasked decisions; an agent that is not asked has one choice: pass, reject."""
    generator = torch.Generator().manual_seed(seed)
    alive = torch.rand(1, rows, generator=generator) < 0.8
    voting = alive & (torch.rand(1, rows, generator=generator) < 0.6)
    execution = voting & (torch.rand(1, rows, generator=generator) < 0.5)
    asked = torch.stack((voting, voting, voting, execution), -1)
    drawn = torch.randint(0, 3, (1, rows, AGENTS), generator=generator)
    forced = torch.tensor([1, 1, 1, 0]).expand_as(drawn)
    return {"asked": asked, "alive": alive, "actions": torch.where(asked, drawn, forced),
            "logits": torch.randn(1, rows, AGENTS, 3, generator=generator),
            "log_p_old": -torch.rand(1, rows, AGENTS, generator=generator),
            "advantages": torch.randn(1, rows, generator=generator)}


def gradient(data: dict[str, torch.Tensor], valid: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    logits = data["logits"].clone().requires_grad_()
    flat = torch.zeros_like(data["advantages"])
    options: dict[str, Any] = {"clip_param": 0.2, "value_clip": None, "huber_delta": None, "entropy_coeff": 0.01,
                               "value_coeff": 0.0}
    loss = mappo_loss(logits=logits, values=flat, actions=data["actions"], log_p_old=data["log_p_old"],
                      valid=valid, advantages=data["advantages"], value_targets=flat, values_old=flat,
                      decided=data["alive"],
                      counts=torch.stack((count.sum(), data["alive"].sum())).float(), **options)
    loss.total.backward()
    assert logits.grad is not None
    return logits.grad


@given(st.integers(0, 2**31), st.booleans())
@settings(max_examples=30, deadline=None)
def test_unasked_agents_are_left_out_or_dilute_voters_and_execution_alike(seed: int, pivots: bool) -> None:
    data = decisions(seed)
    asked, alive = data["asked"], data["alive"]
    mattered = pivotal(data["actions"]) if pivots else torch.ones_like(asked)
    masked, diluted = (counted(asked, alive, mattered, masking) for masking in (True, False))
    assert torch.equal(masked, asked & mattered)
    added = diluted & ~masked
    unasked = alive.unsqueeze(-1) & ~asked
    for agent in range(AGENTS):  # each agent's unasked rows, where alive, that pivotal votes do not leave out
        assert torch.equal(added[..., agent], unasked[..., agent])
    assert not diluted[~alive].any()
    if masked.any():  # what learns is the same; only the mean is over more
        valid, ratio = asked & mattered, masked.sum() / diluted.sum()
        torch.testing.assert_close(gradient(data, valid, diluted), gradient(data, valid, masked) * ratio)


@pytest.mark.parametrize("masking", [True, False])
def test_nothing_counts_behind_the_end(masking: bool) -> None:
    nobody = torch.zeros(2, 3, dtype=torch.bool)
    asked = torch.zeros(2, 3, AGENTS, dtype=torch.bool)
    assert not counted(asked, nobody, torch.ones_like(asked), masking).any()
