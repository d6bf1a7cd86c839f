"""The compiled pieces of the training path equal plain torch, gradients included."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.functional import linear

from agents import fused
from agents.fused_conv import tcn_layer

Pair = tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor]]


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float32)


def compare(pair: Pair, *inputs: torch.Tensor) -> None:
    """Values and gradients of both for the same inputs."""
    found = []
    for function in pair:
        leaves = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
        out = function(*leaves)
        weights = numbers(*out.shape, seed=9)
        wanted = [x for x in leaves if x.requires_grad]
        found.append((out.detach(), *torch.autograd.grad((out * weights).sum(), wanted)))
    for compiled, plain in zip(*found, strict=True):
        torch.testing.assert_close(compiled, plain, atol=2e-5, rtol=2e-5)


def test_tanh_is_exact_to_rounding_and_keeps_what_is_no_number() -> None:
    x = torch.cat((torch.linspace(-20.0, 20.0, 40_001), torch.tensor([1e-20, -1e-8, 1e30, -1e30])))
    y = fused.dense_tanh(x[:, None], torch.ones(1, 1), torch.zeros(1))[:, 0]
    assert float((y - torch.tanh(x.double())).abs().max()) < 4e-7
    odd = torch.tensor([[float("nan")], [float("inf")], [-float("inf")]])
    out = fused.dense_tanh(odd, torch.ones(1, 1), torch.zeros(1))[:, 0]
    assert out[0].isnan()
    assert out[1:].tolist() == pytest.approx([1.0, -1.0])


def test_dense_tanh() -> None:
    compare((fused.dense_tanh, lambda x, w, b: torch.tanh(linear(x, w, b))),
            numbers(3, 5, 7), numbers(11, 7), numbers(11))


@pytest.mark.parametrize(("dilation", "channels"), [(1, 4), (3, 6), (2, 5)])
def test_tcn_layer(dilation: int, channels: int) -> None:
    def layer(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        convolution = torch.nn.Conv1d(channels, channels, 4, dilation=dilation)
        del convolution.weight, convolution.bias
        convolution.weight, convolution.bias = weight, bias
        return tcn_layer(x, convolution)

    def plain(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return x[..., 3 * dilation:] + torch.tanh(torch.nn.functional.conv1d(x, weight, bias, dilation=dilation))

    compare((layer, plain), numbers(3, channels, 20), numbers(channels, channels, 4), numbers(channels))


def test_trunk_in() -> None:
    def plain(own: Any, weight: Any, shared: Any, agent: Any) -> torch.Tensor:
        return torch.tanh(linear(own, weight) + shared + agent.unsqueeze(1))

    compare((fused.trunk_in, plain), numbers(3, 10, 4), numbers(8, 4), numbers(10, 8), numbers(3, 8))


def test_masked_heads() -> None:
    bank = (torch.rand(20, 8, generator=torch.Generator().manual_seed(1)) < 0.7).float() / 0.7
    rows = torch.randint(0, 20, (10, 3), generator=torch.Generator().manual_seed(2))

    def plain(hidden: Any, weight: Any, bias: Any, head: Any, head_bias: Any) -> torch.Tensor:
        y = torch.tanh(linear(hidden, weight, bias)).transpose(0, 1) * bank[rows]
        return torch.einsum("nah,ahk->nak", y, head) + head_bias

    def compiled(hidden: Any, weight: Any, bias: Any, head: Any, head_bias: Any) -> torch.Tensor:
        return fused.masked_heads(hidden, weight, bias, bank, rows, head, head_bias)

    compare((compiled, plain), numbers(3, 10, 8), numbers(8, 8), numbers(8), numbers(3, 8, 3), numbers(3, 3))


def test_other_precisions_take_the_plain_way() -> None:
    x, w, b = (numbers(*shape).double() for shape in ((4, 3), (2, 3), (2,)))
    assert not fused.usable(x)
    torch.testing.assert_close(fused.dense_tanh(x, w, b), torch.tanh(linear(x, w, b)), rtol=0.0, atol=0.0)
