"""Longer markets start with shorter ones; one-minute bars aggregate to the same base bars."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.marketdata.synthetic import SCENARIOS, generate

COLUMNS = ("ts_open", "open", "high", "low", "close", "volume")


def _assert_same(one, other, columns):
    for name in columns:
        a, b = getattr(one, name), getattr(other, name)
        if a is not None:
            np.testing.assert_array_equal(a, b[:a.shape[0]], err_msg=name)


@pytest.mark.parametrize("name", SCENARIOS)
@given(seed=st.integers(-2**62, 2**62), short=st.integers(2, 400), more=st.integers(0, 400))
@settings(max_examples=8, deadline=None)
def test_a_longer_market_starts_with_the_shorter_one(name, seed, short, more):
    first, second = generate(name, seed, short), generate(name, seed, short + more)
    _assert_same(first.bars, second.bars, COLUMNS)
    _assert_same(first.truth, second.truth,
                 ("ts_close", "regime", "belief", "expected_return", "limit_position"))


@pytest.mark.parametrize("name", ["easy", "session", "stress"])
@given(seed=st.integers(0, 2**62))
@settings(max_examples=5, deadline=None)
def test_minute_bars_aggregate_to_the_base_bars(name, seed):
    base, minute = generate(name, seed, 300).bars, generate(name, seed, 300, resolution="1m").bars
    assert len(minute) == 5 * len(base)
    assert (np.diff(minute.ts_open) >= minute.width_ns).all()
    np.testing.assert_array_equal(minute.ts_open[::5], base.ts_open)
    np.testing.assert_array_equal(minute.open[::5], base.open)
    np.testing.assert_array_equal(minute.close[4::5], base.close)
    np.testing.assert_array_equal(minute.high.reshape(-1, 5).max(axis=1), base.high)
    np.testing.assert_array_equal(minute.low.reshape(-1, 5).min(axis=1), base.low)
    np.testing.assert_array_equal(minute.volume.reshape(-1, 5).sum(axis=1), base.volume)


def test_seeds_and_scenarios_are_independent():
    closes = [np.diff(np.log(generate(name, seed, 20_000).bars.close))
              for name, seed in (("easy", 0), ("easy", 1), ("mid", 0))]
    correlation = np.corrcoef(closes)
    assert np.abs(correlation[np.triu_indices(3, 1)]).max() < 4.5 / np.sqrt(20_000)
