"""The registry says what is true: names, warm-ups, and a value in every row after them."""

from __future__ import annotations

import numpy as np
import pytest

from algospace.errors import ConfigError
from algospace.features import columns
from algospace.features.library import FAMILIES, NAMES, REGISTRY, compute, describe, library_indicator
from algospace.instruments import instrument
from tests.library_market import walk


def test_about_sixty_columns_with_all_that_the_issue_asks_for() -> None:
    assert len(NAMES) == len(set(NAMES)) == sum(map(len, FAMILIES.values())) >= 60
    assert not set(NAMES) & set(columns.base_columns(True))
    for column in describe():
        for text in (column.name, column.formula, column.unit, column.source, column.family):
            assert text.strip(), column
        assert column.parity in ("odd", "even", "none")
        assert column.mirror in ("difference", "ratio")


@pytest.mark.parametrize("volume", [True, False])
def test_the_first_value_stands_where_the_registry_says_and_none_is_missing_after(volume: bool) -> None:
    table = compute(walk(11, 3000, flat=0.3, volume=volume), instrument=instrument("ES"))
    assert list(table) == list(NAMES)
    for name, values in table.items():
        finite = np.isfinite(values)
        assert int(np.argmax(finite)) == REGISTRY[name].warm_up, name
        assert finite[REGISTRY[name].warm_up :].all(), name


def test_flat_bars_without_volume_give_neutral_values() -> None:
    bars = walk(1, 300, volume=False)
    for prices in (bars.open, bars.high, bars.low, bars.close):
        prices[:] = 7.1
    for name, values in compute(bars).items():
        assert np.isfinite(values[REGISTRY[name].warm_up :]).all(), name


def test_a_choice_gives_the_same_values_as_all() -> None:
    bars = walk(2, 500)
    whole = compute(bars)
    for family in FAMILIES.values():
        chosen = [column.name for column in family][::-1]
        part = compute(bars, chosen)
        assert list(part) == chosen
        for name in chosen:
            np.testing.assert_array_equal(part[name], whole[name], err_msg=name)


def test_unknown_and_repeated_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown library column 'rsi_15'"):
        library_indicator(["rsi_15"])
    with pytest.raises(ConfigError, match="named twice"):
        compute(walk(1, 20), ["rsi_14", "rsi_14"])


def test_hours_and_columns_are_part_of_the_version() -> None:
    futures, shares = (library_indicator(instrument=instrument(symbol)) for symbol in ("ES", "SPY"))
    assert futures.version != shares.version
    assert futures.columns == shares.columns == NAMES
