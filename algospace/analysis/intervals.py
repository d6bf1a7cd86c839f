"""How far a mean could be off: bootstrap intervals for independent values (seeds) and for series (P&L per bar).

    bootstrap_interval      values that know nothing of each other; one per seed
    stationary_interval     a series with dependence: blocks of geometric length, wrapped around its end
    stationary_rows         one resample's row numbers, for any statistic

Sources: Politis and Romano 1994, "The stationary bootstrap" (doi:10.1080/01621459.1994.10476870); block length by
Politis and White 2004 as corrected by Patton, Politis and White 2009 (doi:10.1080/07474930802459016); quantiles
widened for few values by Hesterberg 2015 (doi:10.1080/00031305.2015.1089789).
`algospace.analysis.metrics.stationary_bootstrap` is for Sharpe ratios of daily returns; here are long series whose
dependence decides the block length.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from algospace.types import AnyArray, FloatArray, IntArray

_CHUNK_CELLS = 4_000_000
"""Cells of one chunk of resamples: bounds the memory."""

Statistic = Callable[[FloatArray], float]


@dataclass(frozen=True)
class Interval:
    """`estimate` of all values; `low` and `high` bound it with probability `confidence`, None where nothing can be
    said (fewer than two values)."""

    estimate: float
    low: float | None
    high: float | None
    confidence: float
    values: int

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for a JSON report."""
        return asdict(self)

    def excludes(self, value: float) -> bool:
        """Whether `value` lies outside."""
        return self.low is not None and self.high is not None and not self.low <= value <= self.high


def bootstrap_interval(values: FloatArray, confidence: float = 0.95, resamples: int = 20_000,
                       seed: int = 0) -> Interval:
    """The mean of independent values (n,) and its percentile interval, widened as a t interval is for small n.

    Plain percentiles of 5 values cover the mean in 83 of 100 cases instead of 95: resampling divides by n where a
    variance divides by n-1, and knows no fat tails. The levels become Φ(±sqrt(n/(n-1))·t_{n-1}). As no interval
    reaches beyond its values, 5 of them cover a median in at most 94 of 100 cases.
    """
    values = _checked(values, confidence)
    n = values.size
    if n < 2:
        return Interval(float(values.mean()), None, None, confidence, n)
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, n, (resamples, n))].mean(axis=1)
    from scipy import stats  # 60 MB and half a second, which no service needs

    reach = math.sqrt(n / (n - 1)) * stats.t.ppf(0.5 + confidence / 2.0, n - 1)
    tail = float(stats.norm.cdf(-reach))
    low, high = np.quantile(means, (tail, 1.0 - tail))
    return Interval(float(values.mean()), float(low), float(high), confidence, n)


def stationary_interval(series: FloatArray, confidence: float = 0.95, resamples: int = 2_000, seed: int = 0,
                        block: float | None = None, statistic: Statistic | None = None) -> Interval:
    """Percentile interval of the mean, or of `statistic` (series -> number), of a dependent series (n,).

    block: mean block length in rows; by default `optimal_block` chooses it. Means take prefix sums, O(n / block)
    a resample; any other statistic sees each resampled series, O(n).
    """
    series = _checked(series, confidence)
    if series.size < 2:
        return Interval(float(series.mean()), None, None, confidence, series.size)
    length = optimal_block(series) if block is None else float(block)
    if not 1.0 <= length <= series.size:
        raise ValueError(f"a mean block has between 1 and {series.size} rows, got {length:g}")
    rng = np.random.default_rng(seed)
    if statistic is None:
        estimate, drawn = float(series.mean()), _resampled_means(series, length, resamples, rng)
    else:
        estimate = statistic(series)
        drawn = np.array([statistic(series[stationary_rows(series.size, length, rng)]) for _ in range(resamples)])
    low, high = np.quantile(drawn, (0.5 - confidence / 2.0, 0.5 + confidence / 2.0))
    return Interval(float(estimate), float(low), float(high), confidence, series.size)


