"""When futures expire: the third Friday for CME equity index futures, or a table.

Trading of ES, NQ, RTY, YM and their micros ends at 9:30 New York time on the third Friday of the contract month
(CME rulebook, chapters 353, 358, 359, 361, 393, CBOT 27); if the index is not published that day (Good Friday
2008-03-21, Juneteenth 2026-06-19), on the first earlier day on which it is. Closures that no rule announces (a day
of mourning, a storm) are not known here; where they matter, give an expiry table.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from functools import cache
from pathlib import Path

import numpy as np
from pandas.tseries.holiday import (
    AbstractHolidayCalendar,
    GoodFriday,
    Holiday,
    USLaborDay,
    USMartinLutherKingJr,
    USMemorialDay,
    USPresidentsDay,
    USThanksgivingDay,
    nearest_workday,
    sunday_to_monday,
)

from algospace.errors import ConfigError, InputError
from algospace.instruments import Instrument
from algospace.marketdata.contracts import contract_month
from algospace.marketdata.side_tables import parse_dates, read_table
from algospace.types import AnyArray, Int32Array, IntArray

EQUITY_INDEX_FUTURES = ("ES", "NQ", "YM", "RTY", "MES", "MNQ")
_FIRST_YEAR, _LAST_YEAR = "1990", "2060"
_FULL_DATE = 8  # digits of 20241220


class _NewYorkStockExchange(AbstractHolidayCalendar):
    rules = [  # noqa: RUF012 (the base class wants a plain list)
        Holiday("New Year", month=1, day=1, observance=sunday_to_monday), USMartinLutherKingJr, USPresidentsDay,
        GoodFriday, USMemorialDay,
        Holiday("Juneteenth", month=6, day=19, start_date="2022-01-01", observance=nearest_workday),
        Holiday("Independence Day", month=7, day=4, observance=nearest_workday), USLaborDay, USThanksgivingDay,
        Holiday("Christmas", month=12, day=25, observance=nearest_workday),
    ]


@cache
def exchange_holidays() -> AnyArray:
    """Days (datetime64[D]) on which the New York Stock Exchange is closed by rule, 1990 to 2060."""
    found = _NewYorkStockExchange().holidays(f"{_FIRST_YEAR}-01-01", f"{_LAST_YEAR}-12-31")
    return found.to_numpy().astype("datetime64[D]")


def third_friday(year: int, month: int) -> date:
    """Last trading day of an equity index future of that month (see the module)."""
    friday = np.busday_offset(f"{year:04d}-{month:02d}", 2, roll="forward", weekmask="Fri")
    return np.busday_offset(friday, 0, roll="backward", holidays=exchange_holidays()).astype(object)


def business_days_before(day: IntArray, days: int) -> IntArray:
    """The business day `days` business days before each day (days since 1970)."""
    return np.busday_offset(day.astype("datetime64[D]"), -days, roll="backward",
                            holidays=exchange_holidays()).astype(np.int64)


def expiry_days(names: Sequence[str], ts_open: IntArray, contract: Int32Array, spec: Instrument,
                table: Path | None = None) -> IntArray:
    """(contracts,) last trading day (days since 1970) of each name, by `table` or by the rule of the instrument.

    InputError for a table that lacks a contract; ConfigError where no rule is known.
    """
    if table is not None:
        return _from_table(table, names)
    if spec.symbol not in EQUITY_INDEX_FUTURES:
        raise ConfigError(f"no expiry rule for {spec.symbol} (known: {', '.join(EQUITY_INDEX_FUTURES)}); "
                          "give --expiries FILE with contract, expiry")
    found = [_by_rule(name, ts_open[contract == code]) for code, name in enumerate(names)]
    unknown = [name for name, day in zip(names, found, strict=True) if day is None]
    if unknown:
        raise ConfigError(f"contract '{unknown[0]}': its name states no month (ESZ4, ESZ24, 202412); "
                          "give --expiries FILE with contract, expiry")
    return np.array([np.datetime64(day, "D") for day in found]).astype(np.int64)


def known_expiry_days(names: Sequence[str], ts_open: IntArray, contract: Int32Array,
                      spec: Instrument) -> IntArray | None:
    """`expiry_days`, or None where no rule gives them."""
    try:
        return expiry_days(names, ts_open, contract, spec)
    except ConfigError:
        return None


def _by_rule(name: str, rows: IntArray) -> date | None:
    month = contract_month(name, int(rows.min()) if rows.size else 0)
    if month is None:
        return None
    if name.isdigit() and len(name) == _FULL_DATE:
        return date(month[0], month[1], int(name[6:]))
    return third_friday(*month)


def _from_table(path: Path, names: Sequence[str]) -> IntArray:
    frame = read_table(path, ("contract", "expiry"), "an expiry table")
    days = parse_dates(path, frame["expiry"])
    contracts = frame["contract"].str.strip()
    if contracts.duplicated().any():
        row = int(np.argmax(contracts.duplicated()))
        raise InputError(path, f"{contracts.iloc[row]} has two expiries", "keep one", row=row + 2)
    by_name = dict(zip(contracts, days, strict=True))
    missing = [name for name in names if name not in by_name]
    if missing:
        raise InputError(path, f"no expiry of contract {missing[0]}", "add a line for each contract of the data")
    return np.array([by_name[name] for name in names], np.int64)
