"""FVG: fair value gaps, three-bar gaps that price has not yet traded through."""

from __future__ import annotations

from typing import Any, NamedTuple

import numba as nb
import numpy as np

from algospace.types import AnyArray, FloatArray, IntArray

_SCALARS = np.dtype(
    [("row", "i8"), ("count", "i8"), ("high_1", "f8"), ("low_1", "f8"), ("close_1", "f8"), ("high_2", "f8"),
     ("low_2", "f8")],
    align=True,
)  # fmt: skip
NO_GAP_AGE = 50  # the age written without a gap where gaps never expire


class FvgState(NamedTuple):
    """scalars (1,); active gaps, oldest first: top, bottom (capacity,), born (row), kind (±1), retested (0/1)."""

    scalars: AnyArray
    top: FloatArray
    bottom: FloatArray
    born: IntArray
    kind: AnyArray
    retested: AnyArray


def init_state(max_age: int | None) -> FvgState:
    """Room for every gap that can be active at once; without a maximal age the room grows (`with_room`)."""
    capacity = 256 if max_age is None else max_age + 1
    scalars = np.zeros(1, _SCALARS)
    return FvgState(scalars, np.zeros(capacity), np.zeros(capacity), np.zeros(capacity, np.int64),
                    np.zeros(capacity, np.int8), np.zeros(capacity, np.int8))  # fmt: skip


def with_room(state: FvgState, rows: int) -> FvgState:
    """The same state with room for one more gap per row."""
    needed = int(state.scalars["count"][0]) + rows
    if needed <= state.top.size:
        return state
    extra = max(needed, 2 * state.top.size) - state.top.size
    return FvgState(state.scalars, *(np.concatenate([a, np.zeros(extra, a.dtype)]) for a in state[1:]))


@nb.njit(cache=True)
def update(
    state: Any, threshold: float, max_age: int, high: float, low: float, close: float, out: FloatArray
) -> None:
    """out = (bull_active, bear_active, nearest_level, age, bull_filled, bear_filled, mitigation).

    Order within a bar: expire, end by price, retest, create, write. max_age < 0: gaps never expire.
    """
    s = state.scalars[0]
    _age_and_retest(state, s, max_age, high, low, close, out)
    if s.row >= 2:
        _create(state, s, threshold, high, low)
    _write_active(state, s, max_age, close, out)
    s.high_2, s.low_2 = s.high_1, s.low_1
    s.high_1, s.low_1, s.close_1 = high, low, close
    s.row += 1


@nb.njit(cache=True)
def _age_and_retest(
    state: Any, s: Any, max_age: int, high: float, low: float, close: float, out: FloatArray
) -> None:
    """Gaps do not touch each other, so expiry, end and retest of all fit into one pass that keeps the order."""
    kept = 0
    filled_bull = filled_bear = retests_bull = retests_bear = 0
    for j in range(s.count):
        if max_age >= 0 and s.row - state.born[j] >= max_age:
            continue
        if state.kind[j] > 0 and close < state.bottom[j]:
            filled_bull += 1
            continue
        if state.kind[j] < 0 and close > state.top[j]:
            filled_bear += 1
            continue
        retested = state.retested[j]
        if retested == 0 and low <= state.top[j] and high >= state.bottom[j]:
            retested = 1
            if state.kind[j] > 0:
                retests_bull += 1
            else:
                retests_bear += 1
        state.top[kept] = state.top[j]
        state.bottom[kept] = state.bottom[j]
        state.born[kept] = state.born[j]
        state.kind[kept] = state.kind[j]
        state.retested[kept] = retested
        kept += 1
    s.count = kept
    out[4] = filled_bull
    out[5] = filled_bear
    out[6] = float(min(retests_bull, 1) - min(retests_bear, 1))


@nb.njit(cache=True)
def _create(state: Any, s: Any, threshold: float, high: float, low: float) -> None:
    if low > s.high_2 and s.close_1 > s.high_2 and (low - s.high_2) / s.high_2 > threshold:
        _add(state, s, low, s.high_2, 1)
    elif high < s.low_2 and s.close_1 < s.low_2 and (s.low_2 - high) / high > threshold:
        _add(state, s, s.low_2, high, -1)


@nb.njit(cache=True)
def _add(state: Any, s: Any, top: float, bottom: float, kind: int) -> None:
    j = s.count
    state.top[j] = top
    state.bottom[j] = bottom
    state.born[j] = s.row
    state.kind[j] = kind
    state.retested[j] = 0
    s.count = j + 1


@nb.njit(cache=True)
def _write_active(state: Any, s: Any, max_age: int, close: float, out: FloatArray) -> None:
    bull = bear = 0.0
    level = close
    age = max_age if max_age >= 0 else NO_GAP_AGE
    nearest = np.inf
    for j in range(s.count):
        if state.kind[j] > 0:
            bull = 1.0
        else:
            bear = 1.0
        # ≤ from the oldest on, bottom before top: a tie goes to the newest gap, then to its top
        for edge in (state.bottom[j], state.top[j]):
            if abs(edge - close) <= nearest:
                nearest = abs(edge - close)
                level = edge
                age = s.row - state.born[j]
    out[0] = bull
    out[1] = bear
    out[2] = level
    out[3] = age
