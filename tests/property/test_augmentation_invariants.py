"""Augmented bars are sound, as many as before, deterministic, and made of nothing but the bars that were given."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.calendars import to_local_ns
from algospace.marketdata.augmentation import OPERATORS, AugmentationConfig, augment
from algospace.marketdata.augmentation_shapes import bars_of, break_kind, roll_rows, shapes_of
from algospace.marketdata.synthetic_ticks import TickOptions, base_bars, plan_ticks
from algospace.types import DAY_NS

COLUMNS = ("ts_open", "open", "high", "low", "close", "volume", "contract")
SAME_LENGTH = [name for name in OPERATORS if name != "inject"]
EVENTS = ["crash", "jump", "gap", "volatility", "halt"]


def market(name="stress", n=3_000, seed=1, start=0):
    """Base bars around a roll, with holes, nights and weekends."""
    plan = plan_ticks(name, seed, start + n, TickOptions(roll_basis_bp=60.0))
    return base_bars(plan.minutes).slice(start, start + n)


BARS = {name: market(name, 2_000, start=11_500) for name in ("stress", "easy")}
REGIMES = np.arange(2_000) // 100 % 4 - 1


def assert_sound(bars):
    for prices in (bars.open, bars.high, bars.low, bars.close):
        assert np.isfinite(prices).all()
        assert (prices > 0).all()
    assert (bars.low <= np.minimum(bars.open, bars.close)).all()
    assert (bars.high >= np.maximum(bars.open, bars.close)).all()
    assert (np.diff(bars.ts_open) > 0).all()
    assert not (bars.volume < 0).any()


def same(one, other, columns=COLUMNS):
    for name in columns:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(SAME_LENGTH), min_size=1, max_size=3), st.integers(0, 2**62),
       st.sampled_from([None, 0.25]), st.sampled_from(sorted(BARS)), st.booleans())
def test_every_result_is_sound_as_long_and_deterministic(operators, seed, tick, name, volume):
    bars = BARS[name] if volume else replace(BARS[name], volume=np.full(2_000, np.nan))
    before = {column: getattr(bars, column).copy() for column in COLUMNS}
    config = AugmentationConfig(operators=tuple(operators), tick_size=tick)
    result = augment(bars, config, seed, REGIMES)
    assert_sound(result)
    same(result, bars, ("ts_open", "contract"))
    assert result.width_ns == bars.width_ns
    assert np.isnan(result.volume).all() == (not volume)
    if tick:
        for prices in (result.open, result.high, result.low, result.close):
            assert (prices == np.round(prices / tick) * tick).all()
    if volume:
        assert (result.volume == np.round(result.volume)).all()
    same(result, augment(bars, config, seed, REGIMES))
    assert (augment(bars, config, seed + 1, REGIMES).close != result.close).any()
    for column, values in before.items():
        np.testing.assert_array_equal(getattr(bars, column), values, err_msg=column)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(EVENTS), st.floats(0.05, 0.9), st.floats(-500, 500), st.integers(1, 40),
       st.sampled_from(sorted(BARS)))
def test_injected_events_leave_everything_before_them_alone(kind, at, size, length, name):
    bars, row = BARS[name], int(at * 2_000)
    config = AugmentationConfig(operators=("inject",),
                                inject={"kind": kind, "at": at, "size_bp": size, "bars": length})
    result = augment(bars, config, 5)
    assert_sound(result)
    assert len(result) == len(bars) - (length if kind == "halt" else 0)
    for column in ("open", "high", "low", "close"):
        np.testing.assert_allclose(getattr(result, column)[:row], getattr(bars, column)[:row], rtol=1e-12)
    move = result.close[row:] / (bars.close[row + length:] if kind == "halt" else bars.close[row:])
    if kind in ("jump", "gap"):
        np.testing.assert_allclose(move, 1 + size * 1e-4, rtol=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(SAME_LENGTH), st.integers(0, 10**6), st.integers(100, 1_000), st.integers(1_100, 2_000))
def test_a_split_never_sees_the_bars_outside_it(operator, seed, start, stop):
    """The result of a slice is the same whatever the rest of the history holds."""
    bars, config = BARS["stress"], AugmentationConfig(operators=(operator,))
    rubbish = replace(bars, open=bars.open * 7, high=bars.high * 7, low=bars.low * 7, close=bars.close * 7)
    for column in COLUMNS[1:6]:
        getattr(rubbish, column)[start:stop] = getattr(bars, column)[start:stop]
    regimes = REGIMES[start:stop]
    same(augment(bars.slice(start, stop), config, seed, regimes),
         augment(rubbish.slice(start, stop), config, seed, regimes))


@pytest.mark.parametrize("name", sorted(BARS))
def test_shapes_are_the_bars(name):
    bars = BARS[name]
    back = bars_of(shapes_of(bars), bars)
    for column in ("open", "high", "low", "close"):
        np.testing.assert_allclose(getattr(back, column), getattr(bars, column), rtol=1e-12)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(["day", "bar"]), st.floats(1, 30), st.integers(0, 10**6))
def test_a_bootstrapped_bar_is_a_real_bar_of_its_time_of_day(unit, mean_length, seed):
    bars = BARS["stress"]
    config = AugmentationConfig(operators=("block_bootstrap",),
                                block_bootstrap={"unit": unit, "mean_length": mean_length})
    result = augment(bars, config, seed)
    kind = break_kind(bars)
    slot = to_local_ns(bars.ts_open, "America/Chicago") % DAY_NS
    real = {(int(s), int(k), round(float(b), 9), float(v))
            for s, k, b, v in zip(slot, kind, shapes_of(bars).body, bars.volume, strict=True)}
    found = zip(slot, kind, shapes_of(result).body, result.volume, strict=True)
    assert {(int(s), int(k), round(float(b), 9), float(v)) for s, k, b, v in found} <= real
    rolls = roll_rows(bars)
    assert rolls.sum() == 1
    np.testing.assert_allclose(shapes_of(result).gap[rolls], shapes_of(bars).gap[rolls], atol=1e-12)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_time_warping_keeps_every_stretch_as_a_whole(seed):
    bars = BARS["stress"]
    result = augment(bars, AugmentationConfig(operators=("time_warp",)), seed)
    starts = np.flatnonzero((break_kind(bars) > 0) | roll_rows(bars))
    np.testing.assert_allclose(result.close[starts - 1], bars.close[starts - 1], rtol=1e-9)
    np.testing.assert_allclose(result.open[starts], bars.open[starts], rtol=1e-9)
    np.testing.assert_allclose(np.add.reduceat(result.volume, starts), np.add.reduceat(bars.volume, starts),
                               atol=len(starts))
    assert result.volume.sum() == bars.volume.sum()
