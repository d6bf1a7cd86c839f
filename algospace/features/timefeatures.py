"""Time of day and of week in exchange time, as points on circles."""

from __future__ import annotations

import math

import numba as nb
import numpy as np

from algospace.calendars import local_ns
from algospace.types import DAY_NS, FloatArray, IntArray

_THURSDAY = 3  # 1970-01-01, with Monday 0
_WEEKDAY_SIN = np.sin(2.0 * np.pi * np.arange(7) / 7.0)
_WEEKDAY_COS = np.cos(2.0 * np.pi * np.arange(7) / 7.0)


@nb.njit(cache=True)
def update(ts_close: int, starts: IntArray, offsets: IntArray, out: FloatArray) -> None:
    """out = (hour_sin, hour_cos, weekday_sin, weekday_cos); starts, offsets as of `calendars.utc_offsets`."""
    local = local_ns(ts_close, starts, offsets)
    of_day = 2.0 * math.pi * (local % DAY_NS) / DAY_NS
    weekday = (local // DAY_NS + _THURSDAY) % 7
    out[0] = math.sin(of_day)
    out[1] = math.cos(of_day)
    out[2] = _WEEKDAY_SIN[weekday]
    out[3] = _WEEKDAY_COS[weekday]
