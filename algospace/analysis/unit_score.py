"""Scores of a unit run on a synthetic market, and the leak alarm.

A unit run holds position_t in {-1, 0, +1}, decided at close t, from the open of bar t+1 (= close t) to its
close. Notional is constant: P&L of bar t+1 = position_t · r_{t+1} - cost · |position_t - position_{t-1}|, one
tick being half a basis point at every price. The *score* puts E[r_{t+1} | past] in place of r_{t+1}, which
removes the noise of returns; it is fair only to positions chosen from the past, which the alarm watches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from algospace.errors import InternalError
from algospace.marketdata.bayes_limit import COST_TICKS, TICK_RETURN
from algospace.marketdata.synthetic import SyntheticTruth
from algospace.types import AnyArray, FloatArray

BARS_PER_YEAR = 69_552
ALARM_SE = 3.0
_BLOCK_BARS = 500
_MIN_BLOCKS = 20

Segments = Sequence[tuple[int, int]]


class LeakError(InternalError):
    """A policy earned what nobody who sees only the past can earn."""


@dataclass(frozen=True)
class UnitScore:
    """Everything per bar and in ticks unless said otherwise.

    score      mean(position·E[r] - cost): noise-free            realised  the same with actual returns
    noise_se   standard error of realised - score (block means)  score_se  of score over the market's path
    sharpe     of realised P&L, per year of 69,552 bars          trades    changes of position
    exposure   share of bars with a position                     turnover  mean |change of position| per bar
    """

    bars: int
    score: float
    score_se: float
    realised: float
    realised_se: float
    noise_se: float
    sharpe: float
    trades: int
    exposure: float
    turnover: float

    def as_dict(self) -> dict[str, float | int]:
        """Plain numbers for a JSON report."""
        return asdict(self)


@dataclass(frozen=True)
class LeakVerdict:
    """What the alarm found; `reasons` is empty when all is well. Both gaps are in standard errors."""

    reasons: tuple[str, ...]
    above_limit_se: float
    disagreement_se: float

    @property
    def leaking(self) -> bool:
        """Whether the alarm rang."""
        return bool(self.reasons)


def unit_pnl(positions: AnyArray, gains: FloatArray, segments: Segments | None = None,
             cost_ticks: float = COST_TICKS) -> FloatArray:
    """P&L in ticks of every scored decision, segment after segment.

    positions (n,) decided at close t; gains (n,) the fraction of notional that a long position decided at t
    earns over bar t+1 (actual or expected). Each segment [start, stop) starts flat and is not closed at its
    end; by default there is one, of all decisions but the last, whose bar is unknown.
    """
    parts = [np.zeros(0)]
    for start, stop in _checked_segments(positions.size, segments):
        held = np.asarray(positions[start:stop], np.float64)
        change = np.abs(np.diff(held, prepend=0.0))
        parts.append(held * gains[start:stop] / TICK_RETURN - cost_ticks * change)
    return np.concatenate(parts)


def next_returns(close: FloatArray) -> FloatArray:
    """Simple return of bar t+1 in row t; NaN in the last row."""
    out = np.full(close.size, np.nan)
    out[:-1] = close[1:] / close[:-1] - 1.0
    return out


def score_unit_run(positions: AnyArray, expected_return: FloatArray, close: FloatArray,
                   segments: Segments | None = None, cost_ticks: float = COST_TICKS) -> UnitScore:
    """Score positions (n,) in [-1, 1] against the market's truth; arrays are per base bar of one market."""
    positions = _checked_positions(positions, expected_return.size, close.size)
    expected = unit_pnl(positions, expected_return, segments, cost_ticks)
    actual = unit_pnl(positions, next_returns(close), segments, cost_ticks)
    if actual.size < 2:
        raise ValueError(f"a score needs at least two decisions, got {actual.size}")
    held, change = _held_and_changes(positions, segments)
    spread = float(actual.std(ddof=1))
    return UnitScore(
        bars=actual.size,
        score=float(expected.mean()),
        score_se=block_standard_error(expected),
        realised=float(actual.mean()),
        realised_se=block_standard_error(actual),
        noise_se=block_standard_error(actual - expected),
        sharpe=float(actual.mean()) / spread * math.sqrt(BARS_PER_YEAR) if spread > 0.0 else 0.0,
        trades=int(np.count_nonzero(change)),
        exposure=float(np.mean(held != 0.0)),
        turnover=float(change.mean()),
    )


