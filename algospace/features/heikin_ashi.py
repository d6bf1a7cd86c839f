"""Heikin Ashi candles."""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np

from algospace.types import FloatArray

HA_STATE = np.dtype([("count", "i8"), ("open", "f8"), ("close", "f8")], align=True)


@nb.njit(cache=True)
def update(state: Any, open_: float, high: float, low: float, close: float, out: FloatArray) -> None:
    """out = (ha_open, ha_high, ha_low, ha_close)."""
    ha_close = (open_ + high + low + close) / 4.0
    ha_open = (open_ + close) / 2.0 if state.count == 0 else (state.open + state.close) / 2.0
    state.count += 1
    state.open = ha_open
    state.close = ha_close
    out[0] = ha_open
    out[1] = max(high, ha_open, ha_close)
    out[2] = min(low, ha_open, ha_close)
    out[3] = ha_close
