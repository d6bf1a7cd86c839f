"""How much history does a column need? Start later, and see how far it still moves.

The method is that of freqtrade's recursive-analysis (freqtrade/optimize/analysis/recursive.py): the columns at
reference times, computed from starts 1 day, 1 week, ... 12 months before, against the value of the full history.
A difference is measured in the column's own robust scale: |value - full value| / σ, with σ the median absolute
deviation as a normal sigma (where that is 0, the root mean square deviation; 1 for a constant).

A later start also begins with a roll factor of 1, so every price level comes out in another scale. Each start is
therefore tried twice: as it is, and on prices already multiplied by the history's factor at that time, as a stream
whose factor was handed on would see them. And the whole history is tried at `_OTHER_SCALE` times its prices: what
moves by that as much as by a later start, but not at twice its prices, where nothing is rounded, compares prices
that are equal on the tick grid, and rounding decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from algospace.errors import ConfigError
from algospace.features.table import FeatureTable
from algospace.types import DAY_NS, Bars, BoolArray, FloatArray

LENGTHS = {"1 day": DAY_NS, "1 week": 7 * DAY_NS, "1 month": 30 * DAY_NS, "3 months": 91 * DAY_NS,
           "6 months": 182 * DAY_NS, "12 months": 365 * DAY_NS}
TOLERANCES = (1e-9, 1e-3, 1e-2)
WHOLE_HISTORY = "depends on the whole history"
SCALE_ONLY = "scale only (roll-adjusted)"
ROLL_FACTOR = "needs the roll factor of the history"
ROUNDING = "breaks ties by rounding"
_MAD_TO_SIGMA = 1.482602218505602
_FACTOR = "roll_factor"
_MUCH_LESS = 0.01
_AS_MUCH = 0.5
_OTHER_SCALE = 1.1  # not a power of two: every product is rounded
_EXACT_SCALE = 2.0  # no product is


@dataclass(frozen=True)
class ColumnWarmup:
    """maximum, median: of the differences, per length (NaN where not tested; infinite where there was no value
    yet). needed: per tolerance the shortest tested length from which all differences stay below it, None if none.
    kind: SCALE_ONLY columns are compared after scaling by the roll factors' ratio, ROLL_FACTOR columns on prices
    that carry the history's factor; naive: the largest differences as they are."""

    column: str
    maximum: tuple[float, ...]
    median: tuple[float, ...]
    needed: tuple[str | None, ...]
    kind: str
    naive: tuple[float, ...]


@dataclass(frozen=True)
class WarmupReport:
    """references: how many reference times each length could be tested at."""

    lengths: tuple[str, ...]
    references: tuple[int, ...]
    tolerances: tuple[float, ...]
    columns: tuple[ColumnWarmup, ...]

    def named(self) -> dict[str, list[str]]:
        """Columns by kind, for the kinds that matter."""
        return {kind: names for kind in (WHOLE_HISTORY, ROUNDING, ROLL_FACTOR, SCALE_ONLY)
                if (names := [c.column for c in self.columns if kind in c.kind])}

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: infinite and missing differences are None."""
        values = asdict(self)
        for column in values["columns"]:
            for name in ("maximum", "median", "naive"):
                column[name] = [v if np.isfinite(v) else None for v in column[name]]
        return {**values, "named": self.named()}


@dataclass
class _Differences:
    """Of one length: per column the differences (rows,) as they are, scaled by the roll factors, and from prices
    that carry the history's roll factor."""

    plain: dict[str, list[FloatArray]]
    scaled: dict[str, list[FloatArray]]
    handed: dict[str, list[FloatArray]]
    references: int = 0


def check_warmup(
    build: Callable[[Bars], FeatureTable], bars: Bars, references: Sequence[int] | int = 6,
    lengths: Mapping[str, int] | None = None, span_ns: int = DAY_NS, tolerances: Sequence[float] = TOLERANCES,
) -> WarmupReport:
    """How far every base column of `build` still moves with the length of its warm-up.

    references: times (UTC ns), or how many to spread over the last third of the history; each stands for the rows
    of `span_ns` from it on. lengths: name -> ns. ConfigError if not even the shortest length can be tested.
    """
    lengths = LENGTHS if lengths is None else lengths
    whole = build(bars)
    times = spread_references(bars, references, span_ns) if isinstance(references, int) else list(references)
    scales = {name: _scale(values) for name, values in whole.base.items()}
    found = [_measure(build, bars, whole, times, length, span_ns, scales) for length in lengths.values()]
    if not any(difference.references for difference in found):
        raise ConfigError(f"the history of {len(bars)} bars is too short for a warm-up of {next(iter(lengths))} "
                          f"before {len(times)} reference times; give more data")
    rounding = _rounding(build, bars, whole, min(times), scales)
    columns = tuple(_column(name, found, tuple(lengths), tolerances, rounding[name]) for name in whole.base)
    return WarmupReport(tuple(lengths), tuple(d.references for d in found), tuple(tolerances), columns)


def spread_references(bars: Bars, count: int, span_ns: int) -> list[int]:
    """`count` times spread evenly over the last third of the history."""
    end = int(bars.ts_open[-1]) + bars.width_ns - span_ns
    start = int(bars.ts_open[0]) + 2 * (end - int(bars.ts_open[0])) // 3
    return [int(t) for t in np.linspace(start, end, count).astype(np.int64)]


