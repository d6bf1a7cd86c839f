"""Bars follow the written rules: a literal reference in plain Python, over random gaps, breaks and rolls."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.errors import ConfigError, InputError
from algospace.features import FeatureConfig, FeatureStream, SourceBar, build, build_from_ticks
from algospace.instruments import instrument
from algospace.types import MINUTE_NS, Bars, Ticks

NQ = instrument("NQ")
START = 1_600_000_200_000_000_000 // (1440 * MINUTE_NS) * (1440 * MINUTE_NS)
STEPS = st.sampled_from([1] * 12 + [2, 3, 6, 11, 55, 56, 60, 61, 65, 66, 70, 400])
FAST = FeatureConfig(regime=False)


def random_bars(steps: list[int], seed: int, rolls: bool = True, volume: bool = True) -> Bars:
    """One-minute bars `steps` minutes apart; a roll jumps the price and changes the contract."""
    rng = np.random.default_rng(seed)
    n = len(steps)
    ts = START + (np.cumsum(steps) - steps[0]) * MINUTE_NS
    contract = np.cumsum(rng.random(n) < 0.03).astype(np.int32) if rolls else np.zeros(n, np.int32)
    close = np.round(4000 + np.cumsum(rng.normal(0, 2, n)) + 25.0 * contract, 2)
    open_ = close + rng.integers(-4, 5, n) * 0.25
    high = np.maximum(open_, close) + rng.integers(0, 4, n) * 0.25
    low = np.minimum(open_, close) - rng.integers(0, 4, n) * 0.25
    size = rng.integers(0, 50, n).astype(float) if volume else np.full(n, np.nan)
    return Bars(ts, open_, high, low, close, size, MINUTE_NS, contract)


def reference_base_bars(bars: Bars, width: int = 5, max_fill: int = 11) -> list[dict]:
    """The rules, literally: group by clock, adjust, fill short gaps, leave breaks, drop the bar still open."""
    span = width * MINUTE_NS
    factors, factor = [], 1.0
    for i in range(len(bars)):
        if i and bars.contract[i] != bars.contract[i - 1]:
            factor *= bars.close[i - 1] / bars.open[i]
        factors.append(factor)
    groups: dict[int, list[int]] = {}
    for i, ts in enumerate(bars.ts_open):
        groups.setdefault(int(ts) // span, []).append(i)
    known_until = int(bars.ts_open[-1]) + bars.width_ns
    rows: list[dict] = []
    for bucket, members in groups.items():
        if rows:
            last = rows[-1]
            missing = bucket - last["bucket"] - 1
            for k in range(missing if missing <= max_fill else 0):
                price = last["close"]
                rows.append({**last, "bucket": last["bucket"] + k + 1, "open": price, "high": price, "low": price,
                             "volume": last["volume"] * 0.0, "filled": True})  # fmt: skip
        if (bucket + 1) * span <= known_until:
            rows.append({
                "bucket": bucket, "open": bars.open[members[0]] * factors[members[0]],
                "high": max(bars.high[i] * factors[i] for i in members),
                "low": min(bars.low[i] * factors[i] for i in members),
                "close": bars.close[members[-1]] * factors[members[-1]],
                "volume": sum(bars.volume[i] for i in members),
                "filled": False, "roll_factor": factors[members[-1]], "contract": bars.contract[members[-1]],
            })  # fmt: skip
    return rows


def reference_slow_bars(rows: list[dict], width: int = 5, slow: int = 30) -> tuple[list[dict], list[int]]:
    """(30-minute bars, index of the last one visible at each base row)."""
    per = slow // width
    closed: list[dict] = []
    visible: list[int] = []
    current: dict | None = None
    for row in rows:
        bucket = row["bucket"] // per
        if current is not None and current["bucket"] != bucket:
            closed.append(current)
            current = None
        if current is None:
            current = {**row, "bucket": bucket}
        else:
            current["high"] = max(current["high"], row["high"])
            current["low"] = min(current["low"], row["low"])
            current["volume"] += row["volume"]
            current["filled"] = current["filled"] and row["filled"]
        current["close"], current["roll_factor"] = row["close"], row["roll_factor"]
        if row["bucket"] % per == per - 1:
            closed.append(current)
            current = None
        visible.append(len(closed) - 1)
    return closed, visible


@settings(max_examples=60, deadline=None)
@given(
    st.lists(STEPS, min_size=5, max_size=400), st.integers(0, 10**6), st.booleans(), st.sampled_from([5, 15, 30])
)
def test_bars_equal_the_literal_reference(steps, seed, volume, width):
    bars = random_bars(steps, seed, volume=volume)
    rows = reference_base_bars(bars, width, 60 // width - 1)
    slow, visible = reference_slow_bars(rows, width)
    table = build(bars, NQ, FeatureConfig(regime=False, base_minutes=width))
    assert table.ts_close.tolist() == [(row["bucket"] + 1) * width * MINUTE_NS for row in rows]
    assert table.ts_close_30m.tolist() == [(row["bucket"] + 1) * 30 * MINUTE_NS for row in slow]
    assert table.row_30m.tolist() == visible
    assert table.filled.tolist() == [row["filled"] for row in rows]
    assert table.contract.tolist() == [row["contract"] for row in rows]
    for name in ("open", "high", "low", "close", "volume", "roll_factor", "filled"):
        np.testing.assert_array_equal(table.base[name], [float(row[name]) for row in rows], err_msg=name)
        np.testing.assert_array_equal(table.slow[name], [float(row[name]) for row in slow], err_msg=name)


@settings(max_examples=30, deadline=None)
@given(st.lists(STEPS, min_size=50, max_size=400), st.integers(0, 10**6))
def test_base_rows_hold_the_last_visible_slow_row(steps, seed):
    table = build(random_bars(steps, seed), NQ, FAST)
    seen = table.row_30m >= 0
    for name in ("atr_30m", "ha_close", "nwrqk_value", "nwrqk_signal", "mlmi_value"):
        np.testing.assert_array_equal(table.base[name][seen], table.slow[name][table.row_30m[seen]])
        assert np.isnan(table.base[name][~seen]).all()
    # nothing unfinished is visible: the next 30-minute bar ends later, or was closed by a later row
    ends = table.ts_close_30m[table.row_30m[seen]]
    assert (ends <= table.ts_close[seen]).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(STEPS, min_size=20, max_size=300), st.integers(0, 10**6))
def test_wider_source_bars_give_the_same_table(steps, seed):
    """Aggregating 1-minute bars, or their gap-free 5-minute bars, is the same."""
    fine = build(random_bars(steps, seed, rolls=False), NQ, FAST)
    real = ~fine.filled
    if not real.any():
        return
    coarse = Bars(fine.ts_close[real] - 5 * MINUTE_NS, *(fine.base[c][real] for c in
                  ("open", "high", "low", "close", "volume")), 5 * MINUTE_NS)  # fmt: skip
    again = build(coarse, NQ, FAST)
    for name, column in again.base.items():
        np.testing.assert_array_equal(column, fine.base[name][: len(again)], err_msg=name)


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, min_size=3, max_size=300), st.integers(1, 299), st.sampled_from([1, 5, 30]))
def test_there_is_room_for_every_row_a_block_can_emit(steps, cut, width):
    """Compiled code writes without bounds checks, so the room is computed before each block."""
    bars = random_bars(steps, 0)
    cut = min(cut, len(bars) - 1)
    stream = FeatureStream(NQ, FeatureConfig(regime=False, base_minutes=width))
    for block in (bars.slice(0, cut), bars.slice(cut, len(bars))):
        base_room, slow_room = stream._bound_rows(block.ts_open)
        table = stream.extend(block)
        assert len(table) <= base_room
        assert len(table.ts_close_30m) <= slow_room


def ticks_of(bars: Bars) -> Ticks:
    """Open, low, high, close of each bar as four ticks."""
    ts = (bars.ts_open[:, None] + np.array([0, 1, 2, 3]) * 10**9).ravel()
    price = np.stack([bars.open, bars.low, bars.high, bars.close], axis=1).ravel()
    size = np.repeat(bars.volume / 4, 4)
    return Ticks(ts, price, size)


@settings(max_examples=20, deadline=None)
@given(st.lists(STEPS, min_size=20, max_size=200), st.integers(0, 10**6))
def test_ticks_give_the_same_rows_as_bars(steps, seed):
    bars = random_bars(steps, seed, rolls=False)
    from_ticks = build_from_ticks(ticks_of(bars), NQ, FAST)
    from_bars = build(bars, NQ, FAST)
    assert 0 <= len(from_bars) - len(from_ticks) <= 1  # ticks never say that their last bar has ended
    for name, column in from_ticks.base.items():
        np.testing.assert_allclose(column, from_bars.base[name][: len(from_ticks)], rtol=1e-12, err_msg=name)


def test_a_gap_of_eleven_bars_is_filled_and_one_of_twelve_is_a_break():
    for missing, rows in ((11, 13), (12, 2)):
        bars = random_bars([1] * 5 + [5 * missing + 1] + [1] * 4, 0, rolls=False)
        assert len(build(bars, NQ, FAST)) == rows


def test_late_and_impossible_ticks_are_counted_and_change_nothing():
    stream = FeatureStream(NQ, FAST)
    stream.push_tick(START, 100.0, 1.0)
    stream.push_tick(START + 10, 101.0, 1.0)
    for price, size in ((float("nan"), 1.0), (0.0, 1.0), (float("inf"), 1.0), (100.0, -1.0)):
        stream.push_tick(START + 20, price, size)
    stream.push_tick(START + 5, 500.0, 1.0)
    assert (stream.late, stream.invalid) == (1, 4)
    (row,) = stream.push_tick(START + 5 * MINUTE_NS, 102.0, 1.0)
    assert stream.push_tick(START + 5 * MINUTE_NS - 1, 1.0, 1.0) == []
    assert stream.late == 2
    assert row.base[:5].tolist() == [100.0, 101.0, 100.0, 101.0, 2.0]


def test_disorder_within_the_tolerance_is_accepted_in_an_open_bar_only():
    stream = FeatureStream(NQ, FeatureConfig(regime=False, max_disorder_ns=1000))
    stream.push_tick(START + 500, 100.0)
    stream.push_tick(START, 103.0)
    assert stream.late == 0
    stream.push_tick(START + 5 * MINUTE_NS, 101.0)
    stream.push_tick(START + 5 * MINUTE_NS - 1, 101.0)
    assert stream.late == 1


def test_the_clock_closes_a_bar_and_later_ticks_for_it_are_late():
    stream = FeatureStream(NQ, FAST)
    stream.push_tick(START, 100.0)
    assert stream.advance(START + 5 * MINUTE_NS - 1) == []
    (row,) = stream.advance(START + 5 * MINUTE_NS)
    assert row.ts_close == START + 5 * MINUTE_NS
    assert stream.advance(START + 6 * MINUTE_NS) == []
    assert stream.push_tick(START + 5 * MINUTE_NS - 1, 100.0) == []
    assert stream.late == 1
    rows = stream.push_tick(START + 16 * MINUTE_NS, 105.0)
    assert [r.filled for r in rows] == [True, True]


def test_the_roll_factor_hides_the_gap():
    bars = random_bars([1] * 600, 3, rolls=False)
    jump = 1.25
    contract = (np.arange(600) >= 333).astype(np.int32)
    scale = np.where(contract == 1, jump, 1.0)
    # the new contract opens exactly where the old one closed, but for the jump
    open_ = bars.open.copy()
    open_[333] = bars.close[332]
    high, low = np.maximum(bars.high, open_), np.minimum(bars.low, open_)
    plain = build(Bars(bars.ts_open, open_, high, low, bars.close, bars.volume, MINUTE_NS), NQ, FAST)
    rolled = build(Bars(bars.ts_open, open_ * scale, high * scale, low * scale, bars.close * scale, bars.volume,
                        MINUTE_NS, contract), NQ, FAST)  # fmt: skip
    assert rolled.base["roll_factor"][0] == 1.0
    assert rolled.base["roll_factor"][-1] == pytest.approx(1 / jump)
    for name in ("close", "atr_5m", "atr_30m", "fvg_nearest_level", "nwrqk_value", "return_1"):
        np.testing.assert_allclose(rolled.base[name], plain.base[name], rtol=1e-9, atol=1e-12)


def _with(bars: Bars, **columns) -> Bars:
    return Bars(**{**bars.__dict__, **columns})


@pytest.mark.parametrize(
    ("change", "row", "word"),
    [
        (lambda b: _with(b, ts_open=b.ts_open[::-1].copy()), 3, "later"),
        (lambda b: _with(b, ts_open=np.repeat(b.ts_open[::2], 2)), 3, "later"),
        (lambda b: _with(b, close=np.where(np.arange(10) == 4, np.nan, b.close)), 6, "NaN"),
        (lambda b: _with(b, low=np.where(np.arange(10) == 7, -1.0, b.low)), 9, "positive"),
        (lambda b: _with(b, high=np.where(np.arange(10) == 2, 1.0, b.high)), 4, "outside"),
        (lambda b: _with(b, volume=np.where(np.arange(10) == 5, -3.0, b.volume)), 7, "volume"),
        (lambda b: _with(b, volume=np.where(np.arange(10) == 5, np.inf, b.volume)), 7, "volume"),
        (lambda b: _with(b, ts_open=b.ts_open + 1), 2, "grid"),
        (lambda b: b.slice(0, 0), None, "no rows"),
    ],
)
def test_a_faulty_row_is_named(change, row, word):
    with pytest.raises(InputError, match=word) as caught:
        build(change(random_bars([1] * 10, 0)), NQ, FAST)
    assert caught.value.row == row
    assert "\n" not in str(caught.value)


def test_source_bars_wider_than_base_bars_are_refused_in_one_line():
    bars = random_bars([30] * 10, 0)
    wide = Bars(bars.ts_open, bars.open, bars.high, bars.low, bars.close, bars.volume, 30 * MINUTE_NS)
    with pytest.raises(ConfigError, match="base_minutes"):
        build(wide, NQ, FAST)
    assert len(build(wide, NQ, FeatureConfig(regime=False, base_minutes=30))) == 10


@pytest.mark.parametrize("values", [{"base_minutes": 7}, {"base_minutes": 20}, {"slow_minutes": 35}, {"typo": 1}])
def test_widths_that_do_not_nest_are_refused(values):
    with pytest.raises(ValueError):
        FeatureConfig(**values)


def test_live_bars_out_of_order_are_late():
    stream = FeatureStream(NQ, FAST)
    stream.push(SourceBar(START, 1.0, 1.0, 1.0, 1.0))
    stream.push(SourceBar(START, 1.0, 1.0, 1.0, 1.0))
    stream.push(SourceBar(START + MINUTE_NS, 1.0, 0.5, 1.0, 1.0))
    assert (stream.late, stream.invalid) == (1, 1)


@pytest.mark.parametrize("field", ["open", "high", "low", "close", "volume"])
def test_a_live_bar_that_is_not_finite_is_counted_and_changes_nothing(field):
    good = SourceBar(START, 100.0, 101.0, 99.0, 100.0, 1.0)
    stream = FeatureStream(NQ, FAST)
    faulty = good._replace(ts_open=START + MINUTE_NS, **{field: np.inf if field == "volume" else np.nan})
    stream.push(good)
    assert stream.push(faulty) == []
    assert stream.invalid == 1
    (row,) = stream.push(good._replace(ts_open=START + 4 * MINUTE_NS))
    assert row.base[:5].tolist() == [100.0, 101.0, 99.0, 100.0, 2.0]
