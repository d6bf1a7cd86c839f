"""Batch base and 30-minute bars equal the pipeline's state machines to the bit, over gaps, breaks and rolls."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.errors import ConfigError, InputError
from algospace.features import FeatureConfig, build_from_ticks
from algospace.features import bars as rules
from algospace.features.bar_frames import BarFrame
from algospace.features.clock_bars import base_and_slow_bars, resample
from algospace.features.tick_bars import build_bars
from algospace.instruments import instrument
from algospace.types import MINUTE_NS, SECOND_NS, Bars, Ticks

START = 1_600_000_200 * SECOND_NS
STEPS = st.sampled_from([1] * 12 + [2, 3, 6, 11, 55, 56, 60, 61, 65, 66, 70, 400])


def minute_ticks(steps: list[int], seed: int, volume: bool = True) -> Ticks:
    """A few ticks in each minute that trades, `steps` minutes apart, with disorder and rolls."""
    rng = np.random.default_rng(seed)
    per = 4
    minute = START // MINUTE_NS * MINUTE_NS + np.cumsum(steps) * MINUTE_NS
    ts = np.sort(minute[:, None] + rng.integers(0, MINUTE_NS, (len(steps), per)), axis=1).ravel()
    ts = np.where(rng.random(ts.size) < 0.05, ts - rng.integers(0, 8 * MINUTE_NS, ts.size), ts)
    contract = np.cumsum(rng.random(ts.size) < 0.02).astype(np.int32)
    price = np.round(4000 + np.cumsum(rng.normal(0, 2, ts.size)) + 25.0 * contract, 2)
    price[rng.random(ts.size) < 0.02] = np.nan
    size = rng.random(ts.size) * 5 if volume else np.full(ts.size, np.nan)
    return Ticks(ts, price, size, contract=contract)


def reference(ticks: Ticks, width: int, slow_width: int, max_fill: int, disorder: int):
    """`push_tick` and `aggregate`, driven as the pipeline drives them."""
    g, queue, a = rules.new_generator(), rules.new_queue(max_fill), np.zeros(1, rules.AGGREGATOR)
    base, slow, rows = [], [], []

    def close() -> None:
        a["is_open"] = 0
        slow.append(a[0].copy())

    for i in range(len(ticks)):
        event = (int(ticks.ts[i]), float(ticks.price[i]), float(ticks.size[i]), int(ticks.contract[i]))
        for j in range(rules.push_tick(g[0], queue, width, max_fill, disorder, *event)):
            bar = queue[j].copy()
            if rules.belongs_later(a[0], bar):
                close()
            if rules.aggregate(a[0], bar, width, slow_width):
                close()
            base.append(bar)
            rows.append(len(slow) - 1)
    return base, slow, rows


@settings(max_examples=20, deadline=None)
@given(st.lists(STEPS, min_size=2, max_size=120), st.integers(0, 10**6), st.booleans(),
       st.sampled_from([(5, 30), (1, 15), (15, 60), (30, 30)]), st.sampled_from([0, 2 * MINUTE_NS]))  # fmt: skip
def test_the_pair_equals_the_state_machines(steps, seed, volume, widths, disorder):
    ticks = minute_ticks(steps, seed, volume)
    width, slow_width = (minutes * MINUTE_NS for minutes in widths)
    base, slow, rows = reference(ticks, width, slow_width, 60 // widths[0] - 1, disorder)
    pair = base_and_slow_bars(ticks, width, slow_width, max_disorder_ns=disorder)
    assert (len(pair.base), len(pair.slow)) == (len(base), len(slow))
    assert pair.row_slow.tolist() == rows
    for name in rules.BAR.names:
        np.testing.assert_array_equal(pair.base[name], [bar[name] for bar in base], err_msg=name)
        of_slow = "end" if name == "ts_close" else name
        np.testing.assert_array_equal(pair.slow[name], [bar[of_slow] for bar in slow], err_msg=name)


@settings(max_examples=5, deadline=None)
@given(st.lists(STEPS, min_size=50, max_size=200), st.integers(0, 10**6))
def test_the_pair_equals_the_feature_table(steps, seed):
    ticks = minute_ticks(steps, seed)
    with warnings.catch_warnings(action="ignore"):  # it counts the late and the invalid
        table = build_from_ticks(ticks, instrument("NQ"), FeatureConfig(regime=False))
    pair = base_and_slow_bars(ticks)
    np.testing.assert_array_equal(pair.base["ts_close"], table.ts_close)
    np.testing.assert_array_equal(pair.slow["ts_close"], table.ts_close_30m)
    np.testing.assert_array_equal(pair.row_slow, table.row_30m)
    for name in ("open", "high", "low", "close", "volume"):
        np.testing.assert_array_equal(pair.base[name], table.base[name])
        np.testing.assert_array_equal(pair.slow[name], table.slow[name])


def source_bars(steps: list[int], seed: int) -> Bars:
    rng = np.random.default_rng(seed)
    n = len(steps)
    contract = np.cumsum(rng.random(n) < 0.03).astype(np.int32)
    open_, close = (4000 + rng.normal(0, 5, (2, n)).cumsum(axis=1) + 30.0 * contract)
    high, low = np.maximum(open_, close) + rng.random(n), np.minimum(open_, close) - rng.random(n)
    volume = np.where(rng.random(n) < 0.1, np.nan, rng.random(n) * 100)
    return Bars(START // MINUTE_NS * MINUTE_NS + np.cumsum(steps) * MINUTE_NS, open_, high, low, close, volume,
                MINUTE_NS, contract)  # fmt: skip


@settings(max_examples=20, deadline=None)
@given(st.lists(STEPS, min_size=1, max_size=300), st.integers(0, 10**6), st.sampled_from([1, 5, 30, 60]))
def test_resampled_bars_equal_push_bar(steps, seed, minutes):
    bars, width = source_bars(steps, seed), minutes * MINUTE_NS
    g, queue = rules.new_generator(), rules.new_queue(0)
    expected = []
    for i in range(len(bars)):
        values = [float(getattr(bars, name)[i]) for name in ("open", "high", "low", "close", "volume")]
        closed = rules.push_bar(g[0], queue, width, 0, MINUTE_NS, int(bars.ts_open[i]), *values,
                                int(bars.contract[i]))  # fmt: skip
        expected += [queue[j].copy() for j in range(closed)]
    frame = BarFrame.clock(width)
    series = resample(bars, [frame])[frame.name]
    assert len(series) == len(expected)
    for name in ("ts_close", "open", "high", "low", "close", "volume", "factor", "contract"):
        np.testing.assert_array_equal(getattr(series, name), [bar[name] for bar in expected], err_msg=name)


def test_bars_of_ticks_go_on_as_source_bars():
    rng = np.random.default_rng(0)
    ts = START // MINUTE_NS * MINUTE_NS + np.sort(rng.integers(0, 300 * MINUTE_NS, 5000))
    ticks = Ticks(ts, 100 + rng.integers(-9, 10, 5000) * 0.25, rng.integers(1, 5, 5000).astype(float))
    both = build_bars(ticks, ["1m", "15m"])
    wide = resample(both["1m"].to_bars(), ["15m"])["15m"]
    n = min(len(wide), len(both["15m"]))
    assert n >= 18
    for name in ("ts_open", "open", "high", "low", "close", "volume"):
        np.testing.assert_array_equal(getattr(wide, name)[:n], getattr(both["15m"], name)[:n])


def test_what_cannot_be_resampled_is_refused_in_one_line():
    bars = source_bars([1] * 10, 0)
    with pytest.raises(ConfigError, match="do not fit"):
        resample(bars, ["30s"])
    with pytest.raises(ConfigError, match="need ticks"):
        resample(bars, ["tick:5"])
    with pytest.raises(InputError, match="row 3"):
        resample(replace(bars, ts_open=bars.ts_open[::-1].copy()), ["5m"])
    with pytest.raises(ConfigError, match="no multiple"):
        base_and_slow_bars(minute_ticks([1, 1], 0), 7 * MINUTE_NS, 30 * MINUTE_NS)
    with pytest.raises(ConfigError, match="no width"):
        build_bars(minute_ticks([1, 1], 0), ["tick:2"])["tick:2"].to_bars()
