"""Time texts of any common layout to integers, and local wall clocks to UTC, both as compiled loops.

Civil-date arithmetic after Hinnant, "chrono-Compatible Low-Level Date Algorithms".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba as nb
import numpy as np
import pyarrow as pa

from algospace.calendars import utc_offsets
from algospace.types import DAY_NS, HOUR_NS, MINUTE_NS, SECOND_NS, AnyArray, BoolArray, IntArray

NO_TIME = np.iinfo(np.int64).min

UNREADABLE, YEAR_FIRST, YEAR_LAST = 0, 1, 2  # layouts of a date
_MAX_GROUPS = 10


@nb.njit(inline="always", cache=True)
def days_from_civil(year: int, month: int, day: int) -> int:
    """Days since 1970-01-01 of a date of the Gregorian calendar."""
    y = year - (1 if month <= 2 else 0)
    era = y // 400
    year_of_era = y - era * 400
    day_of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    day_of_era = year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year
    return era * 146097 + day_of_era - 719468


@nb.njit(inline="always", cache=True)
def civil_from_days(days: int) -> tuple[int, int, int]:
    """(year, month, day) of days since 1970-01-01."""
    z = days + 719468
    era = z // 146097
    day_of_era = z - era * 146097
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36524 - day_of_era // 146096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted = (5 * day_of_year + 2) // 153
    day = day_of_year - (153 * shifted + 2) // 5 + 1
    month = shifted + (3 if shifted < 10 else -9)
    return year_of_era + era * 400 + (1 if month <= 2 else 0), month, day


@nb.njit(inline="always", cache=True)
def days_in_month(year: int, month: int) -> int:
    """28 to 31."""
    if month == 2:
        return 29 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 28
    return 30 if month in (4, 6, 9, 11) else 31


@dataclass(frozen=True)
class DateFields:
    """Fields of n time texts before the order of day and month is known.

    layout: YEAR_FIRST, YEAR_LAST or UNREADABLE; first, second: the two fields that are day and month, in the
    order of the text; nanos: nanoseconds within the day; shift: ns to subtract for a written UTC offset;
    zoned: whether one was written.
    """

    layout: AnyArray
    year: IntArray
    first: IntArray
    second: IntArray
    nanos: IntArray
    shift: IntArray
    zoned: BoolArray


def read_fields(texts: pa.Array) -> DateFields:
    """Split time texts (Arrow strings) into fields; nulls and nonsense become UNREADABLE."""
    array = texts.fill_null("").cast(pa.large_string())
    _, offsets_buffer, data = array.buffers()
    n = len(array)
    offsets = np.frombuffer(offsets_buffer, np.int64, n + 1 + array.offset)[array.offset:]
    buffer = np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(1, np.uint8)
    year, first, second, nanos, shift = (np.zeros(n, np.int64) for _ in range(5))
    fields = DateFields(np.zeros(n, np.uint8), year, first, second, nanos, shift, np.zeros(n, np.bool_))
    _read_all(buffer, offsets, fields.layout, fields.year, fields.first, fields.second, fields.nanos, fields.shift,
              fields.zoned)
    return fields


@nb.njit(cache=True)
def _read_all(buffer: AnyArray, offsets: IntArray, layout: AnyArray, year: IntArray, first: IntArray,
              second: IntArray, nanos: IntArray, shift: IntArray, zoned: BoolArray) -> None:
    values = np.zeros(_MAX_GROUPS, np.int64)
    digits = np.zeros(_MAX_GROUPS, np.int64)
    separators = np.zeros(_MAX_GROUPS, np.uint8)  # the byte before each group
    for i in range(layout.size):
        count, letter, zulu = _split(buffer, offsets[i], offsets[i + 1], values, digits, separators)
        used = _date(count, values, digits, i, layout, year, first, second)
        if used == 0:
            continue
        good, within, offset, has_offset = _clock(count, used, values, digits, separators, letter)
        if not good:
            layout[i] = 0
            continue
        nanos[i], shift[i], zoned[i] = within, offset, has_offset or zulu


@nb.njit(cache=True)
def _split(buffer: AnyArray, start: int, stop: int, values: IntArray, digits: IntArray,
           separators: AnyArray) -> Any:
    """(number of digit groups or -1, 'A'/'P' of an am/pm mark or 0, whether it ends in Z)."""
    count, letter, zulu, in_group = 0, 0, False, False
    for k in range(start, stop):
        byte = buffer[k]
        if 48 <= byte <= 57:
            if not in_group:
                if count == _MAX_GROUPS:
                    return -1, 0, False
                values[count], digits[count] = 0, 0
                separators[count] = buffer[k - 1] if k > start else 0
                count, in_group = count + 1, True
            if digits[count - 1] == 18:
                return -1, 0, False
            values[count - 1] = values[count - 1] * 10 + (byte - 48)
            digits[count - 1] += 1
            continue
        in_group = False
        upper = byte & 0xDF
        if byte in (32, 34, 43, 44, 45, 46, 47, 58) or upper == 84 or upper == 77:  # space " + , - . / : T M
            continue
        if upper == 65 or upper == 80:
            letter = upper
        elif upper == 90:
            zulu = True
        else:
            return -1, 0, False
    return count, letter, zulu


@nb.njit(cache=True)
def _date(count: int, values: IntArray, digits: IntArray, i: int, layout: AnyArray, year: IntArray,
          first: IntArray, second: IntArray) -> int:
    """Fill the date fields of row i; return how many groups the date took, 0 if it is no date."""
    if count >= 1 and digits[0] in (8, 12, 14):
        scale = 10 ** (digits[0] - 8)
        date = values[0] // scale
        values[0] = values[0] % scale  # the time of day that is left: hhmm or hhmmss
        digits[0] -= 8
        layout[i], year[i], first[i], second[i] = 1, date // 10000, date // 100 % 100, date % 100
        return 1 if digits[0] == 0 else -1
    if count < 3:
        return 0
    if digits[0] == 4 and digits[1] <= 2 and digits[2] <= 2:
        layout[i], year[i], first[i], second[i] = 1, values[0], values[1], values[2]
        return 3
    if digits[0] <= 2 and digits[1] <= 2 and digits[2] in (2, 4):
        layout[i], first[i], second[i] = 2, values[0], values[1]
        year[i] = values[2] if digits[2] == 4 else 2000 + values[2]
        return 3
    return 0


@nb.njit(cache=True)
def _clock(count: int, used: int, values: IntArray, digits: IntArray, separators: AnyArray, letter: int) -> Any:
    """(readable, ns within the day, UTC offset ns, whether one was written); used -1: after a packed date."""
    at = 0 if used == -1 else used
    hour, minute, second, fraction = 0, 0, 0, 0
    if at >= count:
        return True, 0, 0, False
    if digits[at] in (3, 4, 5, 6) and at + 1 >= count:
        packed = values[at] if digits[at] > 4 else values[at] * 100
        hour, minute, second = packed // 10000, packed // 100 % 100, packed % 100
        at += 1
    else:
        if digits[at] > 2 or at + 1 >= count or digits[at + 1] > 2:
            return False, 0, 0, False
        hour, minute = values[at], values[at + 1]
        at += 2
        if at < count and separators[at] == 58:
            second = values[at]
            at += 1
            if at < count and (separators[at] == 46 or separators[at] == 44) and digits[at] <= 9:
                fraction = values[at] * 10 ** (9 - digits[at])
                at += 1
    if letter != 0:
        if hour < 1 or hour > 12:
            return False, 0, 0, False
        hour = hour % 12 + (12 if letter == 80 else 0)
    if hour > 23 or minute > 59 or second > 59:
        return False, 0, 0, False
    within = hour * HOUR_NS + minute * MINUTE_NS + second * SECOND_NS + fraction
    if at >= count:
        return True, within, 0, False
    if separators[at] != 43 and separators[at] != 45:
        return False, 0, 0, False
    minutes = values[at] * 60 if digits[at] == 2 else values[at] // 100 * 60 + values[at] % 100
    if at + 1 < count:
        minutes += values[at + 1]
    return at + 2 >= count, within, (minutes if separators[at] == 43 else -minutes) * MINUTE_NS, True


@nb.njit(cache=True)
def assemble(layout: AnyArray, year: IntArray, first: IntArray, second: IntArray, nanos: IntArray,
             shift: IntArray, day_first: bool, out: IntArray, swapped: BoolArray) -> None:
    """Fields -> ns since 1970 in the text's own clock (a written offset already subtracted).

    Rows whose date exists only with day and month exchanged get NO_TIME and `swapped`.
    """
    for i in range(layout.size):
        out[i], swapped[i] = NO_TIME, False
        if layout[i] == 0:
            continue
        month, day = first[i], second[i]
        if layout[i] == 2 and day_first:
            month, day = day, month
        if month > 12 and 1 <= day <= 12 and 1 <= month <= days_in_month(year[i], day):
            swapped[i] = True
        elif 1 <= month <= 12 and 1 <= day <= days_in_month(year[i], month) and 1800 <= year[i] <= 2200:
            out[i] = days_from_civil(year[i], month, day) * DAY_NS + nanos[i] - shift[i]


def to_utc(local: IntArray, zone: str, equal_times: bool = False) -> tuple[IntArray, int]:
    """(UTC ns, number of ambiguous rows) of local wall-clock ns in file order; NO_TIME stays NO_TIME.

    The rule for clock changes: a local time that occurs twice is the earlier instant unless that lies before the
    row before, or at it where rows cannot have equal times (bars; `equal_times` for ticks), then the later one; a
    local time that never occurs becomes NO_TIME.
    """
    starts, offsets = utc_offsets(zone)
    out = np.empty_like(local)
    return out, int(_to_utc(local, starts, offsets, 0 if equal_times else 1, out))


@nb.njit(cache=True)
def _to_utc(local: IntArray, starts: IntArray, offsets: IntArray, least_step: int, out: IntArray) -> int:
    previous, ambiguous = NO_TIME, 0
    segments = starts.size
    for i in range(local.size):
        out[i] = NO_TIME
        if local[i] == NO_TIME:
            continue
        near = np.searchsorted(starts, local[i], side="right") - 1  # off by at most one segment
        found = 0
        for k in range(max(near - 1, 0), min(near + 2, segments)):
            utc = local[i] - offsets[k]
            if utc < starts[k] or (k + 1 < segments and utc >= starts[k + 1]):
                continue
            found += 1
            if found == 1 or out[i] < previous + least_step:
                out[i] = utc
        if found > 1:
            ambiguous += 1
        if found:
            previous = out[i]
    return ambiguous
