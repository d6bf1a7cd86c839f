"""Compiled pieces of the training path: what torch does in many passes over memory, done in one, on one core.

Each function states its formula in plain torch beside it (`*_plain`), which is what runs on a GPU, in other
precisions and while a graph is exported; tests hold the two together, gradients included. On a CPU torch's
hyperbolic tangent alone took a fifth of an update: it costs 4 ns a value, the rational function below 0.2 ns.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
import torch

from agents.hyperbolic import tanh_approx
from algospace.types import AnyArray

_ONE = np.float32(1.0)
# sums may be reordered so that they vectorise; NaN and infinity keep their meaning, the guards need them
FAST = {"contract", "reassoc", "nsz", "arcp"}


def usable(*tensors: torch.Tensor) -> bool:
    """Whether the compiled pieces apply: float32 on a CPU, and nobody is tracing the computation."""
    tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    return not tracing and all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)


@nb.njit(cache=True, fastmath=FAST, nogil=True, error_model="numpy")
def _bias_tanh(x: AnyArray, bias: AnyArray) -> None:
    for n in range(x.shape[0]):
        for h in range(x.shape[1]):
            x[n, h] = tanh_approx(x[n, h] + bias[h])


@nb.njit(cache=True, fastmath=FAST, nogil=True, error_model="numpy")
def _bias_tanh_grad(grad: AnyArray, y: AnyArray, bias_grad: AnyArray, out: AnyArray) -> None:
    bias_grad[:] = 0.0
    for n in range(y.shape[0]):
        for h in range(y.shape[1]):
            value = grad[n, h] * (_ONE - y[n, h] * y[n, h])
            out[n, h] = value
            bias_grad[h] += value


class _DenseTanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        y = torch.mm(x, weight.t())
        _bias_tanh(y.numpy(), bias.numpy())
        ctx.save_for_backward(x, weight, y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        x, weight, y = ctx.saved_tensors
        before, bias = torch.empty_like(y), torch.empty_like(y[0])
        _bias_tanh_grad(grad.contiguous().numpy(), y.numpy(), bias.numpy(), before.numpy())
        needed = torch.mm(before, weight) if ctx.needs_input_grad[0] else None
        return needed, torch.mm(before.t(), x), bias


def dense_tanh(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """tanh(x Wᵀ + b): x (..., I), weight (O, I), bias (O,) -> (..., O)."""
    if not usable(x, weight):
        return torch.tanh(torch.nn.functional.linear(x, weight, bias))
    flat = _DenseTanh.apply(x.reshape(-1, x.shape[-1]), weight, bias)
    return flat.view(*x.shape[:-1], weight.shape[0])


@nb.njit(cache=True, fastmath=FAST, nogil=True, error_model="numpy")
def _trunk_in(x: AnyArray, shared: AnyArray, agent: AnyArray) -> None:
    """x (A, N, H) in place."""
    for a in range(x.shape[0]):
        for n in range(x.shape[1]):
            for h in range(x.shape[2]):
                x[a, n, h] = tanh_approx(x[a, n, h] + shared[n, h] + agent[a, h])


@nb.njit(cache=True, fastmath=FAST, nogil=True, error_model="numpy")
def _trunk_in_grad(grad: AnyArray, y: AnyArray, into_x: AnyArray, into_shared: AnyArray,
                   into_agent: AnyArray) -> None:
    into_agent[:] = 0.0
    for a in range(y.shape[0]):
        for n in range(y.shape[1]):
            for h in range(y.shape[2]):
                value = grad[a, n, h] * (_ONE - y[a, n, h] * y[a, n, h])
                into_x[a, n, h] = value
                into_agent[a, h] += value
                into_shared[n, h] = value if a == 0 else into_shared[n, h] + value


class _TrunkIn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: torch.Tensor, weight: torch.Tensor, shared: torch.Tensor,
                agent: torch.Tensor) -> torch.Tensor:
        agents, rows = own.shape[:2]
        y = torch.mm(own.view(agents * rows, -1), weight.t()).view(agents, rows, -1)
        _trunk_in(y.numpy(), shared.numpy(), agent.numpy())
        ctx.save_for_backward(own, weight, y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        own, weight, y = ctx.saved_tensors
        before, shared, agent = torch.empty_like(y), torch.empty_like(y[0]), torch.empty_like(y[:, 0])
        _trunk_in_grad(grad.contiguous().numpy(), y.numpy(), before.numpy(), shared.numpy(), agent.numpy())
        flat = before.view(-1, y.shape[-1])
        return torch.mm(flat, weight).view_as(own), torch.mm(flat.t(), own.view(-1, own.shape[-1])), shared, agent


def trunk_in(own: torch.Tensor, weight: torch.Tensor, shared: torch.Tensor, agent: torch.Tensor) -> torch.Tensor:
    """tanh(own Wᵀ + shared + agent): own (A, N, D), weight (H, D), shared (N, H), agent (A, H) -> (A, N, H)."""
    if not usable(own, weight, shared):
        return torch.tanh(torch.nn.functional.linear(own, weight) + shared + agent.unsqueeze(1))
    return _TrunkIn.apply(own.contiguous(), weight, shared.contiguous(), agent.contiguous())


@nb.njit(cache=True, fastmath=FAST, nogil=True, error_model="numpy")
def _masked_heads(x: AnyArray, bias: AnyArray, bank: AnyArray, rows: AnyArray, head: AnyArray, offset: AnyArray,
                  out: AnyArray) -> None:
    """x (A, N, H) becomes tanh(x + bias); head (A, 3, H), out (N, A, 3)."""
    for a in range(x.shape[0]):
        for n in range(x.shape[1]):
            row = rows[n, a]
            first, second, third = offset[a, 0], offset[a, 1], offset[a, 2]
            for h in range(x.shape[2]):
                y = tanh_approx(x[a, n, h] + bias[h])
                x[a, n, h] = y
                kept = y * bank[row, h]
                first += kept * head[a, 0, h]
                second += kept * head[a, 1, h]
                third += kept * head[a, 2, h]
            out[n, a, 0], out[n, a, 1], out[n, a, 2] = first, second, third


@nb.njit(cache=True, fastmath=FAST, nogil=True, error_model="numpy")
def _masked_heads_grad(grad: AnyArray, y: AnyArray, bank: AnyArray, rows: AnyArray, head: AnyArray,
                       into_x: AnyArray, into_head: AnyArray, into_bias: AnyArray) -> None:
    into_head[:] = 0.0
    into_bias[:] = 0.0
    for a in range(y.shape[0]):
        for n in range(y.shape[1]):
            row = rows[n, a]
            first, second, third = grad[n, a, 0], grad[n, a, 1], grad[n, a, 2]
            for h in range(y.shape[2]):
                value, mask = y[a, n, h], bank[row, h]
                kept = value * mask
                into_head[a, 0, h] += first * kept
                into_head[a, 1, h] += second * kept
                into_head[a, 2, h] += third * kept
                back = first * head[a, 0, h] + second * head[a, 1, h] + third * head[a, 2, h]
                back *= mask * (_ONE - value * value)
                into_x[a, n, h] = back
                into_bias[h] += back


class _MaskedHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, bank: torch.Tensor,
                rows: torch.Tensor, head: torch.Tensor, head_bias: torch.Tensor) -> torch.Tensor:
        agents, size = hidden.shape[:2]
        y = torch.mm(hidden.view(agents * size, -1), weight.t()).view(agents, size, -1)
        across = head.transpose(1, 2).contiguous()
        logits = torch.empty(size, agents, 3)
        _masked_heads(y.numpy(), bias.numpy(), bank.numpy(), rows.numpy(), across.numpy(), head_bias.numpy(),
                      logits.numpy())
        ctx.save_for_backward(hidden, weight, bank, rows, across, y)
        return logits

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        hidden, weight, bank, rows, across, y = ctx.saved_tensors
        before, head, bias = torch.empty_like(y), torch.empty_like(across), torch.empty_like(y[0, 0])
        _masked_heads_grad(grad.contiguous().numpy(), y.numpy(), bank.numpy(), rows.numpy(), across.numpy(),
                           before.numpy(), head.numpy(), bias.numpy())
        flat = before.view(-1, y.shape[-1])
        return (torch.mm(flat, weight).view_as(hidden), torch.mm(flat.t(), hidden.view(-1, hidden.shape[-1])),
                bias, None, None, head.transpose(1, 2), grad.sum(0))


def masked_heads(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, bank: torch.Tensor,
                 rows: torch.Tensor, head: torch.Tensor, head_bias: torch.Tensor) -> torch.Tensor:
    """The trunk's second layer, dropout and the heads: ((tanh(hidden Wᵀ + b) · bank[rows]) head + head_bias).

    hidden (A, N, H), weight (H, H), bias (H,), bank (R, H) dropout masks, rows (N, A) int64 rows of the bank,
    head (A, H, 3), head_bias (A, 3) -> logits (N, A, 3).
    """
    if not usable(hidden, weight, bank):
        y = torch.tanh(torch.nn.functional.linear(hidden, weight, bias)).transpose(0, 1) * bank[rows]
        return torch.einsum("nah,ahk->nak", y, head) + head_bias
    return _MaskedHeads.apply(hidden.contiguous(), weight, bias, bank, rows.contiguous(), head, head_bias)
