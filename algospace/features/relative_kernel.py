"""The compiled step of the relative columns: one base row against the last known bars of other instruments.

Every window is summed anew, in order of time, so nothing drifts and a restored state continues to the bit. Rings
are written twice, one length apart, so that a window is always one contiguous stretch.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numba as nb
import numpy as np

from algospace.types import AnyArray, FloatArray, IntArray

NEVER = np.iinfo(np.int64).min
# sums of squares below this share of the values' own are rounding, not variation (1e-12 of the values)
_ROUNDING = 1e-24


class RelativeParams(NamedTuple):
    """strength (windows,) rows; zscore, beta windows; lag; bar_ns; per other: delay_ns, max_age (base bars);
    neutral: 1 if stale values become 0 instead of NaN."""

    strength: IntArray
    zscore: int
    beta: int
    lag: int
    bar_ns: int
    delay_ns: IntArray
    max_age: FloatArray
    neutral: int


class RelativeState(NamedTuple):
    """rows (1,); base (2R,) log closes of base rows; other (k, 2R) as-of log prices at the same rows.

    price, ts_close (k,): the last known bar of each other; sample_base, sample_other (k,): log prices at the row
    that first saw its last bar; samples (k,); return_base, return_other (k, 2S): log returns between such rows;
    held (k, 3): beta, correlation, lead.
    """

    rows: IntArray
    base: FloatArray
    other: FloatArray
    price: FloatArray
    ts_close: IntArray
    sample_base: FloatArray
    sample_other: FloatArray
    samples: IntArray
    return_base: FloatArray
    return_other: FloatArray
    held: FloatArray


def new_state(params: RelativeParams) -> RelativeState:
    """Before the first row."""
    k = params.delay_ns.size
    rows = max(int(params.strength.max(initial=0)) + 1, params.zscore)
    returns = params.beta + params.lag

    def unknown(*shape: int) -> FloatArray:
        return np.full(shape, np.nan)

    return RelativeState(
        np.zeros(1, np.int64), unknown(2 * rows), unknown(k, 2 * rows), unknown(k), np.full(k, NEVER), unknown(k),
        unknown(k), np.zeros(k, np.int64), unknown(k, 2 * returns), unknown(k, 2 * returns), unknown(k, 3),
    )  # fmt: skip


@nb.njit(cache=True)
def run(
    s: Any, p: Any, ts: IntArray, close: FloatArray, other_ts: IntArray, other_close: FloatArray, first: IntArray,
    out: AnyArray,
) -> None:  # fmt: skip
    """Base rows (n,) in time order into out (k · per_other, n), moving the state on.

    The bars of other j are other_ts, other_close[first[j]:first[j + 1]], by ts_close; each is seen by the first
    row at or after its ts_close + delay.
    """
    k = p.delay_ns.size
    pointer = first[:k].copy()
    per_other = out.shape[0] // max(k, 1)
    for i in range(ts.size):
        ring = s.base.size // 2
        at = s.rows[0] % ring
        log_base = math.log(close[i])
        s.base[at] = s.base[at + ring] = log_base
        for j in range(k):
            new = False
            while pointer[j] < first[j + 1] and other_ts[pointer[j]] + p.delay_ns[j] <= ts[i]:
                s.ts_close[j] = other_ts[pointer[j]]
                s.price[j] = other_close[pointer[j]]
                pointer[j] += 1
                new = True
            log_other = math.log(s.price[j]) if s.ts_close[j] != NEVER else np.nan
            s.other[j, at] = s.other[j, at + ring] = log_other
            if new:
                _sample(s, p, j, log_base, log_other)
            _write(s, p, j, at + ring, ts[i], out[j * per_other:(j + 1) * per_other, i])
        s.rows[0] += 1


@nb.njit(cache=True)
def _sample(s: Any, p: Any, j: int, log_base: float, log_other: float) -> None:
    """A row that sees a new bar of other j: one pair of returns since the last such row, and what follows."""
    if not np.isnan(s.sample_base[j]):
        ring = s.return_base.shape[1] // 2
        at = s.samples[j] % ring
        s.return_base[j, at] = s.return_base[j, at + ring] = log_base - s.sample_base[j]
        s.return_other[j, at] = s.return_other[j, at + ring] = log_other - s.sample_other[j]
        s.samples[j] += 1
        if s.samples[j] >= p.beta:
            start = at + ring + 1 - p.beta - p.lag
            known_lag = s.samples[j] >= p.beta + p.lag
            _pairs(s.return_base[j, start:], s.return_other[j, start:], p.beta, p.lag, known_lag, s.held[j])
    s.sample_base[j] = log_base
    s.sample_other[j] = log_other


@nb.njit(cache=True)
def _pairs(x: FloatArray, y: FloatArray, n: int, lag: int, known_lag: bool, held: FloatArray) -> None:
    """beta, correlation and lead of the last n of n + lag returns, x of the base and y of the other, into `held`.

    One pass for the means and one for all products about them: seven independent sums keep the processor busy.
    """
    x_0, y_0, x_l, y_l = x[lag:lag + n], y[lag:lag + n], x[:n], y[:n]  # now, and `lag` returns earlier
    mx_0 = my_0 = mx_l = my_l = 0.0
    for t in range(n):
        mx_0 += x_0[t]
        my_0 += y_0[t]
        mx_l += x_l[t]
        my_l += y_l[t]
    mx_0, my_0, mx_l, my_l = mx_0 / n, my_0 / n, mx_l / n, my_l / n
    xx_0 = yy_0 = xy = xx_l = yy_l = follows = precedes = 0.0
    for t in range(n):
        dx_0, dy_0, dx_l, dy_l = x_0[t] - mx_0, y_0[t] - my_0, x_l[t] - mx_l, y_l[t] - my_l
        xx_0 += dx_0 * dx_0
        yy_0 += dy_0 * dy_0
        xy += dx_0 * dy_0
        xx_l += dx_l * dx_l
        yy_l += dy_l * dy_l
        follows += dx_0 * dy_l
        precedes += dx_l * dy_0
    xx_0, yy_0 = _varied(xx_0, n, mx_0), _varied(yy_0, n, my_0)
    held[0] = xy / yy_0 if yy_0 > 0.0 else 0.0
    held[1] = _correlation(xx_0, yy_0, xy)
    if known_lag:
        xx_l, yy_l = _varied(xx_l, n, mx_l), _varied(yy_l, n, my_l)
        held[2] = _correlation(xx_0, yy_l, follows) - _correlation(xx_l, yy_0, precedes)


@nb.njit(cache=True)
def _varied(square: float, n: int, mean: float) -> float:
    """A sum of squares about the mean; 0 where it is rounding only."""
    return 0.0 if square <= _ROUNDING * (square + n * mean * mean) else square


@nb.njit(cache=True)
def _correlation(xx: float, yy: float, xy: float) -> float:
    if xx == 0.0 or yy == 0.0:
        return 0.0
    return max(-1.0, min(1.0, xy / (math.sqrt(xx) * math.sqrt(yy))))


@nb.njit(cache=True)
def _ratio_z(base: FloatArray, other: FloatArray) -> float:
    """z-score of the last log ratio base/other among all of these."""
    n = base.size
    mean = 0.0
    for t in range(n):
        mean += base[t] - other[t]
    mean /= n
    square = 0.0
    for t in range(n):
        d = base[t] - other[t] - mean
        square += d * d
    square = _varied(square, n, mean)
    return (base[n - 1] - other[n - 1] - mean) / math.sqrt(square / n) if square > 0.0 else 0.0


@nb.njit(cache=True)
def _write(s: Any, p: Any, j: int, now: int, ts: int, out: AnyArray) -> None:
    """Columns of other j at the row in ring place `now`: close, age, strength…, z, beta, correlation, lead."""
    windows = p.strength.size
    if s.ts_close[j] == NEVER:
        out[:] = np.nan
        return
    other = s.other[j]
    for w in range(windows):
        before = now - p.strength[w]
        out[2 + w] = (s.base[now] - s.base[before]) - (other[now] - other[before])
    start = now + 1 - p.zscore
    known = not (np.isnan(other[start]) or np.isnan(s.base[start]))
    out[2 + windows] = _ratio_z(s.base[start:now + 1], other[start:now + 1]) if known else np.nan
    for c in range(3):
        out[3 + windows + c] = s.held[j, c]
    age = (ts - s.ts_close[j]) / p.bar_ns
    out[0] = s.price[j]
    out[1] = age
    if age > p.max_age[j]:
        out[1] = p.max_age[j]
        for c in range(2, out.size):
            if not np.isnan(out[c]):
                out[c] = 0.0 if p.neutral else np.nan
