"""Dropout masks are inputs: a bank of masks drawn from a counter-based stream.

The bank is a pure function of (stream key, rows, units, rate); a decision's masks are rows of it, chosen by a
hash of the decision's seed. Rollouts store the seed, the update replays it (consistent dropout, Hausknecht and
Wagener 2022, arXiv 2202.11818), and the exported graphs take the same rows as inputs.
"""

from __future__ import annotations

import torch

from agents.mask_rows import BANK_ROWS, mask_rows
from algospace.seeding import mask_bank
from algospace.types import IntArray


class MaskBank:
    """(BANK_ROWS, units) float32 masks with values 0 or 1/(1-rate)."""

    def __init__(self, key: int, units: int, rate: float) -> None:
        self.key, self.units, self.rate = key, units, rate
        self.masks = torch.from_numpy(mask_bank(key, BANK_ROWS, units, rate))

    def rows(self, segment_seeds: IntArray, steps: int, agents: int) -> torch.Tensor:
        """Bank rows (B, steps, agents) int64 for segments with the given seeds."""
        return torch.from_numpy(mask_rows(segment_seeds, steps, agents))
