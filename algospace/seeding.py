"""Counter-based randomness: every draw is a hash of (seed, stream coordinates), so no generator state exists
to be saved, and any part of a run can be replayed alone.

The hash is SplitMix64 (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195).
"""

from __future__ import annotations

import hashlib
from typing import Any

import numba as nb
import numpy as np

from algospace.types import AnyArray, Float32Array

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)
_TO_UNIT = 1.0 / (1 << 53)


@nb.njit(inline="always", cache=True)
def splitmix64(x: Any) -> Any:
    """One SplitMix64 step: uint64 -> well mixed uint64."""
    z = np.uint64(x) + _GOLDEN
    z = (z ^ (z >> _S30)) * _MIX_1
    z = (z ^ (z >> _S27)) * _MIX_2
    return z ^ (z >> _S31)


@nb.njit(inline="always", cache=True)
def combine(seed: Any, value: Any) -> Any:
    """Mix `value` into `seed`; the seed is hashed first, so that neighbouring values never overlap."""
    return splitmix64(splitmix64(np.uint64(seed)) ^ np.uint64(value))


@nb.njit(inline="always", cache=True)
def to_unit(bits: Any) -> float:
    """uint64 -> float64 in [0, 1)."""
    return float(np.uint64(bits) >> _S11) * _TO_UNIT


@nb.njit(cache=True)
def uniforms(seed: Any, tick: int, out: AnyArray) -> None:
    """Fill `out` (rows, lanes) with U[0, 1): lane l of row r depends on (seed, tick, r, l) only."""
    base = combine(seed, tick)
    for row in range(out.shape[0]):
        key = combine(base, row)
        for lane in range(out.shape[1]):
            out[row, lane] = to_unit(combine(key, lane))


@nb.njit(cache=True)
def _fill_mask_bank(key: Any, keep: float, out: AnyArray) -> None:
    for row in range(out.shape[0]):
        seed = combine(key, row)
        for unit in range(out.shape[1]):
            out[row, unit] = 1.0 / keep if to_unit(combine(seed, unit)) < keep else 0.0


def mask_bank(key: int, rows: int, units: int, rate: float) -> Float32Array:
    """Dropout masks (rows, units) float32 of the stream `key`: 0 or 1/(1-rate).

    Consistent dropout (Hausknecht and Wagener 2022, arXiv 2202.11818) replays a row by its number.
    """
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"dropout rate must lie in [0, 1), got {rate}")
    out = np.empty((rows, units), np.float32)
    _fill_mask_bank(np.uint64(key), 1.0 - rate, out)
    return out


def stream_key(*parts: object) -> int:
    """A 63-bit key from any printable parts, stable over processes and machines."""
    digest = hashlib.sha256("\x1f".join(str(p) for p in parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
