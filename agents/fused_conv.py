"""One layer of a causal TCN in compiled code: dilated convolution of four taps, tanh and residual, and back.

Small channel counts leave general convolution libraries far from what a core can do: two output channels at a time
over contiguous time steps keep every loaded value for eight products.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
import torch

from agents.fused import FAST, usable
from agents.hyperbolic import tanh_approx
from algospace.types import AnyArray

TAPS = 4
_ONE = np.float32(1.0)


@nb.njit(cache=True, fastmath=FAST, nogil=True, error_model="numpy")
def _convolve(x: AnyArray, weight: AnyArray, dilation: int, out: AnyArray) -> None:
    """out (R, O, T) += x (R, C, T + 3 dilation) * weight (O, C, 4); O is even."""
    length = out.shape[2]
    for r in range(x.shape[0]):
        for o in range(0, out.shape[1], 2):
            first, second = out[r, o], out[r, o + 1]
            for c in range(x.shape[1]):
                a0, a1, a2, a3 = weight[o, c, 0], weight[o, c, 1], weight[o, c, 2], weight[o, c, 3]
                b0, b1, b2, b3 = (weight[o + 1, c, 0], weight[o + 1, c, 1], weight[o + 1, c, 2],
                                  weight[o + 1, c, 3])
                r0, r1 = x[r, c], x[r, c, dilation:]
                r2, r3 = x[r, c, 2 * dilation:], x[r, c, 3 * dilation:]
                for t in range(length):
                    x0, x1, x2, x3 = r0[t], r1[t], r2[t], r3[t]
                    first[t] += a0 * x0 + a1 * x1 + a2 * x2 + a3 * x3
                    second[t] += b0 * x0 + b1 * x1 + b2 * x2 + b3 * x3


@nb.njit(cache=True, fastmath=FAST, nogil=True, error_model="numpy")
def _weight_grad(x: AnyArray, grad: AnyArray, start: int, length: int, dilation: int, out: AnyArray,
                 bias: AnyArray) -> None:
    """Gradients of weight (O, C, 4) and bias (O,); grad (R, O, ...) holds them from position `start` on."""
    out[:] = 0.0
    bias[:] = 0.0
    for r in range(x.shape[0]):
        for o in range(0, grad.shape[1], 2):
            first, second = grad[r, o, start: start + length], grad[r, o + 1, start: start + length]
            bias[o] += first.sum()
            bias[o + 1] += second.sum()
            for c in range(x.shape[1]):
                r0, r1 = x[r, c], x[r, c, dilation:]
                r2, r3 = x[r, c, 2 * dilation:], x[r, c, 3 * dilation:]
                a0 = a1 = a2 = a3 = np.float32(0.0)
                b0 = b1 = b2 = b3 = np.float32(0.0)
                for t in range(length):
                    x0, x1, x2, x3 = r0[t], r1[t], r2[t], r3[t]
                    g, h = first[t], second[t]
                    a0 += g * x0
                    a1 += g * x1
                    a2 += g * x2
                    a3 += g * x3
                    b0 += h * x0
                    b1 += h * x1
                    b2 += h * x2
                    b3 += h * x3
                out[o, c, 0] += a0
                out[o, c, 1] += a1
                out[o, c, 2] += a2
                out[o, c, 3] += a3
                out[o + 1, c, 0] += b0
                out[o + 1, c, 1] += b1
                out[o + 1, c, 2] += b2
                out[o + 1, c, 3] += b3


@nb.njit(cache=True, fastmath=FAST, nogil=True, error_model="numpy")
def _forward(x: AnyArray, weight: AnyArray, bias: AnyArray, dilation: int, y: AnyArray, out: AnyArray) -> None:
    """y (R, O, T) = tanh of the convolution, out = the last T of x plus y."""
    for r in range(y.shape[0]):
        for o in range(y.shape[1]):
            y[r, o, :] = bias[o]
    _convolve(x, weight, dilation, y)
    shift = 3 * dilation
    for r in range(y.shape[0]):
        for o in range(y.shape[1]):
            for t in range(y.shape[2]):
                value = tanh_approx(y[r, o, t])
                y[r, o, t] = value
                out[r, o, t] = x[r, o, shift + t] + value


@nb.njit(cache=True, fastmath=FAST, nogil=True, error_model="numpy")
def _backward(grad: AnyArray, x: AnyArray, weight: AnyArray, y: AnyArray, dilation: int, padded: AnyArray,
              into_x: AnyArray, into_weight: AnyArray, into_bias: AnyArray) -> None:
    """`padded` (R, O, T + 6 dilation) is room for the gradient before tanh between zeros."""
    shift, length = 3 * dilation, y.shape[2]
    for r in range(y.shape[0]):
        for o in range(y.shape[1]):
            padded[r, o, :shift] = 0.0
            padded[r, o, shift + length:] = 0.0
            into_x[r, o, :shift] = 0.0
            for t in range(length):
                value = y[r, o, t]
                padded[r, o, shift + t] = grad[r, o, t] * (_ONE - value * value)
                into_x[r, o, shift + t] = grad[r, o, t]
    outputs, inputs = weight.shape[:2]
    turned = np.empty((inputs, outputs, TAPS), np.float32)
    for o in range(outputs):
        for c in range(inputs):
            for k in range(TAPS):
                turned[c, o, k] = weight[o, c, TAPS - 1 - k]
    _convolve(padded, turned, dilation, into_x)
    _weight_grad(x, padded, shift, length, dilation, into_weight, into_bias)


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor,
                dilation: int) -> torch.Tensor:
        rows, channels, length = x.shape
        y = torch.empty(rows, channels, length - 3 * dilation)
        out = torch.empty_like(y)
        _forward(x.numpy(), weight.numpy(), bias.numpy(), dilation, y.numpy(), out.numpy())
        ctx.save_for_backward(x, weight, y)
        ctx.dilation = dilation
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        x, weight, y = ctx.saved_tensors
        padded = torch.empty(*y.shape[:2], y.shape[2] + 6 * ctx.dilation)
        into_x, into_weight, into_bias = torch.empty_like(x), torch.empty_like(weight), torch.empty(y.shape[1])
        _backward(grad.contiguous().numpy(), x.numpy(), weight.numpy(), y.numpy(), ctx.dilation, padded.numpy(),
                  into_x.numpy(), into_weight.numpy(), into_bias.numpy())
        return into_x, into_weight, into_bias, None


def tcn_layer(x: torch.Tensor, convolution: torch.nn.Conv1d) -> torch.Tensor:
    """x[..., -T:] + tanh(convolution(x)): x (B, C, T + 3 dilation), as many channels out as in -> (B, C, T)."""
    weight, bias = convolution.weight, convolution.bias
    dilation = int(convolution.dilation[0])
    assert bias is not None
    if not usable(x, weight) or weight.shape[2] != TAPS or weight.shape[0] % 2:
        y = torch.nn.functional.conv1d(x, weight, bias, dilation=dilation)
        return x[..., x.shape[-1] - y.shape[-1]:] + torch.tanh(y)
    return _Layer.apply(x.contiguous(), weight, bias, dilation)
