"""Selection finds what forecasts, drops what repeats or is noise, and reads nothing beyond the training split."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.errors import ConfigError, InputError
from algospace.features import FeatureConfig, FeatureTable, build
from algospace.instruments import instrument
from algospace.marketdata.synthetic import generate
from training.selection import Selection, SelectionConfig, purged_folds, select_features

CONFIG = SelectionConfig(horizon_bars=3, folds=3, embargo_bars=10, probes=3)


@pytest.fixture(scope="module")
def table() -> FeatureTable:
    """A market without drift; the column `hint` sees a part of the label, `echo` repeats it."""
    bars = generate("martingale", 3, 6000).bars
    plain = build(bars, instrument("SYNTH"), FeatureConfig(regime=False))
    rng = np.random.default_rng(1)
    close = np.log(plain.base["close"])
    ahead = np.zeros(len(plain))
    ahead[:-3] = close[3:] - close[:-3]
    hint = ahead / ahead.std() + rng.normal(0, 2.0, len(plain))
    return plain.with_columns({"hint": hint, "echo": np.exp(hint), "dull": np.zeros(len(plain)),
                               "static": rng.normal(size=len(plain))}, "test")


def test_it_keeps_what_forecasts_and_says_why_the_rest_went(table: FeatureTable) -> None:
    found = select_features(table, int(table.ts_close[4500]), CONFIG)
    assert found.kept[0] == "hint"
    assert found.dropped["echo"].startswith("correlation 1.000 with hint")
    assert found.dropped["dull"] == "constant"
    assert "not above noise" in found.dropped["static"]
    assert not {"open", "close", "volume", "roll_factor"} & {*found.kept, *found.dropped}
    assert np.mean(found.rank_correlation) > 0.3


def test_nothing_after_the_split_is_read(table: FeatureTable) -> None:
    end = 4500
    changed = {name: values.copy() for name, values in table.base.items()}
    for values in changed.values():
        values[end + 1:] = -values[end + 1:] * 3.0 + 1.0
    other = replace(table, base=changed)
    at = int(table.ts_close[end])
    assert select_features(other, at, CONFIG) == select_features(table, at, CONFIG)


def test_components_are_uncorrelated_on_the_split_and_saved(table: FeatureTable, tmp_path: Path) -> None:
    wide = CONFIG.model_copy(update={"probes": 1, "explained": 1.0})
    found = select_features(table, int(table.ts_close[4500]), wide)
    found.save(tmp_path / "selection.json")
    again = Selection.load(tmp_path / "selection.json")
    assert again == found
    values = again.transform(table)
    assert values.shape == (len(table), len(found.components))
    weights = np.array(found.components)
    np.testing.assert_allclose(weights @ weights.T, np.eye(len(weights)), atol=1e-12)
    assert sum(found.explained) == pytest.approx(1.0)


def test_a_table_of_another_configuration_is_refused(table: FeatureTable) -> None:
    found = select_features(table, int(table.ts_close[4500]), CONFIG)
    with pytest.raises(ConfigError, match="same configuration"):
        found.transform(replace(table, config_digest="0" * 64))


def test_noise_alone_is_called_noise() -> None:
    bars = generate("martingale", 4, 3000).bars
    noise = build(bars, instrument("SYNTH"), FeatureConfig(regime=False))
    try:
        found = select_features(noise, int(noise.ts_close[-1]), CONFIG)
    except ConfigError as error:
        words, forecast = str(error), 0.0
    else:  # some column may beat three probes by luck, never with a forecast worth the name
        words, forecast = "noise", float(np.mean(found.rank_correlation))
    assert "noise" in words
    assert abs(forecast) < 0.1


def test_a_short_split_is_refused(table: FeatureTable) -> None:
    with pytest.raises(ConfigError, match="more history"):
        select_features(table, int(table.ts_close[300]), CONFIG)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "selection.json"
    path.write_text("{}")
    with pytest.raises(InputError, match="not a feature selection"):
        Selection.load(path)


@given(st.integers(1, 40), st.integers(0, 60), st.integers(2, 8), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_no_label_of_a_training_row_touches_the_test_part(horizon: int, embargo: int, folds: int, step: int
                                                          ) -> None:
    rows = np.arange(0, 800 * step, step)
    seen = []
    for train, test in purged_folds(rows, folds, horizon, embargo):
        covered = set(range(int(rows[test[0]]) + 1, int(rows[test[-1]]) + horizon + 1))
        for t in rows[train]:
            assert not covered & set(range(int(t) + 1, int(t) + horizon + 1))
        after = rows[train][rows[train] > rows[test[-1]]]
        assert after.size == 0 or after[0] >= rows[test[-1]] + horizon + embargo
        seen += test.tolist()
    assert seen == list(range(rows.size))


def test_a_column_that_begins_late_is_dropped_and_shortens_nothing(table: FeatureTable) -> None:
    late = np.full(len(table), np.nan)
    late[2500:] = np.random.default_rng(2).normal(size=len(table) - 2500)
    at = int(table.ts_close[4500])
    found = select_features(table.with_columns({"late": late}, "late"), at, CONFIG)
    assert found.rows == select_features(table, at, CONFIG).rows
    assert "rows without a value" in found.dropped["late"]
