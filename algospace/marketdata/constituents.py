"""An index from its constituents and weights, bar by bar, causal.

    level_t = sum_i q_i · p_i,t / divisor

**Weights.** A table of rebalances: `effective` (when it takes force), `published` (when it became known),
constituent and weight. Of those known and effective the one with the latest `effective` is in force, from the
first bar that starts at or after both times, once each of its constituents has a known price; priced at the last
known closes. `units: value` weights are shares of the index's value (scaled to sum 1), so
q_i = weight_i · level · divisor / p_i; `units: shares` are the quantities q_i themselves.
**Divisor.** Set at the start so that the index begins at `base_value` (at the opens of its first bar), and at each
rebalance so that the level at the last known closes is the same before and after: no rebalance moves the index.
**Missing bars.** A constituent without a bar is carried at its last close (all four prices) and counted. A time at
which no constituent has a bar is no index bar.
**Prices.** Open and close are those of the basket; high and low are sums of the constituents' highs and lows,
which bound the true ones from outside (their times within the bar are unknown) and are exact for one constituent.
Futures are forward ratio-adjusted over rolls first. Volume is unknown (NaN).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from algospace.errors import InputError
from algospace.marketdata.continuous import continuous
from algospace.marketdata.schema import PRICES
from algospace.marketdata.side_tables import parse_times, read_table
from algospace.types import Bars, BoolArray, FloatArray, Int32Array, IntArray

Units = Literal["value", "shares"]


@dataclass(frozen=True)
class Rebalance:
    """Weights (constituent -> weight > 0) in force from `effective` on, known from `published` on (ns UTC)."""

    effective: int
    published: int
    weights: Mapping[str, float]

    @property
    def known(self) -> int:
        """From when on it can be applied."""
        return max(self.effective, self.published)


@dataclass(frozen=True)
class IndexSeries:
    """Index bars (n,) and how each came about.

    carried: constituents priced at an earlier close; oldest_ns: how much earlier than the bar the oldest of these
    closed (0 if none); divisor; rebalance: number of the rebalance in force, by `effective`, from 0.
    """

    bars: Bars
    carried: Int32Array
    oldest_ns: IntArray
    divisor: FloatArray
    rebalance: Int32Array


def read_weights(path: Path | str) -> list[Rebalance]:
    """Rebalances from a CSV of effective_utc[, published_utc], constituent, weight; InputError names the row.

    Rows of one effective and published time are one rebalance; without `published_utc` it is known when effective.
    """
    path = Path(path)
    frame = read_table(path, ("effective_utc", "constituent", "weight"), "a table of weights")
    effective = parse_times(path, frame["effective_utc"])
    published = effective
    if "published_utc" in frame:
        _require(path, ~frame["published_utc"].isna(), "published_utc is empty", "fill it, or drop the column")
        published = parse_times(path, frame["published_utc"])
    weight = pd.to_numeric(frame["weight"], errors="coerce").to_numpy(np.float64)
    _require(path, np.isfinite(weight) & (weight >= 0), "a weight is negative or no number",
             "give weights from 0 up")
    sets: dict[tuple[int, int], dict[str, float]] = {}
    for row, name in enumerate(frame["constituent"].str.strip()):
        chosen = sets.setdefault((int(effective[row]), int(published[row])), {})
        if name in chosen:
            raise InputError(path, f"{name} has two weights at one time", "keep one", row=row + 2)
        chosen[name] = float(weight[row])
    return [Rebalance(*when, weights) for when, weights in sorted(sets.items())]


def build_index(constituents: Mapping[str, Bars], weights: Sequence[Rebalance], base_value: float = 1000.0,
                units: Units = "value") -> IndexSeries:
    """The index of `constituents` (bars of one width) under `weights`.

    It begins at the first bar at which a rebalance is in force and all its constituents have traded. InputError
    for weights without a positive one, a constituent without bars, widths that differ, or an index that never
    begins.
    """
    plan = _checked(constituents, weights, base_value)
    names = sorted({name for step in plan for name, weight in step.weights.items() if weight > 0})
    width = constituents[names[0]].width_ns
    grid = np.unique(np.concatenate([constituents[name].ts_open for name in names]))
    prices = {name: _carried(constituents[name], grid) for name in names}
    starts = _starts(plan, prices, grid)
    build = _Builder(grid.size, base_value, units)
    for number, start in starts:
        build.rebalance(number, plan[number], prices, start)
        stop = next((later for _, later in starts if later > start), grid.size)
        build.fill(number, prices, start, stop)
    return build.series(grid, width)


@dataclass(frozen=True)
class _Prices:
    """A constituent on the index's grid (n,): bars where it has them, its last close elsewhere, NaN before.

    before: the last close known before each grid bar opens; age_ns: how much earlier the last bar opened.
    """

    values: dict[str, FloatArray]
    present: BoolArray
    age_ns: IntArray
    before: FloatArray


class _Builder:
    """Writes the index, one stretch between rebalances at a time; rows not written are no index bars."""

    def __init__(self, rows: int, base_value: float, units: Units) -> None:
        self._base_value, self._units = base_value, units
        self._prices = {name: np.full(rows, np.nan) for name in PRICES}
        self._carried, self._number = np.zeros(rows, np.int32), np.full(rows, -1, np.int32)
        self._oldest, self._divisor_at = np.zeros(rows, np.int64), np.full(rows, np.nan)
        self._quantity: dict[str, float] = {}
        self._divisor = 1.0

    def rebalance(self, number: int, step: Rebalance, prices: Mapping[str, _Prices], start: int) -> None:
        """New quantities and the divisor that keeps the level."""
        positive = {name: weight for name, weight in sorted(step.weights.items()) if weight > 0}
        first = not self._quantity
        at = {name: float(prices[name].values["open"][start] if first else prices[name].before[start])
              for name in {*positive, *self._quantity}}
        level = self._base_value if first else _basket(self._quantity, at) / self._divisor
        if self._units == "shares":
            self._quantity = positive
        else:
            total = sum(positive.values())
            self._quantity = {name: weight / total * level / at[name] for name, weight in positive.items()}
        self._divisor = _basket(self._quantity, at) / level

    def fill(self, number: int, prices: Mapping[str, _Prices], start: int, stop: int) -> None:
        """Bars [start, stop) under the quantities in force."""
        rows = slice(start, stop)
        traded = np.zeros(stop - start, np.bool_)
        for name in self._quantity:
            traded |= prices[name].present[rows]
        for field in PRICES:
            total = np.zeros(stop - start)
            for name, quantity in self._quantity.items():
                total = total + quantity * prices[name].values[field][rows]
            self._prices[field][rows] = np.where(traded, total / self._divisor, np.nan)
        for name in self._quantity:
            self._carried[rows] += ~prices[name].present[rows]
            self._oldest[rows] = np.maximum(self._oldest[rows], prices[name].age_ns[rows])
        self._divisor_at[rows] = self._divisor
        self._number[rows] = np.where(traded, number, -1)

    def series(self, grid: IntArray, width: int) -> IndexSeries:
        """What was written."""
        kept = self._number >= 0
        prices = {name: self._prices[name][kept] for name in PRICES}
        bars = Bars(ts_open=grid[kept], **prices, volume=np.full(int(kept.sum()), np.nan), width_ns=width)
        return IndexSeries(bars, self._carried[kept], self._oldest[kept], self._divisor_at[kept],
                           self._number[kept])


def _basket(quantity: Mapping[str, float], price: Mapping[str, float]) -> float:
    return sum(q * price[name] for name, q in quantity.items())


def _carried(bars: Bars, grid: IntArray) -> _Prices:
    adjusted = continuous(bars).adjusted
    last = np.searchsorted(bars.ts_open, grid, side="right") - 1
    seen = np.maximum(last, 0)
    present = (last >= 0) & (bars.ts_open[seen] == grid)
    close = np.where(last >= 0, adjusted.close[seen], np.nan)
    values = {name: np.where(present, getattr(adjusted, name)[seen], close) for name in PRICES}
    earlier = last - present
    before = np.where(earlier >= 0, adjusted.close[np.maximum(earlier, 0)], np.nan)
    age = np.where(present | (last < 0), 0, grid - bars.ts_open[seen])
    return _Prices(values, present, age, before)


def _starts(plan: Sequence[Rebalance], prices: Mapping[str, _Prices], grid: IntArray) -> list[tuple[int, int]]:
    """(rebalance, first grid bar under it) in order of time; one overtaken by a later rebalance is left out.

    The index begins with a bar of a constituent, at opens; later rebalances need closes known before their bar.
    """
    first = [_first_row(step, prices, grid, at_opens=True) for step in plan]
    begin = min(first)
    if begin == grid.size:
        raise InputError("weights", "no bar at which a rebalance is in force and all its constituents have traded",
                         "give earlier weights or later bars")
    number = max(n for n, row in enumerate(first) if row == begin)
    found = [(number, begin)]
    for later in range(number + 1, len(plan)):
        row = _first_row(plan[later], prices, grid, at_opens=False)
        if row < grid.size:
            found = [(n, start) for n, start in found if start < row] + [(later, row)]
    return found


def _first_row(step: Rebalance, prices: Mapping[str, _Prices], grid: IntArray, at_opens: bool) -> int:
    """First grid bar at which `step` is known and can be priced; the grid's size if there is none."""
    names = [name for name, weight in step.weights.items() if weight > 0]
    at = [prices[n].values["open"] if at_opens else prices[n].before for n in names]
    known = np.all(np.isfinite(np.array(at)), axis=0)
    if at_opens:
        known &= np.any([prices[n].present for n in names], axis=0)
    start = int(np.searchsorted(grid, step.known))
    ready = np.flatnonzero(known[start:])
    return start + int(ready[0]) if ready.size else int(grid.size)


