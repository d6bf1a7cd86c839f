"""Importers: what is guessed, which rule a bad row breaks, and that no row disappears."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from algospace.errors import ConfigError, InputError
from algospace.instruments import instrument
from algospace.marketdata import ImportOptions, import_file, read_source
from algospace.marketdata.rolls import ContractRows, VolumeRoll, choose_front, front_rows
from algospace.types import BoolArray

START = pd.Timestamp("2024-03-04 15:00")  # a Monday morning in Chicago


def frame(n: int = 200, step: str = "1min", start: pd.Timestamp = START) -> pd.DataFrame:
    """n plausible bars on the tick grid."""
    close = 5000 + 0.25 * np.round(np.cumsum(np.random.default_rng(3).normal(0, 3, n)))
    open_ = np.r_[close[0], close[:-1]]
    return pd.DataFrame({"ts_utc": pd.date_range(start, periods=n, freq=step), "open": open_,
                         "high": np.maximum(open_, close) + 0.25, "low": np.minimum(open_, close) - 0.25,
                         "close": close, "volume": np.arange(n) + 1.0})


def save(path: Path, data: pd.DataFrame, **options: object) -> Path:
    data.to_csv(path, index=False, **options)  # type: ignore[call-overload]
    return path


LENIENT = ImportOptions(max_bad_fraction=0.5)


def test_csv_and_parquet_of_the_same_bars_agree(tmp_path: Path) -> None:
    data = frame()
    data.to_parquet(tmp_path / "a.parquet")
    csv = read_source(save(tmp_path / "a.csv", data), "ES")
    parquet = read_source(tmp_path / "a.parquet", "ES")
    assert csv.width_ns == parquet.width_ns == 60 * 10**9
    for name in ("ts_open", "open", "high", "low", "close", "volume", "contract"):
        np.testing.assert_array_equal(getattr(csv, name), getattr(parquet, name))
    assert csv.ts_open[0] == START.value


@pytest.mark.parametrize(("unit", "scale"), [("s", 10**9), ("ms", 10**6), ("us", 10**3), ("ns", 1)])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_epoch_units_are_told_by_their_size(tmp_path: Path, unit: str, scale: int, suffix: str) -> None:
    data = frame()
    data["ts_utc"] = data["ts_utc"].astype("datetime64[ns]").astype(np.int64) // scale
    path = tmp_path / f"a.{suffix}"
    _ = save(path, data) if suffix == "csv" else data.to_parquet(path)
    assert import_file(path, "ES").bars.ts_open[0] == START.value


@pytest.mark.parametrize(("pattern", "rename"), [
    ("%Y-%m-%d %H:%M:%S", {}), ("%Y-%m-%dT%H:%M:%SZ", {"ts_utc": "Timestamp"}), ("%Y%m%d %H%M", {"ts_utc": "ts"}),
    ("%Y%m%d%H%M%S", {"ts_utc": "datetime"}), ("%Y-%m-%d %I:%M %p", {"ts_utc": "DateTime"}),
    ("%Y/%m/%d %H:%M:%S.000000", {}),
])
def test_common_time_formats(tmp_path: Path, pattern: str, rename: dict[str, str]) -> None:
    data = frame()
    data["ts_utc"] = data["ts_utc"].dt.strftime(pattern)
    bars = import_file(save(tmp_path / "a.csv", data.rename(columns=rename)), "ES").bars
    np.testing.assert_array_equal(bars.ts_open, frame()["ts_utc"].astype("datetime64[ns]").astype(np.int64))


def test_date_and_time_columns_separator_and_short_names(tmp_path: Path) -> None:
    data = frame()
    data.insert(0, "Date", data["ts_utc"].dt.strftime("%d.%m.%Y"))
    data.insert(1, "Time", data["ts_utc"].dt.strftime("%H:%M"))
    data = data.drop(columns="ts_utc").rename(columns={"open": "O", "high": "H", "low": "L", "close": "C"})
    result = import_file(save(tmp_path / "a.csv", data, sep=";"), "ES", ImportOptions(dates="day-first"))
    assert result.bars.ts_open[0] == START.value
    assert any("open = O" in guess and "clock = Time" in guess for guess in result.report.guesses)


def test_written_offsets_are_obeyed(tmp_path: Path) -> None:
    data = frame()
    data["ts_utc"] = (data["ts_utc"] + pd.Timedelta("2h")).dt.strftime("%Y-%m-%d %H:%M:%S+02:00")
    path = save(tmp_path / "a.csv", data.rename(columns={"ts_utc": "time"}))
    assert import_file(path, "ES").bars.ts_open[0] == START.value
    with pytest.raises(InputError, match="contradicts"):
        import_file(path, "ES", ImportOptions(zone="America/Chicago"))


def test_dates_that_can_be_read_both_ways_stop_the_import(tmp_path: Path) -> None:
    data = frame(50)
    data["ts_utc"] = data["ts_utc"].dt.strftime("%d/%m/%Y %H:%M")
    path = save(tmp_path / "a.csv", data)
    with pytest.raises(InputError, match="day-first and month-first"):
        import_file(path, "ES")
    assert import_file(path, "ES", ImportOptions(dates="day-first")).bars.ts_open[0] == START.value
    april = import_file(path, "ES", ImportOptions(dates="month-first")).bars.ts_open[0]
    assert pd.Timestamp(april) == pd.Timestamp("2024-04-03 15:00")


def test_zone_and_stamp_are_found_by_the_trading_hours(tmp_path: Path) -> None:
    utc = pd.date_range("2024-02-01", "2024-04-20", freq="30min", tz="UTC")
    local = utc.tz_convert("America/Chicago")
    minute = local.hour * 60 + local.minute
    week = local.dayofweek
    is_open = ((week < 4) & ((minute < 960) | (minute >= 1020))) | ((week == 4) & (minute < 960)) | (
        (week == 6) & (minute >= 1020))
    utc = utc[is_open]
    data = frame(len(utc))
    data["ts_utc"] = (utc.tz_convert("Asia/Jerusalem") + pd.Timedelta("30min")).strftime("%Y-%m-%d %H:%M")
    result = import_file(save(tmp_path / "a.csv", data.rename(columns={"ts_utc": "time"})), "ES")
    assert result.report.zone == "Asia/Jerusalem"
    np.testing.assert_array_equal(result.bars.ts_open, utc.as_unit("ns").asi8)
    assert any("ends of bars" in guess for guess in result.report.guesses)


BREAKS = {
    "non_finite": ("close", np.nan), "non_positive_price": ("low", -1.0), "ohlc_violation": ("high", 1.0),
    "negative_volume": ("volume", -5.0),
}


@pytest.mark.parametrize("rule", BREAKS)
def test_a_bad_row_is_quarantined_with_its_rule_and_row(tmp_path: Path, rule: str) -> None:
    data = frame()
    column, value = BREAKS[rule]
    data.loc[17, column] = value
    result = import_file(save(tmp_path / "a.csv", data), "ES", LENIENT)
    rows = result.quarantine.to_pylist()
    assert [(r["source"], r["row"], r["rule"]) for r in rows] == [("a.csv", 19, rule)]
    assert result.report.quarantined == {rule: 1}
    assert len(result.bars) == 199
    with pytest.raises(InputError, match=f"row 19: .*{rule}") as caught:
        import_file(tmp_path / "a.csv", "ES")
    assert caught.value.row == 19


def test_infinity_words_and_missing_cells_are_not_numbers(tmp_path: Path) -> None:
    path = save(tmp_path / "a.csv", frame())
    lines = path.read_text().splitlines()
    for line, value in ((5, "inf"), (9, "n/a"), (12, "")):
        cells = lines[line].split(",")
        cells[2] = value
        lines[line] = ",".join(cells)
    path.write_text("\n".join(lines) + "\n")
    result = import_file(path, "ES", LENIENT)
    assert [(r["row"], r["rule"]) for r in result.quarantine.to_pylist()] == [
        (6, "non_finite"), (10, "non_finite"), (13, "non_finite")]


def test_lines_with_other_fields_and_blank_lines_keep_their_numbers(tmp_path: Path) -> None:
    path = save(tmp_path / "a.csv", frame(30))
    lines = path.read_text().splitlines()
    lines[4:4] = ["", "only,three,fields"]  # lines 5 and 6 of the file
    lines[20] = lines[20].replace(lines[20].split(",")[0], "soon")
    path.write_text("\n".join(lines) + "\n\n")
    result = import_file(path, "ES", LENIENT)
    assert [(r["row"], r["rule"], r["line"]) for r in result.quarantine.to_pylist()] == [
        (21, "unreadable_time", None), (6, "malformed_line", "only,three,fields")]
    assert result.report.rows_in == 31
    assert result.report.rows_out == 29
    assert result.report.reported["blank_lines"] == 2


def test_first_duplicate_is_kept_and_disorder_blames_the_misplaced_row(tmp_path: Path) -> None:
    data = frame(100)
    data = data.iloc[[*range(10), 9, *range(10, 50), 20, *range(50, 60), 65, *range(60, 65), *range(66, 100)]]
    result = import_file(save(tmp_path / "a.csv", data), "ES", LENIENT)
    assert [(r["row"], r["rule"]) for r in result.quarantine.to_pylist()] == [
        (12, "duplicate_time"), (53, "disorder"), (64, "disorder")]
    assert (np.diff(result.bars.ts_open) > 0).all()
    assert result.report.rows_in == result.report.rows_out + result.report.bad_rows


def test_a_bad_first_copy_does_not_hide_the_good_second_one(tmp_path: Path) -> None:
    data = frame(50)
    data = data.iloc[[*range(10), 9, *range(10, 50)]].reset_index(drop=True)
    data.loc[9, "high"] = np.nan
    result = import_file(save(tmp_path / "a.csv", data), "ES", LENIENT)
    assert len(result.bars) == 50
    assert result.report.quarantined == {"non_finite": 1}


@pytest.mark.parametrize("pattern", ["%Y-%m-%d %H:%M", "%d/%m/%Y %H:%M"])
def test_exchanged_day_and_month_is_suspected(tmp_path: Path, pattern: str) -> None:
    data = frame(400, "6h", pd.Timestamp("2024-01-02"))
    swapped = pattern.replace("%m", "%x").replace("%d", "%m").replace("%x", "%d")
    text = data["ts_utc"].dt.strftime(pattern)
    dates = data["ts_utc"].dt
    early = data.index[(dates.day <= 12) & (dates.day != dates.month)][[5, 40]]
    late = data.index[dates.day > 12][3]
    for k in (*early, late):
        text[k] = data["ts_utc"][k].strftime(swapped)
    data["ts_utc"] = text
    result = import_file(save(tmp_path / "a.csv", data), "BTCUSD", LENIENT)
    found = {r["row"]: r["rule"] for r in result.quarantine.to_pylist()}
    assert found == dict.fromkeys((int(k) + 2 for k in (*early, late)), "swapped_day_month")


def test_a_long_gap_is_no_exchange_of_day_and_month(tmp_path: Path) -> None:
    parts = [frame(50, start=pd.Timestamp(day)) for day in ("2024-03-01 15:00", "2024-04-03 15:00")]
    result = import_file(save(tmp_path / "a.csv", pd.concat(parts)), "BTCUSD")
    assert result.report.bad_rows == 0
    assert result.report.largest_gap["missing_bars"] > 10_000


def test_clock_changes_follow_the_stated_rule(tmp_path: Path) -> None:
    utc = pd.date_range("2024-10-26 20:00", "2024-10-27 06:00", freq="15min", tz="UTC")
    data = frame(len(utc), "15min")
    data["ts_utc"] = utc.tz_convert("Europe/Berlin").strftime("%Y-%m-%d %H:%M")
    path = save(tmp_path / "a.csv", data.rename(columns={"ts_utc": "time"}))
    result = import_file(path, "BTCUSD", ImportOptions(zone="Europe/Berlin"))
    np.testing.assert_array_equal(result.bars.ts_open, utc.as_unit("ns").asi8)
    assert result.report.reported["ambiguous_local_times"] == 8
    never = pd.date_range("2024-03-31 01:00", periods=12, freq="15min").strftime("%Y-%m-%d %H:%M")
    data = frame(12).assign(ts_utc=never).rename(columns={"ts_utc": "time"})
    result = import_file(save(tmp_path / "b.csv", data), "BTCUSD",
                         ImportOptions(zone="Europe/Berlin", max_bad_fraction=0.5))
    assert result.report.quarantined == {"nonexistent_local_time": 4}


def test_bad_rows_up_to_the_limit_pass_and_one_more_stops(tmp_path: Path) -> None:
    data = frame(2000)
    data.loc[[5, 7], "close"] = -1
    assert import_file(save(tmp_path / "a.csv", data), "ES").report.bad_rows == 2
    data.loc[9, "close"] = -1
    with pytest.raises(InputError, match=r"3 of 2000 rows \(0.15 %, allowed 0.1 %\)"):
        import_file(save(tmp_path / "a.csv", data), "ES")


def test_contract_column_and_roll_table_give_the_same_codes(tmp_path: Path) -> None:
    data = frame()
    data["contract"] = np.where(np.arange(200) < 80, "ESH4", "ESM4")
    column = import_file(save(tmp_path / "a.csv", data), "ES")
    ends = data.groupby("contract")["ts_utc"].agg(["min", "max"]).reset_index()
    ends.columns = pd.Index(["contract", "first_ts_utc", "last_ts_utc"])
    folder = tmp_path / "folder"
    folder.mkdir()
    save(folder / "contracts.csv", ends)
    save(folder / "bars.csv", data.drop(columns="contract"))
    table = import_file(folder / "bars.csv", "ES")
    np.testing.assert_array_equal(column.bars.contract, table.bars.contract)
    assert column.contracts == table.contracts == ["ESH4", "ESM4"]
    assert column.report.reported["rolls"] == 1


def test_several_contracts_at_once_need_a_choice_and_it_uses_no_future(tmp_path: Path) -> None:
    parts = []
    for name, first, last in (("202403", 0, 6), ("202406", 2, 10)):
        data = frame(10 * 24, "1h", pd.Timestamp("2024-03-04"))
        data["contract"] = name
        day = np.arange(240) // 24
        data["volume"] = np.where(day < 4, 100, 10) if name == "202403" else np.where(day < 4, 10, 100)
        parts.append(data[(day >= first) & (day < last)])
    path = save(tmp_path / "a.csv", pd.concat(parts))
    with pytest.raises(InputError, match="--front volume"):
        import_file(path, "BTCUSD")
    result = import_file(path, "BTCUSD", ImportOptions(front="volume"))
    days = (result.bars.ts_open - result.bars.ts_open[0]) // (86_400 * 10**9)
    assert result.report.bad_rows == 0
    # the volume moves over on day 4, which is known on day 5
    assert [result.contracts[c] for c in result.bars.contract[np.r_[True, np.diff(days) > 0]]] == (
        ["202403"] * 5 + ["202406"] * 5)
    assert len(result.bars) + result.report.reported["other_contracts"] == result.report.rows_in


@pytest.mark.parametrize("names", [("ESZ4", "ESH5"), ("ESZ24", "ESH25"), ("MESZ2024", "MESH2025"),
                                   ("ESU9", "ESM0"), ("202412", "202503")])
def test_the_front_contract_follows_the_order_of_expiry_across_a_year(names: tuple[str, str]) -> None:
    year = 2019 if names[0] == "ESU9" else 2024
    start = pd.Timestamp(f"{year}-06-03 15:00").as_unit("ns").value
    days = start + np.arange(20) * 86_400 * 10**9
    # the old contract trades on days 0 to 11; the new one from the start, with more volume from day 8 on
    ts_open = np.sort(np.concatenate([days[:12], days]))
    contract = np.array([0, 1] * 12 + [1] * 8, np.int32)
    volume = np.where(contract == 0, 100.0, np.where(ts_open < days[8], 10.0, 1000.0))
    kept = _front_by_volume(ContractRows(ts_open, contract, names, volume))
    assert contract[kept].tolist() == [0] * 9 + [1] * 11
    # codes are numbered by appearance, in any order
    assert _front_by_volume(ContractRows(ts_open, 1 - contract, names[::-1], volume)).tolist() == kept.tolist()


def _front_by_volume(rows: ContractRows) -> BoolArray:
    return front_rows(choose_front(VolumeRoll(), rows, instrument("CL")), rows)  # no expiry is known for CL


def test_a_folder_is_read_as_one_source_in_the_order_of_names(tmp_path: Path) -> None:
    data = frame(300)
    for k in range(3):
        data.iloc[100 * k:100 * (k + 1)].to_parquet(tmp_path / f"part_{k}.parquet")
    data.to_parquet(tmp_path / "truth.parquet")  # belongs to synthetic markets, holds no bars
    result = import_file(tmp_path, "ES")
    np.testing.assert_array_equal(result.bars.close, data["close"])
    data.loc[150, "close"] = -1
    data.iloc[100:200].to_parquet(tmp_path / "part_1.parquet")
    with pytest.raises(InputError, match=r"part_1.parquet, row 51: a price is zero or negative"):
        import_file(tmp_path, "ES")


def test_csv_files_beside_parquet_files_are_named_as_not_read(tmp_path: Path) -> None:
    frame(200).to_parquet(tmp_path / "a.parquet")
    assert not any("not read" in note for note in import_file(tmp_path, "ES").report.guesses)
    save(tmp_path / "b.csv", frame(100))
    report = import_file(tmp_path, "ES").report
    assert report.rows_in == 200
    assert "not read, because the folder has Parquet files: b.csv" in report.guesses


def test_outliers_gaps_and_zero_volume_are_reported_and_kept(tmp_path: Path) -> None:
    data = frame(500).drop(index=range(100, 110)).reset_index(drop=True)
    data.loc[300, ["high", "close"]] = data.loc[300, "close"] * 1.05
    data.loc[7, "volume"] = 0
    report = import_file(save(tmp_path / "a.csv", data), "ES").report
    assert report.bad_rows == 0
    assert report.reported["missing_bars"] == 10
    assert report.reported["gaps_in_session"] == 1
    assert report.reported["zero_volume"] == 1
    assert report.reported["outliers"] == 2
    assert report.largest_outliers[0]["log_return"] == pytest.approx(np.log(1.05), abs=0.002)


def test_column_map_and_its_faults(tmp_path: Path) -> None:
    data = frame().rename(columns={"close": "settle"})
    path = save(tmp_path / "a.csv", data)
    with pytest.raises(InputError, match=r"missing columns: close .*--columns close="):
        import_file(path, "ES")
    assert len(import_file(path, "ES", ImportOptions(columns={"close": "settle"})).bars) == 200
    with pytest.raises(InputError, match="no column 'nope' for close"):
        import_file(path, "ES", ImportOptions(columns={"close": "nope"}))
    with pytest.raises(ConfigError, match="unknown instrument"):
        import_file(path, "XX")


def test_volume_that_is_all_missing_is_unknown(tmp_path: Path) -> None:
    table = pa.table(frame().assign(volume=np.nan))
    pq.write_table(table, tmp_path / "a.parquet")
    result = import_file(tmp_path / "a.parquet", "ES")
    assert np.isnan(result.bars.volume).all()
    assert "zero_volume" not in result.report.reported
