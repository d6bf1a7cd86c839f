"""The MAPPO objective as pure functions of tensors (..., agents)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from agents.fused import usable
from training.mappo.fused_loss import FusedLoss


class LossParts(NamedTuple):
    """Scalars of one minibatch; `total` is minimised."""

    total: torch.Tensor
    policy: torch.Tensor
    value: torch.Tensor
    entropy: torch.Tensor
    kl: torch.Tensor
    clip_fraction: torch.Tensor


def standardise(advantages: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Zero mean and unit variance over valid entries; the others become 0."""
    kept = advantages[valid]
    if kept.numel() < 2:
        return torch.zeros_like(advantages)
    return torch.where(valid, (advantages - kept.mean()) / (kept.std() + 1e-8), 0.0)


def policy_terms(logits: torch.Tensor, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of `actions` (...) and entropy (...) of categorical `logits` (..., n)."""
    log_p = torch.log_softmax(logits, -1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    return log_p.gather(-1, actions.unsqueeze(-1).to(log_p.device)).squeeze(-1), entropy


def mappo_loss(*, logits: torch.Tensor, values: torch.Tensor, actions: torch.Tensor, log_p_old: torch.Tensor,
               valid: torch.Tensor, advantages: torch.Tensor, value_targets: torch.Tensor,
               values_old: torch.Tensor, decided: torch.Tensor, clip_param: float, value_clip: float | None,
               huber_delta: float | None, entropy_coeff: float, value_coeff: float,
               counts: torch.Tensor | None = None) -> LossParts:
    """logits (B, T, A, n); actions, log_p_old, valid (B, T, A); the rest (B, T). Values are normalised.

    Ratios are clipped per agent, terms averaged over the agents' valid decisions, values over `decided` rows.
    `counts` (2,) replaces both numbers, where several learners share a minibatch and average their gradients.
    """
    if counts is None:
        counts = torch.stack((valid.sum(), decided.sum())).to(values.dtype)
    counts = counts.clamp(min=1.0)
    if usable(logits, values):
        total, parts = FusedLoss.apply(
            logits, values, actions, log_p_old, valid, advantages, value_targets, values_old, decided, clip_param,
            math.inf if value_clip is None else value_clip, math.inf if huber_delta is None else huber_delta,
            entropy_coeff, value_coeff, *counts.tolist())
        return LossParts(total, *parts)
    return mappo_loss_plain(
        logits, values, actions, log_p_old, valid, advantages, value_targets, values_old, decided, clip_param,
        value_clip, huber_delta, entropy_coeff, value_coeff, counts)


def mappo_loss_plain(logits: torch.Tensor, values: torch.Tensor, actions: torch.Tensor, log_p_old: torch.Tensor,
                     valid: torch.Tensor, advantages: torch.Tensor, value_targets: torch.Tensor,
                     values_old: torch.Tensor, decided: torch.Tensor, clip_param: float, value_clip: float | None,
                     huber_delta: float | None, entropy_coeff: float, value_coeff: float,
                     counts: torch.Tensor) -> LossParts:
    """`mappo_loss` in torch: on GPUs, and the statement that the compiled one is held to."""
    count, row_count = counts
    log_p, entropy = policy_terms(logits, actions)
    policy, mean_entropy, kl, clip_fraction = policy_loss(log_p, log_p_old, entropy, valid, advantages, clip_param,
                                                          count)
    value = value_loss(values, value_targets, values_old, decided, value_clip, huber_delta, row_count)
    total = policy + value_coeff * value - entropy_coeff * mean_entropy
    return LossParts(total, policy, value, mean_entropy, kl, clip_fraction)


def policy_loss(log_p: torch.Tensor, log_p_old: torch.Tensor, entropy: torch.Tensor, valid: torch.Tensor,
                advantages: torch.Tensor, clip_param: float, count: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Clipped surrogate, entropy, KL and share of clipped ratios of decisions (B, T, A); advantages (B, T).

    KL is the estimate r - 1 - log r (Schulman 2020, "Approximating KL divergence")."""
    weight = valid.to(log_p.dtype)
    log_ratio = torch.where(valid, log_p - log_p_old, 0.0)
    ratio = log_ratio.exp()
    advantage = advantages.unsqueeze(-1)
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(1.0 - clip_param, 1.0 + clip_param) * advantage)
    policy = -(surrogate * weight).sum() / count
    mean_entropy = (entropy * weight).sum() / count
    with torch.no_grad():
        kl = ((ratio - 1.0 - log_ratio) * weight).sum() / count
        clip_fraction = (((ratio - 1.0).abs() > clip_param) * weight).sum() / count
    return policy, mean_entropy, kl, clip_fraction


def value_loss(values: torch.Tensor, targets: torch.Tensor, values_old: torch.Tensor, decided: torch.Tensor,
               value_clip: float | None, huber_delta: float | None, count: torch.Tensor) -> torch.Tensor:
    """Mean (Huber, clipped) error of values (B, T) over `decided` rows."""
    error = huber(values - targets, huber_delta)
    if value_clip is not None:
        clipped = values_old + (values - values_old).clamp(-value_clip, value_clip)
        error = torch.maximum(error, huber(clipped - targets, huber_delta))
    return (error * decided.to(values.dtype)).sum() / count


def huber(error: torch.Tensor, delta: float | None) -> torch.Tensor:
    """Huber loss, quadratic within `delta`; everywhere without one."""
    if delta is None:
        return 0.5 * error * error
    size = error.abs()
    return torch.where(size <= delta, 0.5 * error * error, delta * (size - 0.5 * delta))
