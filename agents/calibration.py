"""Calibration of the decision gate on the validation split, its online correction and its diagnostics.

`raw` are per-mask scores (N, K) of trades that the ungated policy would take, `gained` (N,) whether each ended
with a net gain.
"""

from __future__ import annotations

import hashlib

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.stats import beta

from agents.gate import NOTHING_PASSES, GateConfig, confidences
from algospace.config import FrozenConfig
from algospace.types import BoolArray, FloatArray

_COVERAGES = np.arange(1.0, 0.0, -0.1)
"""Coverages at which a threshold may lie; few, because each costs a share of the promise's error."""
_LOG_TEMPERATURES = (-3.0, 4.0)
_TINY = 1e-12


class Calibration(FrozenConfig):
    """Fitted values of a gate. `promise_kept`: some threshold holds the promised precision at `promise_level`;
    where none does the threshold lies above 1 and nothing passes."""

    temperature: float
    threshold: float
    promise_kept: bool
    promised_precision: float
    precision: float | None
    coverage: float
    n: int
    fitted_on: str
    """SHA-256 of the scores and outcomes, 64 hex digits."""
    ece_before: float
    ece_after: float


def calibrate(raw: FloatArray, gained: BoolArray, config: GateConfig) -> Calibration:
    """Fit temperature (by likelihood) and threshold (largest coverage that keeps the promise).

    A threshold keeps the promise if the exact lower bound of its precision (Clopper and Pearson 1934), at
    `promise_level` corrected for the number of thresholds tried (Bonferroni), reaches `promised_precision`:
    choosing the best of many observed precisions would promise noise.
    """
    raw, gained = np.atleast_2d(np.asarray(raw, np.float64)), np.asarray(gained, bool)
    if raw.shape[0] != gained.size:
        raise ValueError(f"{raw.shape[0]} rows of scores but {gained.size} outcomes")
    fitted_on = hashlib.sha256(raw.tobytes() + gained.tobytes()).hexdigest()
    before = confidences(raw, 1.0, config.kappa) if gained.size else np.zeros(0)
    temperature = _fit_temperature(raw, gained) if gained.size else 1.0
    after = confidences(raw, temperature, config.kappa) if gained.size else np.zeros(0)
    threshold, precision, coverage = _keep_promise(after, gained, config)
    return Calibration(
        temperature=temperature, threshold=threshold, promise_kept=precision is not None,
        promised_precision=config.promised_precision, precision=precision, coverage=coverage, n=gained.size,
        fitted_on=fitted_on, ece_before=calibration_error(before, gained),
        ece_after=calibration_error(after, gained))


def _fit_temperature(raw: FloatArray, gained: BoolArray) -> float:
    def loss(log_temperature: float) -> float:
        p = np.clip(confidences(raw, float(np.exp(log_temperature)), 0.0), _TINY, 1.0 - _TINY)
        return -float(np.where(gained, np.log(p), np.log1p(-p)).mean())

    found = minimize_scalar(loss, bounds=_LOG_TEMPERATURES, method="bounded")
    return float(np.exp(found.x))


def _keep_promise(confidence: FloatArray, gained: BoolArray,
                  config: GateConfig) -> tuple[float, float | None, float]:
    """(threshold, observed precision or None, coverage) of the largest coverage that keeps the promise."""
    error = (1.0 - config.promise_level) / _COVERAGES.size
    order = np.sort(confidence)
    for coverage in _COVERAGES:
        count = round(coverage * confidence.size)
        if count < config.min_trades:
            break
        threshold = float(order[confidence.size - count])
        passed = confidence >= threshold  # ties pass together
        trades, wins = int(passed.sum()), int(gained[passed].sum())
        if wins and beta.ppf(error, wins, trades - wins + 1) >= config.promised_precision:
            return threshold, wins / trades, trades / confidence.size
    return NOTHING_PASSES, None, 0.0


class AdaptiveConformal:
    """Online correction of the gate's threshold (Gibbs and Candès 2021, arXiv 2106.00170).

    `level` is the share of the calibration's trades that pass. After every executed trade
    level += rate · (target - lost), target = 1 - promised precision: losses tighten the gate, gains open it, and
    the long-run share of losing trades tends to the target for any sequence as long as `level` moves freely.
    `floor` keeps a few trades passing, without which nothing would be learnt any more.
    """

    def __init__(self, confidence: FloatArray, threshold: float, promised_precision: float, rate: float,
                 floor: float = 0.01) -> None:
        if confidence.size == 0:
            raise ValueError("an online correction needs the confidences of the calibration split")
        self._sorted = np.sort(confidence)
        self._target, self._rate, self._floor = 1.0 - promised_precision, rate, floor
        self.level = float(np.clip((confidence >= threshold).mean(), floor, 1.0))
        self._blocked = threshold > 1.0

    @property
    def threshold(self) -> float:
        """The threshold now; a gate that passes nothing stays shut."""
        if self._blocked:
            return NOTHING_PASSES
        return float(np.quantile(self._sorted, 1.0 - self.level, method="higher"))

    def update(self, gained: bool) -> float:
        """Account for one executed trade; returns the new threshold."""
        step = self._rate * (self._target - (0.0 if gained else 1.0))
        self.level = float(np.clip(self.level + step, self._floor, 1.0))
        return self.threshold


def reliability(confidence: FloatArray, gained: BoolArray, bins: int = 10) -> dict[str, list[float]]:
    """Reliability diagram: per non-empty bin of confidence its mean, the share that gained, and the count."""
    index = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    filled = [b for b in range(bins) if (index == b).any()]
    return {
        "confidence": [float(confidence[index == b].mean()) for b in filled],
        "gained": [float(gained[index == b].mean()) for b in filled],
        "count": [float((index == b).sum()) for b in filled],
    }


def calibration_error(confidence: FloatArray, gained: BoolArray, bins: int = 10) -> float:
    """Expected calibration error: mean |confidence - precision| over bins, weighted by count."""
    if confidence.size == 0:
        return 0.0
    data = reliability(confidence, gained, bins)
    gaps = np.abs(np.array(data["confidence"]) - np.array(data["gained"]))
    return float((gaps * np.array(data["count"])).sum() / confidence.size)


def risk_coverage(confidence: FloatArray, gained: BoolArray) -> dict[str, list[float]]:
    """Share of losing trades among the most confident ones, at every tenth of coverage."""
    order = np.argsort(-confidence, kind="stable")
    lost = np.cumsum(~gained[order])
    counts = sorted({max(1, round(c * confidence.size)) for c in _COVERAGES}) if confidence.size else []
    return {"coverage": [n / confidence.size for n in counts], "risk": [float(lost[n - 1] / n) for n in counts]}


def lift(confidence: FloatArray, gained: BoolArray, net: FloatArray, threshold: float) -> dict[str, float]:
    """The gate against random rejection at equal coverage, whose expectation is the mean over all trades.

    `net` (N,) is each trade's net result; differences are (passed - all).
    """
    passed = confidence >= threshold
    if not passed.any():
        return {"coverage": 0.0, "precision": 0.0, "precision_lift": 0.0, "net_lift": 0.0}
    return {
        "coverage": float(passed.mean()),
        "precision": float(gained[passed].mean()),
        "precision_lift": float(gained[passed].mean() - gained.mean()),
        "net_lift": float(net[passed].mean() - net.mean()),
    }
