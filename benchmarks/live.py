"""The live path, on one core: ticks through the bus into bars, latency at a bar's close, and replays of a day.

    python -m benchmarks.live            # synthetic ticks and bars
    python -m benchmarks.live FOLDER     # also real days: FOLDER/ticks/esm8_trades_20180507.parquet, FOLDER/nq_1m

The peer is NautilusTrader 1.221.0 with a strategy that does nothing, on the same ticks, in a virtual environment
of its own (made once, in the user's cache). Speeds are from processor seconds, replay factors from the wall clock.
Latency is printed by both and judged by processor time: on a machine with other work the wall clock's 99th
percentile is the scheduler's time slice.

What is compared: one Python handler that does nothing on every tick, on both sides, and five-minute bars or none.
What is not equal: ours includes making the tick events, the peer's are made beforehand; the peer's engine also
runs its simulated exchange and cache on every tick, ours has none of these on this path.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import structlog

from algospace.events import EventBus, IndicatorsReady, MatricesReady, NewBaseBar, NewTick
from algospace.features import FeatureConfig, FeatureRow, FeatureTable, build, build_from_ticks
from algospace.features.matrices import MatrixConfig, Normaliser
from algospace.instruments import Instrument, instrument
from algospace.live import DEFAULT_GRACE_NS, BarGenerator, build_chain
from algospace.marketdata.feeds import DataHandler, ReplayFeed
from algospace.marketdata.synthetic import generate
from algospace.types import BASE_BAR_NS, DAY_NS, Bars, Ticks
from benchmarks.features import best, read_bars

REPEATS = 3
TICKS = 1_000_000
HISTORY_BARS, CLOSES, TICKS_PER_BAR = 12_000, 3_000, 256
START = 1_600_000_200_000_000_000 // DAY_NS * DAY_NS
PEER = "nautilus_trader==1.221.0"
SPEED_TARGET, LATENCY_TARGET_MS, REPLAY_TARGET = 400_000, 1.0, 1000


def main() -> None:
    """Print every figure; exit code 1 if a target is missed."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    ticks = synthetic_ticks(TICKS, 0.2)
    fast = throughput(ticks)
    p99 = latency()
    slowest = replays(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
    targets = ((f"{fast:,.0f} ticks/s, target {SPEED_TARGET:,}", fast >= SPEED_TARGET),
               (f"bar close p99 {p99:.3f} ms, target {LATENCY_TARGET_MS}", p99 < LATENCY_TARGET_MS),
               (f"replay {slowest:,.0f} x real time, target {REPLAY_TARGET}", slowest > REPLAY_TARGET))
    missed = [text for text, met in targets if not met]
    if missed:
        sys.exit("missed: " + "; ".join(missed))


def throughput(ticks: Ticks) -> float:
    """Ticks a second of tick → bus → bars, beside the peer."""
    seconds = {"tick → bus → bars": best(lambda: bars_only(ticks)),
               "tick → bus → bars and a no-op handler": best(lambda: bars_only(ticks, no_op=True)),
               "the whole chain, no regime columns": best(lambda: whole_chain(ticks, FeatureConfig(regime=False))),
               "the whole chain": best(lambda: whole_chain(ticks, FeatureConfig()))}  # fmt: skip
    for name, taken in seconds.items():
        print(f"{name:40s} {len(ticks) / taken / 1e3:8.0f} k ticks/s")
    ours = seconds["tick → bus → bars and a no-op handler"]
    for mode, what in (("noop", "NautilusTrader, no-op strategy"), ("bars", "NautilusTrader, 5-minute bars")):
        taken_by_peer = peer_seconds(ticks, mode)
        if taken_by_peer is None:
            break
        print(f"{what:40s} {len(ticks) / taken_by_peer / 1e3:8.0f} k ticks/s"
              f"   ours with a no-op handler is {taken_by_peer / ours:.2f} x as fast")  # fmt: skip
    return len(ticks) / seconds["tick → bus → bars"]


def bars_only(ticks: Ticks, no_op: bool = False) -> None:
    """Feed, bus and bar generator; one subscriber of bars. `no_op`: and one of ticks, as the peer's strategy."""
    bus = EventBus()
    if no_op:
        counter = Counter()
        bus.subscribe(NewTick, counter.on_tick)
    BarGenerator(instrument("ES"), FeatureConfig()).register(bus)
    bars: list[NewBaseBar] = []
    bus.subscribe(NewBaseBar, bars.append)
    handler = DataHandler(ReplayFeed("ES", ticks), BASE_BAR_NS, DEFAULT_GRACE_NS)
    handler.register(bus)
    handler.connect()
    handler.run()
    assert bars
    assert not no_op or counter.seen == len(ticks)


class Counter:
    """The peer's strategy: counts ticks, does nothing else."""

    seen = 0

    def on_tick(self, _tick: NewTick) -> None:
        self.seen += 1


def whole_chain(ticks: Ticks, config: FeatureConfig) -> None:
    chain = build_chain(instrument("ES"), config, feed=ReplayFeed("ES", ticks))
    with chain.kernel as kernel:
        kernel.run()
    assert not chain.bus.failures


def latency() -> float:
    """Processor milliseconds, 99th percentile, from the tick that closes a bar to its feature row and matrices.

    All columns, regime columns on, MLMI with its memory filled, and a full buffer of ticks waiting at the close.
    """
    synth = instrument("SYNTH")
    history = generate("mid", 1, HISTORY_BARS, "5m").bars
    table = build(history, synth)
    schema = Normaliser.fit(table, MatrixConfig(), int(table.ts_close[-1]))
    chain = build_chain(synth, schema=schema, history=history)
    ready: list[bool] = []
    chain.bus.subscribe(MatricesReady, lambda event: ready.append(event.decision))
    begin = int(history.ts_open[-1]) + BASE_BAR_NS
    rng = np.random.default_rng(2)
    offsets = np.arange(TICKS_PER_BAR) * (BASE_BAR_NS // TICKS_PER_BAR)
    price = float(history.close[-1])
    taken = np.empty((CLOSES, 2))
    with chain.kernel:
        for bar in range(CLOSES):
            prices = np.round((price + np.cumsum(rng.normal(0.0, 0.3, TICKS_PER_BAR))) * 4) / 4
            price = float(prices[-1])
            times = (begin + bar * BASE_BAR_NS + offsets).tolist()
            events = [NewTick("SYNTH", ts, p, 1.0, 0, ts) for ts, p in zip(times, prices.tolist(), strict=True)]
            wall, busy = time.perf_counter(), time.thread_time()
            chain.bus.publish(events[0])
            taken[bar] = time.thread_time() - busy, time.perf_counter() - wall
            for event in events[1:]:
                chain.bus.publish(event)
    assert len(ready) >= CLOSES - 1
    assert all(ready)
    for name, column in (("processor time", taken[:, 0]), ("wall clock", taken[:, 1])):
        p50, p99, worst = (np.percentile(column, [50, 99, 100]) * 1e3).tolist()
        print(f"bar close → row and matrices, {name:14s} p50 {p50:.3f} ms   p99 {p99:.3f} ms   worst {worst:.3f}"
              f" ms   {LATENCY_TARGET_MS / p99:.2f} x within {LATENCY_TARGET_MS:g} ms")  # fmt: skip
    return float(np.percentile(taken[:, 0], 99) * 1e3)


def replays(folder: Path | None) -> float:
    """Replay days and check every row against history; the smallest factor of real time."""
    es, nq, synth = instrument("ES"), instrument("NQ"), instrument("SYNTH")
    minutes = generate("session", 3, 276, "1m").bars
    factors = [replay("a synthetic day, 5 ticks a second", es, synthetic_ticks(23 * 3600 * 5, 0.2)),
               replay("a synthetic day of 1-minute bars", synth, minutes)]  # fmt: skip
    if folder is not None:
        factors.append(replay("ES trades, 2018-05-07", es, es_ticks(folder)))
        bars = nq_bars(folder)
        factors.append(replay("a day of NQ 1-minute bars", nq, bars.slice(len(bars) - 1380, len(bars)),
                              bars.slice(0, len(bars) - 1380)))  # fmt: skip
    return min(factors)


def replay(name: str, spec: Instrument, data: Ticks | Bars, history: Bars | None = None) -> float:
    """Times real time; asserts that the rows are those of history, bit for bit."""
    chain = build_chain(spec, feed=ReplayFeed(spec.symbol, data), history=history)
    rows: list[FeatureRow] = []
    chain.bus.subscribe(IndicatorsReady, lambda event: rows.append(event.row))
    chain.kernel.initialize()
    begin = time.perf_counter()
    chain.kernel.run()
    taken = time.perf_counter() - begin
    chain.kernel.shutdown()
    table = in_one_go(spec, data, history)
    skipped = int(np.searchsorted(table.ts_close, rows[0].ts_close))
    # The clock may have closed the last bar, which a history still holds open.
    assert len(table) - skipped <= len(rows) <= len(table) - skipped + 1
    live = np.stack([row.base for row in rows[: len(table) - skipped]], axis=1)
    batch = np.stack([column[skipped:] for column in table.base.values()])
    assert live.tobytes() == batch.tobytes(), f"{name}: a live row differs from history"
    times = data.ts if isinstance(data, Ticks) else data.ts_open
    factor = float(times[-1] - times[0]) / 1e9 / taken
    print(f"replay of {name:34s} {len(data):7d} events, {live.shape[1]:4d} rows x {live.shape[0]} columns equal "
          f"history to the bit   {factor:10,.0f} x real time")  # fmt: skip
    return factor


def in_one_go(spec: Instrument, data: Ticks | Bars, history: Bars | None) -> FeatureTable:
    """The feature table of a batch run over everything."""
    if isinstance(data, Ticks):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # late ticks: both drop the same
            return build_from_ticks(data, spec)
    if history is None:
        return build(data, spec)
    columns = ("ts_open", "open", "high", "low", "close", "volume")
    joined = [np.concatenate([getattr(history, name), getattr(data, name)]) for name in columns]
    return build(Bars(*joined, data.width_ns, np.concatenate([history.contract, data.contract])), spec)


def peer_seconds(ticks: Ticks, mode: str) -> float | None:
    """Processor seconds of the peer, best of the repeats; None, with the reason printed, where it cannot run."""
    python = peer_python()
    if python is None:
        return None
    script = Path(__file__).with_name("_nautilus_peer.py")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ticks.npz"
        np.savez(file, ts=ticks.ts, price=ticks.price, size=ticks.size)
        taken = []
        for _ in range(REPEATS):
            done = subprocess.run([str(python), str(script), str(file), mode], capture_output=True, text=True,
                                  check=False)  # fmt: skip
            if done.returncode:
                print(f"NautilusTrader failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
                return None
            figures = json.loads(done.stdout.strip().splitlines()[-1])
            assert figures["ticks"] == len(ticks)
            taken.append(float(figures["seconds"]))
    return min(taken)


def peer_python() -> Path | None:
    """The interpreter of the peer's own environment, made on first use."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "algospace" / "peers" / PEER.replace("==", "-")
    python = folder / "bin" / "python"
    have = [str(python), "-c", "import nautilus_trader"]
    if python.exists() and subprocess.run(have, capture_output=True, check=False).returncode == 0:
        return python
    for command in ([sys.executable, "-m", "venv", str(folder)],
                    [str(python), "-m", "pip", "install", "--quiet", PEER]):  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            print(f"NautilusTrader skipped: {' '.join(command[-3:])} failed: {reason}")
            return None
    return python


def synthetic_ticks(n: int, mean_gap_s: float) -> Ticks:
    """A random walk on a quarter-point grid, in order, from the start of a day."""
    rng = np.random.default_rng(0)
    ts = START + np.cumsum(rng.exponential(mean_gap_s * 1e9, n)).astype(np.int64)
    price = np.round(4000 * 4 + np.cumsum(rng.normal(0, 0.3, n))) / 4
    return Ticks(ts, price, rng.integers(1, 9, n).astype(np.float64))


def es_ticks(folder: Path) -> Ticks:
    table = pq.read_table(folder / "ticks" / "esm8_trades_20180507.parquet")
    ts = table["ts_utc"].to_numpy().astype("datetime64[ns]").astype(np.int64)
    return Ticks(ts, table["price"].to_numpy().astype(np.float64), np.full(ts.size, np.nan))


def nq_bars(folder: Path) -> Bars:
    return read_bars(folder / "nq_1m" / "nq_1m_2022.parquet").slice(0, 60_000)


if __name__ == "__main__":
    main()