def _checked(constituents: Mapping[str, Bars], weights: Sequence[Rebalance], base_value: float) -> list[Rebalance]:
    if not base_value > 0.0 or not np.isfinite(base_value):
        raise InputError("index", f"base value {base_value} is not positive", "give for example 1000")
    if not weights:
        raise InputError("weights", "no rebalance", "give at least one")
    for number, step in enumerate(weights):
        where = f"weights, rebalance {number + 1}"
        bad = [name for name, weight in step.weights.items() if not (np.isfinite(weight) and weight >= 0)]
        if bad:
            raise InputError(where, f"the weight of {bad[0]} is negative or no number", "give weights from 0 up")
        used = [name for name, weight in step.weights.items() if weight > 0]
        if not used:
            raise InputError(where, "no positive weight", "give at least one constituent a weight")
        absent = [name for name in used if name not in constituents or len(constituents[name]) == 0]
        if absent:
            raise InputError(where, f"no bars of {absent[0]}", "give its bars, or drop it from the weights")
    widths = {name: bars.width_ns for name, bars in constituents.items()}
    if len(set(widths.values())) > 1:
        raise InputError("constituents", f"bars of different widths ({widths})", "bring them to one width first")
    for name, bars in constituents.items():
        _require(f"{name} bars", np.r_[True, np.diff(bars.ts_open) > 0][:len(bars)],
                 "time is not later than in the row before", "sort the rows and drop duplicates")
        _require(f"{name} bars", (bars.low > 0) & (bars.high < np.inf), "a price is NaN, infinite or not positive",
                 "repair or drop the row")
    return sorted(weights, key=lambda step: (step.effective, step.published))


def _require(where: object, fine: object, rule: str, fix: str) -> None:
    good = np.asarray(fine)
    if not good.all():
        raise InputError(where, rule, fix, row=int(np.argmin(good)) + 2)
