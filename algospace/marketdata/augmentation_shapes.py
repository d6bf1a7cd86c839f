"""Bars as relative moves and back: what augmentation changes, so that its results are sound bars by construction.

A bar is a gap from the last close to its open, a body from open to close, and two wicks, all in log points. Any
real gaps and bodies and any wicks >= 0 make bars that are positive and have low <= open, close <= high.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from algospace.calendars import to_local_ns
from algospace.errors import InputError
from algospace.types import DAY_NS, HOUR_NS, AnyArray, Bars, BoolArray, FloatArray, IntArray

_PARKINSON = 4.0 * np.log(2.0)


@dataclass(frozen=True)
class Shapes:
    """Log gap, body, upper and lower wick of each bar, and volume; arrays (n,), gap[0] = 0."""

    gap: FloatArray
    body: FloatArray
    upper: FloatArray
    lower: FloatArray
    volume: FloatArray

    def take(self, rows: IntArray) -> Shapes:
        """The shapes of other rows."""
        return Shapes(self.gap[rows], self.body[rows], self.upper[rows], self.lower[rows], self.volume[rows])

    def scaled(self, factor: FloatArray) -> Shapes:
        """Gaps, bodies and wicks times `factor` (n,), positive."""
        return replace(self, gap=self.gap * factor, body=self.body * factor, upper=self.upper * factor,
                       lower=self.lower * factor)


def shapes_of(bars: Bars) -> Shapes:
    """Shapes of sound bars; InputError names the first row that is not."""
    highest, lowest = np.maximum(bars.open, bars.close), np.minimum(bars.open, bars.close)
    sound = (bars.low > 0) & (bars.low <= lowest) & (bars.high >= highest) & (bars.high < np.inf)
    if len(bars) < 2 or not sound.all():
        row = int(np.argmin(sound)) if len(bars) else 0
        rule = "needs two bars" if len(bars) < 2 else f"bar {row}: low, open, close, high break their order"
        raise InputError("augmentation", rule, "give imported bars")
    gap = np.zeros(len(bars))
    gap[1:] = np.log(bars.open[1:] / bars.close[:-1])
    return Shapes(gap, np.log(bars.close / bars.open), np.log(bars.high / highest), np.log(lowest / bars.low),
                  bars.volume.copy())


def bars_of(shapes: Shapes, like: Bars, tick_size: float | None = None) -> Bars:
    """Bars with these shapes at the times and contracts of `like`, from its first open on.

    `tick_size`: round prices to the grid (one tick at least), which keeps the order of a bar's prices.
    """
    close = like.open[0] * np.exp(np.cumsum(shapes.gap + shapes.body))
    before = np.concatenate(([like.open[0]], close[:-1]))
    open_ = before * np.exp(shapes.gap)
    high = np.maximum(open_, close) * np.exp(shapes.upper)
    low = np.minimum(open_, close) * np.exp(-shapes.lower)
    prices = {"open": open_, "high": high, "low": low, "close": close}
    if tick_size:
        prices = {name: np.maximum(np.floor(p / tick_size + 0.5), 1.0) * tick_size for name, p in prices.items()}
    ts_open, contract = like.ts_open.copy(), like.contract.copy()
    return replace(like, ts_open=ts_open, contract=contract, volume=shapes.volume, **prices)


def break_kind(bars: Bars) -> IntArray:
    """(n,) what lies before each bar: 0 the bar before it, 1 a hole (up to an hour), 2 a night, 3 a weekend."""
    pause = np.diff(bars.ts_open) - bars.width_ns
    kind = (pause > 0).astype(np.int64) + (pause > HOUR_NS) + (pause > DAY_NS)
    return np.concatenate(([0], kind))


def roll_rows(bars: Bars) -> BoolArray:
    """(n,) first bars of a new contract."""
    return np.concatenate(([False], np.diff(bars.contract) != 0))


def local_slot(bars: Bars, zone: str, slot_ns: int) -> IntArray:
    """(n,) number of the slot of the local day in which each bar opens."""
    return to_local_ns(bars.ts_open, zone) % DAY_NS // slot_ns


def local_volatility(bars: Bars, shapes: Shapes, window: int) -> FloatArray:
    """(n,) root mean square of close-to-close log returns over `window` bars around each bar.

    Moves over breaks and rolls are left out. Centred, so it sees bars to come: for augmentation, not for features.
    """
    inside = (break_kind(bars) == 0) & ~roll_rows(bars)
    squares = np.where(inside, (shapes.gap + shapes.body) ** 2, 0.0)
    total = np.concatenate(([0.0], np.cumsum(squares)))
    count = np.concatenate(([0], np.cumsum(inside)))
    rows = np.arange(len(bars))
    start, stop = np.maximum(rows - window // 2, 0), np.minimum(rows + window // 2 + 1, len(bars))
    sums, counts = total[stop] - total[start], np.maximum(count[stop] - count[start], 1)
    root: FloatArray = np.sqrt(np.maximum(sums, 0.0) / counts)
    return root


def range_volatility(shapes: Shapes) -> FloatArray:
    """(n,) volatility of each bar by its range: ln(high/low) / √(4 ln 2) (Parkinson 1980)."""
    estimate: FloatArray = (shapes.upper + shapes.lower + np.abs(shapes.body)) / np.sqrt(_PARKINSON)
    return estimate


def whole_if(volume: FloatArray, like: AnyArray) -> FloatArray:
    """`volume` rounded to whole contracts where all known volumes of `like` are whole; NaN stays."""
    known = like[~np.isnan(like)]
    return np.round(volume) if np.array_equal(known, np.round(known)) else volume
