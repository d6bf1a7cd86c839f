"""Stretches of a history that break no rule and still should not be believed: volume in another unit, days that
are mostly absent, and another contract than the front one.

Days are the exchange's trading days. What is found is reported with its place and kept; the caller decides.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from algospace.calendars import trading_day
from algospace.instruments import Session
from algospace.types import SECOND_NS, Bars, BoolArray, FloatArray, IntArray

STEP_FACTOR = 8.0  # a change of the usual volume that no market explains
_WINDOW = 10  # trading days on each side of a step
_THIN_SHARE, _THIN_DAYS, _THIN_PAUSE = 0.5, 3, 5
_MAX_STRETCH = 400  # trading days between the two ends of a stretch in another contract


def find_stretches(bars: Bars, session: Session, has_volume: bool) -> dict[str, list[dict[str, Any]]]:
    """`volume_steps`, `suspected_other_contract`, `thin_stretches`: each a list, absent if nothing was found."""
    first, count, volume = _days(bars, session, has_volume)
    steps = _volume_steps(bars, first, volume) if has_volume else []
    pairs = _other_contract(bars, first, steps)
    inside = {place for pair in pairs for place in (pair["from"], pair["to"])}
    found = {
        "volume_steps": [step for step in steps if step["at"] not in inside],
        "suspected_other_contract": pairs,
        "thin_stretches": _thin(bars, first, count),
    }
    return {name: items for name, items in found.items() if items}


def attention(found: dict[str, list[dict[str, Any]]]) -> list[str]:
    """One line for each finding, for a person."""
    lines = [f"the volume of a bar {_change(s['factor'])} at {s['at']} (usually {s['before']:.0f} before, "
             f"{s['after']:.0f} after): another unit?" for s in found.get("volume_steps", [])]
    lines += [f"from {s['from']} to {s['to']} the volume {_change(s['factor'])}, and the price jumps by "
              f"{s['entry_jump']:+.2f} points into it and {s['exit_jump']:+.2f} out of it: another contract?"
              for s in found.get("suspected_other_contract", [])]
    lines += [f"from {s['from']} to {s['to']} only {100 * s['share']:.0f} % of the usual bars are there "
              f"({s['days']} thin days)" for s in found.get("thin_stretches", [])]
    return lines


def _change(factor: float) -> str:
    return f"rises {factor:.0f}-fold" if factor >= 1 else f"falls to 1/{1 / factor:.0f}"


def _days(bars: Bars, session: Session, has_volume: bool) -> tuple[IntArray, IntArray, FloatArray]:
    """(first row, number of bars, median volume of a bar) of each trading day that has bars."""
    day = trading_day(bars.ts_open, session.zone, session.day_start_hour)
    first = np.asarray(np.flatnonzero(np.r_[True, day[1:] != day[:-1]]), np.int64)
    count = np.diff(np.r_[first, len(bars)])
    if not has_volume:
        return first, count, np.zeros(first.size)
    return first, count, np.asarray(pd.Series(bars.volume).groupby(day).median(), np.float64)


def _volume_steps(bars: Bars, first: IntArray, volume: FloatArray) -> list[dict[str, Any]]:
    """Days on which the usual volume changes for good, by the medians of ten days before and after."""
    level = pd.Series(np.log1p(volume))
    before = level.rolling(_WINDOW, min_periods=3).median().shift(1).to_numpy()
    after = level[::-1].rolling(_WINDOW, min_periods=3).median()[::-1].to_numpy()
    change = after - before
    steps: list[dict[str, Any]] = []
    for start, stop in _runs(np.abs(change) >= np.log(STEP_FACTOR), 1):
        jumps = np.abs(np.diff(level.to_numpy()[start - 1 : stop]))
        at = start + int(np.argmax(jumps))
        low = np.expm1(level.iloc[max(at - _WINDOW, 0) : at].median())
        high = np.expm1(level.iloc[at : at + _WINDOW].median())
        steps.append({"at": _iso(bars, first[at]), "day": int(at), "factor": float((high + 1) / (low + 1)),
                      "before": float(low), "after": float(high)})
    return steps


def _other_contract(bars: Bars, first: IntArray, steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A fall of the volume and, later, a rise that undoes it: the source held a contract that few trade."""
    pairs = []
    for down, up in pairwise(steps):
        undone = down["factor"] < 1 < up["factor"] and 1 / 3 < up["after"] / down["before"] < 3
        if undone and up["day"] - down["day"] <= _MAX_STRETCH:
            entry, exit_ = first[down["day"]], first[up["day"]]
            pairs.append({"from": down["at"], "to": up["at"], "factor": down["factor"],
                          "entry_jump": float(bars.open[entry] - bars.close[entry - 1]),
                          "exit_jump": float(bars.open[exit_] - bars.close[exit_ - 1])})
    return pairs


def _thin(bars: Bars, first: IntArray, count: IntArray) -> list[dict[str, Any]]:
    """Several days, close to each other, with less than half of the usual number of bars."""
    usual = float(np.median(count)) if count.size else 0.0
    if usual < 4:
        return []
    found = []
    for start, stop in _runs(count < _THIN_SHARE * usual, _THIN_PAUSE):
        thin = int((count[start:stop] < _THIN_SHARE * usual).sum())
        if thin >= _THIN_DAYS:
            found.append({"from": _iso(bars, first[start]), "to": _iso(bars, first[stop - 1]), "days": thin,
                          "share": float(count[start:stop].mean() / usual)})
    return found


def _runs(mask: BoolArray, pause: int) -> list[tuple[int, int]]:
    """[start, stop) of stretches of True with fewer than `pause` False between two."""
    runs: list[tuple[int, int]] = []
    for place in np.flatnonzero(mask):
        if runs and place - runs[-1][1] < pause:
            runs[-1] = (runs[-1][0], int(place) + 1)
        else:
            runs.append((int(place), int(place) + 1))
    return runs


def _iso(bars: Bars, row: int) -> str:
    return str(np.datetime64(int(bars.ts_open[row]) // SECOND_NS, "s")) + "Z"
