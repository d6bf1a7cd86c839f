"""A GPU learner keeps actions on the CPU; tensors that pretend to be on a GPU show it on machines without one."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from training.mappo.loss import mappo_loss

LEAD = (2, 3)


def zeros(*shape: int, device: str = "cuda", dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(*shape, device=device, dtype=dtype)


def test_the_objective_takes_actions_from_the_cpu() -> None:
    with FakeTensorMode():
        parts = mappo_loss(
            logits=zeros(*LEAD, 4, 3), values=zeros(*LEAD),
            actions=zeros(*LEAD, 4, device="cpu", dtype=torch.int64),
            log_p_old=zeros(*LEAD, 4), valid=zeros(*LEAD, 4, dtype=torch.bool), advantages=zeros(*LEAD),
            value_targets=zeros(*LEAD), values_old=zeros(*LEAD), decided=zeros(*LEAD, dtype=torch.bool),
            clip_param=0.2, value_clip=0.2, huber_delta=10.0, entropy_coeff=0.01, value_coeff=0.5)
        assert {part.device.type for part in parts} == {"cuda"}
