"""What an import of ticks or quotes found: counts, places, clock, guesses."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numba as nb
import numpy as np

from algospace.instruments import Instrument
from algospace.marketdata.quality import iso
from algospace.marketdata.sessions import count_outside, open_bars_between
from algospace.marketdata.ticks.clock import ClockOffset
from algospace.types import MINUTE_NS, SECOND_NS, AnyArray, FloatArray, IntArray, Ticks

OUTLIER_Z = 25.0
_HALF_WINDOW = 5  # ticks on either side whose median a price is compared with
_GAP_NS = MINUTE_NS


@dataclass(frozen=True)
class TickQualityReport:
    """What an import found. rows_in = rows_out + filtered + quarantined, exactly.

    filtered counts by reason the rows that were not asked for; quarantined by rule those that break one; reported
    what was kept all the same; conditions the trades that carry each trade condition (before filtering).
    """

    source: str
    symbol: str
    sha256: str
    kind: str
    layout: str
    rows_in: int
    rows_out: int
    stamped_by: str
    zone: str
    first: str
    last: str
    contracts: list[str] = field(default_factory=list)
    filtered: dict[str, int] = field(default_factory=dict)
    quarantined: dict[str, int] = field(default_factory=dict)
    reported: dict[str, int] = field(default_factory=dict)
    conditions: dict[str, int] = field(default_factory=dict)
    clock: ClockOffset | None = None
    largest_gap: dict[str, Any] = field(default_factory=dict)
    largest_outliers: list[dict[str, Any]] = field(default_factory=list)
    guesses: list[str] = field(default_factory=list)

    @property
    def bad_rows(self) -> int:
        """Rows in quarantine."""
        return sum(self.quarantined.values())

    @property
    def filtered_rows(self) -> int:
        """Rows that were not asked for."""
        return sum(self.filtered.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {**asdict(self), "bad_rows": self.bad_rows, "filtered_rows": self.filtered_rows}

    def lines(self) -> list[str]:
        """The report for people, a few lines."""
        lines = [f"guessed  {guess}" for guess in self.guesses]
        lines.append(f"{self.kind:8} {self.rows_out} of {self.rows_in} rows, {self.first} to {self.last}, "
                     f"stamped by {self.stamped_by} time")
        if self.filtered:
            lines.append(f"left out {self.filtered_rows}: {_counts(self.filtered)}")
        lines.append(f"bad rows {self.bad_rows}"
                     + (f" in quarantine: {_counts(self.quarantined)}" if self.quarantined else ""))
        if self.conditions:
            lines.append(f"conditions {_counts(self.conditions)}")
        if self.clock is not None:
            lines.append(f"clock    {self.clock.line()}")
        noticed = {name: count for name, count in self.reported.items() if count}
        lines.append(f"noticed  {_counts(noticed) or 'nothing'}")
        if self.largest_gap:
            lines.append(f"largest gap in trading hours {self.largest_gap['minutes']} min after "
                         f"{self.largest_gap['after']}")
        lines += [f"outlier  {one['ts']} price {one['price']}, {one['local_median']} around it "
                  f"({one['file']}, row {one['row']})" for one in self.largest_outliers]
        return lines


def _counts(values: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in values.items())


def iso_precise(ts: int) -> str:
    """UTC ns -> 2020-06-28T22:00:00.123456789Z."""
    return f"{iso(ts - ts % SECOND_NS)[:-1]}.{ts % SECOND_NS:09d}Z"


def gaps(ts: IntArray, spec: Instrument) -> tuple[int, dict[str, Any]]:
    """(number of stretches of more than a minute of trading hours without a row, the longest)."""
    after = np.flatnonzero(np.diff(ts) > _GAP_NS)
    minutes = open_bars_between(ts[after], ts[after + 1], MINUTE_NS, spec.session)
    silent = minutes > 1
    if not silent.any():
        return 0, {}
    k = int(np.argmax(minutes))
    return int(silent.sum()), {"after": iso(int(ts[after[k]])), "minutes": int(minutes[k])}


def inspect_ticks(ticks: Ticks, spec: Instrument) -> tuple[dict[str, int], dict[str, Any]]:
    """(counts of what is reported, largest gap) of accepted ticks."""
    counts: dict[str, int] = {}
    counts["gaps_over_a_minute"], largest = gaps(ticks.ts, spec)
    counts["outside_trading_hours"] = count_outside(ticks.ts, spec.session)
    counts["off_tick_grid"] = off_grid(ticks.price, spec)
    counts["zero_size"] = int((ticks.size == 0).sum())
    same = (np.diff(ticks.ts) == 0) & (np.diff(ticks.price) == 0)
    same &= (np.diff(ticks.size) == 0) | (np.isnan(ticks.size[1:]) & np.isnan(ticks.size[:-1]))
    counts["identical_prints"] = int(same.sum())  # legitimate: one order can fill several equal ones
    if ticks.aggressor is not None:
        counts["aggressor_unknown"] = int((ticks.aggressor == 0).sum())
    if ticks.bid is not None and ticks.ask is not None:
        with np.errstate(invalid="ignore"):
            counts["crossed_quotes"] = int((ticks.bid > ticks.ask).sum())
    if ticks.contract is not None:
        counts["rolls"] = int((np.diff(ticks.contract) != 0).sum())
        new = max(int(np.unique(ticks.contract).size) - 1, 0)
        counts["rolls_back"] = counts["rolls"] - new  # of contracts side by side, no one series of prices
    return counts, largest


def off_grid(price: FloatArray, spec: Instrument) -> int:
    """Number of prices that are no multiple of the tick."""
    in_ticks = price / spec.tick_size
    return int((np.abs(in_ticks - np.rint(in_ticks)) > 1e-3).sum())


def outliers(ticks: Ticks, spec: Instrument, worst: int = 5) -> tuple[int, list[tuple[int, float]]]:
    """(number of prices far from the median of the ticks around them, the worst as (row, that median)).

    Far is more than OUTLIER_Z robust deviations, or ticks where prices hardly deviate.
    """
    if len(ticks) < 2 * _HALF_WINDOW + 1:
        return 0, []
    median = np.empty(len(ticks))
    _local_medians(ticks.price, median)
    deviation = np.abs(ticks.price - median)
    scale = max(1.4826 * float(np.median(deviation)), spec.tick_size)
    found = np.flatnonzero(deviation > OUTLIER_Z * scale)
    order = found[np.argsort(-deviation[found], kind="stable")[:worst]]
    return int(found.size), [(int(k), float(median[k])) for k in order]


@nb.njit(cache=True)
def _local_medians(price: FloatArray, out: FloatArray) -> None:
    """Median of each price and its neighbours, by a window kept sorted; at the ends the nearest full window."""
    width = 2 * _HALF_WINDOW + 1
    window = np.sort(price[:width])
    for i in range(price.size):
        entering = i + _HALF_WINDOW
        if i > _HALF_WINDOW and entering < price.size:
            _replace(window, price[i - _HALF_WINDOW - 1], price[entering])
        out[i] = window[_HALF_WINDOW]


@nb.njit(cache=True)
def _replace(window: AnyArray, leaving: float, entering: float) -> None:
    """Put `entering` in the place of `leaving` and keep the window sorted."""
    k = 0
    while window[k] != leaving:
        k += 1
    while k + 1 < window.size and window[k + 1] < entering:
        window[k] = window[k + 1]
        k += 1
    while k > 0 and window[k - 1] > entering:
        window[k] = window[k - 1]
        k -= 1
    window[k] = entering
