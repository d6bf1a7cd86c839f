"""Tick streams and observers for the tests of the live path."""

from __future__ import annotations

from typing import Any

import numpy as np

from algospace.events import EventBus, IndicatorsReady
from algospace.features import FeatureRow, FeatureTable
from algospace.live import Chain
from algospace.types import MINUTE_NS, Ticks

DAY0 = 1_600_000_200_000_000_000 // (1440 * MINUTE_NS) * (1440 * MINUTE_NS)


def random_ticks(n: int, seed: int, mean_gap_s: float = 20.0, disorder: float = 0.0, invalid: float = 0.0,
                 rolls: bool = False) -> Ticks:
    """A random walk on a 0.25 grid, with gaps of bars, breaks, disorder and invalid prints."""
    rng = np.random.default_rng(seed)
    gap = rng.exponential(mean_gap_s * 1e9, n)
    gap *= np.where(rng.random(n) < 0.01, 60.0, 1.0)  # fills
    gap += np.where(rng.random(n) < 0.002, 4 * 3600e9, 0.0)  # breaks
    ts = DAY0 + np.cumsum(gap).astype(np.int64)
    on_edge = rng.random(n) < 0.02
    ts = np.where(on_edge, ts - ts % (5 * MINUTE_NS), ts)
    ts = np.where(rng.random(n) < disorder, ts - rng.integers(0, 200 * 10**9, n), ts)
    contract = np.cumsum(rng.random(n) < 0.005).astype(np.int32) if rolls else None
    price = np.round(4000 + np.cumsum(rng.normal(0, 1, n)) * 4) / 4
    if contract is not None:
        price = price + 10.0 * contract
    price = np.where(rng.random(n) < invalid, rng.choice([np.nan, -1.0, 0.0, np.inf], n), price)
    size = rng.integers(0, 9, n).astype(np.float64)
    if seed % 3 == 0:
        size[:] = np.nan
    return Ticks(ts, price, size, contract=contract)


class Collected:
    """Every event of the given classes, in the order of delivery."""

    def __init__(self, bus: EventBus, *kinds: type) -> None:
        self.events: list[Any] = []
        for kind in kinds:
            bus.subscribe(kind, self.take)

    def take(self, event: Any) -> None:
        self.events.append(event)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if type(event) is kind]


def collect_rows(chain: Chain) -> Collected:
    return Collected(chain.bus, IndicatorsReady)


def assert_rows_equal(rows: list[FeatureRow], table: FeatureTable, names: tuple[str, ...], start: int = 0) -> None:
    """Rows of the bus are `table` from row `start` on, bit for bit (NaN equals NaN)."""
    stop = start + len(rows)
    assert [row.ts_close for row in rows] == table.ts_close[start:stop].tolist()
    assert [row.filled for row in rows] == table.filled[start:stop].tolist()
    assert [row.contract for row in rows] == table.contract[start:stop].tolist()
    assert [row.row_30m for row in rows] == table.row_30m[start:stop].tolist()
    if not rows:
        return
    assert tuple(table.base) == names
    live = np.stack([row.base for row in rows], axis=1)
    batch = np.stack([table.base[name][start:stop] for name in names])
    np.testing.assert_array_equal(live.view(np.int64), np.ascontiguousarray(batch).view(np.int64))
    closes = np.concatenate([row.ts_close_30m for row in rows])
    before = int(table.row_30m[start - 1]) + 1 if start else 0
    assert closes.tolist() == table.ts_close_30m[before : before + closes.size].tolist()
    slow = np.concatenate([row.slow for row in rows]).T
    history = np.stack(list(table.slow.values()))[:, before : before + closes.size]
    np.testing.assert_array_equal(np.ascontiguousarray(slow), np.ascontiguousarray(history))
