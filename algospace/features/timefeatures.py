"""Time of day and of week in exchange time, as points on circles."""

from __future__ import annotations

import math

import numba as nb

from algospace.calendars import local_ns
from algospace.types import DAY_NS, FloatArray, IntArray

_THURSDAY = 3  # 1970-01-01, with Monday 0


@nb.njit(cache=True)
def update(ts_close: int, starts: IntArray, offsets: IntArray, out: FloatArray) -> None:
    """out = (hour_sin, hour_cos, weekday_sin, weekday_cos); starts, offsets as of `calendars.utc_offsets`."""
    local = local_ns(ts_close, starts, offsets)
    of_day = 2.0 * math.pi * (local % DAY_NS) / DAY_NS
    of_week = 2.0 * math.pi * ((local // DAY_NS + _THURSDAY) % 7) / 7.0
    out[0] = math.sin(of_day)
    out[1] = math.cos(of_day)
    out[2] = math.sin(of_week)
    out[3] = math.cos(of_week)
