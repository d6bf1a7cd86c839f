"""Calibration of the decision gate on the validation split, and its online correction. No torch.

`raw` are per-mask scores (N, K) of trades that the ungated policy would take, in time order; `gained` (N,) whether
each ended with a net gain.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from pydantic import Field

from agents.gate import NOTHING_PASSES, Gate, GateConfig, confidences
from algospace.analysis.gate_report import BINS, calibration_error
from algospace.config import FrozenConfig
from algospace.types import BoolArray, FloatArray

COVERAGES = np.arange(1.0, 0.0, -0.1)
"""Coverages at which a threshold may lie; few, because each costs a share of the promise's error."""
_QUANTILES = 201
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
    ece_bins: int = BINS
    promise_level: float = 0.9
    precision_bound: float | None = None
    """One-sided lower bound of the precision at the threshold, corrected for the thresholds tried."""
    trades: int = 0
    """Trades that pass the threshold: what the bound rests on."""
    quantiles: tuple[float, ...] = Field(default=(), repr=False)
    """Confidences of the calibration's trades at equal steps of rank, ascending: what the online correction moves
    along."""

    @property
    def statement(self) -> str:
        """The promise in one line, with how sure it is."""
        promised = f"{self.promised_precision:.1%} of executed trades with a net gain"
        if not self.promise_kept or self.precision is None or self.precision_bound is None:
            return f"cannot promise {promised} from {self.n} trades: the gate stays shut"
        return (f"promises {promised}: {self.precision:.1%} of {self.trades} trades, at least "
                f"{self.precision_bound:.1%} with probability {self.promise_level:.0%}")


class Candidate(NamedTuple):
    """One threshold: the trades that pass it, their gains, and the lower bound of their precision."""

    threshold: float
    trades: int
    gains: int
    bound: float


def calibrate(raw: FloatArray, gained: BoolArray, config: GateConfig) -> Calibration:
    """Fit temperature (by likelihood) and threshold (largest coverage that keeps the promise).

    A threshold keeps the promise if the exact lower bound of its precision (Clopper and Pearson 1934), at
    `promise_level` corrected for the number of thresholds tried (Bonferroni), reaches `promised_precision`:
    choosing the best of many observed precisions would promise noise. This is "learn, then test" (Angelopoulos
    et al. 2021, arXiv 2110.01052) with the exact binomial test.
    """
    raw, gained = np.atleast_2d(np.asarray(raw, np.float64)), np.asarray(gained, bool)
    if raw.shape[0] != gained.size:
        raise ValueError(f"{raw.shape[0]} rows of scores but {gained.size} outcomes")
    fitted_on = hashlib.sha256(raw.tobytes() + gained.tobytes()).hexdigest()
    before = confidences(raw, 1.0, config.kappa) if gained.size else np.zeros(0)
    temperature = _fit_temperature(raw, gained) if gained.size else 1.0
    after = confidences(raw, temperature, config.kappa) if gained.size else np.zeros(0)
    kept = next((c for c in candidates(after, gained, config) if c.bound >= config.promised_precision), None)
    return Calibration(
        temperature=temperature, threshold=NOTHING_PASSES if kept is None else kept.threshold,
        promise_kept=kept is not None, promised_precision=config.promised_precision,
        promise_level=config.promise_level, precision=None if kept is None else kept.gains / kept.trades,
        precision_bound=None if kept is None else kept.bound,
        coverage=0.0 if kept is None else kept.trades / gained.size, trades=0 if kept is None else kept.trades,
        n=gained.size, fitted_on=fitted_on, ece_before=calibration_error(before, gained),
        ece_after=calibration_error(after, gained), quantiles=_quantiles(after))


def _fit_temperature(raw: FloatArray, gained: BoolArray) -> float:
    from scipy.optimize import minimize_scalar  # 60 MB and half a second, which no service needs

    def loss(log_temperature: float) -> float:
        p = np.clip(confidences(raw, float(np.exp(log_temperature)), 0.0), _TINY, 1.0 - _TINY)
        return -float(np.where(gained, np.log(p), np.log1p(-p)).mean())

    found = minimize_scalar(loss, bounds=_LOG_TEMPERATURES, method="bounded")
    return float(np.exp(found.x))


def precision_bound(gains: int, trades: int, config: GateConfig) -> float:
    """Lower bound of a precision that holds for every threshold tried at once with probability `promise_level`."""
    if not gains:
        return 0.0
    from scipy.stats import beta

    error = (1.0 - config.promise_level) / COVERAGES.size
    return float(beta.ppf(error, gains, trades - gains + 1))


def candidates(confidence: FloatArray, gained: BoolArray, config: GateConfig) -> list[Candidate]:
    """The thresholds tried, largest coverage first; those that leave fewer than `min_trades` trades are not."""
    order = np.sort(confidence)
    found = []
    for coverage in COVERAGES:
        count = round(coverage * confidence.size)
        if count < config.min_trades:
            break
        threshold = float(order[confidence.size - count])
        passed = confidence >= threshold  # ties pass together
        trades, gains = int(passed.sum()), int(gained[passed].sum())
        found.append(Candidate(threshold, trades, gains, precision_bound(gains, trades, config)))
    return found


