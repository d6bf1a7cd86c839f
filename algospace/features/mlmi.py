"""MLMI: Machine Learning Momentum Index, k nearest neighbours over stored momentum states (after Zeiierman).

The neighbours are exact, ties included. The stored points grow with history, so they lie in a grid over
[0, 100]² (linked lists), and a query looks only at cells within a bound: all k neighbours of the last query are
within its k-th distance, so the new k-th distance is at most that plus the way the query moved.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba as nb
import numpy as np

from algospace.features.config import MlmiConfig
from algospace.features.smoothing import RSI_STATE, crossing, rsi_update, window_push, window_view, wma
from algospace.types import AnyArray, FloatArray

SLOW_PERIOD, QUICK_PERIOD = 20, 5
_CELLS = 64
_CELLS_PER_UNIT = _CELLS / 100.0
_NO_POINT = -1
# Rounding of bound and squared distances is far below this share; it only widens the search.
_SLACK = 1e-9

_SCALARS = np.dtype(
    [("count", "i8"), ("rsi_slow_count", "i8"), ("rsi_quick_count", "i8"), ("raw_count", "i8"), ("points", "i8"),
     ("label_sum", "i8"), ("stored_source", "f8"), ("wma_quick", "f8"), ("wma_slow", "f8"), ("raw", "f8"),
     ("ma", "f8"), ("x", "f8"), ("y", "f8"), ("radius", "f8")],
    align=True,
)  # fmt: skip


class MlmiState(NamedTuple):
    """scalars (1,); rsi (2,) slow and quick; window buffers; stored points (capacity, 2) with label and the next
    point of the same cell; first point of each cell (cells²,); scratch (capacity,) of squared distances."""

    scalars: AnyArray
    rsi: AnyArray
    source_window: FloatArray
    rsi_slow_window: FloatArray
    rsi_quick_window: FloatArray
    raw_window: FloatArray
    points: FloatArray
    labels: AnyArray
    following: AnyArray
    cells: AnyArray
    distances: FloatArray
    near_labels: AnyArray
    selection: FloatArray


def init_state(config: MlmiConfig, capacity: int = 256) -> MlmiState:
    """The store starts with one point of zeros, label 0."""
    scalars = np.zeros(1, _SCALARS)
    for name in ("wma_quick", "wma_slow", "raw", "ma"):
        scalars[name] = np.nan
    scalars["radius"] = np.inf
    scalars["points"] = 1
    cells = np.full(_CELLS * _CELLS, _NO_POINT, np.int32)
    cells[0] = 0
    return MlmiState(
        scalars, np.zeros(2, RSI_STATE), np.zeros(2 * SLOW_PERIOD), np.zeros(2 * config.window),
        np.zeros(2 * config.window), np.zeros(2 * SLOW_PERIOD), np.zeros((capacity, 2)), np.zeros(capacity, np.int8),
        np.full(capacity, _NO_POINT, np.int32), cells, np.zeros(capacity), np.zeros(capacity, np.int8),
        np.zeros(capacity),
    )  # fmt: skip


def with_room(state: MlmiState, rows: int) -> MlmiState:
    """The same state with room for one more point per row."""
    capacity = state.labels.size
    needed = int(state.scalars["points"][0]) + rows
    if needed <= capacity:
        return state
    extra = max(needed, 2 * capacity) - capacity
    grown = {
        name: np.concatenate([array, np.zeros((extra, *array.shape[1:]), array.dtype)])
        for name, array in (
            ("points", state.points), ("labels", state.labels), ("following", state.following),
            ("distances", state.distances), ("near_labels", state.near_labels), ("selection", state.selection),
        )
    }  # fmt: skip
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
    j = s.points
    state.points[j, 0] = x
    state.points[j, 1] = y
    label = 1 if source >= s.stored_source else -1
    state.labels[j] = label
    cell = _cell(x) * _CELLS + _cell(y)
    state.following[j] = state.cells[cell]
    state.cells[cell] = j
    s.points = j + 1
    s.label_sum += label
    s.stored_source = source


@nb.njit(cache=True)
def _predict(state: Any, s: Any, k: int, x: float, y: float) -> int:
    """Sum of the labels of all points at most as far as the k-th nearest."""
    if s.points <= k:
        return int(s.label_sum)
    bound = s.radius + np.sqrt((x - s.x) ** 2 + (y - s.y) ** 2)
    found = _gather(state, x, y, bound * (1.0 + _SLACK) + _SLACK)
    state.selection[:found] = state.distances[:found]
    kth = _kth_smallest(state.selection, found, k)
    total = 0
    for i in range(found):
        if state.distances[i] <= kth:
            total += state.near_labels[i]
    s.radius = np.sqrt(kth)
    s.x = x
    s.y = y
    return total


@nb.njit(cache=True)
def _gather(state: Any, x: float, y: float, bound: float) -> int:
    """Squared distances and labels of all points within `bound` of (x, y); returns how many."""
    reach = min(bound, 200.0)  # the whole square
    square = bound * bound
    found = 0
    y_first, y_last = _cell(y - reach), _cell(y + reach)
    for i in range(_cell(x - reach), _cell(x + reach) + 1):
        for cell in range(i * _CELLS + y_first, i * _CELLS + y_last + 1):
            j = state.cells[cell]
            while j >= 0:
                dx = state.points[j, 0] - x
                dy = state.points[j, 1] - y
                d = dx * dx + dy * dy
                if d <= square:
                    state.distances[found] = d
                    state.near_labels[found] = state.labels[j]
                    found += 1
                j = state.following[j]
    return found


@nb.njit(cache=True)
def _kth_smallest(values: FloatArray, n: int, k: int) -> float:
    """Quickselect (Hoare 1961) in place: the k-th smallest, k from 1, of values[:n]."""
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
