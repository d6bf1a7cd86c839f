"""Embedders: a matrix window -> one vector, causal.

Every embedder has two entrances that compute the same function:
    embed_window  (B, W, F)        -> (B, D)      one decision (serving, sparse rows)
    embed_segment (B, C + T, F)    -> (B, T, D)   T consecutive rows after C = context rows
`tcn` and `transformer` do the second in one pass; `lstm` unfolds the windows. `lstm_recurrent` is the exception:
along a segment it remembers more than its window, which serving does not have. It is trained so; whoever judges it
or makes columns with it calls `embed_rows`, which is `embed_window` on every window whatever the embedder.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import nn

from agents.fused import dense_tanh
from agents.fused_conv import tcn_layer
from agents.settings import EmbedderKind


class Embedder(nn.Module):
    """Base of all embedders. `context` rows before a row are needed to embed it."""

    def __init__(self, features: int, window: int, dim: int) -> None:
        super().__init__()
        self.features, self.window, self.dim = features, window, dim
        self.context = window - 1

    @abstractmethod
    def embed_window(self, x: torch.Tensor) -> torch.Tensor:
        """(B, W, F) -> (B, D)."""

    def embed_segment(self, x: torch.Tensor) -> torch.Tensor:
        """(B, context + T, F) -> (B, T, D); equal to embed_window on every window."""
        windows = x.unfold(1, self.context + 1, 1).transpose(2, 3)  # (B, T, context+1, F)
        batch, steps = windows.shape[:2]
        flat = windows.reshape(batch * steps, self.context + 1, self.features)
        return self.embed_window(flat).reshape(batch, steps, self.dim)

    def embed_rows(self, x: torch.Tensor) -> torch.Tensor:
        """(B, context + T, F) -> (B, T, D); embed_window on every window, as serving computes it."""
        return self.embed_segment(x)


class TCNEmbedder(Embedder):
    """Dilated causal convolutions without padding (Bai, Kolter and Koltun 2018, arXiv 1803.01271).

    The receptive field, 1 + (kernel-1)·Σ dilations, is made to fit into the window, so no padding ever enters
    and a whole segment is embedded in one pass.
    """

    def __init__(self, features: int, window: int, dim: int, channels: int = 16, kernel: int = 4) -> None:
        super().__init__(features, window, dim)
        dilations = _dilations(window, kernel)
        self.context, self.kernel = (kernel - 1) * sum(dilations), kernel
        self.inlet = nn.Linear(features, channels)
        convolutions = [nn.Conv1d(channels, channels, kernel, dilation=d) for d in dilations]
        self.layers: Any = nn.ModuleList(convolutions)
        self.outlet = nn.Linear(channels, dim)

    def embed_window(self, x: torch.Tensor) -> torch.Tensor:
        """One output needs every second position of the layer below it, every fourth of the one below that …:
        with doubling dilations that is a stack of plain convolutions of stride 2, a third of the work."""
        h = self.inlet(x[:, x.shape[1] - self.context - 1:]).transpose(1, 2)  # (B, C, context + 1)
        for number, layer in enumerate(self.layers, start=1):
            stride = 2 if number < len(self.layers) else 1
            y = torch.tanh(nn.functional.conv1d(h, layer.weight, layer.bias, stride=stride))
            h = h[:, :, self.kernel - 1:: stride] + y
        return torch.tanh(self.outlet(h[:, :, 0]))

    def embed_segment(self, x: torch.Tensor) -> torch.Tensor:
        h = self.inlet(x).transpose(1, 2)  # (B, C, context + T)
        for layer in self.layers:
            h = tcn_layer(h, layer)
        return dense_tanh(h.transpose(1, 2), self.outlet.weight, self.outlet.bias)


def _dilations(window: int, kernel: int) -> list[int]:
    """1, 2, 4, … as long as the receptive field stays within the window."""
    dilations: list[int] = []
    while 1 + (kernel - 1) * (sum(dilations) + 2 ** len(dilations)) <= window:
        dilations.append(2 ** len(dilations))
    if not dilations:
        raise ValueError(f"a window of {window} rows is too short for kernel {kernel}")
    return dilations


class LSTMEmbedder(Embedder):
    """The last hidden state of an LSTM run over the window from a zero state."""

    def __init__(self, features: int, window: int, dim: int) -> None:
        super().__init__(features, window, dim)
        self.lstm = nn.LSTM(features, dim, batch_first=True)

    def embed_window(self, x: torch.Tensor) -> torch.Tensor:
        output, _ = self.lstm(x)
        return output[:, -1]


class RecurrentLSTMEmbedder(LSTMEmbedder):
    """An LSTM that runs along a segment after a burn-in of one window: many times faster to train than `lstm`.

    Step t of a segment remembers t rows more than its window holds, so training and serving do not compute the
    same function; how far they are apart depends on what the network has learnt to remember: measure it.
    """

    def embed_segment(self, x: torch.Tensor) -> torch.Tensor:
        output, _ = self.lstm(x)
        return output[:, self.context:]

    def embed_rows(self, x: torch.Tensor) -> torch.Tensor:
        return super().embed_segment(x)


class TransformerEmbedder(Embedder):
    """Pre-norm encoder with sliding-window attention (Beltagy, Peters and Cohan 2020, arXiv 2004.05150).

    Every layer lets a row attend to itself and to the `band` - 1 rows before it, so `layers` of them see
    `layers` * (`band` - 1) + 1 rows, which is made to fit into the window: no padding ever enters, and a whole
    segment is embedded in one pass. Order enters as distance only (`SlidingBlock`); the last row is the embedding.
    """

    def __init__(self, features: int, window: int, dim: int, model_dim: int = 32, layers: int = 2,
                 heads: int = 4) -> None:
        super().__init__(features, window, dim)
        band = 1 + (window - 1) // layers
        if band < 2:
            raise ValueError(f"a window of {window} rows is too short for {layers} layers of attention")
        self.context = layers * (band - 1)
        self.inlet = nn.Linear(features, model_dim)
        self.layers = nn.ModuleList(SlidingBlock(model_dim, heads, band) for _ in range(layers))
        self.norm = nn.LayerNorm(model_dim)
        self.outlet = nn.Linear(model_dim, dim)

    def embed_window(self, x: torch.Tensor) -> torch.Tensor:
        return self.embed_segment(x[:, x.shape[1] - self.context - 1:])[:, 0]

    def embed_segment(self, x: torch.Tensor) -> torch.Tensor:
        h = self.inlet(x)
        for layer in self.layers:
            h = layer(h)
        return torch.tanh(self.outlet(self.norm(h)))


class EncoderBlock(nn.Module):
    """Pre-norm multi-head self-attention and a GELU feed-forward layer, without dropout."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.project = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.feed_forward = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, W, D) -> (B, W, D)."""
        attended = nn.functional.scaled_dot_product_attention(*self.queries_keys_values(x))
        return self.joined(x, attended.transpose(1, 2).reshape(x.shape))

    def queries_keys_values(self, x: torch.Tensor) -> torch.Tensor:
        """(B, W, D) -> (3, B, heads, W, D / heads)."""
        batch, length, dim = x.shape
        qkv = self.qkv(self.norm_1(x)).reshape(batch, length, 3, self.heads, dim // self.heads)
        return qkv.permute(2, 0, 3, 1, 4)

    def joined(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """Rows (B, W, D) with what the heads found for them, (B, W, D), and the feed-forward layer."""
        x = x + self.project(attended)
        return x + self.feed_forward(self.norm_2(x))


class SlidingBlock(EncoderBlock):
    """An `EncoderBlock` whose rows attend to themselves and to the `band` - 1 rows before.

    A score falls by slope x distance, another slope for every head (ALiBi: Press, Smith and Lewis 2022,
    arXiv 2108.12409), so it depends on how far back a row is and not on where a segment begins. Queries are taken
    `band` at a time, each such chunk with the keys that any of them may see: twice the products of the band, none
    of the N x N others.
    """

    bias: torch.Tensor

    def __init__(self, dim: int, heads: int, band: int) -> None:
        super().__init__(dim, heads)
        self.band = band
        slopes = torch.exp2(-torch.arange(1, heads + 1, dtype=torch.float32) * (8.0 / heads))
        distance = band - 1 + torch.arange(2 * band)[:, None] - torch.arange(3 * band - 1)
        bias = (-slopes[:, None, None] * distance).masked_fill((distance < 0) | (distance >= band), -math.inf)
        self.register_buffer("bias", bias, persistent=False)  # added to the scores of the last rows

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N, D) -> (B, N - band + 1, D)."""
        queries, keys, values = self.queries_keys_values(x)
        queries, x = queries[:, :, self.band - 1:], x[:, self.band - 1:]
        rows = x.shape[1]
        if rows <= 2 * self.band:
            attended = self._attend(queries, keys, values)
        else:
            attended = self._attend_in_chunks(queries, keys, values, rows)
        return self.joined(x, attended.transpose(1, 2).reshape(x.shape))

    def _attend_in_chunks(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor,
                          rows: int) -> torch.Tensor:
        """`_attend` for chunk after chunk of `band` queries, each with its own rows' keys and the `band` before.

        The zeros that fill up the last chunk are seen only by queries that are cut off again, the one before the
        first key by none: it is `band` rows back.
        """
        batch, heads, _, size = queries.shape
        missing = -rows % self.band

        def blocks(x: torch.Tensor, before: int) -> torch.Tensor:
            return nn.functional.pad(x, (0, 0, before, missing)).unflatten(2, (-1, self.band))

        def paired(x: torch.Tensor) -> torch.Tensor:
            parts = blocks(x, 1)
            return torch.cat((parts[:, :, :-1], parts[:, :, 1:]), 3).transpose(1, 2).flatten(0, 1)

        attended = self._attend(blocks(queries, 0).transpose(1, 2).flatten(0, 1), paired(keys), paired(values))
        return attended.unflatten(0, (batch, -1)).transpose(1, 2).reshape(batch, heads, -1, size)[:, :, :rows]

    def _attend(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """(B, heads, Q, size), twice (B, heads, K, size) -> (B, heads, Q, size); all end with the same row."""
        bias = self.bias[None, :, -queries.shape[2]:, -keys.shape[2]:]
        return nn.functional.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)


def sinusoids(length: int, dim: int) -> torch.Tensor:
    """Positional encoding (length, dim) of Vaswani et al. 2017."""
    position = torch.arange(length, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, dim, 2, dtype=torch.float32) * (-math.log(10_000.0) / dim))
    table = torch.zeros(length, dim)
    table[:, 0::2], table[:, 1::2] = torch.sin(position * rate), torch.cos(position * rate)
    return table


def make_embedder(kind: EmbedderKind, features: int, window: int, dim: int, channels: int = 16) -> Embedder:
    """The registry of embedders."""
    if kind == "tcn":
        return TCNEmbedder(features, window, dim, channels)
    if kind == "lstm":
        return LSTMEmbedder(features, window, dim)
    if kind == "lstm_recurrent":
        return RecurrentLSTMEmbedder(features, window, dim)
    if kind == "transformer":
        return TransformerEmbedder(features, window, dim)
    raise ValueError(f"unknown embedder '{kind}'; known: tcn, lstm, lstm_recurrent, transformer")
