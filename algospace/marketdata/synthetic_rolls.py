"""Quarterly futures rolls of synthetic markets: contract codes by the calendar and a basis gap in raw prices."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import numpy as np

from algospace.calendars import trading_day
from algospace.seeding import combine, stream_key, to_unit
from algospace.types import Bars, Int32Array, IntArray

_MONTHS = {3: "H", 6: "M", 9: "U", 12: "Z"}
_EPOCH = date(1970, 1, 1)


def roll_days(first_year: int, last_year: int) -> tuple[IntArray, list[str]]:
    """(trading days on which the next contract becomes the front one, names of the contracts before and after).

    The day is the Monday before the third Friday of March, June, September and December, the exchange's usual
    roll date for equity index futures; days count from 1970-01-01. There is one name more than there are days.
    """
    days, names = [], []
    for year in range(first_year, last_year + 1):
        for month, letter in _MONTHS.items():
            first = date(year, month, 1)
            friday = first + timedelta(days=(4 - first.weekday()) % 7 + 14)
            days.append((friday - timedelta(days=4) - _EPOCH).days)
            names.append(f"{letter}{year % 100:02d}")
    names.append(f"H{(last_year + 1) % 100:02d}")
    return np.array(days, np.int64), names


def contract_codes(ts: IntArray) -> tuple[Int32Array, list[str]]:
    """(code of the front contract at each instant, from 0 on; names of the codes, "H00" = March 2000)."""
    first, last = (datetime.fromtimestamp(int(t) // 10**9, UTC).year for t in (ts[0], ts[-1]))
    days, names = roll_days(first, last)
    number = np.searchsorted(days, trading_day(ts), side="right").astype(np.int32)
    return number - number[0], names[int(number[0]):int(number[-1]) + 1]


def with_rolls(bars: Bars, codes: Int32Array, basis_bp: float, tick: float, seed: int) -> Bars:
    """`bars` of one endless contract as raw prices of successive ones.

    Each new contract trades above the old one by `basis_bp` · U(0.5, 1.5): on the grid (`tick` > 0) a constant
    number of ticks is added, which moves returns by that share; off the grid (0) prices are multiplied, which
    leaves every return within a contract as it was.
    """
    factor, offset = np.ones(len(bars)), np.zeros(len(bars))
    for row in np.flatnonzero(np.diff(codes)) + 1:
        drawn = combine(np.uint64(stream_key("synthetic roll", seed)), int(codes[row]))
        u = to_unit(np.uint64(drawn))  # from Python, numba gives and takes a plain integer as signed
        basis = basis_bp * 1e-4 * (0.5 + u)
        if tick > 0.0:
            offset[row:] += max(np.floor(bars.open[row] * basis / tick + 0.5), 1.0) * tick
        else:
            factor[row:] *= 1.0 + basis
    prices = {name: getattr(bars, name) * factor + offset for name in ("open", "high", "low", "close")}
    return replace(bars, **prices, contract=codes)
