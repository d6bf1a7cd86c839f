"""Synthetic ticks are exactly the bars of the same market; longer markets start with shorter; faults are few."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.features import FeatureConfig, build, build_from_ticks
from algospace.instruments import instrument
from algospace.marketdata.synthetic import SCENARIOS, generate
from algospace.marketdata.synthetic_ticks import TickOptions, generate_ticks, plan_ticks
from algospace.types import BASE_BAR_NS, MINUTE_NS

SEEDS = st.integers(0, 2**62)
ONE_CONTRACT = TickOptions(roll_basis_bp=0.0)
FAST = FeatureConfig(regime=False)
SYNTH = instrument("SYNTH")


def aggregate(ticks, width_ns):
    """(bucket start, open, high, low, close, volume) of the prints by plain numpy."""
    bucket = ticks.ts // width_ns
    first = np.flatnonzero(np.concatenate(([True], np.diff(bucket) != 0)))
    last = np.concatenate((first[1:], [len(ticks)])) - 1
    return {"ts_open": bucket[first] * width_ns, "open": ticks.price[first],
            "high": np.maximum.reduceat(ticks.price, first), "low": np.minimum.reduceat(ticks.price, first),
            "close": ticks.price[last], "volume": np.add.reduceat(ticks.size, first)}


@pytest.mark.parametrize("name", SCENARIOS)
@given(seed=SEEDS, sparse=st.booleans())
@settings(max_examples=6, deadline=None)
def test_prints_aggregate_bit_for_bit_to_the_bars_of_the_market(name, seed, sparse):
    options = ONE_CONTRACT.model_copy(update={"contracts_per_tick": 1e6 if sparse else 20.0})
    market, bars = generate_ticks(name, seed, 400, options), generate(name, seed, 400).bars
    found = aggregate(market.ticks, BASE_BAR_NS)
    for column, values in found.items():
        np.testing.assert_array_equal(values, getattr(bars, column), err_msg=column)
        np.testing.assert_array_equal(getattr(market.bars, column), getattr(bars, column), err_msg=column)
    minutes, found = generate(name, seed, 400, resolution="1m").bars, aggregate(market.ticks, MINUTE_NS)
    for column in ("ts_open", "open", "high", "low", "close"):
        np.testing.assert_array_equal(found[column], getattr(minutes, column), err_msg=column)
    if sparse:
        assert len(market.ticks) == 4 * len(minutes)


@pytest.mark.parametrize("name", ["easy", "stress"])
def test_the_pipeline_builds_the_same_table_from_ticks_as_from_bars(name):
    market = generate_ticks(name, 3, 3_000, ONE_CONTRACT)
    from_ticks, from_bars = build_from_ticks(market.ticks, SYNTH, FAST), build(market.bars, SYNTH, FAST)
    n = len(from_ticks)
    assert n == len(from_bars) - 1  # ticks never say that their last bar has ended
    for column, values in from_ticks.base.items():
        np.testing.assert_array_equal(values, from_bars.base[column][:n], err_msg=column)
    traded = from_ticks.filled == 0
    np.testing.assert_array_equal(from_ticks.ts_close[traded], market.truth.ts_close[:-1])
    np.testing.assert_array_equal(from_ticks.base["close"][traded], market.bars.close[:-1])


@pytest.mark.parametrize("name", ["mid", "session", "stress"])
@given(seed=SEEDS, short=st.integers(2, 300), more=st.integers(0, 200), latency=st.sampled_from([0.0, 3.0]))
@settings(max_examples=6, deadline=None)
def test_a_longer_market_starts_with_the_shorter_one(name, seed, short, more, latency):
    options = TickOptions(latency_ms=latency)
    first, second = (generate_ticks(name, seed, n, options) for n in (short, short + more))
    for column, values in first.ticks.columns().items():
        longer = second.ticks.columns()[column]
        np.testing.assert_array_equal(values, longer[:values.size], err_msg=column)
    np.testing.assert_array_equal(first.truth.regime, second.truth.regime[:short])


def test_blocks_are_the_whole_with_and_without_faults():
    for options in (TickOptions(latency_ms=1.0), TickOptions(late_rate=0.01, duplicate_rate=0.01)):
        plan = plan_ticks("stress", 7, 4_500, options)
        whole, parts = plan.ticks().columns(), [part.columns() for part in plan.blocks()]
        assert len(parts) == 3
        for column, values in whole.items():
            np.testing.assert_array_equal(values, np.concatenate([part[column] for part in parts]), err_msg=column)


@pytest.mark.parametrize("name", ["easy", "stress"])
@given(seed=SEEDS)
@settings(max_examples=6, deadline=None)
def test_every_print_lies_at_its_quote_in_time_order(name, seed):
    ticks = generate_ticks(name, seed, 300).ticks
    assert (np.diff(ticks.ts) >= 0).all()
    np.testing.assert_array_equal(ticks.price, np.where(ticks.aggressor > 0, ticks.ask, ticks.bid))
    spread = (ticks.ask - ticks.bid) / 0.25
    np.testing.assert_allclose(spread, np.round(spread), atol=1e-6)
    assert spread.min() >= 1 - 1e-6
    assert (ticks.size >= 1).all()
    assert (ticks.size == np.floor(ticks.size)).all()
    assert set(np.unique(ticks.aggressor)) <= {-1, 1}
    np.testing.assert_array_equal(ticks.ts_recv, ticks.ts)
    if name == "stress":
        for column in (ticks.price, ticks.bid, ticks.ask):
            assert (column == np.round(column / 0.25) * 0.25).all()


def test_the_receive_time_is_later_and_in_order():
    ticks = generate_ticks("session", 1, 300, TickOptions(latency_ms=5.0)).ticks
    delay = ticks.ts_recv - ticks.ts
    assert (np.diff(ticks.ts_recv) >= 0).all()
    assert delay.min() >= 2.5e6
    assert 5e6 < delay.mean() < 6e6  # an earlier print that is late holds up the next


def test_faults_are_the_clean_prints_late_or_twice_and_the_pipeline_counts_them():
    clean = generate_ticks("mid", 2, 500).ticks
    faulty = generate_ticks("mid", 2, 500, TickOptions(late_rate=0.01, duplicate_rate=0.02)).ticks
    extra = len(faulty) - len(clean)
    assert extra == pytest.approx(0.02 * len(clean), rel=0.3)
    disorder = np.maximum.accumulate(faulty.ts) > faulty.ts
    assert disorder.mean() == pytest.approx(0.01, rel=0.5)
    assert (np.diff(faulty.ts_recv) >= 0).all()
    assert (faulty.ts_recv - faulty.ts).max() <= 3e9
    pairs = np.unique(np.stack([faulty.ts, faulty.price.view(np.int64)]), axis=1)
    np.testing.assert_array_equal(pairs, np.unique(np.stack([clean.ts, clean.price.view(np.int64)]), axis=1))
    with pytest.warns(UserWarning, match=r"\d+ late and 0 invalid ticks dropped"):
        table = build_from_ticks(faulty, SYNTH, FAST)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tolerant = build_from_ticks(clean, SYNTH, FAST)
    assert len(table) == len(tolerant)


def test_rolled_contracts_continue_after_adjustment():
    """Raw prices jump at a roll; forward adjustment gives back the returns of the endless market."""
    options = TickOptions(roll_basis_bp=60.0)
    market = generate_ticks("easy", 4, 30_000, options)  # 104 days hold a roll in March
    endless = generate("easy", 4, 30_000)
    assert market.contracts == ("SYNTHH00", "SYNTHM00")
    (roll,) = np.flatnonzero(np.diff(market.ticks.contract))
    jump = market.ticks.price[roll + 1] / market.ticks.price[roll] - 1
    assert 0.003 <= jump <= 0.009
    table = build_from_ticks(market.ticks, SYNTH, FAST)
    np.testing.assert_allclose(table.base["close"], endless.bars.close[:-1], rtol=1e-12)
    np.testing.assert_array_equal(table.ts_close, endless.truth.ts_close[:-1])
    np.testing.assert_array_equal(market.truth.expected_return, endless.truth.expected_return)


def test_the_limit_is_told_only_without_imbalance():
    kept, dropped = (generate_ticks("easy", 1, 300, TickOptions(imbalance=i)).truth for i in (0.0, 0.01))
    np.testing.assert_array_equal(kept.limit_position, generate("easy", 1, 300).truth.limit_position)
    assert dropped.belief is dropped.expected_return is dropped.limit_position is None
    np.testing.assert_array_equal(kept.regime, dropped.regime)
