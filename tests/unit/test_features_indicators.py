"""Literal references for the fair value gaps, the synergy detector and the plain columns."""

import math
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import numba as nb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.calendars import utc_offsets
from algospace.features import FeatureConfig, basics, build, fvg, synergy, timefeatures
from algospace.instruments import instrument
from algospace.types import MINUTE_NS, Bars


@nb.njit
def _fvg(state, threshold, max_age, high, low, close, out):
    for i in range(close.size):
        fvg.update(state, threshold, max_age, high[i], low[i], close[i], out[i])


def literal_fvg(high, low, close, threshold, max_age):
    """The written order: expire, end by price, retest, create, write."""
    gaps, rows = [], []
    for i in range(len(close)):
        gaps = [g for g in gaps if i - g["born"] < max_age]
        ended = [g for g in gaps if (close[i] < g["bottom"] if g["bull"] else close[i] > g["top"])]
        gaps = [g for g in gaps if g not in ended]
        retests = {g["bull"] for g in gaps if not g["seen"] and low[i] <= g["top"] and high[i] >= g["bottom"]}
        for g in gaps:
            g["seen"] |= low[i] <= g["top"] and high[i] >= g["bottom"]
        if i >= 2:
            h2, l2, c1 = high[i - 2], low[i - 2], close[i - 1]
            if low[i] > h2 and c1 > h2 and (low[i] - h2) / h2 > threshold:
                gaps.append({"bull": True, "top": low[i], "bottom": h2, "born": i, "seen": False})
            if high[i] < l2 and c1 < l2 and (l2 - high[i]) / high[i] > threshold:
                gaps.append({"bull": False, "top": l2, "bottom": high[i], "born": i, "seen": False})
        level, age = close[i], max_age
        if gaps:
            edges = [(g[edge], edge, i - g["born"]) for g in gaps for edge in ("top", "bottom")]
            level, _, age = min(edges, key=lambda e: (abs(e[0] - close[i]), e[2], e[1] == "bottom"))
        rows.append([any(g["bull"] for g in gaps), any(not g["bull"] for g in gaps), level, age,
                     sum(g["bull"] for g in ended), sum(not g["bull"] for g in ended),
                     (True in retests) - (False in retests)])  # fmt: skip
    return np.array(rows, float)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.001, 0.004]), st.sampled_from([1, 4, 50]))
def test_fair_value_gaps_follow_the_written_order(seed, threshold, max_age):
    rng = np.random.default_rng(seed)
    close = 100 + np.cumsum(rng.integers(-3, 4, 300)) * 0.25  # a coarse grid, so that ties happen
    high, low = close + rng.integers(0, 2, 300) * 0.25, close - rng.integers(0, 2, 300) * 0.25
    out = np.zeros((300, 7))
    _fvg(fvg.init_state(max_age), threshold, max_age, high, low, close, out)
    np.testing.assert_array_equal(out, literal_fvg(high, low, close, threshold, max_age))


@nb.njit
def _synergy(state, signals, window, cooldown, out):
    for i in range(signals.shape[0]):
        synergy.update(state[0], signals[i, 0], signals[i, 1], signals[i, 2], window, cooldown, out[i])


TYPES = {"MNF": 1, "MFN": 2, "NFM": 3, "NMF": 4}


def literal_synergy(signals, window, cooldown):
    out, sequence, quiet = [], [], -1
    for t, row in enumerate(signals):
        found = (0, 0, 0)
        if sequence and t - sequence[0][2] > window:
            sequence = []
        if t > quiet:
            for kind, signal in zip("MNF", row, strict=True):
                if signal == 0:
                    continue
                if sequence and sequence[0][1] != signal:
                    sequence = []
                if not sequence and kind == "F":
                    continue
                if kind not in [s[0] for s in sequence]:
                    sequence.append((kind, signal, t))
                if len(sequence) == 3:
                    found = (TYPES["".join(s[0] for s in sequence)], signal, t - sequence[0][2])
                    sequence, quiet = [], t + cooldown
        out.append(found)
    return np.array(out, float)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 0.7), st.integers(1, 10), st.integers(0, 5))
