"""Cut or change the future: no table of an earlier window may notice. Parts of a window keep their distance."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from algospace.errors import ConfigError
from algospace.features import FeatureTable, build
from algospace.features.market_table import ARRAYS
from algospace.instruments import instrument
from algospace.types import Bars
from tests.walk_forward_market import recorded_bars, walk_config, write_csv
from training.dataset import Dataset, open_dataset
from training.walk_forward import WalkForwardRun
from training.walk_forward.windows import Window, cut_features, plan_windows, prepare_windows, write_tables

SYNTH = instrument("SYNTH")


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bars, Path]:
    bars = recorded_bars()
    return bars, write_csv(bars, tmp_path_factory.mktemp("walk") / "bars.csv")


@pytest.fixture(scope="module")
def prepared(market: Any, tmp_path_factory: pytest.TempPathFactory
             ) -> tuple[WalkForwardRun, list[Window], list[Dataset], Path]:
    run = walk_config(*market)
    out = tmp_path_factory.mktemp("out")
    windows = plan_windows(run)
    return run, windows, prepare_windows(run, windows, out, lambda line: None), out


def cut(bars: Bars, end_ns: int) -> Bars:
    return bars.slice(0, int(np.searchsorted(bars.ts_open, end_ns)))


def changed(bars: Bars, end_ns: int) -> Bars:
    later = bars.ts_open >= end_ns
    prices = {name: np.where(later, 1.5 * getattr(bars, name), getattr(bars, name))
              for name in ("open", "high", "low", "close")}
    return Bars(bars.ts_open, **prices, volume=bars.volume, width_ns=bars.width_ns)


@pytest.mark.parametrize("alter", [cut, changed])
def test_a_window_s_tables_do_not_know_what_comes_after_its_test(market: Any, prepared: Any, tmp_path: Path,
                                                                 alter: Any) -> None:
    _, windows, datasets, _ = prepared
    window, expected = windows[1], datasets[1].train.market()
    features = build(alter(market[0], window.test_until), SYNTH, window.config.features)
    write_tables(window, features, tmp_path, "digest")
    found = open_dataset(tmp_path).train.market()
    assert found.schema.to_dict() == expected.schema.to_dict()
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


def test_normalisers_know_the_training_rows_only(market: Any, prepared: Any, tmp_path: Path) -> None:
    run, windows, datasets, _ = prepared
    table, stop = datasets[0].train.market(), datasets[0].train.stop
    features = build(changed(market[0], int(table.ts_close[stop - 1])), SYNTH, run.features)
    write_tables(windows[0], features, tmp_path, "digest")
    found = open_dataset(tmp_path).train.market()
    assert found.schema.to_dict() == table.schema.to_dict()
    np.testing.assert_array_equal(found.tactical[:stop], table.tactical[:stop])
    assert not np.array_equal(found.close, table.close)


def test_parts_are_purged_and_tests_follow_each_other_without_a_gap(prepared: Any) -> None:
    run, windows, datasets, _ = prepared
    covered = []
    for window, dataset in zip(windows, datasets, strict=True):
        table, (test,) = dataset.train.market(), dataset.test
        assert dataset.train.start == table.first_decision
        assert dataset.validation.start - dataset.train.stop == run.embargo_bars
        assert test.start - dataset.validation.stop == run.embargo_bars
        assert test.stop == len(table)
        for row, bound in ((dataset.validation.start, window.train_until), (test.start, window.validation_until)):
            assert table.ts_close[row - 1] < bound <= table.ts_close[row]
        assert table.ts_close[-1] < window.test_until
        covered.append(table.ts_close[test.start: test.stop])
    joined = np.concatenate(covered)
    assert (np.diff(joined) > 0).all()
    whole = np.asarray(datasets[-1].train.market().ts_close)
    np.testing.assert_array_equal(joined, whole[whole >= windows[0].validation_until])


def test_rolling_windows_forget_what_lies_before_their_start(market: Any, tmp_path: Path) -> None:
    bars, path = market
    run = walk_config(bars, path, walk_forward={"training": "rolling", "windows": 2},
                      file={"start": str(np.datetime64(int(bars.ts_open[3000]), "ns"))[:10]})
    for window, dataset in zip(plan_windows(run), prepare_windows(run, plan_windows(run), tmp_path, print),
                               strict=True):
        table = dataset.train.market()
        assert window.start <= table.ts_close[0] < window.start + 7 * 86_400 * 10**9
        # features come from the whole past: only the window's own rows are missing at its beginning
        first_30m = int(table.row_30m[dataset.train.start])
        assert table.schema.regime.window - 1 <= first_30m <= table.schema.regime.window + 1


def test_cut_features_are_rows_of_the_whole(market: Any) -> None:
    features: FeatureTable = build(market[0], SYNTH)
    low, high = 6_000, 9_000
    part = cut_features(features, int(features.ts_close[low]), int(features.ts_close[high]))
    assert len(part) == high - low
    np.testing.assert_array_equal(part.base["mlmi_value"], features.base["mlmi_value"][low:high])
    for row in (0, 1, 7, len(part) - 1):
        seen, place = features.row_30m[low + row], part.row_30m[row]
        assert part.ts_close_30m[place] == features.ts_close_30m[seen] <= part.ts_close[row]
        assert part.slow["close"][place] == features.slow["close"][seen]
    assert part.ts_close_30m[-1] <= part.ts_close[-1]


def test_prepared_windows_are_reused_until_their_data_change(market: Any, prepared: Any, tmp_path: Path) -> None:
    run, windows, datasets, out = prepared
    said: list[str] = []
    again = prepare_windows(run, windows, out, said.append)
    assert [dataset.data_hash for dataset in again] == [dataset.data_hash for dataset in datasets]
    assert said == ["data: reusing the tables of 3 windows (same data and configuration)"]
    bars = changed(market[0], windows[1].test_until)  # only the last window's test sees other prices
    other = walk_config(bars, write_csv(bars, tmp_path / "bars.csv"))
    file = run.market.file
    assert file is not None
    hashes = [dataset.data_hash for dataset in prepare_windows(other, plan_windows(other), tmp_path, print)]
    assert len(set(hashes)) == 3


def test_windows_beyond_the_data_are_refused(market: Any, tmp_path: Path) -> None:
    run = walk_config(*market, walk_forward={"windows": 30})
    with pytest.raises(ConfigError, match="before the end of the last of 30 windows"):
        prepare_windows(run, plan_windows(run), tmp_path, print)
    assert not list(tmp_path.iterdir())


def test_a_part_that_the_embargo_eats_is_refused(market: Any, tmp_path: Path) -> None:
    run = walk_config(*market, embargo_bars=3_500)
    with pytest.raises(ConfigError, match="window-1: the validation part of SYNTH has 0 rows"):
        prepare_windows(run, plan_windows(run), tmp_path, print)
