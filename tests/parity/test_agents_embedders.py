"""Embedders: both entrances are one function, causal, and no longer than their window; agents see their own."""

from typing import Any

import pytest
import torch

from agents.core import CoreNet
from agents.embedders import SlidingBlock, TCNEmbedder, make_embedder
from agents.settings import CoreConfig, EmbedderKind, Shapes

KINDS = ("tcn", "lstm", "transformer")
WINDOW, FEATURES, DIM = 20, 5, 6


def embedder(kind: EmbedderKind) -> Any:
    torch.manual_seed(1)
    return make_embedder(kind, FEATURES, WINDOW, DIM)


@pytest.mark.parametrize("steps", [9, 75, 80])  # attention takes long segments in chunks of half a window
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_segment_equals_its_windows(kind: EmbedderKind, steps: int) -> None:
    net = embedder(kind)
    rows = torch.randn(3, net.context + steps, FEATURES)
    segment = net.embed_segment(rows)
    assert segment.shape == (3, steps, DIM)
    for t in range(steps):
        before = torch.randn(3, WINDOW - 1 - net.context, FEATURES)  # outside the receptive field
        window = torch.cat((before, rows[:, t: t + net.context + 1]), 1)
        torch.testing.assert_close(net.embed_window(window), segment[:, t], atol=1e-5, rtol=0.0)


@torch.no_grad()
def test_a_recurrent_lstm_starts_like_its_window_and_then_remembers_more() -> None:
    net = embedder("lstm_recurrent")
    rows = torch.randn(3, net.context + 9, FEATURES)
    segment = net.embed_segment(rows)
    windows = [net.embed_window(rows[:, t: t + WINDOW]) for t in range(9)]
    torch.testing.assert_close(windows[0], segment[:, 0], atol=1e-6, rtol=0.0)
    apart = torch.stack([(window - segment[:, t]).abs().max() for t, window in enumerate(windows)])
    assert (apart[1:] > 0.0).all()
    assert apart.max() < 0.01  # of a fresh network: what has left the window is forgotten


@pytest.mark.parametrize("kind", [*KINDS, "lstm_recurrent"])
@torch.no_grad()
def test_later_rows_change_nothing_and_the_present_row_counts(kind: EmbedderKind) -> None:
    net = embedder(kind)
    rows = torch.randn(2, net.context + 10, FEATURES)
    changed = rows.clone()
    changed[:, net.context + 5:] += 3.0
    first, second = net.embed_segment(rows), net.embed_segment(changed)
    assert torch.equal(first[:, :5], second[:, :5])
    assert (first[:, 5] != second[:, 5]).any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_receptive_field_is_exactly_the_context(kind: EmbedderKind) -> None:
    net = embedder(kind)
    assert net.context + 1 <= WINDOW
    rows = torch.randn(1, net.context + 6, FEATURES, requires_grad=True)
    net.embed_segment(rows)[0, 5].sum().backward()
    touched = rows.grad[0].abs().sum(-1) > 0.0
    assert touched[5:].all()
    assert not touched[:5].any()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_order_of_rows_counts(kind: EmbedderKind) -> None:
    net = embedder(kind)
    rows = torch.randn(1, WINDOW, FEATURES)
    swapped = rows[:, [*range(WINDOW - 4), WINDOW - 3, WINDOW - 4, WINDOW - 2, WINDOW - 1]]
    assert (net.embed_window(rows) - net.embed_window(swapped)).abs().max() > 1e-3


