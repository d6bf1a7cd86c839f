"""Dropout masks are inputs: a bank of masks drawn from a counter-based stream.

The bank is a pure function of (stream key, rows, units, rate); a decision's masks are rows of it, chosen by a
hash of the decision's seed. Rollouts store the seed, the update replays it (consistent dropout, Hausknecht and
Wagener 2022, arXiv 2202.11818), and the exported graphs take the same rows as inputs.
"""

from __future__ import annotations

import numpy as np
import torch

from algospace.seeding import combine, mask_bank
from algospace.types import IntArray

BANK_ROWS = 4096


class MaskBank:
    """(BANK_ROWS, units) float32 masks with values 0 or 1/(1-rate)."""

    def __init__(self, key: int, units: int, rate: float) -> None:
        self.key, self.units, self.rate = key, units, rate
        self.masks = torch.from_numpy(mask_bank(key, BANK_ROWS, units, rate))

    def rows(self, segment_seeds: IntArray, steps: int, agents: int) -> torch.Tensor:
        """Bank rows (B, steps, agents) int64 for segments with the given seeds."""
        return torch.from_numpy(mask_rows(segment_seeds, steps, agents))

    def decision_rows(self, seed: int, samples: int, agents: int) -> torch.Tensor:
        """Bank rows (samples, agents) of one Monte Carlo decision: distinct rows per sample and agent."""
        flat = np.arange(samples * agents, dtype=np.int64) * 2 + 1
        start = int(combine(np.uint64(seed), np.uint64(0))) % BANK_ROWS
        return torch.from_numpy(((start + flat) % BANK_ROWS).reshape(samples, agents))


def mask_rows(segment_seeds: IntArray, steps: int, agents: int) -> IntArray:
    """Hash (segment seed, step, agent) -> bank row; the seed is hashed before the index is added."""
    seeds = np.asarray(segment_seeds, np.uint64)
    index = np.arange(steps * agents, dtype=np.uint64).reshape(1, steps, agents)
    mixed = _splitmix(_splitmix(seeds)[:, None, None] ^ index)
    return (mixed % np.uint64(BANK_ROWS)).astype(np.int64)


def _splitmix(x: np.ndarray) -> np.ndarray:
    z = x + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
