"""Which masks a decision or a step of a rollout uses, without torch: rows of the bank, by a hash of the seed."""

from __future__ import annotations

import numpy as np

from algospace.seeding import combine
from algospace.types import IntArray

BANK_ROWS = 4096


def decision_rows(seed: int, samples: int, agents: int) -> IntArray:
    """Bank rows (samples, agents) int64 of one Monte Carlo decision: distinct rows per sample and agent."""
    flat = np.arange(samples * agents, dtype=np.int64) * 2 + 1
    start = int(combine(np.uint64(seed), np.uint64(0))) % BANK_ROWS
    return ((start + flat) % BANK_ROWS).reshape(samples, agents)


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