@pytest.mark.parametrize("steps", [6, 47])
def test_sliding_attention_is_attention_to_the_rows_of_the_band(steps: int) -> None:
    torch.manual_seed(2)
    band, heads, size = 7, 2, 3
    block = SlidingBlock(heads * size, heads, band)
    x = torch.randn(2, band - 1 + steps, heads * size, requires_grad=True)
    queries, keys, values = block.queries_keys_values(x)
    expected = torch.empty(2, steps, heads, size)
    for t in range(steps):
        for head in range(heads):
            back = torch.arange(band - 1, -1, -1)
            scores = (queries[:, head, None, t + band - 1] * keys[:, head, t: t + band]).sum(-1) / size ** 0.5
            weights = torch.softmax(scores - 2.0 ** (-4.0 * (head + 1)) * back, -1)  # slopes 1/16 and 1/256
            expected[:, t, head] = (weights[..., None] * values[:, head, t: t + band]).sum(1)
    literal = block.joined(x[:, band - 1:], expected.flatten(2))
    found = block(x)
    torch.testing.assert_close(found, literal, atol=1e-5, rtol=0.0)
    wanted = [torch.autograd.grad(y.square().sum(), x, retain_graph=True)[0] for y in (found, literal)]
    torch.testing.assert_close(*wanted, atol=1e-4, rtol=1e-4)


def test_a_window_too_short_for_attention_is_refused() -> None:
    with pytest.raises(ValueError, match="too short for 2 layers"):
        make_embedder("transformer", FEATURES, 2, DIM)


@pytest.mark.parametrize("window", [4, 10, 11, 48, 60, 96])
def test_the_convolutions_fit_into_every_window(window: int) -> None:
    net = TCNEmbedder(FEATURES, window, DIM)
    assert net.context + 1 <= window
    assert net.embed_window(torch.zeros(2, window, FEATURES)).shape == (2, DIM)


def test_a_window_too_short_for_a_convolution_is_refused() -> None:
    with pytest.raises(ValueError, match="too short"):
        TCNEmbedder(FEATURES, 3, DIM)


def core() -> CoreNet:
    torch.manual_seed(0)
    net = CoreNet(Shapes(5, 12, 4, 16, 3), CoreConfig(embed_dim=4, channels=4, hidden=8, critic_hidden=8))
    with torch.no_grad():
        net.head.mul_(100.0)
    return net


@torch.no_grad()
def voter_logits(net: CoreNet, strategic: torch.Tensor, tactical: torch.Tensor) -> torch.Tensor:
    context = torch.full((2, 3 + 3 + 8), 0.3)
    embedded = net.embed_windows(strategic, tactical)
    return net.voter_logits(net.voter_trunk(embedded, net.shared_input(context)), torch.ones(2, 3, 8))


def test_each_voter_sees_its_own_matrices_only() -> None:
    net = core()
    strategic, tactical = torch.randn(2, 12, 5), torch.randn(2, 16, 4)
    plain = voter_logits(net, strategic, tactical)
    other_tactical = voter_logits(net, strategic, tactical + 1.0)
    other_strategic = voter_logits(net, strategic + 1.0, tactical)
    assert torch.equal(plain[:, 0], other_tactical[:, 0])
    assert torch.equal(plain[:, 1], other_strategic[:, 1])
    assert (plain[:, 1] != other_tactical[:, 1]).any()
    assert (plain[:, 0] != other_strategic[:, 0]).any()
    assert (plain[:, 2] != other_tactical[:, 2]).any()
    assert (plain[:, 2] != other_strategic[:, 2]).any()


@torch.no_grad()
def test_voters_share_one_trunk_and_differ_by_their_one_hot() -> None:
    net = core()
    own = torch.randn(2, 4)
    hidden = net.voter_trunk(own[:, None].expand(2, 3, 4), net.shared_input(torch.zeros(2, 14)))
    assert (hidden[:, 0] != hidden[:, 1]).any()
    first = torch.cat((own, torch.zeros(2, 14), torch.tensor([[0.0, 1.0, 0.0, 0.0]]).expand(2, 4)), -1)
    literal = torch.tanh(net.trunk_out(torch.tanh(net.trunk_in(first))))
    torch.testing.assert_close(hidden[:, 1], literal, atol=1e-6, rtol=0.0)


@torch.no_grad()
def test_a_forbidden_action_has_no_probability() -> None:
    net = core()
    allowed = torch.tensor([[True, False, True], [True, True, False]])
    logits = net.execution_logits(torch.randn(2, 1, 8), torch.ones(()), allowed)
    assert torch.equal(torch.softmax(logits, -1)[:, 0] > 0.0, allowed)
