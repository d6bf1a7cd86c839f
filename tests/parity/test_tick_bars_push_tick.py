"""Bars of a frame equal those of the pipeline's own `push_tick`; block by block equals tick by tick."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from algospace.features import bars as pipeline_bars
from algospace.features.bar_frames import BarFrame
from algospace.features.tick_bars import BarBuilder, build_bars
from algospace.types import MINUTE_NS, SECOND_NS, Ticks

START = 1_600_000_200 * SECOND_NS
FRAMES = ("1s", "30s", "1m", "5m", "15m", "1h", "tick:1", "tick:7", "tick:300", "volume:40", "volume:0.5",
          "dollar:90000.5")  # fmt: skip
COLUMNS = ("ts_open", "ts_close", "open", "high", "low", "close", "volume", "count", "factor", "contract",
           "first_row", "last_row")  # fmt: skip


def random_ticks(seed: int, n: int = 3000, faults: bool = True, sizes: str = "whole", rolls: bool = True) -> Ticks:
    """Bursts and pauses, equal stamps, and, if asked, disorder, impossible prices and sizes, and rolls."""
    rng = np.random.default_rng(seed)
    pauses = [0, 1, 10**6, SECOND_NS, 40 * SECOND_NS, 400 * SECOND_NS]
    ts = START + np.cumsum(rng.choice(pauses, n, p=[0.2, 0.2, 0.5, 0.08, 0.015, 0.005]))
    price = 4000 + 0.25 * np.cumsum(rng.integers(-1, 2, n))
    size = rng.integers(0, 9, n).astype(float)
    if sizes == "fractions":
        size += rng.random(n)
    elif sizes == "unknown":
        size[:] = np.nan
    elif sizes == "mixed":
        size[rng.random(n) < 0.3] = np.nan
    contract = np.cumsum(rng.random(n) < 3 / n).astype(np.int32) if rolls else None
    if faults:
        clusters = rng.random(n // 50 + 1).repeat(50)[:n] < 0.3  # clean stretches in between
        hit = rng.random(n)
        ts = np.where(clusters & (hit < 0.05), ts - rng.integers(1, 90 * SECOND_NS, n), ts)
        price = np.where(clusters & (hit > 0.98), rng.choice([np.nan, 0.0, -1.0, np.inf, -0.0], n), price)
        size = np.where(clusters & (hit > 0.95) & (hit < 0.97), rng.choice([-1.0, np.inf, np.nan, -0.0], n), size)
    return Ticks(ts, price, size, contract=contract)


def assert_equal(a, b):
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    assert (a.late, a.invalid, a.open_start) == (b.late, b.invalid, b.open_start)


def events(ticks: Ticks) -> list[tuple]:
    code = np.zeros(len(ticks), np.int32) if ticks.contract is None else ticks.contract
    return list(zip(ticks.ts.tolist(), ticks.price.tolist(), ticks.size.tolist(), code.tolist(), strict=True))


SIZES = st.sampled_from(["whole", "fractions", "unknown", "mixed"])
DISORDER = st.sampled_from([0, 1, 30 * SECOND_NS])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 30, 60, 300, 1800]), DISORDER, SIZES, st.booleans())
def test_clock_bars_equal_push_tick(seed, seconds, disorder, sizes, faults):
    ticks = random_ticks(seed, 1500, faults, sizes)
    width = seconds * SECOND_NS
    g, queue = pipeline_bars.new_generator(), pipeline_bars.new_queue(0)
    expected = []
    for ts, price, size, contract in events(ticks):
        closed = pipeline_bars.push_tick(g[0], queue, width, 0, disorder, ts, price, size, contract)
        expected += [queue[j].copy() for j in range(closed)]
    frame = BarFrame.clock(width)
    series = build_bars(ticks, [frame], max_disorder_ns=disorder)[frame.name]
    assert len(series) == len(expected)
    for name in ("ts_close", "open", "high", "low", "close", "volume", "factor", "contract"):
        np.testing.assert_array_equal(getattr(series, name), [bar[name] for bar in expected], err_msg=name)
    assert (series.late, series.invalid) == (int(g["late"][0]), int(g["invalid"][0]))
    np.testing.assert_array_equal(series.ts_open, series.ts_close - width)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), DISORDER, SIZES, st.booleans(), st.booleans(), st.integers(1, 2999))
@example(259613, 0, "mixed", False, False, 1)  # a block that begins with ticks of unknown size
def test_tick_by_tick_equals_blocks_for_every_frame(seed, disorder, sizes, faults, adjust, cut):
    ticks = random_ticks(seed, 3000, faults, sizes)
    frames = [name for name in FRAMES if sizes != "unknown" or name[0] not in "vd"]
    batch = build_bars(ticks, frames, max_disorder_ns=disorder, adjust=adjust)
    builder = BarBuilder(frames, max_disorder_ns=disorder, adjust=adjust)
    streamed: dict[str, list] = {name: [] for name in frames}
    for i, event in enumerate(events(ticks)):
        if i == cut:  # a restart in between
            snapshot = builder.snapshot()
            builder = BarBuilder(frames, max_disorder_ns=disorder, adjust=adjust)
            builder.restore(snapshot)
        for bar in builder.push(*event):
            streamed[bar.frame].append(bar)
    for name, series in batch.items():
        for column in COLUMNS:
            one_by_one = [getattr(bar, column) for bar in streamed[name]]
            np.testing.assert_array_equal(getattr(series, column), one_by_one, err_msg=f"{name} {column}")
        assert (series.late, series.invalid) == (builder.late[name], builder.invalid[name])
    first, second = BarBuilder(frames, max_disorder_ns=disorder, adjust=adjust), []
    for part in (slice(0, cut), slice(cut, None)):
        second.append(first.extend(ticks.take(part)))
    for name, series in batch.items():
        for column in COLUMNS:
            joined = np.concatenate([getattr(part[name], column) for part in second])
            np.testing.assert_array_equal(getattr(series, column), joined, err_msg=f"{name} {column}")


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), DISORDER)
def test_a_frame_does_not_depend_on_the_others(seed, disorder):
    ticks = random_ticks(seed)
    together = build_bars(ticks, FRAMES, max_disorder_ns=disorder)
    for name in FRAMES:
        assert_equal(build_bars(ticks, [name], max_disorder_ns=disorder)[name], together[name])


def test_the_clock_closes_a_bar_and_its_later_ticks_are_late():
    builder = BarBuilder(["1m", "tick:3"])
    builder.push(START, 100.0, 1.0)
    assert builder.advance(START // MINUTE_NS * MINUTE_NS + MINUTE_NS - 1) == []
    (bar,) = builder.advance(START // MINUTE_NS * MINUTE_NS + MINUTE_NS)
    assert (bar.frame, bar.count, bar.close) == ("1m", 1, 100.0)
    assert builder.push(START + 1, 101.0, 1.0) == []
    assert (builder.late["1m"], builder.late["tick:3"]) == (1, 0)
    after = builder.extend(Ticks(np.array([START + 2, START + MINUTE_NS]), np.array([102.0, 103.0]), np.ones(2)))
    assert (builder.late["1m"], len(after["1m"]), len(after["tick:3"])) == (2, 0, 1)


@pytest.mark.parametrize("n", [0, 1, 2, 511, 512, 513, 40_000])
def test_many_bars_are_all_there(n):
    ticks = random_ticks(1, n, faults=False, rolls=False)
    series = build_bars(ticks, ["tick:1"])["tick:1"]
    np.testing.assert_array_equal(series.close, ticks.price)
    np.testing.assert_array_equal(series.ts_close, ticks.ts)
