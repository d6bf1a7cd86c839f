"""Continuous series: the pipeline's own factor, the meaning of a stated ratio, and what is not causal."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.errors import InputError
from algospace.features import FeatureConfig, MlmiConfig, build
from algospace.instruments import instrument
from algospace.marketdata.continuous import (
    check_ratios,
    continuous,
    found_ratios,
    overlap_ratios,
    research_backward,
    roll_rows,
    stated_ratios,
    with_found_ratios,
)
from algospace.marketdata.roll_table import RollSchedule
from algospace.marketdata.rolls import ContractRows
from algospace.types import Bars
from tests.relative_market import random_bars

NAMES = [f"C{k}" for k in range(60)]


def schedule_of(bars: Bars) -> RollSchedule:
    starts = np.r_[0, roll_rows(bars)]
    last = np.r_[starts[1:] - 1, len(bars) - 1]
    return RollSchedule(tuple(NAMES[c] for c in bars.contract[starts]), bars.ts_open[starts], bars.ts_open[last],
                        np.r_[found_ratios(bars), np.nan])


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_factor_is_the_one_of_the_feature_pipeline_to_the_bit(seed: int):
    bars = random_bars(seed, 300, rolls=0.02)
    table = build(bars, instrument("ES"), FeatureConfig(regime=False, mlmi=MlmiConfig(k=5)))
    series = continuous(bars)
    own = ~table.filled
    np.testing.assert_array_equal(series.factor, table.base["roll_factor"][own])
    np.testing.assert_array_equal(series.adjusted.close, table.base["close"][own])
    assert series.causal
    assert series.raw is bars  # fills and costs


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), cut=st.integers(2, 290))
def test_forward_adjustment_keeps_its_past_and_backward_does_not(seed: int, cut: int):
    bars = random_bars(seed, 300, rolls=0.02)
    part = bars.slice(0, cut)
    np.testing.assert_array_equal(continuous(part).adjusted.close, continuous(bars).adjusted.close[:cut])
    for kind in ("ratio", "difference"):
        whole, short = research_backward(bars, kind), research_backward(part, kind)
        assert not whole.causal
        moved = (roll_rows(bars) >= cut).any()
        assert (short.adjusted.close != whole.adjusted.close[:cut]).any() == moved


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_no_adjusted_series_jumps_at_a_roll(seed: int):
    bars = random_bars(seed, 300, rolls=0.03)
    rolls = roll_rows(bars)
    for series in (continuous(bars), research_backward(bars), research_backward(bars, "difference")):
        np.testing.assert_allclose(series.adjusted.open[rolls], series.adjusted.close[rolls - 1], rtol=1e-12)
        np.testing.assert_array_equal(series.adjusted.close, bars.close * series.factor + series.offset)
    last = slice(rolls[-1] if rolls.size else 0, None)
    np.testing.assert_array_equal(research_backward(bars).adjusted.close[last], bars.close[last])
    # returns within a contract are the same whichever ratio method
    inside = np.setdiff1d(np.arange(1, 300), rolls)
    for series in (continuous(bars), research_backward(bars)):
        np.testing.assert_allclose(np.diff(np.log(series.adjusted.close))[inside - 1],
                                   np.diff(np.log(bars.close))[inside - 1], atol=1e-12)


def test_a_stated_ratio_divides_and_its_inverse_is_recognised():
    bars = random_bars(4, 400, rolls=0.02)
    table = schedule_of(bars)
    assert check_ratios(table, bars, NAMES) == []
    ratios = stated_ratios(table, bars, NAMES)
    np.testing.assert_allclose(continuous(bars, ratios).factor, continuous(bars).factor, rtol=1e-13)
    inverse = RollSchedule(table.contracts, table.first_ts, table.last_ts, 1 / table.ratio_to_next)
    found = check_ratios(inverse, bars, NAMES)
    assert len(found) == roll_rows(bars).size
    assert all(m.inverse for m in found)
    assert "states the inverse" in str(found[0])
    rolls, wrong = roll_rows(bars), continuous(bars, 1 / ratios).adjusted
    jump = np.log(bars.open[rolls] / bars.close[rolls - 1])
    np.testing.assert_allclose(np.log(wrong.open[rolls] / wrong.close[rolls - 1]), 2 * jump, rtol=1e-9)


def test_a_wrong_ratio_is_reported_with_both_values():
    bars = random_bars(4, 400, rolls=0.02)
    table = schedule_of(bars)
    table.ratio_to_next[1] *= 1.001
    (mismatch,) = check_ratios(table, bars, NAMES)
    assert (mismatch.contract, mismatch.next_contract, mismatch.inverse) == ("C1", "C2", False)
    assert str(mismatch).startswith("C1 -> C2: stated ")


def test_ratios_that_do_not_fit_the_rolls_are_refused():
    bars = random_bars(4, 400, rolls=0.02)
    with pytest.raises(InputError, match=r"1 ratios for \d+ rolls"):
        continuous(bars, np.ones(1))
    bad = np.ones(roll_rows(bars).size)
    bad[0] = 0.0
    with pytest.raises(InputError, match="ratio 1 is not a positive number"):
        continuous(bars, bad)
    table = schedule_of(bars)
    short = RollSchedule(table.contracts[:1], table.first_ts[:1], table.last_ts[:1], np.array([np.nan]))
    with pytest.raises(InputError, match="no ratio for the roll C0 -> C1 on 2020"):
        stated_ratios(short, bars, NAMES, "contracts.csv")


def test_the_spread_of_one_time_leaves_out_what_the_market_did_between():
    ts = np.array([0, 0, 1, 1, 2, 3], np.int64) * 3_600_000_000_000
    rows = ContractRows(ts, np.array([0, 1, 0, 1, 0, 1], np.int32), ("A", "B"),
                        open=np.array([100, 102, 101, 103, 104, 120.0]),
                        close=np.array([101, 103, 100, 102, 110, 121.0]))
    table = RollSchedule(("A", "B"), ts[[0, 5]], ts[[4, 5]], np.full(2, np.nan))
    np.testing.assert_array_equal(overlap_ratios(table, rows), [1.02, np.nan])
    front = Bars(ts[[0, 2, 4, 5]], *(np.array(p, float) for p in [
        [100, 101, 104, 120], [104, 104, 111, 122], [99, 99, 103, 119], [101, 100, 110, 121]]),
        np.full(4, np.nan), 3_600_000_000_000, np.array([0, 0, 0, 1], np.int32))
    np.testing.assert_array_equal(with_found_ratios(table, front, ("A", "B")).ratio_to_next, [120 / 110, np.nan])