def test_synergies_follow_the_written_rules(seed, rate, window, cooldown):
    rng = np.random.default_rng(seed)
    signals = rng.choice([-1.0, 1.0, 1.0], (400, 3)) * (rng.random((400, 3)) < rate)
    out = np.zeros((400, 3))
    _synergy(synergy.init_state(), signals, window, cooldown, out)
    np.testing.assert_array_equal(out, literal_synergy(signals, window, cooldown))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ({0: "M", 3: "N", 10: "F"}, (10, 1)),
        ({0: "M", 3: "F", 4: "N"}, (4, 2)),
        ({0: "N", 1: "F", 2: "M"}, (2, 3)),
        ({0: "N", 1: "M", 2: "F"}, (2, 4)),
        ({0: "M", 3: "N", 11: "F"}, None),  # too late
        ({0: "F", 1: "M", 2: "N"}, None),  # a retest starts nothing
        ({0: "MN", 5: "F"}, (5, 1)),  # one row: M before N
    ],
)
def test_each_type_of_synergy(rows, expected):
    signals = np.zeros((20, 3))
    for row, kinds in rows.items():
        for kind in kinds:
            signals[row, "MNF".index(kind)] = -1.0
    out = np.zeros((20, 3))
    _synergy(synergy.init_state(), signals, 10, 5, out)
    detected = np.flatnonzero(out[:, 0])
    if expected is None:
        assert detected.size == 0
    else:
        assert detected.tolist() == [expected[0]]
        assert out[expected[0]].tolist() == [expected[1], -1.0, expected[0]]


@nb.njit
def _basics(state, close, volume, out):
    for i in range(close.size):
        basics.update(state, close[i], volume[i], out[i])


def test_plain_columns_equal_their_formulas():
    rng = np.random.default_rng(0)
    close = 4000 * np.exp(np.cumsum(rng.normal(0, 1e-3, 300)))
    volume = rng.integers(0, 9, 300).astype(float)
    volume[:3] = 0.0
    out = np.zeros((300, 5))
    _basics(basics.init_state(), close, volume, out)
    returns = np.diff(np.log(close))
    np.testing.assert_allclose(out[5:, 0], 100 * (close[5:] / close[:-5] - 1), rtol=1e-12)
    np.testing.assert_allclose(out[1:, 2], returns, rtol=1e-9, atol=1e-15)
    average = np.zeros(300)
    average[0] = volume[0]
    for i in range(1, 300):
        average[i] = average[i - 1] + 2 / 21 * (volume[i] - average[i - 1])
    expected = [1.0] + [volume[i] / average[i - 1] if average[i - 1] else 1.0 for i in range(1, 300)]
    np.testing.assert_allclose(out[:, 1], expected, rtol=1e-12)
    for i in range(60, 300):
        window = returns[i - 60 : i]
        centred = window - window.mean()
        assert out[i, 3] == pytest.approx(window.std(), rel=1e-9)
        assert out[i, 4] == pytest.approx((centred[1:] * centred[:-1]).sum() / (centred**2).sum(), rel=1e-9)
    assert np.isnan(out[:60, 3:]).all()


def test_flat_prices_and_no_volume_give_neutral_values():
    out = np.zeros((100, 5))
    _basics(basics.init_state(), np.full(100, 50.0), np.full(100, np.nan), out)
    assert out[99].tolist() == [0.0, 1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("zone", ["America/Chicago", "America/New_York", "UTC"])
@settings(deadline=None)
@given(seconds=st.integers(946_684_800, 1_893_456_000))
def test_time_features_are_those_of_the_wall_clock(zone, seconds):
    out = np.zeros(4)
    timefeatures.update(seconds * 10**9, *utc_offsets(zone), out)
    local = datetime.fromtimestamp(seconds, UTC).astimezone(ZoneInfo(zone))
    hour = local.hour + local.minute / 60 + local.second / 3600
    expected = [f(2 * math.pi * x) for x in (hour / 24, local.weekday() / 7) for f in (math.sin, math.cos)]
    np.testing.assert_allclose(out, expected, atol=1e-12)


def test_the_source_of_the_slow_indicators_is_a_choice():
    rng = np.random.default_rng(1)
    close = 4000 + np.cumsum(rng.normal(0, 2, 3000))
    open_ = np.concatenate([close[:1], close[:-1]])
    bars = Bars(np.arange(3000) * 5 * MINUTE_NS, open_, np.maximum(open_, close), np.minimum(open_, close), close,
                np.full(3000, np.nan), 5 * MINUTE_NS)  # fmt: skip
    weights = (1 + np.arange(27) ** 2 / (2 * 8 * 8**2)) ** -8.0
    for source in ("close", "ha_close"):
        table = build(bars, instrument("ES"), FeatureConfig(source=source, regime=False))
        taps = table.slow[source][-27:][::-1]
        assert table.slow["nwrqk_value"][-1] == pytest.approx((taps * weights).sum() / weights.sum(), rel=1e-12)


def test_the_regime_columns_can_be_left_out():
    bars = Bars(np.arange(50) * 5 * MINUTE_NS, *[np.full(50, 100.0)] * 4, np.full(50, 1.0), 5 * MINUTE_NS)
    small, full = (build(bars, instrument("ES"), FeatureConfig(regime=regime)) for regime in (False, True))
    extra = set(full.base) - set(small.base)
    assert extra == set(full.slow) - set(small.slow)
    assert len(extra) == 16
    assert {"logsig_1", "volume_profile_skew", "lvn_distance"} <= extra
