"""What source bars must satisfy before features are computed; each fault is one clear line."""

from __future__ import annotations

import numpy as np

from algospace.errors import ConfigError, InputError
from algospace.types import MINUTE_NS, Bars, BoolArray, Ticks

_HEADER_LINES = 2  # array row 0 is line 2 of a file with a header


def check_width(source_width: int, base_width: int) -> None:
    """Source bars must fit into base bars."""
    if source_width <= 0 or base_width % source_width:
        raise ConfigError(
            f"source bars of {source_width / MINUTE_NS:g} minutes do not fit into base bars of "
            f"{base_width / MINUTE_NS:g} minutes; set base_minutes to a multiple of the source's width"
        )


def check_bars(bars: Bars, base_width: int) -> None:
    """InputError with the first row that is out of order, off the clock's grid or not a possible bar."""
    check_width(bars.width_ns, base_width)
    if len(bars) == 0:
        raise InputError("bars", "no rows", "give a range that holds data")
    later = np.ones(len(bars), np.bool_)
    later[1:] = bars.ts_open[1:] > bars.ts_open[:-1]
    _require(later, "time is not later than in the row before", "sort the rows and drop duplicates")
    _require(bars.ts_open % bars.width_ns == 0, "the bar does not start on the clock's grid",
             "check the bar width and that ts_open is the start in UTC")  # fmt: skip
    _require((bars.low > 0) & (bars.high < np.inf), "a price is NaN, infinite or not positive", "repair or drop")
    possible = (bars.low <= np.minimum(bars.open, bars.close)) & (bars.high >= np.maximum(bars.open, bars.close))
    _require(possible, "open or close is NaN or outside low..high", "repair or drop the row")
    volume = ~((bars.volume < 0) | (bars.volume == np.inf))
    _require(volume, "volume is negative or infinite", "repair it, or set it to NaN where unknown")


def check_contracts(ticks: Ticks) -> None:
    """InputError if a contract comes back after a later one: prices of contracts side by side are no series."""
    codes = ticks.contract
    if codes is None or codes.size == 0:
        return
    starts = np.flatnonzero(np.concatenate(([True], codes[1:] != codes[:-1])))
    _, first = np.unique(codes[starts], return_index=True)
    if first.size < starts.size:
        back = int(np.setdiff1d(np.arange(starts.size), first)[0])
        raise InputError("ticks", f"contract number {codes[starts[back]]} comes back after another one, "
                         f"{starts.size - 1} changes in all: contracts trade side by side",
                         "keep one at a time (data import --symbol)", row=int(starts[back]))


def _require(fine: BoolArray, rule: str, fix: str) -> None:
    if not fine.all():
        raise InputError("bars", rule, fix, row=int(np.argmin(fine)) + _HEADER_LINES)
