"""Trading hours as a mask over the minutes of a week: which bars lie outside them, how many are missing.

Holidays and early closes are not known here; they count as missing bars.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from algospace.calendars import to_local_ns
from algospace.instruments import Session
from algospace.types import DAY_NS, MINUTE_NS, AnyArray, BoolArray, IntArray

WEEK_MINUTES = 7 * 1440
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONDAY_SHIFT = 3 * DAY_NS  # 1970-01-01 was a Thursday


@cache
def open_minutes(session: Session) -> BoolArray:
    """(10080,) True where the market is open, minute 0 = Monday 00:00 exchange time."""
    first, last = (_DAYS.index(day) for day in session.days.split("-"))
    begin, end = _minutes(session.open), _minutes(session.close)
    mask = np.zeros(WEEK_MINUTES, np.bool_)
    days = (last - first) % 7 + 1
    overnight = end <= begin
    for k in range(days - 1 if overnight else days):
        start = ((first + k) % 7) * 1440 + begin
        length = (end - begin) % 1440 if overnight else end - begin
        mask[np.arange(start, start + length) % WEEK_MINUTES] = True
    return mask


def _minutes(text: str) -> int:
    hour, minute = text.split(":")
    return int(hour) * 60 + int(minute)


def never_closes(session: Session) -> bool:
    """True for markets around the clock."""
    return bool(open_minutes(session).all())


def minute_of_week(ts: IntArray, zone: str) -> AnyArray:
    """Minute of the local week of each UTC instant."""
    return (to_local_ns(ts, zone) + _MONDAY_SHIFT) // MINUTE_NS % WEEK_MINUTES


def count_outside(ts_open: IntArray, session: Session) -> int:
    """Number of bars that start while the market is closed."""
    return int((~open_minutes(session)[minute_of_week(ts_open, session.zone)]).sum())


def open_bars_between(start: IntArray, stop: IntArray, width_ns: int, session: Session) -> IntArray:
    """How many bars of `width_ns` the market's open hours within each [start, stop) would hold."""
    cumulative = np.concatenate(([0], np.cumsum(open_minutes(session))))

    def open_time(ts: IntArray) -> IntArray:
        local = to_local_ns(ts, session.zone) + _MONDAY_SHIFT
        weeks, minute = np.divmod(local // MINUTE_NS, WEEK_MINUTES)
        return weeks * cumulative[-1] + cumulative[minute]

    return (open_time(stop) - open_time(start)) * MINUTE_NS // width_ns
