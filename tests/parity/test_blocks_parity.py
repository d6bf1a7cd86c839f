"""Block by block or in one go: the same features to the bit, with rolls, breaks, own indicators and wide bars."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from algospace.errors import ConfigError, InputError, SchemaError
from algospace.features import FeatureConfig, Indicator, build, read_table, write_table
from algospace.features.block_source import months_of_bars
from algospace.features.block_table import read_blocks, write_whole
from algospace.features.blocks import Block, build_blocks, fit_config
from algospace.marketdata.schema import bars_to_table
from algospace.types import DAY_NS, MINUTE_NS, Bars
from tests.scale_market import CONTRACTS, SYNTH, assert_same, rolling_bars, write_catalog


def _spread(state: object, bar: object, out: object) -> None:
    state[0] += bar.high - bar.low  # type: ignore[index, attr-defined]
    out[0] = state[0]  # type: ignore[index]


OWN = Indicator("path", ("path_length",), lambda: np.zeros(1), _spread)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_catalog(tmp_path_factory.mktemp("blocks") / "catalog", rolling_bars())


@pytest.mark.parametrize("config", [FeatureConfig(), FeatureConfig(regime=False, source="close")])
def test_a_catalog_by_months_equals_all_at_once(catalog: Path, tmp_path: Path, config: FeatureConfig) -> None:
    told: list[Block] = []
    report = build_blocks(catalog, SYNTH, config, tmp_path, (OWN,), told.append)
    table = read_blocks(tmp_path)
    assert_same(table, build(rolling_bars(), SYNTH, config, (OWN,)))
    assert (report.blocks, report.kept, report.rows, report.rows_30m) == (
        len(told), 0, len(table), table.ts_close_30m.size)
    assert [block.number for block in told] == list(range(1, len(told) + 1))
    assert len(told) >= 4
    assert len(np.unique(table.contract)) == 3


def test_a_plain_file_gives_the_same_table_as_a_catalog(catalog: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    path = tmp_path / "bars.parquet"
    pq.write_table(bars_to_table(rolling_bars(), CONTRACTS), path)
    build_blocks(path, SYNTH, None, tmp_path / "plain")
    build_blocks(catalog, SYNTH, None, tmp_path / "catalog")
    assert_same(read_blocks(tmp_path / "plain"), read_blocks(tmp_path / "catalog"))


def test_the_copied_file_is_the_table_that_write_table_writes(catalog: Path, tmp_path: Path) -> None:
    build_blocks(catalog, SYNTH, None, tmp_path / "folder")
    table = build(rolling_bars(), SYNTH)
    write_table(table, tmp_path / "direct.parquet")
    about = write_whole(tmp_path / "folder", tmp_path / "copied.parquet")
    direct = read_table(tmp_path / "direct.parquet", about["schema"])
    assert_same(read_table(tmp_path / "copied.parquet", about["schema"]), direct)
    assert (about["rows"], about["columns"], about["first"]) == (len(table), len(table.base), table.ts_close[0])
    assert about["synergies"] == int((table.base["synergy_type"] > 0).sum())


def test_a_range_holds_its_rows_and_the_slow_rows_they_see(catalog: Path, tmp_path: Path) -> None:
    build_blocks(catalog, SYNTH, None, tmp_path)
    whole = build(rolling_bars(), SYNTH)
    for low, high in ((0, 10), (3_000, 15_000), (len(whole) - 5, len(whole)), (7, 7)):
        end = int(whole.ts_close[high]) if high < len(whole) else int(whole.ts_close[-1]) + 1
        part = read_blocks(tmp_path, int(whole.ts_close[low]), end)
        assert part.ts_close.tobytes() == whole.ts_close[low:high].tobytes()
        for name, values in whole.base.items():
            assert part.base[name].tobytes() == values[low:high].tobytes()
        seen = whole.row_30m[low:high]
        for name, values in whole.slow.items():
            np.testing.assert_array_equal(part.slow[name][part.row_30m[seen >= 0]], values[seen[seen >= 0]])


def test_parts_alone_are_refused_as_tables(catalog: Path, tmp_path: Path) -> None:
    build_blocks(catalog, SYNTH, None, tmp_path)
    with pytest.raises(SchemaError, match="not a feature table"):
        read_table(next(path for path in sorted(tmp_path.glob("*.parquet")) if "30m" not in path.name))


def _wide(bars: Bars, minutes: int) -> Bars:
    """Every so many minutes one bar, to look like a source of that width."""
    width = minutes * MINUTE_NS
    at = np.flatnonzero(bars.ts_open % width == 0)
    names = ("ts_open", "open", "high", "low", "close", "volume")
    return replace(Bars(*(getattr(bars, name)[at] for name in names), width_ns=width), contract=bars.contract[at])


@pytest.mark.parametrize(("minutes", "slow"), [(30, 180), (60, 360)])
def test_wide_bars_choose_their_own_pair_of_widths(tmp_path: Path, minutes: int, slow: int) -> None:
    bars = _wide(rolling_bars(), minutes)
    report = build_blocks(months_of_bars(bars), SYNTH, None, tmp_path)
    config = FeatureConfig(base_minutes=minutes, slow_minutes=slow)
    assert f"base bars of {minutes} and slow bars of {slow} minutes instead of 5 and 30" in report.notes[0]
    assert_same(read_blocks(tmp_path), build(bars, SYNTH, config))


def test_bars_that_no_configuration_fits_are_refused(tmp_path: Path) -> None:
    assert fit_config(FeatureConfig(), 5 * MINUTE_NS) == (FeatureConfig(), [])
    with pytest.raises(ConfigError, match="bars of 1440 minutes do not divide an hour"):
        fit_config(FeatureConfig(), DAY_NS)
    with pytest.raises(InputError, match="no bars"):
        build_blocks(months_of_bars(rolling_bars().slice(0, 0)), SYNTH, None, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_month_of_one_bar_completes_no_row_and_loses_none(tmp_path: Path) -> None:
    bars = rolling_bars()
    month = bars.ts_open.astype("datetime64[ns]").astype("datetime64[M]")
    second = int(np.flatnonzero(month != month[0])[0])
    cut = np.r_[second - 2 * 288:second + 1]  # two days, and one bar of the next month
    few = Bars(*(getattr(bars, name)[cut] for name in ("ts_open", "open", "high", "low", "close", "volume")),
               width_ns=bars.width_ns)
    build_blocks(months_of_bars(few), SYNTH, None, tmp_path)
    assert_same(read_blocks(tmp_path), build(few, SYNTH))


def test_nq_month_by_month_equals_the_whole_year(data_root: Path, tmp_path: Path) -> None:
    from algospace.instruments import instrument
    from algospace.marketdata import Catalog, import_file

    result = import_file(data_root / "nq_1m" / "nq_1m_2020.parquet", "NQ")
    Catalog(tmp_path / "catalog").write_import("NQ", result)
    report = build_blocks(tmp_path / "catalog", instrument("NQ"), None, tmp_path / "out")
    assert report.blocks == 12
    assert_same(read_blocks(tmp_path / "out"), build(result.bars, instrument("NQ")))
