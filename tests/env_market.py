"""Small random market tables for the tests of the environments."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from algospace.features.market_table import MarketTable
from algospace.features.matrix_schema import MatrixConfig, MatrixSchema, MatrixSpec, column_specs
from algospace.types import BASE_BAR_NS, AnyArray, Bars, BoolArray, Float32Array

TICK = 0.25


def small_schema() -> MatrixSchema:
    """Short windows of the default columns, unscaled."""
    config = MatrixConfig()

    def spec(names: tuple[str, ...], window: int) -> MatrixSpec:
        return MatrixSpec(window, column_specs(names, {}))

    return MatrixSchema(spec(config.strategic, 4), spec(config.tactical, 6), spec(config.regime, 4), 5.0, 50.0)


def filled_stretches(seed: int, n: int, starts: AnyArray) -> BoolArray:
    """(n,) True in stretches of 1 to 11 rows from the rows where `starts` is True; never on the first row."""
    filled, lengths = np.zeros(n, np.bool_), np.random.default_rng(seed + 7).integers(1, 12, n)
    for row in np.flatnonzero(starts):
        filled[row:row + lengths[row]] = True
    filled[:1] = False
    return filled


def fill_in(table: Any, filled: AnyArray) -> None:
    """Make the rows where `filled` is True missing bars: the close before (in the new contract at a roll)."""
    for row in np.flatnonzero(filled):
        price = table.close[row - 1] * table.roll[row]
        for column in (table.open, table.high, table.low, table.close):
            column[row] = price
    table.filled[:] = filled
    table.decision[filled] = False


def random_table(seed: int, n: int = 400, rolls: bool = True, step: float = 4.0) -> MarketTable:
    """n bars on the tick grid with gaps between bars, rolls, filled bars, day changes and synergies.

    `step` is the standard deviation of a bar's move in points."""
    rng = np.random.default_rng(seed)
    roll = np.where(rng.random(n) < 0.02, 1.0 + rng.normal(0.0, 0.01, n), 1.0) if rolls else np.ones(n)
    roll[0] = 1.0
    close, open_ = np.empty(n), np.empty(n)
    price = 5000.0
    for i in range(n):
        price *= roll[i]
        gap = rng.normal(0.0, 2.0 * step) if rng.random() < 0.1 else 0.0
        open_[i] = np.round((price + gap) / TICK) * TICK
        close[i] = np.round((open_[i] + rng.normal(0.0, step)) / TICK) * TICK
        price = close[i]
    high = np.maximum(open_, close) + TICK * rng.integers(0, 12, n)
    low = np.minimum(open_, close) - TICK * rng.integers(0, 12, n)
    filled = filled_stretches(seed, n, rng.random(n) < 0.05)
    event = rng.random(n) < 0.08
    schema, slow = small_schema(), n // 6 + 1
    direction = np.where(event, rng.choice([-1.0, 1.0], n), 0.0)

    def matrix(rows: int, spec: MatrixSpec) -> Float32Array:
        return rng.normal(0.0, 1.0, (rows, spec.width)).astype(np.float32)

    table = MarketTable(
        symbol="SYNTH", schema=schema, ts_close=(np.arange(n, dtype=np.int64) + 1) * BASE_BAR_NS, open=open_,
        high=high, low=low, close=close, roll=roll, atr=np.abs(rng.normal(2.0 * step, step / 2, n)) + TICK,
        atr_30m=np.full(n, 5.0 * step), day=(np.arange(n) // 40 + 20_000).astype(np.int32),
        clock=rng.uniform(-1.0, 1.0, (n, 2)).astype(np.float32), filled=filled, decision=np.arange(n) >= 24,
        synergy=np.stack([event * 0.25, direction, event * 0.3], axis=1).astype(np.float32),
        synergy_event=event, row_30m=(np.arange(n) // 6).astype(np.int32), tactical=matrix(n, schema.tactical),
        strategic=matrix(slow, schema.strategic), regime=matrix(slow, schema.regime))
    fill_in(table, filled)
    return table


def without_gaps(table: MarketTable) -> MarketTable:
    """The same rows, all of them real and decision points."""
    n = len(table)
    return dataclasses.replace(table, filled=np.zeros(n, np.bool_), decision=np.ones(n, np.bool_))


def random_proposals(seed: int, table: MarketTable) -> Float32Array:
    """(n, 2, 3): 0..6 contracts, stops of 0 to 3 ATR (sometimes none), targets of 0 to 3 stops."""
    rng = np.random.default_rng(seed + 1)
    n = len(table)
    stop = table.atr[:, None] * rng.uniform(0.2, 3.0, (n, 2)) * (rng.random((n, 2)) < 0.95)
    target = stop * rng.uniform(0.5, 3.0, (n, 2)) * (rng.random((n, 2)) < 0.8)
    return np.stack([rng.integers(0, 7, (n, 2)), stop, target], axis=2).astype(np.float32)


def negated(table: MarketTable) -> MarketTable:
    """The same market upside down: every price negated (highs become lows)."""
    return dataclasses.replace(table, open=-table.open, high=-table.low, low=-table.high, close=-table.close,
                               synergy=table.synergy * np.array([1, -1, 1], np.float32))


def source_bars(n: int = 40_000) -> Bars:
    """5-minute bars of a random walk, around the clock."""
    rng = np.random.default_rng(4)
    close = np.round(5000.0 * np.exp(np.cumsum(rng.normal(0.0, 5e-4, n))) * 4.0) / 4.0
    open_ = np.concatenate([[5000.0], close[:-1]])
    high = np.maximum(open_, close) + 0.25 * rng.integers(0, 8, n)
    low = np.minimum(open_, close) - 0.25 * rng.integers(0, 8, n)
    ts = 1_700_000_100 // 300 * 300 * 1_000_000_000 + np.arange(n, dtype=np.int64) * BASE_BAR_NS
    return Bars(ts, open_, high, low, close, rng.integers(1, 100, n).astype(float), BASE_BAR_NS)
