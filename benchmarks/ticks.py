"""Ticks to bars on one core, beside polars and pandas on the same ticks, with equal results asserted.

    python -m benchmarks.ticks            # 20 million synthetic ticks
    python -m benchmarks.ticks FOLDER     # also FOLDER/ticks/spy_trade_ticks_2013_10.parquet

Times are processor seconds of this process after compilation, best of several runs. polars gets one thread, its
sorted-key fast path and the best of its three ways; "from 5m" builds its 30-minute bars from its 5-minute ones.
"""

from __future__ import annotations

import os

os.environ["POLARS_MAX_THREADS"] = "1"  # read once, when polars is imported

import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from algospace.features.bar_frames import BarSeries
from algospace.features.book import book_columns
from algospace.features.clock_bars import base_and_slow_bars
from algospace.features.flow import flow_columns
from algospace.features.tick_bars import BarBuilder, build_bars
from algospace.types import MINUTE_NS, Quotes, Ticks

REPEATS = 7
SYNTHETIC = 20_000_000
LIVE_TICKS = 200_000
PAIR = ("5m", "30m")
WIDTHS = {"5m": 5 * MINUTE_NS, "30m": 30 * MINUTE_NS}
COLUMNS = ("ts_open", "open", "high", "low", "close", "volume")
OTHERS = {"1m,5m,15m,30m,1h": ("1m", "5m", "15m", "30m", "1h"), "1s": ("1s",), "tick:1000": ("tick:1000",),
          "volume:5000": ("volume:5000",), "dollar:2e7": ("dollar:2e7",)}  # fmt: skip

Pair = dict[str, dict[str, np.ndarray]]


def main() -> None:
    """Print every figure."""
    report("synthetic", synthetic_ticks(SYNTHETIC))
    if len(sys.argv) > 1:
        report("SPY 2013-10", read_spy(Path(sys.argv[1]) / "ticks" / "spy_trade_ticks_2013_10.parquet"))
    ticks = synthetic_ticks(LIVE_TICKS)
    print(f"\ntick by tick, 5m and 30m          {live(ticks):8.2f} M ticks/s")


def report(name: str, ticks: Ticks) -> None:
    """Our bars and those of the peers on the same ticks."""
    n = len(ticks)
    print(f"\n{name}: {n} ticks to {' and '.join(PAIR)} bars")
    contest: dict[str, Callable[[], Any]] = {"algospace build_bars": lambda: build_bars(ticks, PAIR)}
    contest |= peers(ticks)
    bars = build_bars(ticks, PAIR)
    for peer, work in contest.items():
        if peer != "algospace build_bars":
            assert_equal(bars, work(), peer)
    taken = in_turns(contest)
    for peer, seconds in taken.items():
        show(peer, n, seconds, taken["algospace build_bars"])
    filled, _ = best(lambda: base_and_slow_bars(ticks))
    show("base_and_slow_bars (gap rules)", n, filled)
    for text, frames in OTHERS.items():
        seconds, _ = best(lambda frames=frames: build_bars(ticks, frames))  # type: ignore[misc]
        show(f"build_bars {text}", n, seconds)
    rows = bars["5m"].ts_close
    seconds, _ = best(lambda: flow_columns(ticks, rows, WIDTHS["5m"], sides="tick_rule"), 2)
    show("flow_columns, tick rule", n, seconds)
    quotes = Quotes(ticks.ts, ticks.price - 0.25, ticks.price, ticks.size, ticks.size[::-1])
    seconds, _ = best(lambda: book_columns(quotes, rows, WIDTHS["5m"]), 2)
    show("book_columns", n, seconds)


def show(what: str, n: int, seconds: float, ours: float | None = None) -> None:
    """One line; with the ratio to our time."""
    ratio = "" if ours is None else f"   {seconds / ours:6.2f} x our time"
    print(f"{what:34s} {seconds * 1e3:8.1f} ms {n / seconds / 1e6:8.1f} M ticks/s{ratio}", flush=True)


def best(work: Callable[[], Any], repeats: int = REPEATS) -> tuple[float, Any]:
    """Least processor seconds of several runs after one more, and the result."""
    found = work() if repeats > 1 else None
    taken = []
    for _ in range(repeats):
        begin = time.process_time()
        found = work()
        taken.append(time.process_time() - begin)
    return min(taken), found


