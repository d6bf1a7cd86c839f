"""The proposer: for a batch of rows, how each side of an opportunity would be taken, before hard limits.

With an M-RMS each of its agents takes its most probable choice; without one the bundle's fixed rule answers.
The M-RMS does not see the account, so a whole table's proposals can be computed once.
"""

from __future__ import annotations

import numpy as np

from algospace.types import AnyArray, Float32Array, FloatArray
from envs.config import RiskEnvConfig
from envs.risk_kernels import proposal_kernel
from envs.vector_core import read_only
from serving.backends import Backend
from serving.bundle import Bundle

SIDES = (-1.0, 1.0)
"""Order of the sides in a proposals array: short, long."""


class Proposer:
    """Proposals (B, 2, 3): contracts, stop and target distance in points, for short [0] and long [1]."""

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self._backend = backend
        self._learned = bundle.has("mrms")
        self._fixed = bundle.manifest.fixed_proposal
        self._brackets = bundle.manifest.risk_env
        self._tick = bundle.instrument.tick_size

    def propose(self, strategic: Float32Array, tactical: Float32Array, regime: Float32Array, atr: FloatArray,
                lvn: FloatArray, direction: int = 0) -> Float32Array:
        """Windows (B, Ws, Fs) and (B, Wt, Ft), regime vectors (B, R), ATR (B,) in points, low volume nodes (B, 2)
        as in envs.opportunities -> (B, 2, 3).

        A `direction` of -1 or +1 asks for that side only; the other one's proposal means nothing.
        """
        if not self._learned:
            return fixed_proposals(np.maximum(atr, self._tick), self._fixed.contracts, self._fixed.stop_atr,
                                   self._fixed.target_r)
        rows = len(strategic)
        choices = np.zeros((3, rows, 2), np.int64)
        for side, sign in enumerate(SIDES):
            if direction * sign < 0.0:
                continue
            logits = self._backend.infer("mrms", {
                "strategic": strategic, "tactical": tactical, "regime": regime,
                "direction": np.full((rows, 1), sign, np.float32)})["logits"]
            choices[:, :, side] = logits.argmax(-1).T
        return learned_proposals(choices, atr, lvn, self._tick, self._brackets)

    def propose_sides(self, strategic: Float32Array, tactical: Float32Array, regime: Float32Array, atr: FloatArray,
                      lvn: FloatArray, direction: AnyArray) -> Float32Array:
        """`propose` where every row has a direction of its own, (B,) of -1 and +1: one call for all."""
        if not self._learned:
            return self.propose(strategic, tactical, regime, atr, lvn)
        rows = np.arange(len(direction))
        logits = self._backend.infer("mrms", {
            "strategic": strategic, "tactical": tactical, "regime": regime,
            "direction": direction[:, None].astype(np.float32)})["logits"]
        choices = np.zeros((3, rows.size, 2), np.int64)
        choices[:, rows, (direction > 0).astype(np.int64)] = logits.argmax(-1).T
        return learned_proposals(choices, atr, lvn, self._tick, self._brackets)


def fixed_proposals(atr: FloatArray, contracts: float, stop_atr: float, target_r: float) -> Float32Array:
    """The same rule on every row and side: (B,) ATR -> (B, 2, 3)."""
    stop = stop_atr * np.asarray(atr)
    one_side = np.stack((np.full_like(stop, contracts), stop, target_r * stop), -1)
    return np.repeat(one_side[:, None], 2, axis=1).astype(np.float32)


def learned_proposals(choices: AnyArray, atr: FloatArray, lvn: FloatArray, tick: float,
                      config: RiskEnvConfig) -> Float32Array:
    """Choices (3, B, 2) of the size, stop and target agents per side -> proposals (B, 2, 3)."""
    out = np.empty((choices.shape[1], 2, 3), np.float32)
    proposal_kernel(np.ascontiguousarray(choices[0]), np.ascontiguousarray(choices[1]),
                    np.ascontiguousarray(choices[2]), read_only(atr), read_only(lvn), tick, config.lvn_margin_atr,
                    config.lvn_min_strength, out)
    return out
