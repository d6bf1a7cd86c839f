"""The regime network: a window of 30-minute features -> an eight-number description of the market's regime.

    regime window (B, W, F) -> patches -> Transformer encoder -> attention pooling -> (μ, log σ²)
    z = μ + σ·noise -> decoder -> the window again, and the next k rows

A variational autoencoder (Kingma and Welling 2014, arXiv 1312.6114) with free bits (Kingma et al. 2016,
arXiv 1606.04934). Rows are joined to patches before the encoder (PatchTST, Nie et al. 2023, arXiv 2211.14730):
eight rows to a token make it ten times as fast on one core as one row to a token. In use the regime vector is μ,
without noise.

Columns are standardised inside the network with statistics of the training windows: the ratios among the regime
columns vary by a tenth, and unscaled they cost the loss nothing, although they tell most about the regime.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from agents.embedders import EncoderBlock, sinusoids
from agents.settings import RegimeConfig
from algospace.features.matrix_schema import REGIME

# size -> (width, layers, heads)
_SIZES: dict[str, tuple[int, int, int]] = {"tiny": (32, 1, 4), "small": (64, 2, 4), "full": (256, 6, 8)}
_LOG_VARIANCE_LIMIT = 8.0
# direction and volatility, which regimes differ in; the others describe the shape of the path and of the volume
_FOCUS = frozenset({"logsig_2", "logsig_3", "logsig_4", "price_acceleration",
                    "volatility_30", "volatility_ratio", "range_ratio"})
_BESIDE = 0.01
# a column that varies less than this has no scale of its own
_LEAST_SCALE = 1e-2


class RegimeOutput(NamedTuple):
    """mean, log_variance (B, latent); reconstruction (B, W, F); prediction (B, k, F)."""

    mean: torch.Tensor
    log_variance: torch.Tensor
    reconstruction: torch.Tensor
    prediction: torch.Tensor


class RegimeNet(nn.Module):
    """Encoder, latent head and decoder. Deterministic: noise is an argument."""

    positions: torch.Tensor
    row_weights: torch.Tensor
    column_weights: torch.Tensor
    centre: torch.Tensor
    scale: torch.Tensor

    def __init__(self, config: RegimeConfig) -> None:
        super().__init__()
        self.config = config
        dim, layers, heads = _SIZES[config.size]
        self.inlet = nn.Linear(config.patch * config.features, dim)
        self.register_buffer("positions", sinusoids(config.tokens, dim), persistent=False)
        row_weights = recency_weights(config.window, config.recency_half_life)
        self.register_buffer("row_weights", row_weights, persistent=False)
        self.register_buffer("column_weights", column_weights(config), persistent=False)
        self.register_buffer("centre", torch.zeros(config.features))
        self.register_buffer("scale", torch.ones(config.features))
        self.blocks = nn.ModuleList(EncoderBlock(dim, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.pool = nn.Linear(dim, 1)
        self.latent_head = nn.Linear(dim, 2 * config.latent)
        if config.recent_skip:
            self.recent = nn.Linear(config.patch * config.features, 2 * config.latent)
        decoded_rows = config.window + config.predict_steps
        self.decoder = nn.Sequential(
            nn.Linear(config.latent, 2 * dim), nn.GELU(), nn.Linear(2 * dim, decoded_rows * config.features))

    def set_scale(self, centre: torch.Tensor, scale: torch.Tensor) -> None:
        """Mean and deviation of each column (F,); a column that hardly varies keeps its own scale."""
        with torch.no_grad():
            self.centre.copy_(centre)
            self.scale.copy_(torch.where(scale < _LEAST_SCALE, torch.ones_like(scale), scale))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Weights written before columns were scaled and the last token had its path mean the same without."""
        names = ["centre", "scale"] + (["recent.weight", "recent.bias"] if self.config.recent_skip else [])
        if prefix + "centre" not in state_dict:
            own = self.state_dict()
            state_dict.update({prefix + n: torch.full_like(own[n], float(n == "scale")) for n in names})
        super()._load_from_state_dict(state_dict, prefix, *args)

    def encode(self, window: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, W, F) -> mean and log variance of the latent, each (B, latent)."""
        config = self.config
        scaled = (window - self.centre) / self.scale
        tokens = scaled.reshape(-1, config.tokens, config.patch * config.features)
        h = self.inlet(tokens) + self.positions
        for block in self.blocks:
            h = block(h)
        h = self.norm(h)
        weights = torch.softmax(self.pool(h), dim=1)  # (B, tokens, 1)
        latent = self.latent_head((weights * h).sum(dim=1))
        if config.recent_skip:
            latent = latent + self.recent(tokens[:, -1])
        mean, log_variance = latent.chunk(2, dim=-1)
        return mean, log_variance.clamp(-_LOG_VARIANCE_LIMIT, _LOG_VARIANCE_LIMIT)

    def encode_mean(self, window: torch.Tensor) -> torch.Tensor:
        """(B, W, F) -> μ (B, latent), the regime vector."""
        return self.encode(window)[0]

    def decode(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, latent) -> the window (B, W, F) and the rows after it (B, k, F)."""
        rows = self.decoder(latent).reshape(latent.shape[0], -1, self.config.features)
        rows = rows * self.scale + self.centre
        return rows[:, : self.config.window], rows[:, self.config.window:]

    def forward(self, window: torch.Tensor, noise: torch.Tensor) -> RegimeOutput:
        """window (B, W, F), standard normal noise (B, latent); zero noise decodes μ itself."""
        mean, log_variance = self.encode(window)
        reconstruction, prediction = self.decode(mean + torch.exp(0.5 * log_variance) * noise)
        return RegimeOutput(mean, log_variance, reconstruction, prediction)

    def loss(
        self, window: torch.Tensor, target_next: torch.Tensor, beta: float, noise: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """reconstruction + predict_weight·prediction + β·KL.

        window (B, W, F), target_next (B, k, F) the k rows after it, noise (B, latent).
        Errors, in units of the columns' scale, are means of squares over batch, rows (the window's weighed by
        recency) and columns (weighed by `column_weights`); both weights have mean 1.
        the KL of each latent dimension is averaged over the batch and floored at `free_bits` before the sum.
        """
        output = self(window, noise)
        reconstruction = (self._squares(output.reconstruction - window) * self.row_weights).mean()
        kl_per_dim = gaussian_kl(output.mean.float(), output.log_variance.float()).mean(dim=0)  # (latent,)
        total = reconstruction + beta * kl_per_dim.clamp(min=self.config.free_bits).sum()
        parts = {"reconstruction": reconstruction, "kl": kl_per_dim.sum()}
        if self.config.predict_steps:
            parts["prediction"] = self._squares(output.prediction - target_next).mean()
            total = total + self.config.predict_weight * parts["prediction"]
        return total, parts

    def _squares(self, error: torch.Tensor) -> torch.Tensor:
        """(B, rows, F) -> weighed mean square of every row (rows,)."""
        return ((error / self.scale).square() * self.column_weights).mean(dim=(0, 2))


class RegimeEncoder(nn.Module):
    """`encode_mean` as a module's forward: what is exported and served."""

    def __init__(self, net: RegimeNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        """(B, W, F) -> (B, latent)."""
        return self.net.encode_mean(window)


def recency_weights(window: int, half_life: float) -> torch.Tensor:
    """(window,) weights of mean 1 that halve every `half_life` rows into the past; all 1 if it is 0."""
    if half_life == 0:
        return torch.ones(window)
    age = torch.arange(window - 1, -1, -1, dtype=torch.float32)
    weights = torch.exp2(-age / half_life)
    return weights / weights.mean()


def column_weights(config: RegimeConfig) -> torch.Tensor:
    """(F,) weights of mean 1 of the columns' squared errors."""
    weights = torch.ones(config.features)
    if config.column_weights:
        weights = torch.tensor(config.column_weights)
    elif config.features == len(REGIME):
        weights = torch.tensor([1.0 if name in _FOCUS else _BESIDE for name in REGIME])
    return weights / weights.mean()


def gaussian_kl(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) per element, in nats."""
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance)
