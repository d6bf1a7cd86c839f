"""Where the M-RMS environment finds its opportunities, and where low volume nodes lie, in the columns of a
market table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from algospace.errors import ConfigError
from algospace.types import SLOW_BAR_NS, AnyArray, BoolArray, FloatArray, Int32Array
from envs.config import RiskEnvConfig
from envs.risk_kernels import MOMENTUM, SYNERGY

if TYPE_CHECKING:
    from algospace.features.market_table import MarketTable


def momentum_sides(table: MarketTable, bars: int) -> AnyArray:
    """(n,) int8: the direction of a momentum entry, 0 where there is none.

    An entry is a row where the roll-adjusted return over `bars` bars changes its sign.
    """
    n = len(table)
    adjusted = np.log(table.close / np.cumprod(table.roll))
    trend = np.zeros(n)
    trend[bars:] = np.sign(adjusted[bars:] - adjusted[:-bars])
    entry = np.zeros(n, np.int8)
    turned = (trend[1:] * trend[:-1]) < 0.0
    entry[1:] = np.where(turned, trend[1:], 0.0).astype(np.int8)
    return entry


def synergy_sides(table: MarketTable) -> AnyArray:
    """(n,) int8: the direction of a synergy detected on the row, 0 where there is none."""
    return np.where(table.synergy_event, np.sign(np.nan_to_num(table.synergy[:, 1])), 0.0).astype(np.int8)


def opportunity_columns(table: MarketTable, config: RiskEnvConfig, first: int,
                        last: int) -> tuple[AnyArray, Int32Array, FloatArray]:
    """(sides (2, n), following (3, n), cumulative weights (3,)) of the opportunities in rows [first, last].

    ConfigError if the split holds no opportunity at all.
    """
    n = len(table)
    sides = np.stack([synergy_sides(table), momentum_sides(table, config.momentum_bars)])
    inside = np.zeros(n, np.bool_)
    inside[first:last + 1] = table.decision[first:last + 1]
    rows = [inside & (sides[SYNERGY] != 0), inside & (sides[MOMENTUM] != 0), inside]
    following = np.stack([_first_at_or_after(mask) for mask in rows])
    present = np.array([mask.any() for mask in rows])
    weights = np.array([config.synergy, config.momentum, config.random]) * present
    if not weights.sum() > 0.0:
        raise ConfigError(f"rows {first} to {last} of {table.symbol} hold no opportunity of the configured "
                          f"sources; give weight to 'random' or widen the split")
    return sides, following, np.cumsum(weights)


def last_with_exit(filled: BoolArray, first: int, last: int, max_bars: int, stop: int) -> int:
    """The last row of [first, last] whose bracket is closed before row `stop` at the latest, first - 1 if there
    is none: entry and exit wait for real bars."""
    real = np.flatnonzero(~filled[:stop])
    for row in range(last, first - 1, -1):
        entry = real[np.searchsorted(real, row + 1):][:1]
        if entry.size and np.searchsorted(real, entry[0] + max_bars) < real.size:
            return row
    return first - 1


def _first_at_or_after(mask: BoolArray) -> Int32Array:
    n = mask.size
    position = np.where(mask, np.arange(n), n)
    first = np.minimum.accumulate(position[::-1])[::-1]
    return np.where(first == n, -1, first).astype(np.int32)


def low_volume_nodes(table: MarketTable) -> FloatArray:
    """(n, 2): signed distance in points from the row's close to the nearest low volume node, and its strength.

    Read back from the strategic matrix: the node lies `lvn_distance` (in ATR) from the 30-minute close, which is
    the close of the last base row before the bar became visible or of that row itself. NaN and 0 where the
    matrix has no such columns, no node, or a distance at the clip.
    """
    n = len(table)
    nodes = np.zeros((n, 2))
    nodes[:, 0] = np.nan
    spec = table.schema.strategic
    if not {"lvn_distance", "lvn_strength"} <= set(spec.names):
        return nodes
    distance_at, strength_at = spec.names.index("lvn_distance"), spec.names.index("lvn_strength")
    slow = np.asarray(table.row_30m)
    distance = table.strategic[np.maximum(slow, 0), distance_at].astype(np.float64)
    column = spec.columns[strength_at]
    strength = table.strategic[np.maximum(slow, 0), strength_at] * column.scale + column.centre
    arrived = np.zeros(n, np.int64)  # row at which the visible 30-minute bar appeared
    arrived[1:] = np.where(slow[1:] != slow[:-1], np.arange(1, n), 0)
    arrived = np.maximum.accumulate(arrived)
    late = (arrived > 0) & (table.ts_close[arrived] % SLOW_BAR_NS != 0)
    closed = np.where(late, arrived - 1, arrived)  # it had closed before a session break
    scale = np.cumprod(table.roll)
    close_30m = table.close[closed] * scale / scale[closed]
    level = close_30m + distance * table.atr_30m
    known = (slow >= 0) & (distance != 0.0) & (np.abs(distance) < table.schema.atr_clip)
    nodes[known, 0] = (level - table.close)[known]
    nodes[known, 1] = strength[known]
    return nodes
