"""Where in the trading session and week a bar closes, and what the session has done so far.

A bar belongs to the session that holds the instant just before its close. The session part is kept here because
the gap, the session's return and the VWAP all start anew with it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba as nb
import numpy as np

from algospace.calendars import utc_offsets
from algospace.features.library.column import Column
from algospace.instruments import Session
from algospace.types import DAY_NS, HOUR_NS, MINUTE_NS, AnyArray, FloatArray, IntArray

_MINUTES_PER_DAY = 24 * 60
_THURSDAY = 3  # 1970-01-01, with Monday 0
_FAMILY = "temporal"

COLUMNS = (
    Column(name="minute_of_session", family=_FAMILY, unit="minutes", warm_up=0, parity="even",
           formula="minutes from the session's open to the bar's close, at least 0", source="exchange calendar"),
    Column(name="minutes_to_close", family=_FAMILY, unit="minutes", warm_up=0, parity="even",
           formula="minutes from the bar's close to the session's close, at least 0", source="exchange calendar"),
    Column(name="bar_of_session", family=_FAMILY, unit="bars", warm_up=0, parity="even",
           formula="number of the bar in its trading day, the first is 0", source="exchange calendar"),
    Column(name="day_of_week", family=_FAMILY, unit="day, Monday 0", warm_up=0, parity="even",
           formula="weekday of the trading day (a futures session that opens on Sunday evening is Monday's)",
           source="exchange calendar"),
)  # fmt: skip

# offset holds for instants in [since, until); day of the session; open and last_close of the price, gap in logs;
# sums of volume and of typical price times volume since its first bar.
SESSION = np.dtype(
    [("since", "i8"), ("until", "i8"), ("offset", "i8"), ("day", "i8"), ("bar", "i8"), ("minute", "f8"),
     ("open", "f8"), ("gap", "f8"), ("volume", "f8"), ("turnover", "f8")],
    align=True,
)  # fmt: skip


class TemporalState(NamedTuple):
    """session (1,); hours (3,): shift of the trading day in ns, minutes from its start to open and to close;
    starts, offsets of `calendars.utc_offsets`."""

    session: AnyArray
    hours: IntArray
    starts: IntArray
    offsets: IntArray


def new_state(session: Session) -> TemporalState:
    """State before the first bar of an instrument with these hours."""
    state = np.zeros(1, SESSION)
    state["day"] = np.iinfo(np.int64).min
    opens, closes = (_minutes(text) - session.day_start_hour * 60 for text in (session.open, session.close))
    hours = np.array([
        (24 - session.day_start_hour) % 24 * HOUR_NS, opens % _MINUTES_PER_DAY,
        closes % _MINUTES_PER_DAY or _MINUTES_PER_DAY,
    ])  # fmt: skip
    return TemporalState(state, hours, *(table.copy() for table in utc_offsets(session.zone)))


def _minutes(text: str) -> int:
    hour, minute = text.split(":")
    return int(hour) * 60 + int(minute)


@nb.njit(cache=True)
def new_session(state: Any, bar: Any, last_close: float) -> None:
    """Find the bar's session; if it is another than the last bar's, start it."""
    s = state.session[0]
    ts = bar.ts_close - 1
    if not s.since <= ts < s.until:
        place = np.searchsorted(state.starts, ts, side="right") - 1
        s.since = state.starts[place]
        s.until = state.starts[place + 1] if place + 1 < state.starts.size else np.iinfo(np.int64).max
        s.offset = state.offsets[place]
    shifted = ts + s.offset + state.hours[0]
    day = shifted // DAY_NS
    s.minute = (shifted - day * DAY_NS + 1) / MINUTE_NS
    if day == s.day:
        s.bar += 1
        return
    s.gap = np.log(bar.open / last_close) if s.day != np.iinfo(np.int64).min else 0.0
    s.day = day
    s.bar = 0
    s.open = bar.open
    s.volume = s.turnover = 0.0


@nb.njit(cache=True)
def update(state: Any, out: FloatArray) -> None:
    """out as of COLUMNS, after `new_session`."""
    s = state.session[0]
    out[0] = max(s.minute - state.hours[1], 0.0)
    out[1] = max(state.hours[2] - s.minute, 0.0)
    out[2] = s.bar
    out[3] = (s.day + _THURSDAY) % 7
