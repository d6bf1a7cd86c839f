"""An index conserves: one constituent is itself, rebalancing moves nothing, and no bar knows the future."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.errors import InputError
from algospace.marketdata.constituents import Rebalance, build_index, read_weights
from algospace.marketdata.continuous import continuous
from algospace.types import Bars
from tests.relative_market import BASE_NS, START, random_bars

LATE = START + 200 * BASE_NS


def market(seed: int, n: int = 300) -> dict[str, Bars]:
    return {name: random_bars(seed + k, n, rolls=0.01 * (k == 2)) for k, name in enumerate("abc")}


def plan(*rebalances: tuple[int, dict[str, float]]) -> list[Rebalance]:
    return [Rebalance(START + bar * BASE_NS, START + bar * BASE_NS, weights) for bar, weights in rebalances]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), weight=st.floats(0.1, 10), units=st.sampled_from(["value", "shares"]))
def test_one_constituent_is_that_constituent_scaled(seed: int, weight: float, units: str):
    bars = random_bars(seed, 200, rolls=0.02)
    index = build_index({"a": bars}, plan((0, {"a": weight})), 100.0, units)
    adjusted = continuous(bars).adjusted
    scale = 100.0 / adjusted.open[0]
    for name in ("open", "high", "low", "close"):
        np.testing.assert_allclose(getattr(index.bars, name), getattr(adjusted, name) * scale, rtol=1e-12)
    np.testing.assert_array_equal(index.bars.ts_open, bars.ts_open)
    assert not index.carried.any()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), units=st.sampled_from(["value", "shares"]))
def test_a_rebalance_does_not_move_the_level(seed: int, units: str):
    bars = market(seed)
    before = plan((20, {"a": 1, "b": 2, "c": 0}))
    after = [*before, *plan((150, {"a": 5, "c": 1}))]
    index, old = build_index(bars, after, 1000.0, units), build_index(bars, before, 1000.0, units)
    row = int(np.argmax(index.rebalance == 1))
    assert index.rebalance[row - 1] == 0
    np.testing.assert_array_equal(index.bars.close[:row], old.bars.close[:row])
    # the new basket, priced at the closes known before the rebalance, is worth the old level
    ts = index.bars.ts_open[row]
    last = {n: continuous(b).adjusted.close[np.searchsorted(b.ts_open, ts) - 1] for n, b in bars.items()}
    first = {n: continuous(b).adjusted for n, b in bars.items()}
    weights = {"a": 5.0, "c": 1.0}
    if units == "value":
        held = {n: w / 6 / last[n] for n, w in weights.items()}
    else:
        held = weights
    opens = {n: (b.open[k] if b.ts_open[k] == ts else b.close[k]) for n, b in first.items()
             for k in [np.searchsorted(b.ts_open, ts, side="right") - 1]}
    growth = sum(q * opens[n] for n, q in held.items()) / sum(q * last[n] for n, q in held.items())
    np.testing.assert_allclose(index.bars.open[row], index.bars.close[row - 1] * growth, rtol=1e-12)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), cut=st.integers(30, 290))
def test_bars_after_a_cut_change_no_earlier_level(seed: int, cut: int):
    bars = market(seed)
    weights = plan((10, {"a": 1, "b": 1}), (60, {"b": 3, "c": 2}), (61, {"a": 1}), (250, {"a": 1, "b": 1, "c": 1}))
    weights.append(Rebalance(START + 5 * BASE_NS, START + 100 * BASE_NS, {"c": 1}))  # published too late to count
    whole = build_index(bars, weights)
    instant = bars["a"].ts_open[cut]
    part = build_index({n: b.slice(0, max(int(np.searchsorted(b.ts_open, instant)), 1)) for n, b in bars.items()},
                       weights)
    n = len(part.bars)
    np.testing.assert_array_equal(part.bars.ts_open, whole.bars.ts_open[:n])
    for name in ("open", "high", "low", "close"):
        np.testing.assert_array_equal(getattr(part.bars, name), getattr(whole.bars, name)[:n])
    np.testing.assert_array_equal(part.rebalance, whole.rebalance[:n])
    assert n == int(np.searchsorted(whole.bars.ts_open, instant))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_index_returns_an_average_of_its_constituents_returns(seed: int):
    bars = market(seed)
    weights = plan((5, {"a": 1, "b": 2, "c": 3}), (100, {"a": 3, "b": 1, "c": 1}), (200, {"a": 1, "b": 1, "c": 9}))
    index = build_index(bars, weights).bars
    last = np.array([continuous(b).adjusted.close[np.searchsorted(b.ts_open, index.ts_open, side="right") - 1]
                     for b in bars.values()])
    each, own = np.diff(np.log(last)), np.diff(np.log(index.close))
    # also over a rebalance: its gap belongs to the new basket
    assert (own <= each.max(axis=0) + 1e-12).all()
    assert (own >= each.min(axis=0) - 1e-12).all()


def test_weights_count_from_their_publication_on():
    bars = market(1)
    late = Rebalance(START + 50 * BASE_NS, LATE, {"b": 1})
    index = build_index(bars, [*plan((0, {"a": 1})), late])
    assert index.bars.ts_open[np.argmax(index.rebalance == 1)] >= LATE
    assert (index.rebalance[index.bars.ts_open < LATE] == 0).all()


def test_a_missing_constituent_is_carried_and_counted():
    full = random_bars(3, 100)
    gone = np.arange(100) % 10 == 9
    holes = Bars(*(getattr(full, n)[~gone] for n in ("ts_open", "open", "high", "low", "close", "volume")),
                 full.width_ns)
    index = build_index({"a": full, "b": holes}, plan((0, {"a": 1, "b": 1})), 100.0, "shares")
    np.testing.assert_array_equal(index.carried, gone.astype(np.int32))
    assert (index.oldest_ns[gone] == np.diff(full.ts_open)[gone[1:]]).all()
    row = int(np.argmax(gone))
    expected = (full.close[row] + full.close[row - 1]) * 100 / (full.open[0] * 2)
    np.testing.assert_allclose(index.bars.close[row], expected, rtol=1e-12)


def test_a_rebalance_waits_for_a_constituent_that_has_not_traded_yet():
    bars = market(5)
    bars["c"] = bars["c"].slice(200, 300)
    index = build_index(bars, plan((0, {"a": 1}), (10, {"c": 1})))
    assert index.bars.ts_open[np.argmax(index.rebalance == 1)] > bars["c"].ts_open[0]


def test_high_and_low_enclose_open_and_close():
    index = build_index(market(7), plan((0, {"a": 1, "b": 2, "c": 3}), (100, {"a": 1, "b": 1}))).bars
    assert (index.high >= np.maximum(index.open, index.close)).all()
    assert (index.low <= np.minimum(index.open, index.close)).all()


def test_weights_from_a_file_and_its_faults(tmp_path: Path):
    path = tmp_path / "weights.csv"
    path.write_text("effective_utc,published_utc,constituent,weight\n2024-01-02,2024-01-01,a,0.4\n"
                    "2024-01-02,2024-01-01,b,0.6\n2024-02-01,2024-02-05 12:00,a,1\n")
    found = read_weights(path)
    assert [dict(step.weights) for step in found] == [{"a": 0.4, "b": 0.6}, {"a": 1.0}]
    assert [step.known > step.effective for step in found] == [False, True]
    header = "effective_utc,constituent,weight\n"
    for text, words in [
        (header + "2024-01-02,a,-1\n", "row 2: a weight is negative or no number"),
        (header + "2024-01-02,a,1\n2024-01-02,a,2\n", "row 3: a has two weights at one time"),
        (header + "noon,a,1\n", "row 2: 'noon' is no time"),
        (header + "2024-01-02,a,1\n9999-12-31,b,1\n", "row 3: '9999-12-31' is no time between 1678 and 2261"),
        ("published_utc," + header + "2024-01-01,2024-01-02,a,1\n,2024-02-02,a,1\n",
         "row 3: published_utc is empty"),
        ("constituent,weight\na,1\n", "row 1: a table of weights needs a column effective_utc"),
        (header, "no rows"),
    ]:
        path.write_text(text)
        with pytest.raises(InputError, match=words):
            read_weights(path)


def test_an_impossible_index_is_one_line():
    bars = market(1)
    other = {"a": bars["a"], "b": random_bars(2, 10, 60)}
    columns = ("ts_open", "open", "high", "low", "close", "volume")
    shuffled = {"a": Bars(*(getattr(bars["a"], name)[::-1] for name in columns), BASE_NS)}
    for constituents, weights, words in [
        (bars, [], "no rebalance"), (bars, plan((0, {"a": 0})), "no positive weight"),
        (bars, plan((0, {"z": 1})), "no bars of z"), (bars, plan((0, {"a": -1})), "negative"),
        (other, plan((0, {"a": 1})), "different widths"), (bars, plan((10**6, {"a": 1})), "no bar at which"),
        (shuffled, plan((0, {"a": 1})), "a bars, row 3: time is not later"),
    ]:
        with pytest.raises(InputError, match=words) as caught:
            build_index(constituents, weights)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="base value"):
        build_index(bars, plan((0, {"a": 1})), base_value=0)
