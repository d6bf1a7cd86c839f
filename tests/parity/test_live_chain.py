"""The bus chain gives the rows of history, bit for bit: whatever the ticks."""

from __future__ import annotations

import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.features import FeatureConfig, build, build_from_ticks
from algospace.instruments import instrument
from algospace.live import build_chain
from algospace.marketdata.feeds import ReplayFeed
from algospace.marketdata.synthetic import generate
from algospace.types import Ticks
from tests.live_market import assert_rows_equal, collect_rows, random_ticks

ES = instrument("ES")
LEAN = FeatureConfig(regime=False)


def batch(ticks: Ticks, config: FeatureConfig):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build_from_ticks(ticks, ES, config)


def test_bars_give_the_rows_of_history() -> None:
    bars = generate("stress", 7, 12_000, "1m").bars
    synth = instrument("SYNTH")
    chain = build_chain(synth, feed=ReplayFeed("SYNTH", bars))
    seen = collect_rows(chain)
    with chain.kernel as kernel:
        kernel.run()
    table = build(bars, synth)
    assert len(seen.events) == len(table) > 2000
    assert_rows_equal([e.row for e in seen.events], table, chain.engine.stream.base_columns)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), disorder=st.sampled_from([0.0, 0.1]), invalid=st.sampled_from([0.0, 0.05]),
       patience=st.sampled_from([0, 10**9, 100 * 10**9]), gap=st.sampled_from([2.0, 20.0, 120.0]))
def test_ticks_give_the_rows_of_history(seed: int, disorder: float, invalid: float, patience: int, gap: float
                                        ) -> None:
    ticks = random_ticks(1500, seed, gap, disorder, invalid, rolls=seed % 2 == 0)
    config = LEAN.model_copy(update={"max_disorder_ns": patience})
    chain = build_chain(ES, config, feed=ReplayFeed("ES", ticks))
    seen = collect_rows(chain)
    with chain.kernel as kernel:
        kernel.run()
    table = batch(ticks, config)
    rows = [e.row for e in seen.events]
    # the clock may close the last bar, which history still holds open
    assert len(table) <= len(rows) <= len(table) + 1
    assert_rows_equal(rows[: len(table)], table, chain.engine.stream.base_columns)
    assert not chain.bus.failures
    from algospace.features import FeatureStream

    stream = FeatureStream(ES, config)
    stream.extend_ticks(ticks)
    assert (chain.generator.late, chain.generator.invalid) == (stream.late, stream.invalid)


@pytest.mark.parametrize("seed", [1, 3])
def test_all_columns_of_ticks(seed: int) -> None:
    ticks = random_ticks(60_000, seed, 25.0, rolls=True)
    chain = build_chain(ES, feed=ReplayFeed("ES", ticks))
    seen = collect_rows(chain)
    with chain.kernel as kernel:
        kernel.run()
    table = batch(ticks, FeatureConfig())
    assert len(table) > 3000
    assert_rows_equal([e.row for e in seen.events][: len(table)], table, chain.engine.stream.base_columns)
