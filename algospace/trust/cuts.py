"""Where to cut a history: evenly, and where mistakes hide.

The places: inside a base bar and inside a 30-minute bar (an unfinished bar must not be seen), around rolls (the
factor must not be known before), around breaks, weekends and halts (what fills a gap, and what a break cuts short,
is known only afterwards), and within the first bars (a value filled backwards shows there alone).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from algospace.types import BASE_BAR_NS, DAY_NS, HOUR_NS, SLOW_BAR_NS, AnyArray, Bars, IntArray

_FIRST_ROWS = (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377)
_AFTER = 7  # rows: inside the second base bar of one-minute rows


@dataclass(frozen=True)
class Cut:
    """The history ends behind its first `rows` source bars."""

    rows: int
    reason: str


def choose_cuts(
    bars: Bars, cuts: int, base_ns: int = BASE_BAR_NS, slow_ns: int = SLOW_BAR_NS, first_rows: bool = True
) -> list[Cut]:
    """About `cuts` cuts, half of them even and half at nasty places, and short ones within the first base bars.

    Every kind of nasty place that the history has gets a cut, even if that makes more of them.
    """
    n = len(bars)
    found = {int(k): Cut(int(k), "even") for k in np.linspace(0, n, max(cuts - cuts // 2, 1) + 2)[1:-1]}
    places = nasty_places(bars, base_ns, slow_ns)
    for turn in range(max(cuts // 2, len(places)) if places else 0):
        reason, rows = places[turn % len(places)]
        # the places of one kind in an order that spreads over the history
        share = (turn // len(places) * 0.618034 + 0.381966) % 1.0
        k = int(rows[int(share * rows.size)])
        found.setdefault(k, Cut(k, reason))
    if first_rows:
        ends = _base_bar_ends(bars, base_ns)
        found |= {int(k): Cut(int(k), "first bars") for k in ends[[c for c in _FIRST_ROWS if c < ends.size]]}
    return sorted((cut for cut in found.values() if 0 < cut.rows < n), key=lambda cut: cut.rows)


def nasty_places(bars: Bars, base_ns: int, slow_ns: int) -> list[tuple[str, IntArray]]:
    """(reason, numbers of rows to keep) of each kind that the history has."""
    ends = bars.ts_open + bars.width_ns
    gap = np.concatenate([[0], np.diff(bars.ts_open) - bars.width_ns])  # (n,) missing time before each row
    roll = np.concatenate([[False], np.diff(bars.contract) != 0])
    halt, long_break = (gap >= base_ns) & (gap < HOUR_NS), (gap >= HOUR_NS) & (gap < DAY_NS)
    weekend = gap >= DAY_NS
    kinds = {
        "inside a base bar": _rows(ends % base_ns != 0, 1),
        "inside a 30-minute bar": _rows((ends % base_ns == 0) & (ends % slow_ns != 0), 1),
        "before a roll": _rows(roll, 0), "first bar of a contract": _rows(roll, 1),
        "before a halt": _rows(halt, 0), "first bar after a halt": _rows(halt, 1),
        "before a break": _rows(long_break, 0), "first bar after a break": _rows(long_break, 1),
        "before a weekend": _rows(weekend, 0), "first bar after a weekend": _rows(weekend, 1),
        "after a roll": _rows(roll, _AFTER), "after a halt": _rows(halt, _AFTER),
        "after a break": _rows(long_break, _AFTER), "after a weekend": _rows(weekend, _AFTER),
    }
    inside = ((reason, rows[(rows > 0) & (rows < len(bars))]) for reason, rows in kinds.items())
    return [(reason, rows) for reason, rows in inside if rows.size]


def busiest_stretches(bars: Bars, events: int, count: int = 3) -> Sequence[tuple[int, int]]:
    """Stretches [start, stop) of `events` rows: around a roll, around a halt, and the end of the history."""
    places = dict(nasty_places(bars, BASE_BAR_NS, SLOW_BAR_NS))
    middles = [int(rows[rows.size // 2]) for name in ("before a roll", "before a halt")
               if (rows := places.get(name, np.zeros(0, np.int64))).size]
    starts = [max(0, min(middle - events // 2, len(bars) - events)) for middle in middles]
    starts.append(max(0, len(bars) - events))
    return [(start, min(start + events, len(bars))) for start in dict.fromkeys(starts)][-count:]


def _rows(here: AnyArray, after: int) -> IntArray:
    return np.flatnonzero(here) + after


def _base_bar_ends(bars: Bars, base_ns: int) -> IntArray:
    """Rows to keep so that exactly 0, 1, 2, ... base bars hold data."""
    bucket = bars.ts_open // base_ns
    return np.concatenate([[0], np.flatnonzero(np.diff(bucket)) + 1])