def limit_score(truth: SyntheticTruth, close: FloatArray, segments: Segments | None = None,
                cost_ticks: float = COST_TICKS) -> UnitScore:
    """The same score for the solved limit's positions."""
    if truth.limit_position is None or truth.expected_return is None:
        raise ValueError("this scenario has no solved limit; score a planted one")
    return score_unit_run(truth.limit_position, truth.expected_return, close, segments, cost_ticks)


def fraction_of_limit(score: UnitScore, limit: UnitScore) -> float | None:
    """score / limit, or None where the limit earns nothing (a martingale)."""
    return score.score / limit.score if limit.score > 0.0 else None


def block_standard_error(values: FloatArray) -> float:
    """Standard error of the mean from means of blocks, which allows for dependence inside a block."""
    block = max(min(_BLOCK_BARS, values.size // _MIN_BLOCKS), 1)
    blocks = values.size // block
    means = values[:blocks * block].reshape(blocks, block).mean(axis=1)
    return float(means.std(ddof=1)) / math.sqrt(blocks)


def leak_alarm(score: UnitScore, limit: UnitScore) -> LeakVerdict:
    """Whether realised P&L lies above the limit, or the two scores disagree, by more than 3 standard errors.

    Both are measured by `noise_se`: given the past, luck is all that separates realised from expected P&L.
    """
    above = _in_standard_errors(score.realised - limit.score, score.noise_se)
    apart = _in_standard_errors(score.realised - score.score, score.noise_se)
    reasons = []
    if above > ALARM_SE:
        reasons.append(f"realised {score.realised:.3f} ticks per bar is {above:.1f} standard errors above the "
                       f"limit of {limit.score:.3f}")
    if abs(apart) > ALARM_SE:
        reasons.append(f"realised {score.realised:.3f} and noise-free {score.score:.3f} ticks per bar lie "
                       f"{apart:+.1f} standard errors apart")
    return LeakVerdict(tuple(reasons), above, apart)


def require_no_leak(score: UnitScore, limit: UnitScore, who: str = "the policy") -> LeakVerdict:
    """The verdict, or LeakError: positions used something that was not known when they were chosen."""
    verdict = leak_alarm(score, limit)
    if verdict.leaking:
        raise LeakError(f"{who} sees the future: {'; '.join(verdict.reasons)}; look for a column that is visible "
                        "before its bar has closed")
    return verdict


def _in_standard_errors(gap: float, error: float) -> float:
    if error > 0.0:
        return gap / error
    return 0.0 if abs(gap) < 1e-9 else math.copysign(math.inf, gap)


def _checked_segments(n: int, segments: Segments | None) -> Segments:
    if segments is None:
        return [(0, n - 1)]
    for start, stop in segments:
        if not 0 <= start < stop <= n - 1:
            raise ValueError(f"segment [{start}, {stop}) must be non-empty and end by {n - 1}: the last bar's "
                             "decision has no next bar to earn on")
    return segments


def _checked_positions(positions: AnyArray, *sizes: int) -> FloatArray:
    held = np.asarray(positions, np.float64)
    if any(size != held.size for size in sizes) or held.ndim != 1:
        raise ValueError(f"positions, expected returns and closes must be equally long, got {held.shape}, {sizes}")
    if not np.all(np.abs(held) <= 1.0):
        raise ValueError("positions of a unit run lie in [-1, 1] and are finite")
    return held


def _held_and_changes(positions: FloatArray, segments: Segments | None) -> tuple[FloatArray, FloatArray]:
    pieces = [positions[start:stop] for start, stop in _checked_segments(positions.size, segments)]
    return np.concatenate(pieces), np.concatenate([np.abs(np.diff(p, prepend=0.0)) for p in pieces])
