"""No library column knows the future; history, blocks, live events and a restart give the same bits."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.features import FeatureConfig, FeatureStream, SourceBar, build, concatenate
from algospace.features.library import NAMES, compute, library_indicator
from algospace.instruments import instrument
from algospace.marketdata.synthetic import generate
from algospace.types import Bars
from tests.library_market import walk

LEAN = FeatureConfig(regime=False)
SYNTH = instrument("SYNTH")


@given(seed=st.integers(0, 2**32 - 1), cut=st.integers(1, 399), volume=st.booleans())
@settings(max_examples=20, deadline=None)
def test_cutting_the_future_changes_nothing_before(seed: int, cut: int, volume: bool) -> None:
    bars = walk(seed, 400, volume=volume)
    whole, part = compute(bars, instrument=SYNTH), compute(bars.slice(0, cut), instrument=SYNTH)
    for name in NAMES:
        np.testing.assert_array_equal(part[name], whole[name][:cut], err_msg=name)


def test_another_future_changes_nothing_before() -> None:
    bars, other = walk(1, 400), walk(2, 400)
    mixed = Bars(bars.ts_open, *(np.concatenate([getattr(bars, name)[:250], getattr(other, name)[250:]])
                                 for name in ("open", "high", "low", "close", "volume")), bars.width_ns)
    whole, changed = compute(bars), compute(mixed)
    for name in NAMES:
        np.testing.assert_array_equal(changed[name][:250], whole[name][:250], err_msg=name)


def test_table_blocks_live_and_restart_are_bit_equal() -> None:
    bars = generate("stress", 5, 1500, "1m").bars
    library = [library_indicator(instrument=SYNTH)]
    whole = build(bars, SYNTH, LEAN, library)
    first, restored = (FeatureStream(SYNTH, LEAN, bars.width_ns, library) for _ in range(2))
    cut = len(bars) // 2
    parts = [first.extend(bars.slice(0, cut))]
    restored.restore(first.snapshot())
    parts.append(first.extend(bars.slice(cut, len(bars))))
    blocks = concatenate(parts)
    rows = []
    for i in range(cut, len(bars)):
        rows += restored.push(SourceBar(int(bars.ts_open[i]), *(float(getattr(bars, name)[i]) for name in
                                                                ("open", "high", "low", "close", "volume"))))
    live = np.stack([row.base for row in rows])
    for name in NAMES:
        np.testing.assert_array_equal(blocks.base[name], whole.base[name], err_msg=name)
        values = live[:, restored.base_columns.index(name)]
        np.testing.assert_array_equal(values, whole.base[name][len(whole) - len(live):], err_msg=name)


def test_plain_bars_and_the_table_agree_where_they_see_the_same_bars() -> None:
    bars = walk(7, 600)
    table = build(bars, SYNTH, LEAN, [library_indicator(instrument=SYNTH)])
    assert len(table) == len(bars)
    plain = compute(bars, instrument=SYNTH)
    for name in NAMES:
        np.testing.assert_array_equal(plain[name], table.base[name], err_msg=name)


def test_a_roll_makes_no_gap() -> None:
    bars = walk(8, 600)
    rolled = Bars(bars.ts_open, *(np.where(np.arange(600) < 300, prices, prices * 1.25)
                                  for prices in (bars.open, bars.high, bars.low, bars.close)), bars.volume,
                  bars.width_ns, (np.arange(600) >= 300).astype(np.int32))
    table = build(rolled, SYNTH, LEAN, [library_indicator(instrument=SYNTH)])
    plain = compute(rolled, instrument=SYNTH)
    for name in NAMES:
        np.testing.assert_array_equal(plain[name], table.base[name], err_msg=name)
    assert plain["gap_1"][300] == 0.0
