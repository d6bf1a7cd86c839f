"""The decision gate (Gate 2): from K dropout masks to EXECUTE or a named reason not to. No torch.

    score_k     mean over agreeing voters of p_k(direction) · p_k(execute), for dropout mask k
    confidence  mean_k s(score_k) - kappa · std_k s(score_k),   s(x) = sigmoid(logit(x) / temperature)
    verdict     confidence >= threshold and mutual information <= max_uncertainty

MC dropout as approximate Bayesian inference: Gal and Ghahramani 2016 (arXiv 1506.02142); temperature scaling:
Guo et al. 2017 (arXiv 1706.04599). Mean probabilities, not vote shares, are compared with the threshold: at
K = 30 a share of 0.75 passes 0.8 in a third of all draws.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba as nb
import numpy as np
from pydantic import Field

from algospace.config import FrozenConfig
from algospace.execution.decision import Reason
from algospace.types import AnyArray, BoolArray, FloatArray, IntArray

SHORT, PASS, LONG = 0, 1, 2
REJECT, EXECUTE, CLOSE = 0, 1, 2
NOTHING_PASSES = 1.01
"""A threshold above every confidence: the answer of a calibration that cannot keep its promise."""
_TINY = 1e-12
_NOT_ASKED = -1
_NO_EXECUTION = np.zeros((0, 3))


class GateConfig(FrozenConfig):
    """How much certainty a trade needs."""

    iterations: int = Field(default=30, ge=1, le=256)
    """Dropout masks per decision; 1 decides without dropout."""
    confidence_threshold: float = Field(default=0.8, ge=0)
    """Until a calibration replaces it."""
    kappa: float = Field(default=0.0, ge=0)
    max_uncertainty: float | None = Field(default=None, ge=0)
    """Largest mutual information, nats, of the agents that speak for the trade; None asks nothing."""
    promised_precision: float = Field(default=0.55, gt=0, lt=1)
    """Share of executed trades with a net gain."""
    promise_level: float = Field(default=0.9, gt=0, lt=1)
    """Probability with which a calibration's promise holds for new trades like those it was fitted on."""
    min_trades: int = Field(default=30, ge=1)
    adaptive_rate: float = Field(default=0.02, ge=0, lt=1)
    """Step of the online correction; 0 switches it off."""


class Votes(NamedTuple):
    """Votes of one decision. `probabilities` (K, 3, 3) mask by voter by vote; `mean` (3, 3) over masks;
    `chosen` (3,) the voters' votes by mean probability; `agreeing` (3,) bool: voted for `direction`."""

    probabilities: FloatArray
    mean: FloatArray
    chosen: IntArray
    direction: int
    agreeing: BoolArray


class Uncertainty(NamedTuple):
    """entropy and mutual_information in nats, mean over the agents that speak for the trade; std of the score
    over masks; agreement: share of masks under which the same direction wins."""

    entropy: float
    mutual_information: float
    std: float
    agreement: float


class Verdict(NamedTuple):
    """What the gate says about one decision; `raw` (K,) are the scores that a calibration is fitted on."""

    reason: Reason
    confidence: float
    uncertainty: Uncertainty
    raw: FloatArray


def count_votes(logits: AnyArray) -> Votes:
    """Voter logits (K, 3, 3) -> the votes by mean probability and the direction that they agree on."""
    return Votes(*_count(logits))


def execution_probabilities(logits: AnyArray) -> FloatArray:
    """Execution logits (K, 1, 3) -> (K, 3)."""
    probabilities: FloatArray = _softmax_and_mean(logits)[0][:, 0]
    return probabilities


def confidences(raw: FloatArray, temperature: float, kappa: float) -> FloatArray:
    """Raw scores (N, K) -> confidence (N,) in [0, 1]."""
    out = np.empty(raw.shape[0])
    for n in range(raw.shape[0]):
        out[n] = _confidence(raw[n], temperature, kappa)
    return out


class Gate:
    """The gate of one bundle: pure, so the same numbers give the same verdict on every replica."""

    def __init__(self, config: GateConfig, temperature: float = 1.0, threshold: float | None = None) -> None:
        self.config, self.temperature = config, temperature
        self.threshold = config.confidence_threshold if threshold is None else threshold

    def decide(self, votes: Votes, execution: FloatArray | None, threshold: float | None = None) -> Verdict:
        """Judge one decision; `execution` (K, 3) holds probabilities, None where the agent was not asked.

        Only EXECUTE needs confidence: to close or to stay out is always allowed. `threshold` replaces the
        calibrated one (the online correction hands its own in).
        """
        raw, numbers, action = _judge(votes.probabilities, votes.agreeing, votes.direction,
                                      _NO_EXECUTION if execution is None else execution,
                                      self.temperature, self.config.kappa)
        confidence, *measures = numbers
        uncertainty = Uncertainty(*measures)
        reason = self._reason(votes.direction, action, confidence, uncertainty,
                              self.threshold if threshold is None else threshold)
        return Verdict(reason, confidence, uncertainty, raw)

    def _reason(self, direction: int, action: int, confidence: float, uncertainty: Uncertainty,
                threshold: float) -> Reason:
        if action == CLOSE:
            return Reason.CLOSE
        if direction == 0 or action == _NOT_ASKED:
            return Reason.NO_OPPORTUNITY
        if action == REJECT:
            return Reason.REJECTED
        if not confidence >= threshold:  # so that NaN, which no comparison holds for, never trades
            return Reason.LOW_CONFIDENCE
        limit = self.config.max_uncertainty
        if limit is not None and not uncertainty.mutual_information <= limit:
            return Reason.HIGH_UNCERTAINTY
        return Reason.EXECUTE


