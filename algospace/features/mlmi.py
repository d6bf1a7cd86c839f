"""MLMI: Machine Learning Momentum Index, k nearest neighbours over stored momentum states (after Zeiierman).

The neighbours are exact, ties included. The stored points grow with history, so they lie in a grid over
[0, 100]² (with a count and a label sum per cell). All k neighbours of the last query are within its
k-th distance, so the new k-th distance is at most that plus the way the query moved, and usually almost the same:
a query ranks only the points in a thin shell, and falls back to that bound where the shell proves too thin.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba as nb
import numpy as np

from algospace.features.config import MlmiConfig
from algospace.features.smoothing import RSI_STATE, crossing, rsi_update, window_push, window_view, wma
from algospace.types import AnyArray, FloatArray, IntArray

SLOW_PERIOD, QUICK_PERIOD = 20, 5
_CELLS = 40
_CELLS_PER_UNIT = _CELLS / 100.0
_NO_CHUNK = -1
# The k-th distance is first sought within this share of the last one; a miss is noticed and searched in full.
_GUESS = 0.25
_BUCKETS = 64
# Rounding of bound and squared distances is far below this share; it only widens the search.
_SLACK = 1e-9

_SCALARS = np.dtype(
    [("count", "i8"), ("rsi_slow_count", "i8"), ("rsi_quick_count", "i8"), ("raw_count", "i8"), ("points", "i8"),
     ("chunks", "i8"), ("label_sum", "i8"), ("stored_source", "f8"), ("wma_quick", "f8"), ("wma_slow", "f8"),
     ("raw", "f8"), ("ma", "f8"), ("x", "f8"), ("y", "f8"), ("radius", "f8")],
    align=True,
)  # fmt: skip


# Points of one cell lie in linked chunks: reading a chunk is a straight loop, while a list of points would be a
# chain of cache misses.
_CHUNK = 8
_POINTS = np.dtype(
    [("x", "f8", _CHUNK), ("y", "f8", _CHUNK), ("label", "i4", _CHUNK), ("count", "i4"), ("following", "i4")],
    align=True,
)  # fmt: skip


class MlmiState(NamedTuple):
    """scalars (1,); rsi (2,) slow and quick; window buffers; stored points in chunks
    (capacity,); first chunk, count and label sum of each cell (cells²,); scratch (capacity,)."""

    scalars: AnyArray
    rsi: AnyArray
    source_window: FloatArray
    rsi_slow_window: FloatArray
    rsi_quick_window: FloatArray
    raw_window: FloatArray
    points: AnyArray
    cells: AnyArray
    cell_counts: AnyArray
    cell_sums: AnyArray
    distances: FloatArray
    near_labels: AnyArray
    selection: FloatArray
    histogram: IntArray


def init_state(config: MlmiConfig, capacity: int = 256) -> MlmiState:
    """The store starts with one point of zeros, label 0."""
    scalars = np.zeros(1, _SCALARS)
    for name in ("wma_quick", "wma_slow", "raw", "ma"):
        scalars[name] = np.nan
    scalars["radius"] = np.inf
    scalars["points"] = scalars["chunks"] = 1
    points = np.zeros(capacity, _POINTS)
    points["count"][0] = 1
    points["following"] = _NO_CHUNK
    cells = np.full(_CELLS * _CELLS, _NO_CHUNK, np.int32)
    counts = np.zeros(_CELLS * _CELLS, np.int32)
    cells[0], counts[0] = 0, 1
    return MlmiState(
        scalars, np.zeros(2, RSI_STATE), np.zeros(2 * SLOW_PERIOD), np.zeros(2 * config.window),
        np.zeros(2 * config.window), np.zeros(2 * SLOW_PERIOD), points, cells, counts, np.zeros_like(counts),
        np.zeros(capacity), np.zeros(capacity, np.int8), np.zeros(capacity), np.zeros(_BUCKETS, np.int64),
    )  # fmt: skip


def with_room(state: MlmiState, rows: int) -> MlmiState:
    """The same state with room for one more point per row."""
    capacity = state.points.size
    needed = int(state.scalars["points"][0]) + rows + 1  # one more, which a search may write to but not count
    if needed <= capacity:
        return state
    extra = max(needed, 2 * capacity) - capacity
    grown = {
        name: np.concatenate([array, np.zeros(extra, array.dtype)])
        for name in ("points", "distances", "near_labels", "selection")
        for array in (getattr(state, name),)
    }
    return state._replace(**grown)


@nb.njit(cache=True)
def update(state: Any, k: int, source: float, out: FloatArray) -> None:
    """out = (raw, value, ma, signal). On each bar first store, then predict."""
    s = state.scalars[0]
    cross = _averages_cross(state, s, source)
    out[0:3] = np.nan
    out[3] = 0.0
    if not _momentum_averages(state, s, source):
        return
    x = wma(window_view(state.rsi_slow_window, s.rsi_slow_count))
    y = wma(window_view(state.rsi_quick_window, s.rsi_quick_count))
    if cross != 0.0:
        _store(state, s, x, y, source)
    raw = float(_predict(state, s, k, x, y))
    window_push(state.raw_window, s.raw_count, raw)
    s.raw_count += 1
    ma = wma(window_view(state.raw_window, s.raw_count)) if s.raw_count >= SLOW_PERIOD else np.nan
    out[0] = raw
    # ties can make more neighbours than k
    out[1] = min(max(50.0 + 50.0 * raw / min(k, s.points), 0.0), 100.0)
    out[2] = ma
    out[3] = crossing(raw, ma, s.raw, s.ma)
    s.raw = raw
    s.ma = ma


@nb.njit(cache=True)
def _averages_cross(state: Any, s: Any, source: float) -> float:
    """±1 where WMA(source, 5) crosses WMA(source, 20)."""
    window_push(state.source_window, s.count, source)
    s.count += 1
    quick = slow = np.nan
    if s.count >= SLOW_PERIOD:
        values = window_view(state.source_window, s.count)
        quick = wma(values[SLOW_PERIOD - QUICK_PERIOD :])
        slow = wma(values)
    cross = crossing(quick, slow, s.wma_quick, s.wma_slow)
    s.wma_quick = quick
    s.wma_slow = slow
    return cross


@nb.njit(cache=True)
def _momentum_averages(state: Any, s: Any, source: float) -> bool:
    """Advance both RSI windows; True once both are full."""
    rsi_slow = rsi_update(state.rsi[0], source, SLOW_PERIOD)
    rsi_quick = rsi_update(state.rsi[1], source, QUICK_PERIOD)
    if not np.isnan(rsi_slow):
        window_push(state.rsi_slow_window, s.rsi_slow_count, rsi_slow)
        s.rsi_slow_count += 1
    if not np.isnan(rsi_quick):
        window_push(state.rsi_quick_window, s.rsi_quick_count, rsi_quick)
        s.rsi_quick_count += 1
    window = state.rsi_slow_window.size // 2
    return s.rsi_slow_count >= window and s.rsi_quick_count >= window


@nb.njit(cache=True)
def _cell(value: float) -> int:
    return min(max(int(np.floor(value * _CELLS_PER_UNIT)), 0), _CELLS - 1)


@nb.njit(cache=True)
def _store(state: Any, s: Any, x: float, y: float, source: float) -> None:
    label = 1 if source >= s.stored_source else -1
    cell = _cell(x) * _CELLS + _cell(y)
    first = state.cells[cell]
    if first == _NO_CHUNK or state.points[first].count == _CHUNK:
        chunk = state.points[s.chunks]
        chunk.count, chunk.following = 0, first
        state.cells[cell] = s.chunks
        s.chunks += 1
    chunk = state.points[state.cells[cell]]
    chunk.x[chunk.count], chunk.y[chunk.count], chunk.label[chunk.count] = x, y, label
    chunk.count += 1
    state.cell_counts[cell] += 1
    state.cell_sums[cell] += label
    s.points += 1
    s.label_sum += label
    s.stored_source = source


@nb.njit(cache=True)
def _predict(state: Any, s: Any, k: int, x: float, y: float) -> int:
    """Sum of the labels of all points at most as far as the k-th nearest."""
    if s.points <= k:
        return int(s.label_sum)
    moved = np.sqrt((x - s.x) ** 2 + (y - s.y) ** 2)
    safe = s.radius + moved
    inner = max(s.radius - moved, s.radius * (1.0 - _GUESS))
    outer = min(safe, s.radius * (1.0 + _GUESS))
    within, found, total = _gather(state, x, y, inner, outer)
    if within >= k or within + found < k:
        within, found, total = _gather(state, x, y, -1.0, safe)
    kth = _kth_smallest(state.distances, found, k - within, state.selection, state.histogram)
    for i in range(found):
        total += int(state.distances[i] <= kth) * state.near_labels[i]
    s.radius = np.sqrt(kth)
    s.x = x
    s.y = y
    return int(total)


@nb.njit(cache=True)
def _gather(state: Any, x: float, y: float, inner: float, outer: float) -> tuple[int, int, int]:
    """(number of points within `inner` of (x, y), number between `inner` and `outer`, sum of the inner labels).

    Squared distances and labels of the second kind go to the scratch arrays. Cells wholly inside are counted
    without a look at their points.
    """
    reach = min(outer * (1.0 + _SLACK) + _SLACK, 200.0)  # at most the whole square
    inner_square = inner * inner if inner > 0.0 else -1.0
    outer_square = reach * reach
    within = found = total = 0
    y_first, y_last = _cell(y - reach), _cell(y + reach)
    for i in range(_cell(x - reach), _cell(x + reach) + 1):
        x_far, x_near = _edge_distances(i, x)
        for j in range(y_first, y_last + 1):
            cell = i * _CELLS + j
            if state.cell_counts[cell] == 0:
                continue
            y_far, y_near = _edge_distances(j, y)
            if x_near + y_near > outer_square:
                continue
            if (x_far + y_far) * (1.0 + _SLACK) + _SLACK < inner_square:
                within += state.cell_counts[cell]
                total += state.cell_sums[cell]
                continue
            place = state.cells[cell]
            while place != _NO_CHUNK:
                chunk = state.points[place]
                place = chunk.following
                for p in range(chunk.count):
                    d = (chunk.x[p] - x) ** 2 + (chunk.y[p] - y) ** 2
                    # without branches: whether a point is in the shell cannot be predicted
                    is_inner = int(d <= inner_square)
                    within += is_inner
                    total += is_inner * chunk.label[p]
                    state.distances[found] = d
                    state.near_labels[found] = chunk.label[p]
                    found += int(d <= outer_square) - is_inner
    return within, found, total


@nb.njit(cache=True)
def _edge_distances(cell: int, value: float) -> tuple[float, float]:
    """Squared distances along one axis from `value` to the far and to the near edge of a cell."""
    below = value - cell / _CELLS_PER_UNIT
    above = (cell + 1) / _CELLS_PER_UNIT - value
    near = max(0.0, -below, -above)
    return max(below * below, above * above), near * near


@nb.njit(cache=True)
def _kth_smallest(values: FloatArray, n: int, k: int, selection: FloatArray, histogram: IntArray) -> float:
    """The k-th smallest, k from 1, of values[:n].

    The bucket of a value never falls as the value grows, so the k-th lies in the bucket where the count reaches k;
    only that bucket, a few values, is ranked.
    """
    low, high = np.inf, -np.inf
    for i in range(n):
        low = min(low, values[i])
        high = max(high, values[i])
    if not high > low:
        return low
    scale = (_BUCKETS - 1) / (high - low)
    histogram[:] = 0
    for i in range(n):
        histogram[int((values[i] - low) * scale)] += 1
    bucket, before = 0, 0
    while before + histogram[bucket] < k:
        before += histogram[bucket]
        bucket += 1
    found = 0
    for i in range(n):
        selection[found] = values[i]
        found += int(int((values[i] - low) * scale) == bucket)
    return float(_quickselect(selection, found, k - before))


@nb.njit(cache=True)
def _quickselect(values: FloatArray, n: int, k: int) -> float:
    """Hoare's selection (1961), in place: the k-th smallest, k from 1, of values[:n]."""
    target, low, high = k - 1, 0, n - 1
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if target <= j:
            high = j
        elif target >= i:
            low = i
        else:
            break
    return values[target]
