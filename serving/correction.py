"""The gate's online correction for a service that keeps nothing: the level comes with the request and leaves with
the answer, so that any replica corrects as a session does (agents.calibration.AdaptiveConformal)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from agents.calibration import AdaptiveConformal
from serving.bundle import Bundle


class GateLevel(NamedTuple):
    """Of the gate of `model`: the share of its calibration's trades that pass, and the threshold that belongs to
    it."""

    model: str
    level: float
    threshold: float


class Correction:
    """The correction of one bundle's gate; without a calibration, or with one that is shut, nothing moves."""

    def __init__(self, bundle: Bundle) -> None:
        manifest = bundle.manifest
        self._id, self._threshold = bundle.id, bundle.gate().threshold
        self._adaptive = AdaptiveConformal.of(manifest.calibration, manifest.gate.adaptive_rate)

    def after(self, model: str | None, level: float | None, closed: Sequence[bool]) -> GateLevel:
        """Where the gate stands when trades have ended since `level` was answered by `model`, each with a net gain
        or not. Another model's level means nothing here: its trades were not promised by this gate, and it begins
        where the calibration left it."""
        if self._adaptive is None:
            return GateLevel(self._id, 1.0, self._threshold)
        ours = model == self._id
        found = self._adaptive.after(level if ours else None, closed if ours or model is None else ())
        return GateLevel(self._id, found, self._adaptive.threshold_at(found))
