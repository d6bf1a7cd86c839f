"""What every feed promises, checked on replays at any speed and on a pushed feed; and the recorder's files."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import structlog

from algospace.clock import LiveClock
from algospace.errors import ConfigError, InputError, InternalError
from algospace.events import UNKNOWN_TIME, EventBus, NewTick, TimeAdvanced
from algospace.kernel import Kernel
from algospace.marketdata.feeds import (
    DataHandler,
    Feed,
    MarketEvent,
    QueueFeed,
    Recorder,
    ReplayFeed,
    read_recording,
)
from algospace.marketdata.feeds.protocol import received_at
from algospace.marketdata.synthetic import generate
from algospace.types import MINUTE_NS, SECOND_NS, Ticks
from tests.live_market import DAY0, Collected, random_ticks


class Wall:
    """A wall clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 5.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class SteppingClock:
    """A machine's clock that runs a second a look, and once is set back."""

    def __init__(self) -> None:
        self.looks = 0

    def now_ns(self) -> int:
        self.looks += 1
        return DAY0 + (self.looks - (7 if self.looks > 20 else 0)) * SECOND_NS


def ticks() -> Ticks:
    return random_ticks(300, 1, 3.0, 0.1, 0.05)


def queue_feed() -> Feed:
    feed = QueueFeed("ES", SteppingClock())
    for i in range(30):
        feed.put(NewTick("ES", DAY0 + i, 1.0))
    feed.end()
    return feed


def paced(speed: float) -> Feed:
    wall = Wall()
    return ReplayFeed("ES", ticks(), speed, wall=wall, sleep=wall.sleep)


FEEDS: dict[str, Callable[[], Feed]] = {
    "ticks": lambda: ReplayFeed("ES", ticks()),
    "ticks and silence": lambda: ReplayFeed("ES", ticks(), end_ns=int(ticks().ts.max()) + 60 * MINUTE_NS),
    "bars": lambda: ReplayFeed("ES", generate("mid", 1, 500, "1m").bars),
    "real time": lambda: paced(1.0),
    "a thousand times real time": lambda: paced(1000.0),
    "pushed": queue_feed,
}


def drain(feed: Feed, step: int) -> list[MarketEvent]:
    """All events, looking in every `step` ns."""
    feed.connect()
    events: list[MarketEvent] = []
    now = feed.now_ns()
    until = now + step
    for _ in range(1_000_000):
        found = feed.poll(until)
        if found is None:
            feed.close()
            return events
        for event in found:
            assert event.symbol == feed.symbol
            assert received_at(event) >= now, "receive times never go back, nor behind the feed's time"
            now = received_at(event)
            events.append(event)
        assert feed.now_ns() >= now
        now = feed.now_ns()
        if now >= until:
            until = now - now % step + step
    raise AssertionError("the feed never ends")


@pytest.mark.parametrize("name", FEEDS)
@pytest.mark.parametrize("step", [7 * SECOND_NS, 5 * MINUTE_NS])
def test_a_feed_keeps_its_promises(name: str, step: int) -> None:
    assert len(drain(FEEDS[name](), step)) == {"bars": 2500, "pushed": 30}.get(name, 300)


def test_a_reader_may_stop_anywhere_and_go_on() -> None:
    data = ticks()
    feed = ReplayFeed("ES", data)
    feed.connect()
    seen: list[MarketEvent] = []
    until = int(data.ts.max()) + MINUTE_NS
    rng = np.random.default_rng(0)
    while (events := feed.poll(until)) is not None:
        for event in events:
            seen.append(event)
            assert feed.now_ns() == received_at(event)
            if rng.random() < 0.2:
                break
    assert [event.ts for event in seen] == data.ts.tolist()  # type: ignore[union-attr]


def test_a_paced_replay_takes_its_time() -> None:
    wall = Wall()
    data = ticks()
    feed = ReplayFeed("ES", data, 50.0, wall=wall, sleep=wall.sleep)
    drain(feed, MINUTE_NS)
    span = (int(data.ts.max()) - int(data.ts[0])) / 1e9
    assert wall.now - 5.0 == pytest.approx(span / 50.0, abs=0.2)


def test_without_receive_times_a_tick_is_received_with_the_latest_valid_one_before() -> None:
    prices = np.array([np.nan, 1.0, -5.0, 1.0, 1.0])
    data = Ticks(DAY0 + np.array([90, 10, 99, 5, 20]), prices, np.ones(5))
    recv = [event.ts_recv - DAY0 for event in drain(ReplayFeed("ES", data), SECOND_NS)]  # type: ignore[union-attr]
    assert recv == [10, 10, 10, 10, 20]


class SetClock:
    """A machine's clock that stands where it was set."""

    def __init__(self) -> None:
        self.now = DAY0

    def now_ns(self) -> int:
        return self.now