def stationary_rows(n: int, block: float, rng: np.random.Generator) -> IntArray:
    """Row numbers (n,) of one resample: each row follows the one before it, or, with probability 1/block, a new
    block starts anywhere; the series is a circle."""
    fresh = rng.random(n) < 1.0 / block
    fresh[0] = True
    first = np.flatnonzero(fresh)
    which = np.cumsum(fresh) - 1
    starts = rng.integers(0, n, first.size)
    rows: IntArray = (starts[which] + np.arange(n) - first[which]) % n
    return rows


def optimal_block(series: FloatArray) -> float:
    """Mean block length that minimises the error of the stationary bootstrap's variance of the mean, >= 1.

    (G²·n / g(0)²)^(1/3) with G = Σ λ(k/m)·|k|·R(k), g(0) = Σ λ(k/m)·R(k), R the autocovariance, λ the flat-top
    window, and m twice the lag behind which the autocorrelation stays within 2·sqrt(log10(n)/n) of zero.
    """
    n = series.size
    centred = series - series.mean()
    run = max(5, math.isqrt(max(int(math.log10(n)), 1)))
    longest = min(math.ceil(math.sqrt(n)) + run, n - 1)
    covariance = _autocovariance(centred, longest)
    if covariance[0] <= 0.0:
        return 1.0
    small = np.abs(covariance[1:] / covariance[0]) < 2.0 * math.sqrt(math.log10(n) / n)
    quiet = np.convolve(small, np.ones(run), "valid") == run  # `run` small correlations in a row
    lag = int(np.argmax(quiet)) if quiet.any() else longest // 2
    window = min(2 * max(lag, 1), longest)
    k = np.arange(1, window + 1)
    weight = np.minimum(1.0, 2.0 * (1.0 - k / window))
    slope = 2.0 * float(np.sum(weight * k * covariance[1: window + 1]))
    level = float(covariance[0] + 2.0 * np.sum(weight * covariance[1: window + 1]))
    if level <= 0.0 or slope == 0.0:
        return 1.0
    longest_block = max(min(3.0 * math.sqrt(n), n / 3.0), 1.0)
    return float(min(max((slope * slope * n / (level * level)) ** (1.0 / 3.0), 1.0), longest_block))


def _autocovariance(centred: FloatArray, lags: int) -> FloatArray:
    n = centred.size
    return np.array([float(centred[: n - k] @ centred[k:]) / n for k in range(lags + 1)])


def _resampled_means(series: FloatArray, block: float, resamples: int, rng: np.random.Generator) -> FloatArray:
    """Means of `resamples` resampled series, from prefix sums of the series laid twice in a row."""
    n = series.size
    centre = float(series.mean())  # sums of deviations keep their digits
    sums = np.concatenate(([0.0], np.cumsum(np.tile(series - centre, 2))))
    blocks = math.ceil(n / block + 8.0 * math.sqrt(n / block) + 8.0)
    means, rows = np.empty(resamples), max(_CHUNK_CELLS // blocks, 1)
    for first in range(0, resamples, rows):
        size = min(rows, resamples - first)
        starts, lengths = _blocks(n, block, (size, blocks), rng)
        means[first: first + size] = (sums[starts + lengths] - sums[starts]).sum(axis=1) / n + centre
    return means


def _blocks(n: int, block: float, shape: tuple[int, int], rng: np.random.Generator) -> tuple[AnyArray, AnyArray]:
    """(starts, lengths) of blocks whose lengths add up to n in every row; those behind the n-th row are empty.

    So many blocks are drawn that n rows are all but certainly filled; the last takes what may be missing.
    """
    ends = np.minimum(np.cumsum(rng.geometric(min(1.0 / block, 1.0), shape), axis=1), n)
    ends[:, -1] = n
    return rng.integers(0, n, shape), np.diff(ends, axis=1, prepend=0)


def _checked(values: AnyArray, confidence: float) -> FloatArray:
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"an interval needs a series of finite numbers, got shape {values.shape}"
                         f"{'' if np.isfinite(values).all() else ' with NaN or infinity'}")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence lies between 0 and 1, got {confidence}")
    return values
