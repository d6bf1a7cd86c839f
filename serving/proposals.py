"""The proposer: for a batch of rows, how each side of an opportunity would be taken, before hard limits.

With an M-RMS each of its agents takes its most probable choice; without one the bundle's fixed rule answers.
The M-RMS does not see the account, so a whole table's proposals can be computed once.
"""

from __future__ import annotations

import numpy as np

from algospace.features.matrix_schema import MatrixSchema
from algospace.types import AnyArray, Float32Array, FloatArray
from envs.config import STOP_ATRS, STOP_BEYOND_LVN, TARGET_RS, RiskEnvConfig
from serving.backends import Backend
from serving.bundle import Bundle

SIDES = (-1.0, 1.0)
"""Order of the sides in a proposals array: short, long."""
_FALLBACK_STOP = STOP_ATRS.index(2.0)
"""The stop where no strong node lies behind the entry."""


class Proposer:
    """Proposals (B, 2, 3): contracts, stop and target distance in points, for short [0] and long [1]."""

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self._backend, self._schema = backend, bundle.schema
        self._learned = bundle.has("mrms")
        self._fixed = bundle.manifest.fixed_proposal
        self._brackets = bundle.manifest.risk_env

    def propose(self, strategic: Float32Array, tactical: Float32Array, regime: Float32Array, atr: FloatArray,
                atr_30m: FloatArray, direction: int = 0) -> Float32Array:
        """Windows (B, Ws, Fs) and (B, Wt, Ft), regime vectors (B, R), ATR (B,) in points -> (B, 2, 3).

        A `direction` of -1 or +1 asks for that side only; the other one's proposal has no contracts.
        """
        if not self._learned:
            return fixed_proposals(atr, self._fixed.contracts, self._fixed.stop_atr, self._fixed.target_r)
        rows = len(strategic)
        choices = np.zeros((rows, 2, 3), np.int64)
        for side, sign in enumerate(SIDES):
            if direction * sign < 0.0:
                continue
            logits = self._backend.infer("mrms", {
                "strategic": strategic, "tactical": tactical, "regime": regime,
                "direction": np.full((rows, 1), sign, np.float32)})["logits"]
            choices[:, side] = logits.argmax(-1)
        distance, strength = low_volume_nodes(self._schema, strategic[:, -1], atr_30m)
        return learned_proposals(choices, atr, distance, strength, self._brackets)


def fixed_proposals(atr: FloatArray, contracts: float, stop_atr: float, target_r: float) -> Float32Array:
    """The same rule on every row and side: (B,) ATR -> (B, 2, 3)."""
    stop = stop_atr * np.asarray(atr)
    one_side = np.stack((np.full_like(stop, contracts), stop, target_r * stop), -1)
    return np.repeat(one_side[:, None], 2, axis=1).astype(np.float32)


def learned_proposals(choices: AnyArray, atr: FloatArray, lvn_distance: FloatArray, lvn_strength: FloatArray,
                      config: RiskEnvConfig) -> Float32Array:
    """Choices (B, 2, 3) of size, stop and target -> proposals (B, 2, 3).

    The stop beyond a node lies `lvn_margin_atr` behind it; where no node of `lvn_min_strength` lies behind the
    entry, the stop is 2 ATR.
    """
    atr_both = np.asarray(atr)[:, None]
    multiples = np.array((*STOP_ATRS, STOP_ATRS[_FALLBACK_STOP]))
    stop = multiples[choices[..., 1]] * atr_both
    behind = -np.array(SIDES) * np.asarray(lvn_distance)[:, None]  # points from entry back to the node
    usable = (behind > 0.0) & (np.asarray(lvn_strength)[:, None] >= config.lvn_min_strength)
    beyond = (choices[..., 1] == STOP_BEYOND_LVN) & usable
    stop = np.where(beyond, behind + config.lvn_margin_atr * atr_both, stop)
    target = np.array(TARGET_RS)[choices[..., 2]] * stop
    return np.stack((choices[..., 0].astype(np.float64), stop, target), -1).astype(np.float32)


def low_volume_nodes(schema: MatrixSchema, rows: Float32Array,
                     atr_30m: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(distance in points, strength 0..100) of the nearest node, read back from normalised strategic rows.

    Zeros, which mean no node, where the strategic matrix has no such columns.
    """
    names = schema.strategic.names
    none = np.zeros(len(rows))
    if "lvn_distance" not in names or "lvn_strength" not in names:
        return none, none
    spec = schema.strategic.columns[names.index("lvn_strength")]
    distance = rows[:, names.index("lvn_distance")].astype(np.float64) * np.asarray(atr_30m)
    strength = rows[:, names.index("lvn_strength")].astype(np.float64) * spec.scale + spec.centre
    return distance, strength
