"""What the relative columns mean, and every fault of their input in one line."""

from __future__ import annotations

import numpy as np
import pytest

from algospace.errors import ConfigError, InputError
from algospace.features.relative import (
    RelativeConfig,
    SourceSettings,
    relative_columns,
    relative_names,
    relative_version,
)
from algospace.types import Bars
from tests.relative_market import BASE_NS, random_bars, table_of


def walk(returns: np.ndarray, like: Bars) -> Bars:
    close = 100 * np.exp(np.cumsum(returns))
    return Bars(like.ts_open, close, close, close, close, like.volume, like.width_ns)


def test_beta_correlation_and_lead_find_what_was_planted():
    rng, like = np.random.default_rng(0), random_bars(0, 5000)
    shock, noise = rng.normal(0, 1e-3, 5000), rng.normal(0, 5e-4, 5000)
    other, base = walk(shock, like), walk(2 * shock + noise, like)
    late = walk(np.r_[0, 2 * shock[:-1]] + noise, like)  # follows one bar behind
    columns = relative_columns(table_of(base), {"nq": other})
    assert np.nanmean(columns["nq_beta"]) == pytest.approx(2.0, abs=0.05)
    assert np.nanmean(columns["nq_correlation"]) == pytest.approx(2 / np.sqrt(4.25), abs=0.02)
    assert abs(np.nanmean(columns["nq_lead"])) < 0.05
    assert np.nanmean(relative_columns(table_of(late), {"nq": other})["nq_lead"]) > 0.8
    assert np.nanmean(relative_columns(table_of(other), {"late": late})["late_lead"]) < -0.8


def test_a_series_without_variation_gives_zeros_and_no_nan():
    base = random_bars(0, 300)
    flat = walk(np.zeros(300), base)
    columns = relative_columns(table_of(base), {"flat": flat})
    assert (columns["flat_beta"][100:] == 0).all()
    assert (columns["flat_correlation"][100:] == 0).all()
    twice = Bars(base.ts_open, base.open * 2, base.high * 2, base.low * 2, base.close * 2, base.volume, BASE_NS)
    same = relative_columns(table_of(base), {"twice": twice})
    assert (same["twice_ratio_z"][100:] == 0).all()  # rounding is no variation
    np.testing.assert_allclose(same["twice_beta"][100:], 1.0, rtol=1e-9)


def test_stale_sources_are_neutral_or_nan_and_their_age_stops():
    base = random_bars(0, 400)
    other = random_bars(1, 400).slice(0, 200)
    for stale, value in (("neutral", 0.0), ("nan", np.nan)):
        columns = relative_columns(table_of(base), {"nq": other}, RelativeConfig(max_age_bars=10, stale=stale))
        gone = columns["nq_age"] == 10
        assert gone[-150:].all()
        for name in ("nq_strength_12", "nq_ratio_z", "nq_beta", "nq_correlation", "nq_lead"):
            np.testing.assert_array_equal(columns[name][-150:], np.full(150, value), err_msg=name)
        np.testing.assert_array_equal(columns["nq_close"][-150:], np.full(150, other.close[-1]))


def test_columns_are_complete_after_warm_up_and_unknown_before():
    base, other = random_bars(0, 400), random_bars(1, 300, start=random_bars(0, 60).ts_open[-1])
    columns = relative_columns(table_of(base), {"nq": other})
    assert tuple(columns) == relative_names(["nq"], RelativeConfig())
    for name, column in columns.items():
        known = np.isfinite(column)
        assert not known[:50].any(), name
        assert known[np.argmax(known):].all(), name
        assert known[-100:].all(), name


def test_the_version_changes_with_settings_names_and_sources_and_joins_the_table():
    base, bars = table_of(random_bars(0, 100)), random_bars(1, 100)
    hourly = random_bars(1, 100, 60)
    versions = {relative_version(*args) for args in [
        ({"nq": bars},), ({"ym": bars},), ({"nq": hourly},), ({"nq": base},), ({"nq": bars, "ym": bars},),
        ({"nq": bars}, RelativeConfig(lag=2)),
        ({"nq": bars}, RelativeConfig(sources={"nq": SourceSettings(delay_s=1)}))]}
    assert len(versions) == 7
    assert relative_version({"nq": bars}) == relative_version({"nq": bars.slice(0, 50)}, RelativeConfig())
    table = base.with_columns(relative_columns(base, {"nq": bars}), relative_version({"nq": bars}))
    assert table.config_digest != base.config_digest
    assert "nq_beta" in table.base
    assert relative_columns(base, {}) == {}


def test_bad_sources_are_one_clear_line():
    base, bars = table_of(random_bars(0, 100)), random_bars(1, 100)
    close = bars.close.copy()
    close[7] = -1.0
    negative = Bars(bars.ts_open, bars.open, bars.high, bars.low, close, bars.volume, BASE_NS)
    doubled = Bars(np.r_[bars.ts_open[:50], bars.ts_open[49:99]], bars.open, bars.high, bars.low, bars.close,
                   bars.volume, BASE_NS)
    for others, config, error, words in [
        ({"nq": negative}, None, InputError, "nq bars, row 9: a price is NaN"),
        ({"nq": doubled}, None, InputError, "nq bars, row 52: time is not later"),
        ({"NQ": bars}, None, ConfigError, "'NQ' cannot begin a column's name"),
        ({"nq": bars}, RelativeConfig(sources={"vix": SourceSettings()}), ConfigError, "settings for 'vix'"),
    ]:
        with pytest.raises(error, match=words) as caught:
            relative_columns(base, others, config)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="windows must be different"):
        RelativeConfig(strength_windows=(5, 5))