def test_a_pushed_event_keeps_the_time_at_which_it_came_however_long_nobody_read() -> None:
    clock = SetClock()
    feed = QueueFeed("ES", clock)
    feed.connect()
    for second in (1, 2, 400):
        clock.now = DAY0 + second * SECOND_NS
        feed.put(NewTick("ES", DAY0, 1.0))
    clock.now = DAY0 + 1000 * SECOND_NS
    until = DAY0 + 300 * SECOND_NS
    events = feed.poll(until)
    assert events is not None
    assert [(e.ts_recv - DAY0) // SECOND_NS for e in events] == [1, 2]  # type: ignore[union-attr]
    assert feed.now_ns() == until, "the time passes no event that waits"
    rest = feed.poll(until + 300 * SECOND_NS)
    assert rest is not None
    assert [(e.ts_recv - DAY0) // SECOND_NS for e in rest] == [400]  # type: ignore[union-attr]
    assert feed.now_ns() == clock.now


def test_no_event_of_many_threads_is_lost_or_stamped_behind_the_readers_time() -> None:
    feed = QueueFeed("ES", LiveClock())

    def push(thread: int) -> None:
        for i in range(2000):
            feed.put(NewTick("ES", i, 1.0, contract=thread))

    threads = [threading.Thread(target=push, args=(n,)) for n in range(4)]
    feed.connect()
    for thread in threads:
        thread.start()
    ender = threading.Thread(target=lambda: ([thread.join() for thread in threads], feed.end()))
    ender.start()
    seen: list[NewTick] = []
    now = feed.now_ns()
    while (events := feed.poll(now + MINUTE_NS // 60_000)) is not None:
        for event in events:
            assert isinstance(event, NewTick)
            assert event.ts_recv >= now
            now = event.ts_recv
            seen.append(event)
        assert feed.now_ns() >= now
        now = feed.now_ns()
    ender.join()
    for n in range(4):
        assert [tick.ts for tick in seen if tick.contract == n] == list(range(2000))


def test_a_connection_that_broke_does_not_end_as_if_it_were_done() -> None:
    feed = QueueFeed("ES", SetClock())
    kernel = Kernel(EventBus())
    kernel.register("feed", DataHandler(feed, 5 * MINUTE_NS, 0))
    seen = Collected(kernel.bus, NewTick)
    feed.put(NewTick("ES", DAY0, 1.0))
    feed.end(ConnectionError("reset by peer"))
    with pytest.raises(InternalError, match="'feed' failed in run: reset by peer"), kernel:
        kernel.run()
    assert len(seen.events) == 1


def test_a_pushed_feed_can_be_connected_again() -> None:
    feed = QueueFeed("ES", SetClock())
    for _ in range(2):
        feed.put(NewTick("ES", DAY0, 1.0))
        feed.end()
        assert len(drain(feed, SECOND_NS)) == 1


def test_bad_replays_are_refused() -> None:
    with pytest.raises(InputError, match="no data"):
        ReplayFeed("ES", ticks().take(slice(0, 0)))
    with pytest.raises(ConfigError, match="speed"):
        ReplayFeed("ES", ticks(), 0.0)


def test_a_recording_holds_every_tick_to_the_bit(tmp_path: Path) -> None:
    data = random_ticks(1000, 3, 3.0, 0.1, 0.05, rolls=True)
    rng = np.random.default_rng(1)
    data = Ticks(**{**data.columns(), "bid": data.price - 0.25, "ask": np.full(1000, np.nan),
                    "aggressor": rng.integers(-1, 2, 1000).astype(np.int8),
                    "ts_recv": np.maximum.accumulate(data.ts) + 5})
    for part in (slice(0, 400), slice(400, None)):  # two runs into one folder
        bus, recorder = EventBus(), Recorder("ES", tmp_path, rows=150)
        recorder.register(bus)
        recorder.connect()
        for event in drain(ReplayFeed("ES", data.take(part)), MINUTE_NS):
            bus.publish(event)
            bus.publish(NewTick("NQ", 1, 1.0))
        recorder.shutdown()
        assert not bus.failures
    back = read_recording(tmp_path, "ES")
    assert set(back.columns()) == set(data.columns())
    for name, column in data.columns().items():
        assert back.columns()[name].dtype == column.dtype
        assert back.columns()[name].tobytes() == column.tobytes(), name
    assert len(list(tmp_path.iterdir())) == 3 + 4


def test_ticks_wait_in_memory_while_the_disk_fails_and_are_written_later(tmp_path: Path) -> None:
    folder = tmp_path / "recording"
    bus, recorder = EventBus(), Recorder("ES", folder, rows=10, every_ns=SECOND_NS)
    recorder.register(bus)
    recorder.connect()
    folder.rmdir()
    folder.write_text("in the way")
    for i in range(25):
        bus.publish(NewTick("ES", DAY0 + i, 1.0, ts_recv=DAY0 + i))
    assert bus.failures == {"recorder.on_tick": 2}
    bus.publish(NewTick("ES", DAY0, None))  # type: ignore[arg-type]
    assert bus.failures == {"recorder.on_tick": 3}
    folder.unlink()
    bus.publish(TimeAdvanced(DAY0 + 2 * SECOND_NS))
    assert len(read_recording(folder, "ES")) == 25
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def record(folder: Path, symbol: str, first: int, n: int) -> None:
    """Prices first, first + 1, … in parts of two."""
    recorder = Recorder(symbol, folder, rows=2)
    recorder.connect()
    for i in range(n):
        recorder.on_tick(NewTick(symbol, DAY0 + i, float(first + i)))
    recorder.shutdown()


def test_a_recording_goes_on_behind_the_last_part_and_replaces_none(tmp_path: Path) -> None:
    record(tmp_path, "ES", 1, 8)
    (tmp_path / "ES.00000001.ticks.parquet").unlink()  # someone moved a part away
    record(tmp_path, "ES", 100, 2)
    assert read_recording(tmp_path, "ES").price.tolist() == [1.0, 2.0, 5.0, 6.0, 7.0, 8.0, 100.0, 101.0]
    both = [Recorder("ES", tmp_path, rows=2) for _ in range(2)]
    for recorder in both:
        recorder.connect()
    for i in range(4):
        both[i // 2].on_tick(NewTick("ES", DAY0, 200.0 + i))
    assert read_recording(tmp_path, "ES").price.tolist()[-4:] == [200.0, 201.0, 202.0, 203.0]


def test_a_recording_holds_its_own_symbol_only(tmp_path: Path) -> None:
    for first, symbol in ((1, "ES"), (2, "ES.F"), (3, "E*")):
        record(tmp_path, symbol, first, 1)
    for first, symbol in ((1, "ES"), (2, "ES.F"), (3, "E*")):
        assert read_recording(tmp_path, symbol).price.tolist() == [float(first)]
    with pytest.raises(ConfigError, match="without a separator"):
        Recorder("BTC/USDT", tmp_path)


@pytest.mark.parametrize("bad", [{"contract": 2**40}, {"aggressor": 300}, {"ts": 1.5}, {"price": "3"}])
def test_a_tick_that_does_not_fit_fails_alone(tmp_path: Path, bad: dict[str, object]) -> None:
    bus, recorder = EventBus(), Recorder("ES", tmp_path, rows=3)
    recorder.register(bus)
    recorder.connect()
    bus.publish(NewTick("ES", DAY0, 1.0)._replace(**bad))
    for i in range(6):
        bus.publish(NewTick("ES", DAY0 + i, 1.0))
    assert bus.failures == {"recorder.on_tick": 1}
    assert len(read_recording(tmp_path, "ES")) == 6


def test_bars_that_a_recorder_cannot_record_are_told_once(tmp_path: Path) -> None:
    bus, recorder = EventBus(), Recorder("SYNTH", tmp_path)
    recorder.register(bus)
    recorder.connect()
    with structlog.testing.capture_logs() as lines:
        for event in drain(ReplayFeed("SYNTH", generate("mid", 1, 5, "1m").bars), MINUTE_NS):
            bus.publish(event)
    assert [line["event"] for line in lines] == ["source bars are not recorded, only ticks"]
    assert not bus.failures


def test_a_recorder_killed_while_it_writes_leaves_whole_parts(tmp_path: Path) -> None:
    script = f"""
from algospace.events import NewTick
from algospace.marketdata.feeds import Recorder
recorder = Recorder("ES", {str(tmp_path)!r}, rows=50)
recorder.connect()
for i in range(10**9):
    recorder.on_tick(NewTick("ES", i, 1.0 + i))
"""
    for wait in (0.0, 0.013):
        process = subprocess.Popen([sys.executable, "-c", script])
        parts = len(list(tmp_path.glob("ES.*")))
        while len(list(tmp_path.glob("ES.*"))) < parts + 3:
            time.sleep(0.005)
        time.sleep(wait)
        process.kill()
        process.wait()
        seen = read_recording(tmp_path, "ES")
        assert len(seen) % 50 == 0
        runs = np.split(seen.ts, np.flatnonzero(seen.ts == 0))[1:]
        for run in runs:
            assert run.tolist() == list(range(run.size))


def test_an_absent_or_damaged_recording_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no recording of ES"):
        read_recording(tmp_path, "ES")
    (tmp_path / "ES.00000000.ticks.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(InputError, match="not a recording") as caught:
        read_recording(tmp_path, "ES")
    assert "\n" not in str(caught.value)


def test_unknown_receive_times_survive(tmp_path: Path) -> None:
    bus, recorder = EventBus(), Recorder("ES", tmp_path)
    recorder.register(bus)
    recorder.connect()
    seen = Collected(bus, NewTick)
    bus.publish(NewTick("ES", DAY0, 1.0))
    bus.publish(NewTick("ES", DAY0 + 1, 1.0, ts_recv=DAY0 + 7))
    recorder.shutdown()
    back = read_recording(tmp_path, "ES")
    assert back.ts_recv is not None
    assert back.ts_recv.tolist() == [e.ts_recv for e in seen.events] == [UNKNOWN_TIME, DAY0 + 7]
    assert [e.ts_recv for e in drain(ReplayFeed("ES", back), SECOND_NS)] == [DAY0 + 7] * 2  # type: ignore[union-attr]
