"""Where in the trading session and week a bar closes, and what the session has done so far.

A bar belongs to the session that holds the instant just before its close. The session part is kept here because
the gap, the session's return and the VWAP all start anew with it.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np

from algospace.calendars import utc_offsets
from algospace.features.library.column import Column
from algospace.instruments import Session
from algospace.types import DAY_NS, HOUR_NS, MINUTE_NS, AnyArray, FloatArray

_MINUTES_PER_DAY = 24 * 60
_NEVER = np.iinfo(np.int64).min
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

# Longest table of `calendars.utc_offsets`: two changes a year.
_CHANGES = 160

# shift of the trading day in ns, minutes from its start to open and close. `offset` holds for instants in
# [since, until). Of the session: day, number of the bar, minute of its close, open, gap in logs; sums of volume
# and of typical price times volume since its first bar. starts, offsets as of `calendars.utc_offsets`.
TEMPORAL = np.dtype(
    [("shift", "i8"), ("opens", "i8"), ("closes", "i8"), ("since", "i8"), ("until", "i8"), ("offset", "i8"),
     ("day", "i8"), ("bar", "i8"), ("minute", "f8"), ("open", "f8"), ("gap", "f8"), ("volume", "f8"),
     ("turnover", "f8"), ("starts", "i8", (_CHANGES,)), ("offsets", "i8", (_CHANGES,))],
    align=True,
)  # fmt: skip


def new_state(session: Session) -> AnyArray:
    """State (1,) before the first bar of an instrument with these hours."""
    state = np.zeros(1, TEMPORAL)
    state["day"] = _NEVER
    state["shift"] = (24 - session.day_start_hour) % 24 * HOUR_NS
    opens, closes = (_minutes(text) - session.day_start_hour * 60 for text in (session.open, session.close))
    state["opens"] = opens % _MINUTES_PER_DAY
    state["closes"] = closes % _MINUTES_PER_DAY or _MINUTES_PER_DAY
    starts, offsets = utc_offsets(session.zone)
    state["starts"], state["offsets"] = np.iinfo(np.int64).max, offsets[-1]
    state["starts"][0, : starts.size], state["offsets"][0, : offsets.size] = starts, offsets
    return state


def _minutes(text: str) -> int:
    hour, minute = text.split(":")
    return int(hour) * 60 + int(minute)


@nb.njit(cache=True, error_model="numpy")
def new_session(s: Any, bar: Any, last_close: float) -> None:
    """Find the bar's session; if it is another than the last bar's, start it."""
    ts = bar.ts_close - 1
    if not s.since <= ts < s.until:
        place = np.searchsorted(s.starts, ts, side="right") - 1
        s.since, s.until, s.offset = s.starts[place], s.starts[place + 1], s.offsets[place]
    shifted = ts + s.offset + s.shift
    day = shifted // DAY_NS
    s.minute = (shifted - day * DAY_NS + 1) / MINUTE_NS
    if day == s.day:
        s.bar += 1
        return
    s.gap = np.log(bar.open / last_close) if s.day != _NEVER else 0.0
    s.day = day
    s.bar = 0
    s.open = bar.open
    s.volume = s.turnover = 0.0


@nb.njit(cache=True, error_model="numpy")
def update(s: Any, out: FloatArray) -> None:
    """out as of COLUMNS, after `new_session`."""
    out[0] = max(s.minute - s.opens, 0.0)
    out[1] = max(s.closes - s.minute, 0.0)
    out[2] = s.bar
    out[3] = (s.day + _THURSDAY) % 7