def prove_promise(fitted: Calibration, raw: FloatArray, gained: BoolArray, config: GateConfig,
                  behind: Callable[[Gate], BoolArray]) -> Calibration:
    """The calibration whose promise holds for the trades that the gate lets the team make. It was `fitted` on
    `raw` (N, K) and `gained` (N,); `behind`: a gate -> which trades gained in sessions of their own behind it.

    A gate changes what follows: where it refuses, the team stays flat and comes to trades that the open gate never
    saw. So each threshold is tried in sessions on the same rows, and the bound of its precision, at the level that
    all thresholds share, must reach the promise there; else the next smaller coverage is tried.
    """
    if not fitted.promise_kept:
        return fitted
    for candidate in candidates(confidences(raw, fitted.temperature, config.kappa), gained, config):
        if candidate.bound < config.promised_precision:
            continue
        kept = behind(Gate(config, fitted.temperature, candidate.threshold))
        trades, gains = kept.size, int(kept.sum())
        bound = precision_bound(gains, trades, config)
        if trades >= config.min_trades and bound >= config.promised_precision:
            return fitted.model_copy(update={
                "threshold": candidate.threshold, "coverage": candidate.trades / gained.size, "trades": trades,
                "precision": gains / trades, "precision_bound": bound})
    return fitted.model_copy(update={"threshold": NOTHING_PASSES, "promise_kept": False, "coverage": 0.0,
                                     "trades": 0, "precision": None, "precision_bound": None})


def _quantiles(confidence: FloatArray) -> tuple[float, ...]:
    """At most _QUANTILES of the confidences, each one that occurred, so that equal ones stay equal."""
    if confidence.size == 0:
        return ()
    ranks = np.linspace(0, confidence.size - 1, min(_QUANTILES, confidence.size)).round().astype(np.int64)
    return tuple(np.sort(confidence)[ranks].tolist())


class AdaptiveConformal:
    """Online correction of the gate's threshold (Gibbs and Candès 2021, arXiv 2106.00170), towards caution only.

    `level` is the share of the calibration's trades that pass. After every executed trade
    level += rate · (target - lost), target = 1 - promised precision: losses tighten the gate, gains open it, up to
    where the calibration left it, because nothing beyond was promised. For any sequence of n outcomes the share of
    losing trades is at most target + level_0 / (rate · n), unless `level` has reached `floor`, which keeps a few
    trades passing, without which nothing would be learnt any more.

    The state is a fold over the outcomes: the same outcomes in the same order give the same bits.
    """

    def __init__(self, confidence: FloatArray, threshold: float, promised_precision: float, rate: float,
                 floor: float = 0.01) -> None:
        if confidence.size == 0:
            raise ValueError("an online correction needs the confidences of the calibration split")
        self._sorted = np.sort(confidence)
        self._calibrated = threshold
        self._target, self._rate, self._floor = 1.0 - promised_precision, rate, floor
        self._ceiling = float(np.clip((confidence >= threshold).mean(), floor, 1.0))
        self.reset()

    @staticmethod
    def of(calibration: Calibration | None, rate: float) -> AdaptiveConformal | None:
        """The correction of a calibrated gate; None where there is nothing to correct: rate 0, no calibration, or
        a gate that is shut anyway."""
        if calibration is None or not calibration.promise_kept or not calibration.quantiles or rate == 0.0:
            return None
        return AdaptiveConformal(np.asarray(calibration.quantiles), calibration.threshold,
                                 calibration.promised_precision, rate)

    def reset(self) -> None:
        """Forget all outcomes."""
        self.level = self._ceiling

    @property
    def threshold(self) -> float:
        """The threshold now."""
        return self.threshold_at(self.level)

    def threshold_at(self, level: float) -> float:
        """The threshold at a level, never below the calibrated one; a gate that passes nothing stays shut."""
        if self._calibrated > 1.0:
            return NOTHING_PASSES
        if level >= self._ceiling:
            return self._calibrated
        n, q = self._sorted.size, 1.0 - level
        place = math.ceil(n * q + (1.0 - q) - 1.0)  # np.quantile(..., method="higher"), at a fiftieth of its price
        return max(float(self._sorted[place]), self._calibrated)

    def after(self, level: float | None, gained: Iterable[bool]) -> float:
        """The level that follows `level` (None: nothing was traded yet) when trades end with these outcomes."""
        floor, ceiling = self._floor, self._ceiling
        level = ceiling if level is None else min(max(level, floor), ceiling)
        gain_step, loss_step = self._rate * self._target, self._rate * (self._target - 1.0)
        for gain in gained:  # a request may tell of a thousand
            level += gain_step if gain else loss_step
            level = floor if level < floor else ceiling if level > ceiling else level
        return level

    def update(self, gained: bool) -> float:
        """Account for one executed trade; returns the new threshold."""
        self.level = self.after(self.level, (gained,))
        return self.threshold