@nb.njit(cache=True)
def agreed(first: Any, second: Any, third: Any) -> int:
    """The direction on which two of three votes (0 short, 1 pass, 2 long) agree, else 0."""
    if (first == LONG) + (second == LONG) + (third == LONG) >= 2:
        return 1
    return -1 if (first == SHORT) + (second == SHORT) + (third == SHORT) >= 2 else 0


@nb.njit(cache=True)
def _softmax_and_mean(logits: AnyArray) -> Any:
    """Logits (K, A, 3) -> probabilities (K, A, 3) in float64 and their mean over K (A, 3)."""
    samples, agents, actions = logits.shape
    probabilities, mean = np.empty((samples, agents, actions)), np.zeros((agents, actions))
    for k in range(samples):
        for a in range(agents):
            top = logits[k, a, 0]
            for c in range(1, actions):
                top = max(top, logits[k, a, c])
            total = 0.0
            for c in range(actions):
                probabilities[k, a, c] = np.exp(np.float64(logits[k, a, c]) - np.float64(top))
                total += probabilities[k, a, c]
            for c in range(actions):
                probabilities[k, a, c] /= total
                mean[a, c] += probabilities[k, a, c]
    return probabilities, mean / samples


@nb.njit(cache=True)
def _count(logits: AnyArray) -> Any:
    """The fields of Votes."""
    probabilities, mean = _softmax_and_mean(logits)
    chosen = np.array([np.argmax(mean[0]), np.argmax(mean[1]), np.argmax(mean[2])])
    direction = agreed(chosen[0], chosen[1], chosen[2])
    return probabilities, mean, chosen, direction, (chosen == direction + 1) & (direction != 0)


@nb.njit(cache=True)
def _confidence(raw: FloatArray, temperature: float, kappa: float) -> float:
    total, squares = 0.0, 0.0
    for k in range(raw.size):
        x = raw[k]
        if temperature != 1.0:
            x = min(max(x, _TINY), 1.0 - _TINY)
            x = 1.0 / (1.0 + np.exp(-(np.log(x) - np.log1p(-x)) / temperature))
        total += x
        squares += x * x
    mean = total / raw.size
    std = np.sqrt(max(squares / raw.size - mean * mean, 0.0))
    return min(max(mean - kappa * std, 0.0), 1.0)


@nb.njit(inline="always", cache=True)
def _entropy(p: FloatArray) -> float:
    total = 0.0
    for c in range(p.size):
        total -= p[c] * np.log(max(p[c], _TINY))
    return total


@nb.njit(cache=True)
def _spread(probabilities: FloatArray) -> Any:
    """(entropy of the mean, mutual information) of one agent's probabilities (K, 3): what remains uncertain, and
    what the masks disagree about (Houlsby et al. 2011, arXiv 1112.5745)."""
    samples = probabilities.shape[0]
    mean, expected = np.zeros(probabilities.shape[1]), 0.0
    for k in range(samples):
        expected += _entropy(probabilities[k])
        for c in range(mean.size):
            mean[c] += probabilities[k, c]
    total = _entropy(mean / samples)
    return total, max(total - expected / samples, 0.0)


@nb.njit(cache=True)
def _judge(probabilities: FloatArray, agreeing: BoolArray, direction: int, execution: FloatArray,
           temperature: float, kappa: float) -> Any:
    """(raw scores (K,), (confidence, entropy, mutual information, std, agreement), action by mean probability)."""
    samples, asked = probabilities.shape[0], execution.shape[0] > 0
    raw = np.zeros(samples)
    speakers, entropy, information, same = 0, 0.0, 0.0, 0
    for a in range(3):
        if direction == 0 or agreeing[a]:
            total, disagreement = _spread(probabilities[:, a])
            speakers += 1
            entropy += total
            information += disagreement
    mean = np.zeros(3)
    for k in range(samples):
        same += agreed(np.argmax(probabilities[k, 0]), np.argmax(probabilities[k, 1]),
                       np.argmax(probabilities[k, 2])) == direction
        if asked:
            mean += execution[k]
            for a in range(3):
                if direction != 0 and agreeing[a]:
                    raw[k] += probabilities[k, a, direction + 1] / speakers * execution[k, EXECUTE]
    action = _NOT_ASKED
    if asked:
        action = int(np.argmax(mean))
        total, disagreement = _spread(execution)
        speakers += 1
        entropy += total
        information += disagreement
    numbers = (_confidence(raw, temperature, kappa), entropy / speakers, information / speakers, np.std(raw),
               same / samples)
    return raw, numbers, action
