"""The MAPPO objective and its gradient in one compiled pass over the decisions; `loss.mappo_loss` states it.

Sixty small operations of torch, forward and backward, take a sixth of an update of small nets; this takes a
fiftieth. Gradients are closed forms: a clipped ratio and a clipped value have none.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
import torch

from agents.fused import FAST
from algospace.types import AnyArray


@nb.njit(inline="always", error_model="numpy")
def _huber(error: Any, delta: Any) -> Any:
    """(loss, slope) of an error."""
    if abs(error) <= delta:
        return 0.5 * error * error, error
    return delta * (abs(error) - 0.5 * delta), delta if error > 0.0 else -delta


@nb.njit(cache=True, fastmath=FAST, error_model="numpy", nogil=True)
def _policy(logits: AnyArray, actions: AnyArray, log_p_old: AnyArray, valid: AnyArray, advantages: AnyArray,
            clip: float, entropy_coeff: float, count: float, grad: AnyArray, sums: AnyArray) -> None:
    """sums: policy loss, entropy, KL, clipped ratios; logits (N, A, n), n the number of actions."""
    choices = logits.shape[2]
    p, log_p = np.empty(choices, np.float64), np.empty(choices, np.float64)
    for n in range(logits.shape[0]):
        advantage = advantages[n]
        for a in range(logits.shape[1]):
            if not valid[n, a]:
                grad[n, a, :] = 0.0
                continue
            top = logits[n, a, 0]
            for i in range(1, choices):
                top = max(top, logits[n, a, i])
            total = 0.0
            for i in range(choices):
                p[i] = np.exp(logits[n, a, i] - top)
                total += p[i]
            log_total = top + np.log(total)
            entropy = 0.0
            for i in range(choices):
                p[i] /= total
                log_p[i] = logits[n, a, i] - log_total
                entropy -= p[i] * log_p[i]
            action = actions[n, a]
            log_ratio = log_p[action] - log_p_old[n, a]
            ratio = np.exp(log_ratio)
            bounded = min(max(ratio, 1.0 - clip), 1.0 + clip)
            free = ratio * advantage <= bounded * advantage
            sums[0] -= min(ratio * advantage, bounded * advantage)
            sums[1] += entropy
            sums[2] += ratio - 1.0 - log_ratio
            sums[3] += 1.0 if abs(ratio - 1.0) > clip else 0.0
            push = -ratio * advantage / count if free or bounded == ratio else 0.0
            for i in range(choices):
                slope = push * ((1.0 if i == action else 0.0) - p[i])
                grad[n, a, i] = slope + entropy_coeff / count * p[i] * (log_p[i] + entropy)


@nb.njit(cache=True, fastmath=FAST, error_model="numpy", nogil=True)
def _value(values: AnyArray, old: AnyArray, targets: AnyArray, decided: AnyArray, clip: float, delta: float,
           scale: float, grad: AnyArray) -> float:
    """Sum of the value losses; its gradient times `scale`."""
    total = 0.0
    for n in range(values.size):
        grad[n] = 0.0
        if not decided[n]:
            continue
        loss, slope = _huber(values[n] - targets[n], delta)
        move = values[n] - old[n]
        if abs(move) > clip:
            bounded, _ = _huber(old[n] + (clip if move > 0.0 else -clip) - targets[n], delta)
            if bounded > loss:
                loss, slope = bounded, 0.0
        total += loss
        grad[n] = slope * scale
    return total


class FusedLoss(torch.autograd.Function):
    """`apply` takes the arguments of `loss.mappo_loss` in its order and gives (total, the other parts (5,))."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, values: torch.Tensor, actions: torch.Tensor,
                log_p_old: torch.Tensor, valid: torch.Tensor, advantages: torch.Tensor,
                value_targets: torch.Tensor, values_old: torch.Tensor, decided: torch.Tensor, clip_param: float,
                value_clip: float, huber_delta: float, entropy_coeff: float, value_coeff: float, count: float,
                rows: float) -> Any:
        agents, choices = logits.shape[-2:]
        logit_grad, value_grad = torch.empty(logits.shape), torch.empty(values.shape)
        sums = np.zeros(4)
        _policy(logits.reshape(-1, agents, choices).numpy(), _flat(actions, agents), _flat(log_p_old, agents),
                _flat(valid, agents), _flat(advantages), clip_param, entropy_coeff, count,
                logit_grad.view(-1, agents, choices).numpy(), sums)
        value = _value(_flat(values), _flat(values_old), _flat(value_targets), _flat(decided), value_clip,
                       huber_delta, value_coeff / rows, _flat(value_grad)) / rows
        ctx.save_for_backward(logit_grad, value_grad)
        policy, entropy, kl, clipped = sums / count
        parts = torch.tensor([policy, value, entropy, kl, clipped], dtype=torch.float32)
        ctx.mark_non_differentiable(parts)
        total = policy + value_coeff * value - entropy_coeff * entropy
        return torch.tensor(total, dtype=torch.float32), parts

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, _: torch.Tensor) -> Any:  # type: ignore[override]
        logit_grad, value_grad = ctx.saved_tensors
        return logit_grad * grad, value_grad * grad, *(None,) * 14


def _flat(x: torch.Tensor, agents: int | None = None) -> AnyArray:
    return (x.reshape(-1) if agents is None else x.reshape(-1, agents)).numpy()
