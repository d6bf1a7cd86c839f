"""Live runs and their replays: late arrivals, dying feeds, pauses; and real days."""

from __future__ import annotations

import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from algospace.errors import ConfigError
from algospace.events import FeedResumed, FeedStale, IndicatorsReady, NewBaseBar, NewTick, ShutdownRequest
from algospace.features import FeatureConfig, build, build_from_ticks
from algospace.instruments import instrument
from algospace.live import build_chain
from algospace.marketdata.feeds import QueueFeed, ReplayFeed, read_recording
from algospace.types import MINUTE_NS, SECOND_NS, Bars, Ticks
from tests.live_market import DAY0, Collected, assert_rows_equal, collect_rows, random_ticks

ES, NQ = instrument("ES"), instrument("NQ")
LEAN = FeatureConfig(regime=False)
WIDTH, GRACE = 5 * MINUTE_NS, 250_000_000


class FastClock:
    """The machine's clock, some thousand times as fast, from DAY0."""

    def __init__(self, factor: float) -> None:
        self.factor, self.begin = factor, time.perf_counter()

    def now_ns(self) -> int:
        return DAY0 + int((time.perf_counter() - self.begin) * 1e9 * self.factor)


def test_the_replay_of_a_recording_gives_the_bars_of_the_live_run(tmp_path: Path) -> None:
    """A thread pushes ticks with delays that straddle bar ends, out of order; the live clock closes bars."""
    clock = FastClock(3000.0)  # half an hour in 0.6 s
    feed = QueueFeed("ES", clock)
    live = build_chain(ES, LEAN, feed=feed, record_to=tmp_path, grace_ns=GRACE)
    rng = np.random.default_rng(2)

    def push() -> None:
        price = 4000.0
        while (now := clock.now_ns()) < DAY0 + 12 * WIDTH:
            price += float(rng.integers(-4, 5)) * 0.25
            delay = int(rng.exponential(40 * SECOND_NS))
            feed.put(NewTick("ES", max(DAY0, now - delay), price, float(rng.integers(1, 5))))
            if rng.random() < 0.02:
                time.sleep(0.05)
        time.sleep(2.2 * WIDTH / 1e9 / 3000.0)  # silent until the last bar has closed by the clock
        feed.end()

    seen = collect_rows(live)
    pusher = threading.Thread(target=push)
    with live.kernel as kernel:
        pusher.start()
        kernel.run()
    pusher.join()
    assert not live.bus.failures
    recorded = read_recording(tmp_path, "ES")
    assert live.generator.late > 0
    end = int(recorded.ts_recv[-1]) + 2 * WIDTH  # type: ignore[index]
    replay = build_chain(ES, LEAN, feed=ReplayFeed("ES", recorded, end_ns=end))
    again = collect_rows(replay)
    with replay.kernel as kernel:
        kernel.run()
    assert len(seen.events) >= 10
    assert [e.row.ts_close for e in again.events] == [e.row.ts_close for e in seen.events]
    for ours, theirs in zip(seen.events, again.events, strict=True):
        assert ours.row.base.tobytes() == theirs.row.base.tobytes()
    assert (replay.generator.late, replay.generator.invalid) == (live.generator.late, live.generator.invalid)


def test_arrival_after_the_grace_period_decides_what_a_bar_holds() -> None:
    """The same ticks, received in time and too late."""
    ts = DAY0 + np.array([1, 200, 299, 301]) * SECOND_NS
    prices = np.array([10.0, 11.0, 12.0, 10.0])
    closes = []
    for delay in (GRACE - 1, GRACE):
        recv = np.array([ts[0], ts[1], DAY0 + WIDTH + delay, DAY0 + WIDTH + 2 * SECOND_NS])
        chain = build_chain(ES, LEAN, feed=ReplayFeed("ES", Ticks(ts, prices, np.ones(4), ts_recv=recv)))
        seen = Collected(chain.bus, NewBaseBar)
        with chain.kernel as kernel:
            kernel.run()
        closes.append((seen.events[0].close, chain.generator.late))
    assert closes == [(12.0, 0), (11.0, 1)]


