"""Real files: every one is imported, or refused with an explained line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from algospace.errors import InputError
from algospace.marketdata import Catalog, ImportOptions, import_file, read_source


def test_tradestation_file_equals_the_vendor_neutral_copy(data_root: Path) -> None:
    result = import_file(data_root / "raw" / "nq_30m_tradestation.csv", "NQ")
    copy = read_source(data_root / "nq_cl_30m_volume" / "nq_30m_vol.parquet", "NQ")
    assert result.report.zone == "Asia/Jerusalem"
    assert (result.report.rows_in, result.report.rows_out) == (19_999, 19_999)
    for name in ("ts_open", "open", "high", "low", "close", "volume"):
        np.testing.assert_array_equal(getattr(result.bars, name), getattr(copy, name)[:19_999])
    assert any("day-first" in guess for guess in result.report.guesses)


def test_one_year_of_nq_through_the_catalog(data_root: Path, tmp_path: Path) -> None:
    source = data_root / "nq_1m" / "nq_1m_2020.parquet"
    result = import_file(source, "NQ")
    written = Catalog(tmp_path).write_import("NQ", result)
    bars = Catalog(tmp_path).read("NQ")
    raw = pd.read_parquet(source)
    assert (written.months, written.added, result.report.bad_rows) == (12, 349_783, 0)
    np.testing.assert_array_equal(bars.close, raw["close"].to_numpy(np.float64))
    rolls = np.flatnonzero(np.diff(bars.contract))
    np.testing.assert_array_equal(rolls, np.flatnonzero(np.diff(raw["contract"])))
    assert [Catalog(tmp_path).contracts("NQ")[bars.contract[k]] for k in (0, -1)] == ["42", "46"]


def test_contract_column_agrees_with_the_roll_table(data_root: Path) -> None:
    source = data_root / "nq_1m" / "nq_1m_2020.parquet"
    column = import_file(source, "NQ")
    table = import_file(source, "NQ", ImportOptions(contracts=source.with_name("contracts.csv")))
    assert column.contracts == table.contracts
    np.testing.assert_array_equal(column.bars.contract, table.bars.contract)


@pytest.mark.parametrize(("path", "symbol", "rows", "contracts"), [
    ("es_1m/es_1m.parquet", "ES", 282_967, 5), ("nq_cl_30m_volume/cl_30m_vol.parquet", "CL", 59_217, 0),
    ("equities/spy_1m_2025_09_2026_03.parquet", "SPY", 49_885, 0),
    ("equities/qqq_1m_2025_09_2026_03.parquet", "QQQ", 49_616, 0),
    ("equities/vix_5m_2025_08_2026_02.parquet", "VIX", 20_224, 0),
    ("btc_1m/btcusd_1m_2018h1.parquet", "BTCUSD", 259_781, 0),
])
def test_clean_files_lose_nothing(data_root: Path, path: str, symbol: str, rows: int, contracts: int) -> None:
    result = import_file(data_root / path, symbol)
    assert (result.report.rows_in, len(result.bars), len(result.contracts)) == (rows, rows, contracts)
    assert result.report.zone == "UTC"


def test_hourly_files_hold_several_contracts_at_once(data_root: Path) -> None:
    source = data_root / "futures_hourly" / "hour_SP500_micro.parquet"
    with pytest.raises(InputError, match="several contracts at the same time"):
        import_file(source, "MES")
    result = import_file(source, "MES", ImportOptions(front="volume"))
    assert result.report.bad_rows == 0
    assert len(result.bars) + result.report.reported["other_contracts"] == 91_529
    codes = np.array([int(result.contracts[c]) for c in result.bars.contract])
    assert (np.diff(codes) >= 0).all()


@pytest.mark.parametrize(("path", "symbol", "words"), [
    ("daily/vix_1d.parquet", "VIX", "row 534: high or low does not enclose open and close"),
    ("ticks/esm8_trades_20180507.parquet", "ES", "it holds trades"), ("equities", "SPY", "no volume column"),
    ("", "ES", "a folder without"),
])
def test_what_is_no_bar_file_is_refused_with_a_reason(data_root: Path, path: str, symbol: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        import_file(data_root / path, symbol)


def test_daily_vix_with_a_higher_limit_quarantines_its_47_rows(data_root: Path) -> None:
    result = import_file(data_root / "daily" / "vix_1d.parquet", "VIX", ImportOptions(max_bad_fraction=0.01))
    assert result.report.quarantined == {"ohlc_violation": 47}


@pytest.mark.slow
def test_all_eleven_years_of_nq(data_root: Path, tmp_path: Path) -> None:
    result = import_file(data_root / "nq_1m", "NQ")
    assert (result.report.rows_out, result.report.bad_rows, result.report.reported["rolls"]) == (3_721_079, 0, 40)
    assert Catalog(tmp_path).write_import("NQ", result).months == 132
    assert len(Catalog(tmp_path).read("NQ")) == 3_721_079
