"""Cut the future of the base or of any other instrument: no relative column before the cut changes."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.features.relative import RelativeConfig, SourceSettings, relative_columns
from algospace.types import DAY_NS, MINUTE_NS, Bars
from tests.relative_market import head, random_bars, table_of

SMALL = RelativeConfig(strength_windows=(3, 12), zscore_window=10, beta_window=10, max_age_bars=30)


def assert_prefix(part: dict[str, np.ndarray], whole: dict[str, np.ndarray], n: int) -> None:
    for name, column in part.items():
        np.testing.assert_array_equal(column[:n].view(np.int64), whole[name][:n].view(np.int64), err_msg=name)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0.05, 0.95), delay=st.sampled_from([0.0, 60.0, 3600.0]))
def test_cutting_either_series_changes_no_earlier_row(seed: int, share: float, delay: float):
    config = SMALL.model_copy(update={"sources": {"ym": SourceSettings(delay_s=delay)}})
    base = table_of(random_bars(seed, 600))
    others = {"nq": random_bars(seed + 1, 600, rolls=0.01), "ym": random_bars(seed + 2, 50, 60, rolls=0.05)}
    whole = relative_columns(base, others, config)
    cut = int(share * len(base))
    assert_prefix(relative_columns(head(base, cut), others, config), whole, cut)
    instant = base.ts_close[cut - 1]
    for name, other in others.items():
        wait = int(config.sources.get(name, SourceSettings()).delay_s * 1e9)
        kept = int(np.searchsorted(other.ts_open + other.width_ns + wait, instant, side="right"))
        if kept:
            cut_others = {**others, name: other.slice(0, kept)}
            assert_prefix(relative_columns(base, cut_others, config), whole, cut)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_another_future_of_an_other_changes_no_earlier_row(seed: int):
    base = table_of(random_bars(seed, 400))
    other, rng = random_bars(seed + 1, 400), np.random.default_rng(seed)
    at = int(rng.integers(50, 350))
    close = other.close.copy()
    close[at:] *= 1.5
    changed = Bars(other.ts_open, other.open, other.high, other.low, close, other.volume, other.width_ns)
    before = int(np.searchsorted(base.ts_close, other.ts_open[at] + other.width_ns))
    one, two = (relative_columns(base, {"nq": bars}, SMALL) for bars in (other, changed))
    assert_prefix(two, one, before)
    assert before == len(base) or two["nq_close"][before] != one["nq_close"][before]  # from its close on


def test_a_daily_bar_is_known_only_after_its_day_has_ended():
    base = table_of(random_bars(1, 800))
    midnight = base.ts_close[0] // DAY_NS * DAY_NS
    days = midnight + np.arange(-1, 30) * DAY_NS
    price = np.arange(15.0, 46.0)
    vix = Bars(days, price, price, price, price, np.full(days.size, np.nan), DAY_NS)
    seen = relative_columns(base, {"vix": vix}, SMALL)["vix_close"]
    expected = price[(base.ts_close - midnight) // DAY_NS]
    np.testing.assert_array_equal(seen, expected)  # the bar of the day before
    later = RelativeConfig(sources={"vix": SourceSettings(delay_s=6 * 3600)})
    seen = relative_columns(base, {"vix": vix}, later)["vix_close"]
    day, part = np.divmod(base.ts_close - midnight, DAY_NS)
    shown = np.where(part >= 360 * MINUTE_NS, day, day - 1)
    np.testing.assert_array_equal(seen, np.where(shown < 0, np.nan, price[np.maximum(shown, 0)]))
