"""Gate 1: ordered patterns of three signals, MLMI (M), NW-RQK (N) and FVG retest (F), in one direction.

TYPE_1 M→N→F, TYPE_2 M→F→N, TYPE_3 N→F→M, TYPE_4 N→M→F.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np

from algospace.types import AnyArray, FloatArray

SYNERGY_STATE = np.dtype(
    [("row", "i8"), ("length", "i8"), ("first", "i8"), ("second", "i8"), ("direction", "f8"), ("start", "i8"),
     ("quiet_until", "i8")],
    align=True,
)  # fmt: skip
_M, _N, _F = 0, 1, 2


def init_state() -> AnyArray:
    """State before the first base row."""
    state = np.zeros(1, SYNERGY_STATE)
    state["quiet_until"] = -1
    return state


@nb.njit(cache=True)
def update(s: Any, m: float, n: float, f: float, window: int, cooldown: int, out: FloatArray) -> None:
    """Read one row's signals (-1, 0, +1) in the order M, N, F; out = (type, direction, bars), 0 without a synergy.

    An expired sequence is dropped first; after a detection the signals of the next `cooldown` rows are ignored.
    """
    out[0] = out[1] = out[2] = 0.0
    if s.length > 0 and s.row - s.start > window:
        s.length = 0
    if s.row > s.quiet_until:
        _read(s, _M, m, cooldown, out)
        _read(s, _N, n, cooldown, out)
        _read(s, _F, f, cooldown, out)
    s.row += 1


@nb.njit(cache=True)
def _read(s: Any, kind: int, signal: float, cooldown: int, out: FloatArray) -> None:
    """A repeated kind is ignored; an opposite direction drops the sequence and starts anew, which F cannot."""
    if signal == 0.0:
        return
    if s.length > 0 and signal != s.direction:
        s.length = 0
    if s.length == 0:
        if kind != _F:
            s.length, s.first, s.direction, s.start = 1, kind, signal, s.row
        return
    if kind == s.first or (s.length == 2 and kind == s.second):
        return
    if s.length == 1:
        s.length, s.second = 2, kind
        return
    out[0] = _type(s.first, s.second)
    out[1] = signal
    out[2] = s.row - s.start
    s.length = 0
    s.quiet_until = s.row + cooldown


@nb.njit(cache=True)
def _type(first: int, second: int) -> int:
    if first == _M:
        return 1 if second == _N else 2
    return 3 if second == _F else 4
