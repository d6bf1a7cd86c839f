"""Bars on which the indicator library is tried, and its peers' values for them."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import talib

from algospace.features.library import Column
from algospace.types import BASE_BAR_NS, Bars, FloatArray

WEEK = 1_420_000_000_000_000_000 // BASE_BAR_NS * BASE_BAR_NS


def walk(seed: int, n: int, *, price: float = 4000.0, tick: float = 0.25, flat: float = 0.1, jump: float = 0.01,
         volume: bool = True) -> Bars:
    """A random walk on a tick grid with flat bars, gaps between bars and rare jumps."""
    rng = np.random.default_rng(seed)
    moves = rng.normal(0.0, 5e-4, n) * (rng.random(n) >= flat)
    moves[rng.random(n) < jump] *= 40.0
    close = _grid(price * np.exp(np.cumsum(moves)), tick)
    still = rng.random(n) < flat
    gaps = rng.integers(-2, 3, n) * tick * ~still
    open_ = np.maximum(np.concatenate([close[:1], close[:-1]]) + gaps, tick)
    high = np.maximum(open_, close) + rng.integers(0, 4, n) * tick * ~still
    low = np.maximum(np.minimum(open_, close) - rng.integers(0, 4, n) * tick * ~still, tick)
    sizes = rng.integers(0, 900, n).astype(float) if volume else np.full(n, np.nan)
    return Bars(WEEK + np.arange(n) * BASE_BAR_NS, open_, high, low, close, sizes, BASE_BAR_NS)


def _grid(prices: FloatArray, tick: float) -> FloatArray:
    return np.maximum(np.round(prices / tick), 1.0) * tick


def scaled(bars: Bars, price: float, volume: float = 1.0) -> Bars:
    """The same bars with other units of price and volume."""
    return Bars(bars.ts_open, bars.open * price, bars.high * price, bars.low * price, bars.close * price,
                bars.volume * volume, bars.width_ns)


def from_talib(column: Column, bars: Bars) -> FloatArray:
    """TA-Lib's values of a column that it has."""
    assert column.talib is not None
    found = re.fullmatch(r"(\w+)\(([^)]*)\)(?:\[(\d)\])?", column.talib)
    assert found is not None
    names = {"o": bars.open, "h": bars.high, "l": bars.low, "c": bars.close, "v": bars.volume}
    arguments = [names[word] if word in names else float(word) if "." in word else int(word)
                 for word in found[2].split(", ")]  # fmt: skip
    values: Any = getattr(talib, found[1])(*arguments)
    if column.name in DERIVED:
        return DERIVED[column.name](bars.close, *values)
    return values if found[3] is None else values[int(found[3])]


def _ratio(top: FloatArray, bottom: FloatArray, flat: float) -> FloatArray:
    return np.where(bottom != 0.0, top / np.where(bottom != 0.0, bottom, 1.0), np.where(np.isnan(top), top, flat))


DERIVED: dict[str, Any] = {
    "bb_width_20": lambda close, upper, middle, lower: (upper - lower) / middle,
    "bb_pctb_20": lambda close, upper, middle, lower: _ratio(close - lower, upper - lower, 0.5),
    "donchian_width_20": lambda close, upper, middle, lower: upper - lower,
}


def scale(column: Column, bars: Bars) -> float:
    """What a difference of this column is to be compared with: its unit, in these bars."""
    price, volume = float(bars.close.max()), float(np.nanmax(bars.volume, initial=1.0))
    return {"price": price, "price per bar": price, "volume": volume, "price·volume": price * volume,
            "price²/volume": price * price}.get(column.unit, 100.0 if "100" in column.unit else 1.0)
