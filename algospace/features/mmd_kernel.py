"""Maximum mean discrepancy of short one-dimensional samples: exact median distance, kernel sums.

Both are the cost of the regime columns, so they use what one dimension offers: the sorted sample gives counts of
distances in linear time, and the kernel sum is a loop the compiler turns into vector instructions.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np

from algospace.types import FloatArray

_FEW = 64  # distances left between the bounds when they are sorted rather than bounded further


@nb.njit(cache=True)
def replace_sorted(ordered: FloatArray, old: float, new: float, used: int) -> None:
    """Put `new` into the ascending first `used` values; a full array gives up one value equal to `old`."""
    place = used if used < ordered.size else int(np.searchsorted(ordered, old))
    while place > 0 and ordered[place - 1] > new:
        ordered[place] = ordered[place - 1]
        place -= 1
    while used == ordered.size and place < used - 1 and ordered[place + 1] < new:
        ordered[place] = ordered[place + 1]
        place += 1
    ordered[place] = new


@nb.njit(cache=True)
def count_distances(ordered: FloatArray, bound: float) -> Any:
    """Number of pairs of an ascending sample at most `bound` apart."""
    count, i = 0, 0
    for j in range(ordered.size):
        while ordered[j] - ordered[i] > bound:
            i += 1
        count += j - i
    return count


@nb.njit(cache=True)
def median_distance(ordered: FloatArray, guess: float) -> Any:
    """Median of all pairwise distances of an ascending sample, equal to np.median of them to the bit.

    `guess` (any number, NaN for none) only saves time. Bounds are narrowed by counting until few distances are
    left between them, then these are sorted. A count that falls between the two middle ranks splits them.
    """
    n = ordered.size
    pairs = n * (n - 1) // 2
    upper_rank = pairs // 2  # of the larger middle distance, from 0
    lower_rank = (pairs - 1) // 2
    low, high = 0.0, ordered[n - 1] - ordered[0]
    low_count, high_count = count_distances(ordered, 0.0), pairs
    if low_count > upper_rank:
        return 0.0
    if low_count > lower_rank:
        return _split_middle(ordered, 0.0)
    probe = guess
    tries = 0
    while high_count - low_count > _FEW:
        if not low < probe < high:
            probe = 0.5 * (low + high)
            if not low < probe < high:  # neighbouring numbers: all distances left are equal
                return high
        count = count_distances(ordered, probe)
        if lower_rank < count <= upper_rank:
            return _split_middle(ordered, probe)
        if count <= lower_rank:
            low, low_count = probe, count
        else:
            high, high_count = probe, count
        tries += 1
        probe = _next_probe(probe, count - upper_rank, pairs, tries, low, high)
    return _middle_between(ordered, low, high, lower_rank - low_count, upper_rank - low_count)


@nb.njit(cache=True)
def _next_probe(probe: float, excess: int, pairs: int, tries: int, low: float, high: float) -> Any:
    """At first a step a little beyond the median, by the slope that distances of a normal sample have there
    (0.43 of the pairs per unit of log distance); then bisection."""
    if tries <= 6:
        beyond = 0.2 * excess + (20.0 if excess > 0 else -20.0)
        return probe * (1.0 - (excess + beyond) / (0.43 * pairs))
    return 0.5 * (low + high)


@nb.njit(cache=True)
def _split_middle(ordered: FloatArray, bound: float) -> Any:
    """Mean of the largest distance up to `bound` and the smallest above it."""
    below, above = 0.0, np.inf
    i = 0
    for j in range(ordered.size):
        while ordered[j] - ordered[i] > bound:
            i += 1
        if i < j:
            below = max(below, ordered[j] - ordered[i])
        if i > 0:
            above = min(above, ordered[j] - ordered[i - 1])
    return 0.5 * (below + above)


@nb.njit(cache=True)
def _middle_between(ordered: FloatArray, low: float, high: float, lower: int, upper: int) -> Any:
    """Mean of the distances of rank `lower` and `upper` among those in (low, high]."""
    found = np.empty(_FEW)
    size, first, stop = 0, 0, 0
    for j in range(ordered.size):
        while ordered[j] - ordered[first] > high:
            first += 1
        while ordered[j] - ordered[stop] > low:
            stop += 1
        for i in range(first, stop):
            value = ordered[j] - ordered[i]
            place = size
            while place > 0 and found[place - 1] > value:
                found[place] = found[place - 1]
                place -= 1
            found[place] = value
            size += 1
    return 0.5 * (found[lower] + found[upper])


@nb.njit(inline="always")
def _kernel(distance: float) -> Any:
    """exp(-distance^2) as (exp(-distance^2 / 128))^128: a Taylor polynomial and seven squarings.

    Absolute error below 1e-13 (polynomial 4e-16, squarings 128 ulp); arguments are cut where the kernel is
    1e-27. Only additions, multiplications and a choice, so that the loop around it becomes vector code.
    """
    square = distance * distance
    square = square if square < 62.0 else 62.0
    y = square * (-1.0 / 128.0)
    e = 1.0 + y * (1.0 + y * (1 / 2 + y * (1 / 6 + y * (1 / 24 + y * (1 / 120 + y * (1 / 720 + y * (1 / 5040)))))))
    e = e * e
    e = e * e
    e = e * e
    e = e * e
    e = e * e
    e = e * e
    return e * e


@nb.njit(cache=True)
def _add_row(value: float, others: FloatArray, scale: float, sums: FloatArray) -> None:
    """Add the kernel of `value` and every one of `others` to `sums`, place by place."""
    for j in range(others.size):
        sums[j] += _kernel((others[j] - value) * scale)


@nb.njit(cache=True)
def mmd_squared(values: FloatArray, recent: int, bandwidth: float, scratch: FloatArray) -> Any:
    """Unbiased MMD^2 between the last `recent` values and those before them, Gaussian kernel exp(-d^2/(2 b^2)).

    Sums are kept per column in `scratch` (one place per value) and added up at the end, because only sums in
    different places may be vectorised without changing a result. Slices, not offsets: an index that might be
    negative would keep the loop scalar (79 against 17 us for 160 values).
    """
    past = values.size - recent
    scale = 1.0 / (np.sqrt(2.0) * bandwidth)
    scratch[:] = 0.0
    for i in range(past):
        _add_row(values[i], values[i + 1:], scale, scratch[i + 1:])
    within_past, across = np.sum(scratch[:past]), np.sum(scratch[past:])
    scratch[past:] = 0.0
    for i in range(past, values.size):
        _add_row(values[i], values[i + 1:], scale, scratch[i + 1:])
    within_recent = np.sum(scratch[past:])
    return (2.0 * within_past / (past * (past - 1.0)) + 2.0 * within_recent / (recent * (recent - 1.0))
            - 2.0 * across / (past * float(recent)))
