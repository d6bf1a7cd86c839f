"""Small random markets and decisions for tests of the trading session; no MarketTable builder is needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from algospace.execution.decision import Decision, Reason, RiskProposal
from algospace.execution.replay import OrderArrays
from algospace.execution.result import REASONS
from algospace.types import BASE_BAR_NS, AnyArray, Bars
from tests.env_market import fill_in, filled_stretches

START_NS = 1_700_000_100_000_000_000 // BASE_BAR_NS * BASE_BAR_NS


@dataclass(frozen=True)
class SmallTable:
    """The columns of a MarketTable that a trading session reads."""

    symbol: str
    ts_close: AnyArray
    open: AnyArray
    high: AnyArray
    low: AnyArray
    close: AnyArray
    roll: AnyArray
    atr: AnyArray
    day: AnyArray
    filled: AnyArray
    decision: AnyArray

    def __len__(self) -> int:
        return int(self.ts_close.size)


def random_table(seed: int, n: int = 300, rolls: int = 0, gaps: float = 0.05, tick: float = 0.25,
                 bars_per_day: int = 60, missing: float = 0.0) -> Any:
    """A random walk on the tick grid with gaps between bars and futures rolls; at a share `missing` of the rows a
    stretch of filled bars begins."""
    rng = np.random.default_rng(seed)
    steps = rng.integers(-8, 9, n) * tick
    jump = np.where(rng.random(n) < gaps, rng.integers(-60, 61, n) * tick, rng.integers(-1, 2, n) * tick)
    roll = np.ones(n)
    if rolls:
        roll[rng.choice(np.arange(1, n), rolls, replace=False)] = 1.0 + rng.uniform(-0.01, 0.01, rolls)
    close, open_ = np.empty(n), np.empty(n)
    level = 4000.0
    for i in range(n):
        level = round(level * roll[i] / tick) * tick
        open_[i] = level + jump[i]
        close[i] = level = open_[i] + steps[i]
    high = np.maximum(open_, close) + rng.integers(0, 10, n) * tick
    low = np.minimum(open_, close) - rng.integers(0, 10, n) * tick
    day = 19_000 + np.arange(n) // bars_per_day
    ts_close = START_NS + np.arange(1, n + 1) * BASE_BAR_NS
    table = SmallTable("ES", ts_close, open_, high, low, close, roll, np.full(n, 8.0), day.astype(np.int32),
                       np.zeros(n, np.bool_), rng.random(n) < 0.9)
    if missing:
        fill_in(table, filled_stretches(seed, n, rng.random(n) < missing))
    return table


def random_orders(seed: int, table: Any, start: int, stop: int, rate: float = 0.3) -> OrderArrays:
    """Random decisions: long, short, close; with and without brackets."""
    rng = np.random.default_rng(seed)
    n = stop - start
    want = rng.choice([-3.0, -1.0, 0.0, 1.0, 2.0, 7.0], n)
    stop_distance = rng.choice([0.0, 2.0, 5.0, 12.5], n)
    target_distance = rng.choice([0.0, 3.0, 6.0, 20.0], n)
    reason = rng.choice([REASONS.index(Reason.NO_OPPORTUNITY), REASONS.index(Reason.LOW_CONFIDENCE)], n)
    return OrderArrays.build(want, (rng.random(n) < rate) & table.decision[start:stop], stop_distance,
                             target_distance, rng.random(n), reason)


class ReplayPolicy:
    """Answers with the decisions of order arrays."""

    def __init__(self, orders: OrderArrays, start: int) -> None:
        self.orders, self.start = orders, start

    def decide(self, row: int, account: Any) -> Decision:
        k, orders = row - self.start, self.orders
        want = float(orders.want[k])
        reason = REASONS[orders.reason[k]]
        if orders.has_order[k]:
            reason = Reason.EXECUTE if want else Reason.CLOSE
        proposal = RiskProposal(abs(want), float(orders.stop_distance[k]), float(orders.target_distance[k]))
        return Decision(reason, int(np.sign(want)), float(orders.confidence[k]), proposal,
                        {"strategic": (0.2, 0.3, 0.5)}, {"entropy": 1.0})


def finer_bars(table: Any, parts: int, seed: int, tick: float = 0.25) -> Bars:
    """`parts` narrower bars inside each base bar, consistent with its open, high, low and close."""
    rng = np.random.default_rng(seed)
    n, width = len(table), BASE_BAR_NS // parts
    shape = (n, parts)
    low, high = table.low[:, None], table.high[:, None]
    closes = low + np.round(rng.random(shape) * (high - low) / tick) * tick
    closes[:, -1] = table.close
    opens = np.concatenate([table.open[:, None], closes[:, :-1]], axis=1)
    highs, lows = np.maximum(opens, closes), np.minimum(opens, closes)
    where_high, where_low = rng.integers(0, parts, n), rng.integers(0, parts, n)
    highs[np.arange(n), where_high] = table.high
    lows[np.arange(n), where_low] = table.low
    ts = (table.ts_close - BASE_BAR_NS)[:, None] + np.arange(parts) * width
    return Bars(ts.ravel(), opens.ravel(), highs.ravel(), lows.ravel(), closes.ravel(), np.ones(n * parts), width)
