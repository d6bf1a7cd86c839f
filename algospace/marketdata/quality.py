"""Which rows break a rule, and what else is worth knowing about a source.

Rows that break a rule are quarantined with the first rule they break, in the order of RULES. Gaps, outliers, zero
volume and prices off the tick grid are reported and kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numba as nb
import numpy as np

from algospace.instruments import Instrument
from algospace.marketdata.schema import PRICES
from algospace.marketdata.sessions import count_outside, open_bars_between
from algospace.marketdata.stretches import find_stretches
from algospace.marketdata.times import Times
from algospace.marketdata.timestamps import NO_TIME, civil_from_days, days_from_civil
from algospace.types import DAY_NS, SECOND_NS, AnyArray, Bars, BoolArray, FloatArray, IntArray

RULES = ("ok", "malformed_line", "unreadable_time", "nonexistent_local_time", "swapped_day_month", "non_finite",
         "non_positive_price", "ohlc_violation", "negative_volume", "duplicate_time", "disorder")
MEANING = {
    "malformed_line": "another number of fields than the header",
    "unreadable_time": "the time cannot be read",
    "nonexistent_local_time": "this local time was skipped by a clock change",
    "swapped_day_month": "day and month look exchanged",
    "non_finite": "a number is missing or not finite",
    "non_positive_price": "a price is zero or negative",
    "ohlc_violation": "high or low does not enclose open and close",
    "negative_volume": "the volume is negative",
    "duplicate_time": "a bar with this time came before",
    "disorder": "the time goes back",
}
FIX = {
    "nonexistent_local_time": "check --zone",
    "swapped_day_month": "write all dates in one order, or say --dates day-first or month-first",
    "duplicate_time": "keep one row for each time",
    "disorder": "sort the rows by time",
}
_CODE = {rule: np.uint8(i) for i, rule in enumerate(RULES)}
_SWAPPED, _DUPLICATE, _DISORDER = (int(_CODE[r]) for r in ("swapped_day_month", "duplicate_time", "disorder"))
_LONG_JUMP = 5 * DAY_NS  # longer than any market holiday with its weekend
_LOOK_AHEAD = 2000  # rows within which a jump ahead that was a mistake must come back
OUTLIER_Z = 25.0
_PLACES = 5
_PART = 1 << 18  # rows looked at together, which bounds the memory of checks over long histories


@dataclass(frozen=True)
class QualityReport:
    """What an import found. `quarantined` counts rows by rule; `reported` counts what was kept all the same.

    `places` has the first few times of what was counted, `stretches` what looks wrong over days (`stretches.py`).
    """

    source: str
    symbol: str
    sha256: str
    rows_in: int
    rows_out: int
    width_s: float
    zone: str
    first_bar: str
    last_bar: str
    contracts: int
    quarantined: dict[str, int] = field(default_factory=dict)
    reported: dict[str, int] = field(default_factory=dict)
    largest_gap: dict[str, Any] = field(default_factory=dict)
    largest_outliers: list[dict[str, Any]] = field(default_factory=list)
    guesses: list[str] = field(default_factory=list)
    places: dict[str, list[str]] = field(default_factory=dict)
    stretches: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def bad_rows(self) -> int:
        """Rows in quarantine."""
        return sum(self.quarantined.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {**asdict(self), "bad_rows": self.bad_rows}


class SourceFile(Protocol):
    """The rows of one file, of bars, ticks or quotes: their numbers in it, and lines that are no rows."""

    @property
    def path(self) -> Path: ...
    @property
    def row(self) -> IntArray: ...
    @property
    def malformed(self) -> list[tuple[int, str]]: ...
    def __len__(self) -> int: ...


def first_bad(files: Sequence[SourceFile], bad: BoolArray, codes: AnyArray,
              rules: Sequence[str]) -> tuple[Path, int, str]:
    """(file, row, rule) of the first of the `bad` rows of all files together, malformed lines among them."""
    start = 0
    for f in files:
        own = np.flatnonzero(bad[start:start + len(f)])
        found = [(int(f.row[own[0]]), rules[codes[start + own[0]]])] if own.size else []
        found += [(f.malformed[0][0], "malformed_line")] if f.malformed else []
        if found:
            row, rule = min(found)
            return f.path, row, rule
        start += len(f)
    raise AssertionError("called without a bad row")


def judge_rows(times: Times, prices: dict[str, FloatArray], volume: FloatArray | None) -> AnyArray:
    """(n,) uint8 codes into RULES, 0 for good rows."""
    codes = np.zeros(times.ts_open.size, np.uint8)
    o, h, low, c = (prices[name] for name in PRICES)
    with np.errstate(invalid="ignore"):
        findings = [
            ("swapped_day_month", times.swapped),
            ("nonexistent_local_time", times.nonexistent),
            ("unreadable_time", times.ts_open == NO_TIME),
            ("non_finite", ~(np.isfinite(o) & np.isfinite(h) & np.isfinite(low) & np.isfinite(c))),
            ("non_positive_price", np.minimum(np.minimum(o, h), np.minimum(low, c)) <= 0),
            ("ohlc_violation", (h < np.maximum(o, c)) | (low > np.minimum(o, c))),
        ]
        if volume is not None:
            findings += [("non_finite", ~np.isfinite(volume)), ("negative_volume", volume < 0)]
    for rule, broken in findings:
        codes[broken & (codes == 0)] = _CODE[rule]
    return codes


@nb.njit(cache=True)
def judge_order(ts: IntArray, local: IntArray, codes: AnyArray) -> None:
    """Mark duplicates, disorder and suspected exchanges of day and month among the rows that are good so far.

    A row that jumps ahead by more than five days, while a later row comes back, is the mistaken one (not the rows
    after it); so is a row that is ahead of its successor only.
    """
    last = NO_TIME
    for i in range(ts.size):
        if codes[i] != 0:
            continue
        if last == NO_TIME:
            if _comes_back(ts, codes, i, last, 1):
                codes[i] = _DISORDER
            else:
                last = ts[i]
        elif ts[i] == last:
            codes[i] = _DUPLICATE
        elif ts[i] < last or _comes_back(ts, codes, i, last, _LOOK_AHEAD if ts[i] - last > _LONG_JUMP else 1):
            codes[i] = _SWAPPED if _swap_fits(ts[i], local[i], last) else _DISORDER
        else:
            last = ts[i]


@nb.njit(cache=True)
def _comes_back(ts: IntArray, codes: AnyArray, i: int, last: int, rows: int) -> bool:
    """Whether one of the next good rows lies between the last good time and row i."""
    seen = 0
    for k in range(i + 1, ts.size):
        if codes[k] != 0:
            continue
        if last < ts[k] < ts[i]:
            return True
        seen += 1
        if seen == rows:
            return False
    return False


@nb.njit(cache=True)
def _swap_fits(ts: int, local: int, last: int) -> bool:
    """Whether exchanging day and month brings the row to just after the last good time."""
    days = local // DAY_NS
    year, month, day = civil_from_days(days)
    if day > 12 or day == month:
        return False
    exchanged = ts + (days_from_civil(year, day, month) - days) * DAY_NS
    return last < exchanged <= last + _LONG_JUMP


@dataclass(frozen=True)
class Findings:
    """What is worth knowing about clean bars: counts, first places, largest gap and outliers, stretches."""

    counts: dict[str, int]
    places: dict[str, list[str]]
    largest_gap: dict[str, Any]
    largest_outliers: list[dict[str, Any]]
    stretches: dict[str, list[dict[str, Any]]]


def inspect(bars: Bars, spec: Instrument, has_volume: bool) -> Findings:
    """Look over clean bars; nothing is changed."""
    counts: dict[str, int] = {}
    places: dict[str, list[str]] = {}
    steps = np.diff(bars.ts_open)
    after = np.flatnonzero(steps > bars.width_ns)
    missing = open_bars_between(bars.ts_open[after] + bars.width_ns, bars.ts_open[after + 1], bars.width_ns,
                                spec.session)
    counts["gaps_in_session"], counts["missing_bars"] = int((missing > 0).sum()), int(missing.sum())
    largest: dict[str, Any] = {}
    if counts["missing_bars"]:
        k = int(np.argmax(missing))
        largest = {"after": iso(int(bars.ts_open[after[k]])), "missing_bars": int(missing[k])}
    counts["overlapping_bars"] = int((steps < bars.width_ns).sum())
    del steps
    counts["outside_trading_hours"] = sum(count_outside(part.ts_open, spec.session) for part in _parts(bars))
    if has_volume:
        zero = np.flatnonzero(bars.volume == 0)
        counts["zero_volume"] = int(zero.size)
        places["zero_volume"] = [iso(int(ts)) for ts in bars.ts_open[zero[:_PLACES]]]
    counts["off_tick_grid"] = sum(_off_grid(part.close / spec.tick_size) for part in _parts(bars))
    rolls = np.flatnonzero(np.diff(bars.contract)) + 1
    counts["rolls"] = int(rolls.size)
    places["rolls"] = [iso(int(ts)) for ts in bars.ts_open[rolls[:_PLACES]]]
    counts["outliers"], extremes = _outliers(bars)
    return Findings(counts, {name: found for name, found in places.items() if found}, largest, extremes,
                    find_stretches(bars, spec.session, has_volume))


def _parts(bars: Bars) -> Iterator[Bars]:
    return (bars.slice(start, start + _PART) for start in range(0, len(bars), _PART))


def _off_grid(ticks: FloatArray) -> int:
    return int((np.abs(ticks - np.rint(ticks)) > 1e-3).sum())


def _outliers(bars: Bars) -> tuple[int, list[dict[str, Any]]]:
    """Returns between neighbouring bars of one contract, over OUTLIER_Z robust deviations from the median."""
    neighbours = (np.diff(bars.ts_open) == bars.width_ns) & (np.diff(bars.contract) == 0)
    returns = (bars.close[1:] / bars.close[:-1])[neighbours]
    np.log(returns, out=returns)
    if returns.size < 30:
        return 0, []
    deviation = returns - np.median(returns)
    np.abs(deviation, out=deviation)
    scale = 1.4826 * float(np.median(deviation)) or float(deviation.mean())
    if scale == 0:
        return 0, []
    z = np.divide(deviation, scale, out=deviation)
    found = np.flatnonzero(z > OUTLIER_Z)
    worst = found[np.argsort(-z[found], kind="stable")[:5]]
    at = np.flatnonzero(neighbours) + 1
    return int(found.size), [{"ts_open": iso(int(bars.ts_open[at[k]])), "log_return": round(float(returns[k]), 6),
                              "robust_z": round(float(z[k]), 1)} for k in worst]


def iso(ts: int) -> str:
    """UTC ns -> 2020-06-28T22:00:00Z."""
    return datetime.fromtimestamp(ts / SECOND_NS, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
