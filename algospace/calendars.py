"""Local wall-clock time and trading days, as integer arithmetic that compiled code can call.

CME Globex index futures trade Sunday 17:00 to Friday 16:00 Chicago time with a daily break 16:00-17:00; a
trading day is named after the date on which it ends (CME rulebook chapter 358), so 17:00 starts the next day.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo

import numba as nb
import numpy as np

from algospace.types import DAY_NS, HOUR_NS, SECOND_NS, IntArray

_FIRST_YEAR, _LAST_YEAR = 1990, 2060


@cache
def utc_offsets(zone: str) -> tuple[IntArray, IntArray]:
    """(transition instants UTC ns, offset ns valid from each instant on) of an IANA time zone."""
    tz = ZoneInfo(zone)
    instant = datetime(_FIRST_YEAR, 1, 1, tzinfo=UTC)
    end = datetime(_LAST_YEAR, 1, 1, tzinfo=UTC)
    starts, offsets = [np.iinfo(np.int64).min], [_offset_ns(instant, tz)]
    while instant < end:
        following = instant + timedelta(hours=1)
        offset = _offset_ns(following, tz)
        if offset != offsets[-1]:
            starts.append(int(following.timestamp()) * SECOND_NS)
            offsets.append(offset)
            instant = following
        instant = _skip_quiet_days(instant, offset, tz)
    return np.array(starts, np.int64), np.array(offsets, np.int64)


def _offset_ns(instant: datetime, tz: ZoneInfo) -> int:
    offset = instant.astimezone(tz).utcoffset()
    assert offset is not None
    return int(offset.total_seconds()) * SECOND_NS


def _skip_quiet_days(instant: datetime, offset: int, tz: ZoneInfo) -> datetime:
    day_later = instant + timedelta(days=1)
    if _offset_ns(day_later, tz) == offset:
        return day_later
    return instant + timedelta(hours=1)


CHICAGO_STARTS, CHICAGO_OFFSETS = utc_offsets("America/Chicago")


@nb.njit(inline="always", cache=True)
def local_ns(ts: int, starts: IntArray, offsets: IntArray) -> int:
    """UTC ns -> local wall-clock ns, by the table of `utc_offsets`."""
    return ts + offsets[np.searchsorted(starts, ts, side="right") - 1]


def to_local_ns(ts: IntArray, zone: str) -> IntArray:
    """Vectorised UTC ns -> local wall-clock ns."""
    starts, offsets = utc_offsets(zone)
    return ts + offsets[np.searchsorted(starts, ts, side="right") - 1]


def trading_day(ts: IntArray, zone: str = "America/Chicago", day_start_hour: int = 17) -> IntArray:
    """Days since 1970-01-01 of the trading day that holds each instant; a day begins at `day_start_hour`
    local time of the calendar day before (0: the calendar day itself)."""
    shift = (24 - day_start_hour) % 24 * HOUR_NS
    return (to_local_ns(ts, zone) + shift) // DAY_NS
