"""How much of a backtest is luck: probabilistic and deflated Sharpe ratio, probability of backtest overfitting.

Sharpe ratios here are per period (not annualised), and kurtosis is the plain fourth moment (3 for a normal).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats

from algospace.types import FloatArray

EULER_MASCHERONI = 0.5772156649015329


def probabilistic_sharpe(returns: FloatArray, benchmark: float = 0.0) -> float | None:
    """P(true Sharpe > `benchmark`) given the sample, its skewness and kurtosis; None without variance.

    PSR = Φ((SR - SR*)·sqrt(n-1) / sqrt(1 - γ3·SR + (γ4-1)/4·SR²))  (Bailey and López de Prado 2012,
    doi:10.21314/JOR.2012.255).
    """
    n = returns.size
    deviation = float(returns.std(ddof=1)) if n > 2 else 0.0
    if deviation == 0.0:
        return None
    sharpe = float(returns.mean()) / deviation
    skewness = float(stats.skew(returns))
    kurtosis = float(stats.kurtosis(returns, fisher=False))
    variance = 1.0 - skewness * sharpe + (kurtosis - 1.0) / 4.0 * sharpe * sharpe
    if variance <= 0.0:
        return None
    return float(stats.norm.cdf((sharpe - benchmark) * math.sqrt(n - 1) / math.sqrt(variance)))


def expected_best_of(trials: int, spread: float) -> float:
    """Expected maximum Sharpe of N trials without skill whose Sharpe ratios have standard deviation `spread`:
    spread·((1-γ)·Φ⁻¹(1-1/N) + γ·Φ⁻¹(1-1/(N·e))); 0 for fewer than two."""
    if trials < 2:
        return 0.0
    best: float = ((1.0 - EULER_MASCHERONI) * stats.norm.ppf(1.0 - 1.0 / trials)
                   + EULER_MASCHERONI * stats.norm.ppf(1.0 - 1.0 / (trials * math.e)))
    return spread * float(best)


def expected_best_sharpe(trial_sharpes: FloatArray, trials: int = 0) -> float:
    """`expected_best_of` the trials whose Sharpe ratios are known, or of `trials` where more were tried."""
    known = trial_sharpes.size
    return expected_best_of(max(known, trials), float(trial_sharpes.std(ddof=1))) if known > 1 else 0.0


def deflated_sharpe(returns: FloatArray, trial_sharpes: FloatArray, trials: int = 0) -> float | None:
    """PSR against the best of all trials by luck (Bailey and López de Prado 2014, doi:10.3905/jpm.2014.40.5.094).

    trial_sharpes: per-period Sharpe ratios of every configuration that was tried, the chosen one included; with
    one trial it is the plain PSR. trials: how many were tried, if some have no Sharpe ratio (they failed); where
    fewer than two have one, `deflated_sharpe_of_count`.
    """
    if trial_sharpes.size < 2 <= trials:
        return deflated_sharpe_of_count(returns, trials)
    return probabilistic_sharpe(returns, expected_best_sharpe(trial_sharpes, trials))


def deflated_sharpe_of_count(returns: FloatArray, trials: int) -> float | None:
    """The deflated Sharpe ratio where only the number of trials is known.

    The spread of their Sharpe ratios is taken to be what luck alone gives on as many periods, 1/sqrt(n-1): trials
    that differ in skill would spread more, so for those the bar is too low.
    """
    if returns.size < 2:
        return None
    return probabilistic_sharpe(returns, expected_best_of(trials, 1.0 / math.sqrt(returns.size - 1)))


def random_p_value(value: float | None, draws: FloatArray) -> float | None:
    """Share of random draws at least as good as `value`, that one counted among them: (1+k)/(1+n).

    None without a value or without draws; draws that are NaN (no variance) count as 0, a run that did nothing.
    """
    if value is None or draws.size == 0:
        return None
    return float((1 + np.count_nonzero(np.nan_to_num(draws) >= value)) / (1 + draws.size))


@dataclass(frozen=True)
class Overfitting:
    """`pbo`: share of splits whose in-sample winner is at or below the median out of sample; logits: per split."""

    pbo: float
    logits: FloatArray
    splits: int


def probability_of_overfitting(returns: FloatArray, blocks: int = 10) -> Overfitting:
    """PBO by combinatorially symmetric cross-validation of a (T, N) matrix of N strategies' returns.

    Every choice of half of the `blocks` time blocks is in-sample once; performance is the Sharpe ratio
    (Bailey, Borwein, López de Prado and Zhu 2017, doi:10.21314/JCF.2016.322). Ties rank in the middle.
    """
    rows, strategies = returns.shape
    if strategies < 2 or blocks < 2 or blocks % 2 or rows < 2 * blocks:
        raise ValueError(f"PBO needs >= 2 strategies, an even number of blocks and >= 2 rows a block, got "
                         f"{strategies} strategies, {blocks} blocks, {rows} rows")
    parts = np.array_split(np.arange(rows), blocks)
    logits = []
    for chosen in combinations(range(blocks), blocks // 2):
        inside = np.concatenate([parts[b] for b in chosen])
        outside = np.concatenate([parts[b] for b in range(blocks) if b not in chosen])
        winner = int(np.argmax(_sharpes(returns[inside])))
        rank = stats.rankdata(_sharpes(returns[outside]))[winner] / (strategies + 1)
        logits.append(math.log(rank / (1.0 - rank)))
    values = np.array(logits)
    return Overfitting(float(np.mean(values <= 0.0)), values, values.size)


def _sharpes(returns: FloatArray) -> FloatArray:
    """(N,) per-period Sharpe ratios of columns; 0 where a column never moves."""
    deviation = returns.std(axis=0, ddof=1)
    ratio: FloatArray = np.divide(returns.mean(axis=0), deviation, out=np.zeros(returns.shape[1]),
                                  where=deviation > 0.0)
    return ratio