def in_turns(contest: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Least processor seconds of each, all taking turns, so that a busy moment of the machine meets everyone."""
    taken = dict.fromkeys(contest, float("inf"))
    for _ in range(REPEATS):
        for name, work in contest.items():
            begin = time.process_time()
            work()
            taken[name] = min(taken[name], time.process_time() - begin)
    return taken


def peers(ticks: Ticks) -> dict[str, Callable[[], Any]]:
    """What to compare with; a message where polars is not installed."""
    found: dict[str, Callable[[], Any]] = {}
    try:
        polars = importlib.import_module("polars")
    except ImportError:
        print("polars is not installed: no ratio against it (pip install polars==2.1.0)")
    else:
        found |= polars_ways(polars, ticks)
    frame = pd.DataFrame({"price": ticks.price, "size": ticks.size}, index=pd.to_datetime(ticks.ts, utc=True))
    found["pandas resample"] = lambda: {width: pandas_bars(frame, width) for width in PAIR}
    return found


def polars_ways(pl: Any, ticks: Ticks) -> dict[str, Callable[[], Pair]]:
    """The ways that polars offers, all on a frame that knows its key to be sorted."""
    table = pl.DataFrame({"ts": ticks.ts, "price": ticks.price, "size": ticks.size})
    table = table.with_columns(pl.col("ts").cast(pl.Datetime("ns")).set_sorted())
    price, size = pl.col("price"), pl.col("size")
    rule = [price.first().alias("open"), price.max().alias("high"), price.min().alias("low"),
            price.last().alias("close"), size.sum().alias("volume")]  # fmt: skip
    wider = [pl.col("open").first(), pl.col("high").max(), pl.col("low").min(), pl.col("close").last(),
             pl.col("volume").sum()]  # fmt: skip

    def dynamic(width: str) -> Any:
        return table.group_by_dynamic("ts", every=width).agg(rule)

    def truncated(width: str) -> Any:
        return table.group_by(pl.col("ts").dt.truncate(width), maintain_order=True).agg(rule)

    def divided(width: str) -> Any:
        key = (pl.col("ts").cast(pl.Int64) // WIDTHS[width] * WIDTHS[width]).set_sorted()
        return table.group_by(key.alias("ts"), maintain_order=True).agg(rule)

    def cascade() -> Pair:
        base = dynamic("5m")
        slow = base.group_by_dynamic("ts", every="30m").agg(wider)
        return {"5m": of_polars(pl, base), "30m": of_polars(pl, slow)}

    ways = {"polars group_by_dynamic": dynamic, "polars group_by truncate": truncated,
            "polars group_by integer key": divided}  # fmt: skip
    found: dict[str, Callable[[], Pair]] = {
        name: lambda way=way: {width: of_polars(pl, way(width)) for width in PAIR}  # type: ignore[misc]
        for name, way in ways.items()
    }
    return found | {"polars group_by_dynamic, from 5m": cascade}


def of_polars(pl: Any, frame: Any) -> dict[str, np.ndarray]:
    """Columns as arrays."""
    columns = {name: frame[name].to_numpy() for name in COLUMNS[1:]}
    return {"ts_open": frame["ts"].cast(pl.Int64).to_numpy(), **columns}


def pandas_bars(frame: pd.DataFrame, width: str) -> dict[str, np.ndarray]:
    """Columns of non-empty bars by `resample`."""
    groups = frame.resample(WIDTHS[width] * pd.Timedelta(1, "ns"))
    bars = groups["price"].ohlc()
    bars["volume"] = groups["size"].sum()
    bars = bars[bars["close"].notna()]
    ts = pd.DatetimeIndex(bars.index).tz_localize(None).to_numpy().astype("datetime64[ns]").astype(np.int64)
    return {"ts_open": ts, **{name: bars[name].to_numpy() for name in COLUMNS[1:]}}


def assert_equal(ours: dict[str, BarSeries], peer: Pair, name: str) -> None:
    """The same bars; the peers also emit the last one, which is still open."""
    for width, columns in peer.items():
        series = ours[width]
        n = len(series)
        if len(columns["ts_open"]) - n not in (0, 1):
            raise AssertionError(f"{name} {width}: {len(columns['ts_open'])} bars, ours {n}")
        for column in COLUMNS:
            np.testing.assert_allclose(getattr(series, column), columns[column][:n], rtol=1e-12, err_msg=name)


def live(ticks: Ticks) -> float:
    """Million ticks a second through `BarBuilder.push`."""
    builder = BarBuilder(PAIR)
    events = list(zip(ticks.ts.tolist(), ticks.price.tolist(), ticks.size.tolist(), strict=True))
    begin = time.process_time()
    for event in events:
        builder.push(*event)
    return len(events) / (time.process_time() - begin) / 1e6


def synthetic_ticks(n: int) -> Ticks:
    """Four ticks a second on average, a random walk on a grid of quarters, whole sizes."""
    rng = np.random.default_rng(0)
    ts = 1_600_000_000 * 10**9 + np.cumsum(rng.exponential(0.25e9, n)).astype(np.int64)
    price = np.round(4 * (4000 + np.cumsum(rng.normal(0, 0.05, n)))) / 4
    return Ticks(ts, price, rng.integers(1, 20, n).astype(np.float64))


def read_spy(file: Path) -> Ticks:
    """Trades of SPY, New York wall clock taken as it is: bar edges are the same in both."""
    table = pq.read_table(file, columns=["ts_ny", "price", "qty"])
    ts = table["ts_ny"].to_numpy().astype("datetime64[ns]").astype(np.int64)
    order = np.argsort(ts, kind="stable")  # the peers need order as well
    price, size = (table[name].to_numpy().astype(np.float64)[order] for name in ("price", "qty"))
    return Ticks(ts[order], price, size)


if __name__ == "__main__":
    main()
