"""Generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438)."""

from __future__ import annotations

import numba as nb
import numpy as np

from algospace.types import BoolArray, Float32Array


@nb.njit(cache=True)
def gae(r_t: Float32Array, v_t: Float32Array, discount_t: Float32Array, alive_t: BoolArray, gamma: float,
        gae_lambda: float) -> tuple[Float32Array, Float32Array]:
    """Advantages and value targets (B, T) of segments.

    r_t, discount_t (B, T); v_t (B, T + 1), the last one bootstraps. discount_t is 0 where the step terminated
    the episode: the value behind it is 0. alive_t (B, T) is False after an episode's end inside the segment; the
    last step alive bootstraps, and nothing behind it counts. Values are in reward units (denormalised).
    """
    segments, steps = r_t.shape
    advantages = np.empty((segments, steps), np.float32)
    targets = np.empty((segments, steps), np.float32)
    for b in range(segments):
        running = 0.0
        for t in range(steps - 1, -1, -1):
            if t + 1 < steps and not alive_t[b, t + 1]:
                running = 0.0
            discount = gamma * discount_t[b, t]
            delta = r_t[b, t] + discount * v_t[b, t + 1] - v_t[b, t]
            running = delta + discount * gae_lambda * running
            advantages[b, t] = running
            targets[b, t] = running + v_t[b, t]
    return advantages, targets
