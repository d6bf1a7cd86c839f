"""Backtest speed, bars per second on one core: the trading session and its precomputed fast path against a plain
bar-by-bar backtester in pandas and one in bare Python, same bars, same orders, brackets on.

    python -m benchmarks.backtest [--bars N]
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from algospace.clock import ReplayClock
from algospace.execution.decision import Decision, Reason, RiskProposal
from algospace.execution.journal import FileJournal, MemoryJournal, Ordered
from algospace.execution.replay import OrderArrays, run_precomputed
from algospace.execution.session import Session, TableFeed
from algospace.execution.venue import SimulatedVenue
from algospace.instruments import instrument
from algospace.risk.limits import LimitsConfig
from algospace.types import BASE_BAR_NS

COMMISSION, SLIPPAGE, MULTIPLIER, TICK = 2.25, 0.25, 50.0, 0.25
STOP, TARGET, EVERY = 12.5, 25.0, 20
CASH = 10_000_000.0  # enough that the hard limits are checked but never bind


class Rows(SimpleNamespace):
    """The columns of a market table that a backtest reads."""

    def __len__(self) -> int:
        return int(self.close.size)


def market(bars: int, seed: int = 0) -> Any:
    """A random walk on the tick grid, every row a decision point."""
    rng = np.random.default_rng(seed)
    close = 20_000.0 + np.cumsum(rng.integers(-12, 13, bars)) * TICK
    open_ = np.concatenate([close[:1], close[:-1]])
    spread = rng.integers(0, 12, (2, bars)) * TICK
    return Rows(symbol="ES", ts_close=np.arange(1, bars + 1) * BASE_BAR_NS, open=open_, close=close,
                high=np.maximum(open_, close) + spread[0], low=np.minimum(open_, close) - spread[1],
                roll=np.ones(bars), day=(np.arange(bars) // 276).astype(np.int32),
                filled=np.zeros(bars, np.bool_), decision=np.ones(bars, np.bool_))


def orders_for(table: Any) -> OrderArrays:
    """A long or short entry with a bracket every `EVERY` bars, by the sign of the last change."""
    n = len(table)
    want = np.where(np.diff(table.close, prepend=table.close[0]) >= 0.0, 1.0, -1.0)
    return OrderArrays.build(want, np.arange(n) % EVERY == 0, STOP, TARGET)


class Trivial:
    """Answers from the order arrays with decisions built beforehand: the session's own time is what remains."""

    def __init__(self, orders: OrderArrays) -> None:
        proposal = RiskProposal(1.0, STOP, TARGET)
        self._side = {side: Decision(Reason.EXECUTE, side, 1.0, proposal, {}, {}) for side in (-1, 1)}
        self._nothing = Decision(Reason.NO_OPPORTUNITY, 0, 0.0, proposal, {}, {})
        self._want, self._has = orders.want.tolist(), orders.has_order.tolist()

    def decide(self, row: int, account: Any) -> Decision:
        return self._side[int(self._want[row])] if self._has[row] else self._nothing


def python_loop(bars: Any, orders: OrderArrays) -> float:
    """A backtester as one writes it in a notebook: the same rules, one bar after another; the final equity."""
    position, entry, stop, target, cash = 0.0, 0.0, math.nan, math.nan, CASH
    pending, last = 0.0, 0.0
    for k, (open_, high, low, close) in enumerate(bars):
        last = close
        if k > 0:
            if position and (open_ - stop) * position <= 0.0:
                cash += (open_ - position * SLIPPAGE - entry) * position * MULTIPLIER - COMMISSION
                position = 0.0
            elif position and (open_ - target) * position >= TICK:
                cash += (open_ - entry) * position * MULTIPLIER - COMMISSION
                position = 0.0
            if pending and pending != position:
                if position:
                    cash += (open_ - position * SLIPPAGE - entry) * position * MULTIPLIER - COMMISSION
                position, entry = pending, open_ + pending * SLIPPAGE
                stop, target = entry - position * STOP, entry + position * TARGET
                cash -= COMMISSION
            worst, best = (low, high) if position > 0.0 else (high, low)
            if position and (worst - stop) * position <= 0.0:
                cash += (stop - position * SLIPPAGE - entry) * position * MULTIPLIER - COMMISSION
                position = 0.0
            elif position and (best - target) * position >= TICK:
                cash += (target - entry) * position * MULTIPLIER - COMMISSION
                position = 0.0
        wanted = float(orders.want[k]) if orders.has_order[k] else 0.0
        pending = wanted if wanted != position else 0.0
    return cash + (last - entry) * position * MULTIPLIER


def seconds(work: Callable[[], Any]) -> float:
    """Processor time, best of three: one core, whatever else the machine does."""
    times = []
    for _ in range(3):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def order_latency(table: Any, orders: OrderArrays, bars: int = 4000) -> tuple[float, float]:
    """(p50, p99) in ms from an order's first byte to its record safe on disk, journalled with fsync."""
    with tempfile.TemporaryDirectory() as folder:
        journal = FileJournal(Path(folder) / "journal")
        taken = []
        for k in range(bars // EVERY):
            start = time.perf_counter()
            journal.append(Ordered(k, k, f"benchmark-{k}", float(orders.want[k]), STOP, TARGET))
            taken.append(time.perf_counter() - start)
        journal.close()
    return float(np.quantile(taken, 0.5) * 1e3), float(np.quantile(taken, 0.99) * 1e3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bars", type=int, default=200_000)
    bars = parser.parse_args().bars
    table = market(bars)
    orders, limits = orders_for(table), LimitsConfig()
    venue = SimulatedVenue(instrument("ES"))
    frame = pd.DataFrame({name: getattr(table, name) for name in ("open", "high", "low", "close")})
    few = frame.iloc[: max(bars // 20, 1)]

    def session() -> float:
        run = Session(ReplayClock(), TableFeed(table), venue, Trivial(orders), limits, MemoryJournal(),
                      initial_equity=CASH).run()
        return float(run.equity[-1])

    def fast() -> float:
        return float(run_precomputed(table, 0, bars, orders, venue, limits,
                                     initial_equity=CASH).equity[-1])

    ends = {"session": session(), "precomputed": fast(),
            "python loop": python_loop(frame.itertuples(index=False, name=None), orders)}
    spread = max(ends.values()) - min(ends.values())
    if spread > 1e-3:
        raise SystemExit(f"the backtesters disagree: {ends}")
    rates = {
        "pandas iterrows loop": len(few) / seconds(
            lambda: python_loop((tuple(row) for _, row in few.iterrows()), orders)),
        "plain Python loop": bars / seconds(
            lambda: python_loop(frame.itertuples(index=False, name=None), orders)),
        "Session (limits, journal in memory)": bars / seconds(session),
        "run_precomputed (limits, brackets)": bars / seconds(fast),
    }
    peer = rates["pandas iterrows loop"]
    print(f"{bars:,} bars, one core; all end at equity {ends['session']:,.2f}")
    for name, rate in rates.items():
        print(f"{name:38s} {rate:14,.0f} bars/s   {rate / peer:9.1f} x pandas iterrows loop   "
              f"{rate / rates['plain Python loop']:8.2f} x plain Python")
    median, tail = order_latency(table, orders)
    print(f"order to journal on disk (fsync): p50 {median:.2f} ms, p99 {tail:.2f} ms")


if __name__ == "__main__":
    main()
