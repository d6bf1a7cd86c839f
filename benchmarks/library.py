"""Speed of the general indicator library on one core, beside TA-Lib (batch) and talipp (incremental).

    python -m benchmarks.library

Times are processor seconds of this process after compilation, best of five. talipp is no dependency of the
project: `pip install talipp==2.7.0` adds its figures. TA-Lib is called once per function, its outputs are kept as
ours are.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import talib

from algospace.features.library import FAMILIES, NAMES, compute, describe, library_indicator
from algospace.features.library.column import Column
from algospace.features.library.step import records_of
from algospace.instruments import instrument
from algospace.types import BASE_BAR_NS, Bars

BARS = 1_000_000
LIVE_BARS = 100_000
PEER_BARS = 50_000
REPEATS = 5
ES = instrument("ES")


def main() -> None:
    """Print every figure."""
    bars = synthetic_bars(BARS)
    begin = time.process_time()
    compute(bars.slice(0, 200), instrument=ES)
    print(f"first call, compilation included   {time.process_time() - begin:8.1f} s")
    batch(bars)
    incremental(bars)


def batch(bars: Bars) -> None:
    """History: ours against TA-Lib for the columns that both have, then all of ours."""
    both = [column.name for column in describe() if column.talib]
    calls = talib_calls(bars)
    theirs = best(lambda: [call() for call in calls])
    ours = best(lambda: compute(bars, both, ES))
    everything = best(lambda: compute(bars, instrument=ES))
    print(f"batch, {len(bars)} bars, ns per bar")
    print(f"TA-Lib, {len(calls)} calls for {len(both)} columns  {per_bar(theirs, bars):8.1f}")
    print(f"ours, the same {len(both)} columns        {per_bar(ours, bars):8.1f}  "
          f"{ours / theirs:.2f} x TA-Lib's time")
    print(f"ours, all {len(NAMES)} columns             {per_bar(everything, bars):8.1f}  "
          f"{everything / theirs:.2f} x TA-Lib's time for {len(both)}")
    for family, columns in FAMILIES.items():
        names = [column.name for column in columns]
        taken = best(lambda names=names: compute(bars, names, ES))  # type: ignore[misc]
        print(f"  {family:12s} {len(names):3d} columns          {per_bar(taken, bars):8.1f}")


def incremental(bars: Bars) -> None:
    """One bar after another: the compiled step in a compiled loop, and called from Python; talipp beside them."""
    part = bars.slice(0, LIVE_BARS)
    records = records_of(part, part.ts_open + part.width_ns)
    library = library_indicator(instrument=ES)
    state, row = library.new_state(), np.empty((len(NAMES), 1))
    library.update(state, records[0], row[:, 0])
    library.history(state, records[:1])

    def step_by_step() -> None:
        for i in range(records.size):
            library.update(state, records[i], row[:, 0])

    compiled = best(lambda: library.history(library.new_state(), records)) / LIVE_BARS
    called = best(step_by_step) / LIVE_BARS
    print(f"incremental, all {len(NAMES)} indicators at every bar")
    print(f"compiled step in a compiled loop   {1e-6 / compiled:8.2f} M bars/s, so many updates of each; "
          f"{len(NAMES) * 1e-6 / compiled:.0f} M updates/s in all")
    print(f"compiled step called from Python   {1e-6 / called:8.2f} M bars/s; "
          f"{len(NAMES) * 1e-6 / called:.0f} M updates/s in all")
    if importlib.util.find_spec("talipp") is None:
        print("talipp: not installed (pip install talipp==2.7.0), no figures of the peer")
        return
    names, taken = talipp_seconds(bars.slice(0, PEER_BARS))
    ours = best(lambda: compute(part, names, ES)) / LIVE_BARS
    total = sum(taken.values())
    for name, seconds in taken.items():
        print(f"  talipp {name:24s} {1e-6 / seconds:8.3f} M updates/s")
    print(f"talipp, {len(names)} indicators at every bar {1e-6 / total:8.3f} M bars/s; "
          f"ours, the same {1e-6 / ours:.2f} M, {total / ours:.0f} x as many")


def talib_calls(bars: Bars) -> list[Callable[[], Any]]:
    """One call per TA-Lib function and parameters that the registry names."""
    texts = {column.talib.split(")")[0]: column for column in describe() if column.talib}
    return [talib_call(column, bars) for column in texts.values()]


def talib_call(column: Column, bars: Bars) -> Callable[[], Any]:
    """The call that `column.talib` spells, ready to be made."""
    assert column.talib is not None
    name, _, rest = column.talib.partition("(")
    prices = {"o": bars.open, "h": bars.high, "l": bars.low, "c": bars.close, "v": bars.volume}
    words = rest.split(")")[0].split(", ")
    arguments = [prices[word] if word in prices else float(word) if "." in word else int(word) for word in words]
    function = getattr(talib, name)
    return lambda: function(*arguments)


def talipp_seconds(bars: Bars) -> tuple[list[str], dict[str, float]]:
    """Our names of the peer's indicators, and its seconds per update of each."""
    peer = importlib.import_module("talipp.indicators")
    candles = importlib.import_module("talipp.ohlcv").OHLCV
    rows = [candles(*row) for row in zip(*(column.tolist() for column in (
        bars.open, bars.high, bars.low, bars.close, bars.volume)), strict=True)]  # fmt: skip
    closes = bars.close.tolist()
    made: dict[str, tuple[Callable[[], Any], list[Any]]] = {
        "sma_20": (lambda: peer.SMA(20), closes),
        "ema_20": (lambda: peer.EMA(20), closes),
        "rsi_14": (lambda: peer.RSI(14), closes),
        "macd_12_26_9": (lambda: peer.MACD(12, 26, 9), closes),
        "bb_width_20": (lambda: peer.BB(20, 2), closes),
        "atr_14": (lambda: peer.ATR(14), rows),
        "adx_14": (lambda: peer.ADX(14, 14), rows),
        "stoch_k_14_3": (lambda: peer.Stoch(14, 3), rows),
        "cci_20": (lambda: peer.CCI(20), rows),
        "obv": (lambda: peer.OBV(), rows),
    }
    taken = {}
    for name, (make, inputs) in made.items():
        add = make().add
        begin = time.process_time()
        for value in inputs:
            add(value)
        taken[name] = (time.process_time() - begin) / len(inputs)
    return list(made), taken


def best(work: Callable[[], object]) -> float:
    """Least processor seconds of several runs."""
    taken = []
    for _ in range(REPEATS):
        begin = time.process_time()
        kept = work()
        taken.append(time.process_time() - begin)
        del kept
    return min(taken)


def per_bar(seconds: float, bars: Bars) -> float:
    """Nanoseconds per bar."""
    return seconds / len(bars) * 1e9


def synthetic_bars(n: int) -> Bars:
    """A random walk on a tick grid, with volume."""
    rng = np.random.default_rng(0)
    close = np.round(4 * 4000 * np.exp(np.cumsum(rng.normal(0, 2e-4, n)))) / 4
    open_ = np.concatenate([close[:1], close[:-1]])
    high = np.maximum(open_, close) + rng.integers(0, 4, n) * 0.25
    low = np.minimum(open_, close) - rng.integers(0, 4, n) * 0.25
    volume = rng.integers(1, 1000, n).astype(float)
    return Bars(np.arange(n) * BASE_BAR_NS, open_, high, low, close, volume, BASE_BAR_NS)


if __name__ == "__main__":
    main()