def test_a_feed_that_stops_in_the_middle_of_a_bar() -> None:
    """The bar closes by the clock, the silence is reported once, and the feed's return too."""
    minutes = np.array([0, 1, 2, 47, 48])
    data = Ticks(DAY0 + minutes * MINUTE_NS, np.full(5, 100.0), np.ones(5))
    chain = build_chain(ES, LEAN, feed=ReplayFeed("ES", data, end_ns=DAY0 + 55 * MINUTE_NS), grace_ns=GRACE)
    seen = Collected(chain.bus, NewBaseBar, FeedStale, FeedResumed)
    moments: list[int] = []
    chain.bus.subscribe(NewBaseBar, lambda _bar: moments.append(chain.handler.feed.now_ns()))  # type: ignore[union-attr]
    with chain.kernel as kernel:
        kernel.run()
    assert moments[0] == DAY0 + WIDTH + GRACE
    assert [bar.filled for bar in seen.of(NewBaseBar)] == [0, *[1] * 8, 0]
    silent = [(e.last_recv - DAY0) // MINUTE_NS for e in seen.of(FeedStale)]
    assert silent == [0, 1, 2, 47, 48]  # a minute between ticks is a silence too, at 30 s
    assert [e.silent_ns for e in seen.of(FeedResumed)][2] == 45 * MINUTE_NS
    names = [type(e).__name__ for e in seen.events]
    assert names.index("NewBaseBar") < len(names) - 1 - names[::-1].index("FeedResumed")


def test_a_shutdown_request_stops_a_replay_behind_its_event_and_it_can_go_on() -> None:
    data = random_ticks(5000, 5, 4.0)
    chain = build_chain(ES, LEAN, feed=ReplayFeed("ES", data))
    taken: list[NewTick] = []

    def watch(tick: NewTick) -> None:
        taken.append(tick)
        if len(taken) == 1234:
            chain.bus.publish(ShutdownRequest("enough"))

    chain.bus.subscribe(NewTick, watch)
    seen = collect_rows(chain)
    with chain.kernel as kernel:
        kernel.run()
        assert len(taken) == 1234
        kernel.run()
    assert len(taken) == len(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = build_from_ticks(data, ES, LEAN)
    assert_rows_equal([e.row for e in seen.events][: len(table)], table, chain.engine.stream.base_columns)


def test_a_handler_that_always_fails_does_not_touch_the_chain() -> None:
    data = random_ticks(3000, 6, 10.0)
    chain = build_chain(ES, LEAN, feed=ReplayFeed("ES", data))

    def broken(_event: object) -> None:
        raise RuntimeError("strategy bug")

    for kind in (NewTick, NewBaseBar, IndicatorsReady):
        chain.bus.subscribe(kind, broken, f"strategy.{kind.__name__}")
    seen = collect_rows(chain)
    with chain.kernel as kernel:
        kernel.run()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = build_from_ticks(data, ES, LEAN)
    assert_rows_equal([e.row for e in seen.events][: len(table)], table, chain.engine.stream.base_columns)
    assert chain.bus.failures["strategy.NewTick"] == len(data)


def test_ticks_that_came_during_start_up_are_not_late() -> None:
    """They wait in the feed for minutes, over two ends of bars, while history is computed."""
    class Clock:
        now = DAY0

        def now_ns(self) -> int:
            return self.now

    clock = Clock()
    feed = QueueFeed("ES", clock)
    chain = build_chain(ES, LEAN, feed=feed)
    seen = Collected(chain.bus, NewBaseBar)
    with chain.kernel as kernel:
        for second in range(0, 660, 10):
            clock.now = DAY0 + second * SECOND_NS + 1
            feed.put(NewTick("ES", DAY0 + second * SECOND_NS, 4000.0, 1.0))
        feed.end()
        kernel.run()
    assert [(bar.ts_close - DAY0, bar.volume) for bar in seen.events] == [(WIDTH, 30.0), (2 * WIDTH, 30.0)]
    assert chain.generator.late == 0


def test_a_feed_of_another_symbol_is_refused() -> None:
    with pytest.raises(ConfigError, match="a feed of NQ was given for ES"):
        build_chain(ES, feed=ReplayFeed("NQ", random_ticks(10, 1)))


def test_history_that_cannot_be_read_stops_start_up() -> None:
    def absent() -> Bars:
        raise ConfigError("no such file")

    chain = build_chain(ES, LEAN, history=absent)
    with pytest.raises(ConfigError, match="'warm_up' failed in warm_up: no such file"):
        chain.kernel.initialize()


def real_ticks(root: Path, symbol: str) -> Ticks:
    """A real day, as its file gives it."""
    file = {"ES": "esm8_trades_20180507.parquet", "NQ": "nqm5_trades_20250504_databento.parquet"}[symbol]
    table = pq.read_table(root / "ticks" / file)
    if "symbol" in table.column_names:
        table = table.filter(np.array(table["symbol"].to_pylist()) == "NQM5")
    columns = {name: table[name].to_numpy() for name in table.column_names if name != "symbol"}
    ts_name = next(name for name in ("ts_utc", "ts_event", "ts", "time") if name in columns)
    ts = columns[ts_name].astype("datetime64[ns]").astype(np.int64)
    size = columns["size"].astype(np.float64) if "size" in columns else np.full(ts.size, np.nan)
    recv = columns["ts_recv"].astype("datetime64[ns]").astype(np.int64) if "ts_recv" in columns else None
    return Ticks(ts, columns["price"].astype(np.float64), size, ts_recv=recv)


@pytest.mark.parametrize("symbol", ["ES", "NQ"])
def test_a_real_day_of_ticks(data_root: Path, symbol: str) -> None:
    data = real_ticks(data_root, symbol)
    spec = instrument(symbol)
    chain = build_chain(spec, feed=ReplayFeed(symbol, data))
    seen = collect_rows(chain)
    with chain.kernel as kernel:
        kernel.run()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = build_from_ticks(data, spec)
    rows = [e.row for e in seen.events]
    assert len(table) <= len(rows) <= len(table) + 1
    assert len(table) > 10
    assert_rows_equal(rows[: len(table)], table, chain.engine.stream.base_columns)


def test_a_real_day_of_bars_behind_a_week_of_history(data_root: Path) -> None:
    table = pq.read_table(data_root / "nq_1m" / "nq_1m_2016.parquet")
    table = table.slice(0, 12_000)
    prices = [table[name].to_numpy().astype(np.float64) for name in ("open", "high", "low", "close")]
    ts = table["ts_utc"].to_numpy().astype("datetime64[ns]").astype(np.int64)
    bars = Bars(ts, *prices, np.full(ts.size, np.nan), MINUTE_NS, table["contract"].to_numpy().astype(np.int32))
    cut = len(bars) - 1380
    chain = build_chain(NQ, feed=ReplayFeed("NQ", bars.slice(cut, len(bars))), history=bars.slice(0, cut))
    seen = collect_rows(chain)
    with chain.kernel as kernel:
        kernel.run()
    whole = build(bars, NQ)
    rows = [e.row for e in seen.events]
    start = int(np.searchsorted(whole.ts_close, rows[0].ts_close))
    assert start + len(rows) in (len(whole), len(whole) + 1)
    assert_rows_equal(rows[: len(whole) - start], whole, chain.engine.stream.base_columns, start)
