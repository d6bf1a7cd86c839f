"""Speed and memory of the feature pipeline, on one core, beside pandas and TA-Lib on the same bars.

    python -m benchmarks.features            # synthetic bars
    python -m benchmarks.features FOLDER     # 1-minute Parquet files: ts_utc, open, high, low, close, contract

Times are processor seconds of this process after compilation, best of three.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import talib

from algospace.features import FeatureConfig, FeatureStream, SourceBar, build
from algospace.instruments import instrument
from algospace.types import MINUTE_NS, Bars

REPEATS = 3
LIVE_BARS = 20_000
BARS_PER_DAY = 23 * 60


def main() -> None:
    """Print every figure."""
    files = sorted(Path(sys.argv[1]).glob("*.parquet")) if len(sys.argv) > 1 else []
    nq = instrument("NQ")
    lean, full = FeatureConfig(regime=False), FeatureConfig()
    year = read_bars(files[-1]) if files else synthetic_bars(250)
    build(year.slice(0, 100), nq, lean)
    rows = len(build(year, nq, lean))
    seconds = {
        "without regime columns": best(lambda: build(year, nq, lean)),
        "all columns": best(lambda: build(year, nq, full)),
    }
    peers = {"pandas resample to 5m and 30m": best(lambda: pandas_bars(year)),
             "pandas bars + TA-Lib columns": best(lambda: pandas_columns(year))}  # fmt: skip
    print(f"one year: {len(year)} source bars, {rows} base bars")
    for name, taken in seconds.items():
        print(f"{name:32s} {taken:8.3f} s  {rows / taken / 1e6:6.3f} M base bars/s")
    for name, taken in peers.items():
        ratios = ", ".join(f"{taken / ours:.2f} x the time of ours {what}" for what, ours in seconds.items())
        print(f"{name:32s} {taken:8.3f} s  {ratios}")
    print(f"live, per 1-minute bar           {live_microseconds(year, full):8.1f} µs")
    if files:
        taken = best(lambda: build(read_bars(files[-1]), nq, full))
        print(f"one year from Parquet            {taken:8.3f} s")
        history(files, lean, full)


def history(files: list[Path], *configs: FeatureConfig) -> None:
    """All files as one table, the longest MLMI memory there is."""
    bars = join(files)
    for config in configs:
        begin = time.process_time()
        table = build(bars, instrument("NQ"), config)
        taken = time.process_time() - begin
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"{len(files)} files, regime {config.regime!s:5}        {taken:8.3f} s  "
              f"{len(table) / taken / 1e6:6.3f} M base bars/s, peak memory {peak:.2f} GB")  # fmt: skip
        del table


def best(work: Callable[[], object]) -> float:
    """Least processor seconds of several runs."""
    taken = []
    for _ in range(REPEATS):
        begin = time.process_time()
        work()
        taken.append(time.process_time() - begin)
    return min(taken)


def live_microseconds(bars: Bars, config: FeatureConfig) -> float:
    """Mean time of `FeatureStream.push`."""
    stream = FeatureStream(instrument("NQ"), config)
    part = bars.slice(0, LIVE_BARS)
    columns = (part.ts_open, part.open, part.high, part.low, part.close, part.volume, part.contract)
    events = [SourceBar(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
    begin = time.process_time()
    for event in events:
        stream.push(event)
    return (time.process_time() - begin) / len(events) * 1e6


def pandas_bars(bars: Bars) -> tuple[pd.DataFrame, pd.DataFrame]:
    """5- and 30-minute bars by resampling, the first step of the usual way to features."""
    frame = pd.DataFrame({"open": bars.open, "high": bars.high, "low": bars.low, "close": bars.close},
                         index=pd.to_datetime(bars.ts_open, utc=True))  # fmt: skip
    rule = {"open": "first", "high": "max", "low": "min", "close": "last"}
    base, slow = (frame.resample(width).agg(rule).dropna() for width in ("5min", "30min"))  # type: ignore[arg-type]
    return base, slow


def pandas_columns(bars: Bars) -> None:
    """The columns that TA-Lib and pandas offer out of the box: ATR, RSI, WMA, momentum, returns, volatility,
    autocorrelation and time of day; no gaps, kernel regression, neighbours, profiles, signatures or synergies."""
    base, slow = pandas_bars(bars)
    for frame in (base, slow):
        talib.ATR(frame["high"], frame["low"], frame["close"], 14)
        local = frame.index.tz_convert("America/Chicago")
        angle = 2 * np.pi * (local.hour + local.minute / 60) / 24
        np.sin(angle), np.cos(angle), np.sin(local.day_of_week), np.cos(local.day_of_week)
    for period in (5, 20):
        talib.WMA(slow["close"], period)
        talib.WMA(talib.RSI(slow["close"], period), 20)
    talib.ROC(base["close"], 5)
    returns = np.log(base["close"]).diff()
    returns.rolling(60).std()
    returns.rolling(60).corr(returns.shift())


def read_bars(file: Path) -> Bars:
    """A 1-minute Parquet file as bars."""
    table = pq.read_table(file)
    ts = table["ts_utc"].to_numpy().astype("datetime64[ns]").astype(np.int64)
    prices = [table[name].to_numpy().astype(np.float64) for name in ("open", "high", "low", "close")]
    contract = table["contract"].to_numpy().astype(np.int32)
    return Bars(ts, *prices, np.full(ts.size, np.nan), MINUTE_NS, contract)


def join(files: list[Path]) -> Bars:
    """Consecutive files as one history, read one at a time into place."""
    n = sum(pq.read_metadata(file).num_rows for file in files)
    whole = Bars(np.empty(n, np.int64), *(np.empty(n) for _ in range(5)), MINUTE_NS, np.empty(n, np.int32))
    start = 0
    for file in files:
        part = read_bars(file)
        for name in ("ts_open", "open", "high", "low", "close", "volume", "contract"):
            getattr(whole, name)[start : start + len(part)] = getattr(part, name)
        start += len(part)
    return whole


def synthetic_bars(days: int) -> Bars:
    """A random walk with a daily break."""
    rng = np.random.default_rng(0)
    minute = (np.arange(days)[:, None] * 1440 + np.arange(BARS_PER_DAY)).ravel()
    close = np.round(4 * 4000 * np.exp(np.cumsum(rng.normal(0, 2e-4, minute.size)))) / 4
    open_ = np.concatenate([close[:1], close[:-1]])
    high = np.maximum(open_, close) + rng.integers(0, 4, minute.size) * 0.25
    low = np.minimum(open_, close) - rng.integers(0, 4, minute.size) * 0.25
    return Bars(minute * MINUTE_NS, open_, high, low, close, np.full(minute.size, np.nan), MINUTE_NS)


if __name__ == "__main__":
    main()
