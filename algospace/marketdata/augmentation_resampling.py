"""Augmentation that rearranges a history: stationary block bootstrap and resampling within regimes.

Rows are taken from other places of the same history; a bar's gap, body, wicks and volume stay together, time of
day and the kind of break before a bar are kept, and prices are rebuilt from the moves.
"""

from __future__ import annotations

from typing import Literal

import numba as nb
import numpy as np
from pydantic import Field

from algospace.calendars import trading_day
from algospace.config import FrozenConfig
from algospace.errors import ConfigError
from algospace.marketdata.augmentation_shapes import bars_of, break_kind, local_slot, roll_rows, shapes_of
from algospace.types import MINUTE_NS, AnyArray, Bars, IntArray

_KINDS = 4  # of breaks before a bar
_COARSE_NS = 30 * MINUTE_NS


class BlockBootstrapConfig(FrozenConfig):
    """unit: blocks begin at the start of a trading day or at any bar; mean_length: of a block, in days or bars.

    zone, day_start_hour: where the trading day and the time of day are told.
    """

    unit: Literal["day", "bar"] = "day"
    mean_length: float = Field(default=5.0, ge=1)
    zone: str = "America/Chicago"
    day_start_hour: int = Field(default=17, ge=0, le=23)


class RegimeResampleConfig(FrozenConfig):
    """mean_length: of a block, in bars; zone: where the half hours of the day are told."""

    mean_length: float = Field(default=24.0, ge=1)
    zone: str = "America/Chicago"


@nb.njit(cache=True)
def source_rows(group: AnyArray, restart: AnyArray, pick: AnyArray, order: AnyArray, starts: AnyArray,
                nearest: bool, source: AnyArray) -> None:
    """Fill source (n,): for every row one of the same group, running on from row to row between restarts.

    order[starts[g]:starts[g+1]] are the rows of group g, ascending; pick is U[0, 1). Where the run meets a row of
    another group, the next row of the right group follows (`nearest`, in a circle), else a random one.
    """
    row = 0
    for i in range(group.size):
        low, high = starts[group[i]], starts[group[i] + 1]
        row = (row + 1) % group.size
        if i == 0 or restart[i] or (not nearest and group[row] != group[i]):
            row = order[low + int(pick[i] * (high - low))]
        elif group[row] != group[i]:
            place = low + np.searchsorted(order[low:high], row)
            row = order[place if place < high else low]
        source[i] = row


def _resampled(bars: Bars, key: IntArray, restart: AnyArray, nearest: bool, rng: np.random.Generator) -> Bars:
    """`bars` with every row's shape taken from a row of equal `key`; gaps over rolls stay where they are."""
    _, group = np.unique(key * _KINDS + break_kind(bars), return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.concatenate(([0], np.cumsum(np.bincount(group))))
    source = np.empty(len(bars), np.int64)
    source_rows(group, restart, rng.random(len(bars)), order, starts, nearest, source)
    shapes, rolls = shapes_of(bars), roll_rows(bars)
    clean = np.where(rolls, 0.0, shapes.gap)  # a basis gap belongs to its own place
    taken = shapes.take(source)
    taken.gap[:] = np.where(rolls, shapes.gap, clean[source])
    taken.gap[0] = 0.0
    return bars_of(taken, bars)


def block_bootstrap(bars: Bars, config: BlockBootstrapConfig, rng: np.random.Generator) -> Bars:
    """Stationary bootstrap (Politis and Romano 1994, doi:10.1080/01621459.1994.10476870) of days or bars.

    Block lengths are geometric, the history is a circle, and a block starts only where the time of day fits. Where
    a run of rows falls out of step (a missing bar, a short day), it goes on with the next row of the right time.
    """
    u = rng.random(len(bars))
    if config.unit == "day":
        day = trading_day(bars.ts_open, config.zone, config.day_start_hour)
        starts_block = np.concatenate(([True], np.diff(day) != 0))
    else:
        starts_block = np.ones(len(bars), np.bool_)
    restart = starts_block & (u < 1.0 / config.mean_length)
    return _resampled(bars, local_slot(bars, config.zone, bars.width_ns), restart, True, rng)


def regime_resample(bars: Bars, regimes: IntArray, config: RegimeResampleConfig, rng: np.random.Generator) -> Bars:
    """Blocks from rows of the same regime and half hour of the day: the regimes' path stays, what happens in it
    is drawn anew. `regimes` (n,) are labels >= 0, or -1 where unknown (its own group)."""
    if regimes.shape != (len(bars),) or regimes.min(initial=0) < -1:
        raise ConfigError(f"regime labels: need one label >= -1 for each of {len(bars)} bars, got shape "
                          f"{regimes.shape}")
    key = (regimes.astype(np.int64) + 1) * 48 + local_slot(bars, config.zone, _COARSE_NS)
    restart = rng.random(len(bars)) < 1.0 / config.mean_length
    return _resampled(bars, key, restart, False, rng)