def _measure(
    build: Callable[[Bars], FeatureTable], bars: Bars, whole: FeatureTable, times: Sequence[int], length: int,
    span_ns: int, scales: Mapping[str, float],
) -> _Differences:
    plain, scaled, handed = ({name: list[FloatArray]() for name in whole.base} for _ in range(3))
    found = _Differences(plain, scaled, handed)
    for time in times:
        first, last = (int(i) for i in np.searchsorted(bars.ts_open, (time - length, time + span_ns)))
        if time - length <= bars.ts_open[0] or first >= last:
            continue  # it would be the full history itself
        part = build(bars.slice(first, last))
        rows = np.flatnonzero((part.ts_close > time) & np.isin(part.ts_close, whole.ts_close))
        if rows.size == 0:
            continue
        found.references += 1
        at = np.searchsorted(whole.ts_close, part.ts_close[rows])
        ratio = _factors(whole)[at] / _factors(part)[rows]
        start_factor = float(ratio[0])  # what the history's factor was where this part begins with 1
        again = part if start_factor == 1.0 else build(_times(bars.slice(first, last), start_factor))
        for name, full in whole.base.items():
            expected, scale = full[at], scales[name]
            values, carried = part.base[name][rows], again.base[name][rows]
            found.plain[name].append(_difference(values, expected, scale))
            found.scaled[name].append(_difference(values * ratio, expected, scale))
            found.handed[name].append(_difference(carried, expected, scale))
    return found


def _factors(table: FeatureTable) -> FloatArray:
    return table.base.get(_FACTOR, np.ones(len(table)))


def _times(bars: Bars, factor: float) -> Bars:
    """The same bars at `factor` times their prices."""
    prices = {name: getattr(bars, name) * factor for name in ("open", "high", "low", "close")}
    return replace(bars, **prices)


def _difference(values: FloatArray, expected: FloatArray, scale: float) -> FloatArray:
    """In units of `scale`; 0 where both are NaN, infinite where only one is."""
    both = np.isnan(values) & np.isnan(expected)
    one = np.isnan(values) != np.isnan(expected)
    result = np.abs(values - expected) / scale
    result[both] = 0.0
    result[one] = np.inf
    return result


def _rounding(
    build: Callable[[Bars], FeatureTable], bars: Bars, whole: FeatureTable, since: int, scales: Mapping[str, float]
) -> dict[str, float]:
    """The largest difference per column from `since` on that rounding makes at another scale of all prices.

    0 where an exact scale makes one, too: that column reads the scale itself (a logarithm of a price, a level).
    """
    rounded = _moved(build, bars, whole, since, scales, _OTHER_SCALE)
    exact = _moved(build, bars, whole, since, scales, _EXACT_SCALE)
    return {name: moved if exact[name] < _MUCH_LESS * moved else 0.0 for name, moved in rounded.items()}


def _moved(
    build: Callable[[Bars], FeatureTable], bars: Bars, whole: FeatureTable, since: int,
    scales: Mapping[str, float], by: float,
) -> dict[str, float]:
    """The largest difference per column from `since` on that `by` times all prices makes."""
    other = build(_times(bars, by))
    rows = whole.ts_close > since
    found = {}
    for name, full in whole.base.items():
        values, expected = other.base[name][rows], full[rows]
        found[name] = min(float(_difference(values / unit, expected, scales[name]).max(initial=0.0))
                          for unit in (1.0, by))  # a ratio of prices, or a price
    return found


def _column(
    name: str, found: Sequence[_Differences], lengths: Sequence[str], tolerances: Sequence[float], rounding: float
) -> ColumnWarmup:
    plain, scaled, handed = ([_joined(getattr(difference, kind)[name]) for difference in found]
                             for kind in ("plain", "scaled", "handed"))
    tested = [i for i, values in enumerate(plain) if values.size]
    longest = tested[-1]
    off = float(plain[longest].max())
    values, kinds = plain, list[str]()
    if off > tolerances[0] and scaled[longest].max() < _MUCH_LESS * off:
        values, kinds = scaled, [SCALE_ONLY]
    elif off > tolerances[0] and handed[longest].max() < _MUCH_LESS * off:
        values, kinds = handed, [ROLL_FACTOR]
    maximum = tuple(float(v.max()) if v.size else np.nan for v in values)
    median = tuple(float(np.median(v)) if v.size else np.nan for v in values)
    needed = tuple(_needed(maximum, tested, lengths, tolerance) for tolerance in tolerances)
    if maximum[longest] > max(tolerances[1:], default=tolerances[0]) or needed[-1] is None:
        kinds.append(ROUNDING if rounding > _AS_MUCH * maximum[longest] else WHOLE_HISTORY)
    naive = tuple(float(v.max()) if v.size else np.nan for v in plain)
    return ColumnWarmup(name, maximum, median, needed, "; ".join(kinds), naive)


def _needed(
    maximum: Sequence[float], tested: Sequence[int], lengths: Sequence[str], tolerance: float
) -> str | None:
    below = None
    for i in reversed(tested):
        if not maximum[i] <= tolerance:
            break
        below = lengths[i]
    return below


def _joined(parts: Sequence[FloatArray]) -> FloatArray:
    return np.concatenate([np.zeros(0), *parts])


def _scale(values: FloatArray) -> float:
    fine: BoolArray = np.isfinite(values)
    known = values[fine]
    if known.size == 0:
        return 1.0
    deviation = np.abs(known - np.median(known))
    tiny = 1e-12 * max(float(np.abs(known).max()), 1e-300)
    for scale in (_MAD_TO_SIGMA * float(np.median(deviation)), float(np.sqrt(np.mean(deviation**2)))):
        if scale > tiny:
            return scale
    return 1.0
