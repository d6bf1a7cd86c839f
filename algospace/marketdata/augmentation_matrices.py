"""Augmentation of matrices (…, W, F): W rows in time, F feature columns. The input is never changed."""

from __future__ import annotations

import numpy as np

from algospace.errors import ConfigError
from algospace.seeding import stream_key, uniforms
from algospace.types import AnyArray, BoolArray


def feature_dropout(matrices: AnyArray, rate: float, seed: int, fill: float = 0.0) -> tuple[AnyArray, BoolArray]:
    """(matrices with whole columns set to `fill`, mask (…, F): True where a column was kept).

    Every column of every matrix is dropped with probability `rate`, over its whole window, so that a network
    learns not to lean on one feature. Kept values are not scaled up: they are observations, not activations.
    """
    if not 0.0 <= rate < 1.0:
        raise ConfigError(f"feature dropout: rate must lie in [0, 1), got {rate}")
    shape = (*matrices.shape[:-2], matrices.shape[-1])
    u = np.empty((int(np.prod(shape[:-1])), shape[-1]))
    uniforms(np.uint64(stream_key("feature dropout", seed)), 0, u)
    kept: BoolArray = (u >= rate).reshape(shape)
    return np.where(kept[..., None, :], matrices, np.asarray(fill, matrices.dtype)), kept


def matrix_noise(matrices: AnyArray, scale: float, seed: int) -> AnyArray:
    """Gaussian noise of `scale` standard deviations of each column within its own window; constants stay."""
    rng = generator("matrix noise", seed)
    deviation = matrices.std(axis=-2, keepdims=True)
    noisy = matrices + scale * deviation * rng.standard_normal(matrices.shape)
    return noisy.astype(matrices.dtype)


def generator(*parts: object) -> np.random.Generator:
    """A counter-based generator (Philox) that depends on the parts only."""
    return np.random.Generator(np.random.Philox(key=stream_key(*parts)))
