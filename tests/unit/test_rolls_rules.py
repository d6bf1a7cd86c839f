"""Roll rules on small tables with known answers, and every fault of their files in one line."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from algospace.errors import ConfigError, InputError
from algospace.instruments import CME, instrument
from algospace.marketdata import ImportOptions, import_file
from algospace.marketdata.expiries import business_days_before, third_friday
from algospace.marketdata.roll_table import RollSchedule, from_roll_table, read_roll_table, write_roll_table
from algospace.marketdata.rolls import (
    ContractRows,
    DatesRoll,
    ExpiryRoll,
    OpenInterestRoll,
    RollRule,
    VolumeRoll,
    choose_front,
    day_starts,
    front_rows,
)

ES, CL = instrument("ES"), instrument("CL")
HOUR = 3_600_000_000_000
NAMES = ("ESH5", "ESM5")


def stamp(text: str) -> int:
    return pd.Timestamp(text).value


def rows(first: str = "2025-03-03", days: int = 14, switch: int = 8) -> ContractRows:
    """Both contracts hourly from 14:00 to 20:00 UTC on business days; sizes move over on day `switch`."""
    ts, code, size = [], [], []
    for number, day in enumerate(pd.bdate_range(first, periods=days)):
        for hour in range(14, 20):
            for contract in (0, 1):
                ts.append(day.value + hour * HOUR)
                code.append(contract)
                size.append(100.0 if (number < switch) == (contract == 0) else 10.0)
    return ContractRows(np.array(ts), np.array(code, np.int32), NAMES, np.array(size), np.array(size))


def first_day_of_next(rule: RollRule, table: ContractRows, spec=ES) -> str:
    schedule = choose_front(rule, table, spec)
    assert schedule.contracts == NAMES
    kept = table.ts_open[front_rows(schedule, table) & (table.contract == 1)]
    return str(kept[0].astype("datetime64[ns]").astype("datetime64[D]"))


@pytest.mark.parametrize(("year", "month", "day"), [
    (2024, 12, date(2024, 12, 20)), (2025, 3, date(2025, 3, 21)), (2020, 3, date(2020, 3, 20)),
    (2008, 3, date(2008, 3, 20)),  # Good Friday
    (2026, 6, date(2026, 6, 18)), (2021, 6, date(2021, 6, 18)),  # Juneteenth, and the year before it was a holiday
])
def test_equity_index_futures_expire_on_the_third_friday_or_the_business_day_before(year, month, day):
    assert third_friday(year, month) == day


def test_business_days_skip_weekends_and_holidays():
    expiry = np.array([np.datetime64("2025-06-20")]).astype(np.int64)
    found = [str(business_days_before(expiry, n)[0].astype("datetime64[D]")) for n in (0, 1, 5)]
    assert found == ["2025-06-20", "2025-06-18", "2025-06-12"]  # the 19th is Juneteenth


def test_volume_decides_on_the_day_after_and_open_interest_one_day_later():
    table = rows()  # sizes move over on day 8, Thursday 13 March
    assert first_day_of_next(VolumeRoll(), table) == "2025-03-14"
    assert first_day_of_next(OpenInterestRoll(), table) == "2025-03-17"
    assert first_day_of_next(OpenInterestRoll(publication_days=0), table) == "2025-03-14"


@pytest.mark.parametrize(("days", "expected"), [(0, "2025-03-21"), (4, "2025-03-17"), (5, "2025-03-14")])
def test_days_before_expiry_count_business_days(days, expected):
    assert first_day_of_next(ExpiryRoll(days=days), rows(days=15)) == expected


def test_an_expired_contract_is_left_on_the_day_even_if_its_volume_was_larger():
    table = rows(days=20, switch=100)  # volume never moves; March expires on the 21st
    assert first_day_of_next(VolumeRoll(), table) == "2025-03-24"


def test_an_expiry_table_replaces_the_rule(tmp_path: Path):
    path = tmp_path / "expiries.csv"
    path.write_text("contract,expiry\nESH5,2025-03-12\nESM5,2025-06-20\n")
    assert first_day_of_next(ExpiryRoll(days=1, table=path), rows(), CL) == "2025-03-11"
    path.write_text("contract,expiry\nESH5,2025-03-12\n")
    with pytest.raises(InputError, match=r"expiries.csv: no expiry of contract ESM5; add a line"):
        choose_front(ExpiryRoll(table=path), rows(), ES)
    path.write_text("contract,expiry\nESH5,12/03/2025\nESM5,2025-06-20\n")
    with pytest.raises(InputError, match=r"row 2: '12/03/2025' is no date; write dates as 2024-12-20"):
        choose_front(ExpiryRoll(table=path), rows(), ES)
    path.write_text("contract,expiry\nESH5,2025-03-12\nESM5,2025-06-20\nESH5,2025-03-21\n")
    with pytest.raises(InputError, match="row 4: ESH5 has two expiries"):
        choose_front(ExpiryRoll(table=path), rows(), ES)
    with pytest.raises(ConfigError, match="no expiry rule for CL"):
        choose_front(ExpiryRoll(), rows(), CL)


def test_a_plain_date_is_the_start_of_its_trading_day_and_a_time_an_instant(tmp_path: Path):
    path = tmp_path / "dates.csv"
    path.write_text("contract,first_ts_utc\nESH5,2024-12-13\nESM5,2025-03-12\n")
    schedule = choose_front(DatesRoll(table=path), rows(), ES)
    assert schedule.first_ts[1] == stamp("2025-03-11 22:00")  # 17:00 in Chicago, summer time
    assert first_day_of_next(DatesRoll(table=path), rows()) == "2025-03-12"
    path.write_text("contract,first_ts_utc\nESH5,2024-12-13\nESM5,2025-03-12 16:00:00\n")
    table = rows()
    kept = front_rows(choose_front(DatesRoll(table=path), table, ES), table)
    assert table.ts_open[kept & (table.contract == 1)].min() == stamp("2025-03-12 16:00")
    assert table.ts_open[kept & (table.contract == 0)].max() == stamp("2025-03-12 15:00")


@pytest.mark.parametrize(("text", "words"), [
    ("contract,first_ts_utc\nESM5,2025-03-01\nESH5,2025-03-12\n", "row 3: rolls back to ESH5"),
    ("contract,first_ts_utc\nNQH5,2025-03-01\n", "none of its contracts is in the data"),
    ("contract,first_ts_utc\nESH5,2025-03-12\nESM5,2025-03-01\n", "row 3: the contract does not begin after"),
    ("contract,first_ts_utc\nESH5,soon\n", "row 2: 'soon' is no time"),
    ("contract,first_ts_utc\nESH5,2025-03-01\nESM5,9999-12-31\n", "row 3: '9999-12-31' is no time"),
    ("contract,first_ts_utc\nESZ4,2024-12-13\nESM5,2099-03-01\n", "no row of the data is of the contract"),
    ("contract\nESH5\n", "row 1: a roll table needs a column first_ts_utc"),
    ("contract,first_ts_utc\nESH5,\n", "row 2: first_ts_utc is empty"),
    ("contract,first_ts_utc\n", "without rows"),
    ("contract,first_ts_utc,ratio_to_next\nESH5,2025-03-01,-1\n", "row 2: ratio_to_next is not a positive number"),
])
def test_a_faulty_table_of_dates_is_one_line(tmp_path: Path, text: str, words: str):
    path = tmp_path / "dates.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        choose_front(DatesRoll(table=path), rows(), ES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "words"), [
    ("date,contract,open_interest\n2025-03-03,ESH5,many\n", "open_interest is not a number"),
    ("date,contract,open_interest\n2025-03-03,ESH5,-1\n", "row 2: open_interest is negative"),
    ("date,contract\n2025-03-03,ESH5\n", "row 1: an open interest table needs a column open_interest"),
    ("date,contract,open_interest\n2025-03-03,NQH5,1\n", "none of its contracts is in the data"),
    ("date,contract,open_interest\n2025-03-03,,1\n", "row 2: an empty field"),
])
def test_a_faulty_table_of_open_interest_is_one_line(tmp_path: Path, text: str, words: str):
    path = tmp_path / "interest.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        choose_front(OpenInterestRoll(table=path), rows(), ES)


def test_what_a_rule_reads_must_be_there():
    table = rows()
    bare = ContractRows(table.ts_open, table.contract, table.names)
    with pytest.raises(InputError, match="by volume needs a volume column"):
        choose_front(VolumeRoll(), bare, ES, "file.csv")
    with pytest.raises(InputError, match="by open interest needs an open_interest column; give --open-interest"):
        choose_front(OpenInterestRoll(), bare, ES, "file.csv")
    with pytest.raises(InputError, match="no rows"):
        choose_front(VolumeRoll(), ContractRows(np.zeros(0, np.int64), np.zeros(0, np.int32), NAMES), ES)


def test_a_schedule_survives_its_file(tmp_path: Path):
    first = np.array([stamp("2025-01-02 00:00:00.5"), stamp("2025-03-13 21:00")])
    schedule = RollSchedule(("ESH5", "ESM5"), first,
                            np.array([stamp("2025-03-13 19:59"), stamp("2025-05-01")]), np.array([1.0074, np.nan]))
    write_roll_table(tmp_path / "contracts.csv", schedule)
    read = read_roll_table(tmp_path / "contracts.csv")
    assert read.contracts == schedule.contracts
    for name in ("first_ts", "last_ts", "ratio_to_next"):
        np.testing.assert_array_equal(getattr(read, name), getattr(schedule, name))


@pytest.mark.parametrize(("line", "words"), [
    ("ESH5,2025-03-01,soon", "row 2: 'soon' is no time"),
    ("ESH5,2025-03-01,9999-12-31", "row 2: '9999-12-31' is no time between 1678 and 2261"),
    ("ESH5,3/1/2025,2025-03-12", "row 2: '3/1/2025' is no time"),
    ("ESH5,2025-03-01,", "row 2: last_ts_utc is empty"),
    (",2025-03-01,2025-03-12", "row 2: contract is empty"),
])
def test_a_faulty_roll_table_is_one_line(tmp_path: Path, line: str, words: str):
    """The importer's reader and the schedule's refuse the same."""
    path = tmp_path / "contracts.csv"
    path.write_text(f"contract,first_ts_utc,last_ts_utc\n{line}\n")
    for read in (read_roll_table, lambda table: from_roll_table(table, rows().ts_open)):
        with pytest.raises(InputError, match=words):
            read(path)


def test_trading_days_start_in_the_evening_before_across_a_clock_change():
    days = np.array(["2025-03-10", "2025-03-07"], "datetime64[D]").astype(np.int64)
    assert day_starts(days, CME).tolist() == [stamp("2025-03-09 22:00"), stamp("2025-03-06 23:00")]


def several_contracts(path: Path) -> ContractRows:
    """A file of `rows` with prices; the second contract is 1 % above the first."""
    table = rows(days=15)
    price = 5000 * 1.01**table.contract
    frame = pd.DataFrame({"ts_utc": pd.to_datetime(table.ts_open, utc=True), "open": price, "high": price + 1,
                          "low": price - 1, "close": price, "volume": table.volume, "oi": table.open_interest,
                          "contract": [NAMES[c] for c in table.contract]})
    frame.to_parquet(path)
    return table


def test_the_importer_applies_every_rule(tmp_path: Path):
    path = tmp_path / "es.parquet"
    several_contracts(path)
    (tmp_path / "expiries.csv").write_text("contract,expiry\nESH5,2025-03-21\nESM5,2025-06-20\n")
    (tmp_path / "dates.csv").write_text("contract,first_ts_utc\nESH5,2024-12-13\nESM5,2025-03-12\n")
    interest = "".join(f"2025-03-{day:02d},ESH5,5\n2025-03-{day:02d},ESM5,{day}\n" for day in (3, 4, 5, 6, 7))
    (tmp_path / "oi.csv").write_text("date,contract,open_interest\n" + interest)
    for options, expected in [
        ({"front": "volume"}, "2025-03-14"), ({"front": "open_interest"}, "2025-03-17"),
        ({"front": "open_interest", "open_interest": tmp_path / "oi.csv"}, "2025-03-10"),
        ({"front": "expiry"}, "2025-03-14"), ({"front": "expiry", "roll_days": 2}, "2025-03-19"),
        ({"front": "expiry", "expiries": tmp_path / "expiries.csv", "roll_days": 3}, "2025-03-18"),
        ({"front": "dates", "roll_dates": tmp_path / "dates.csv"}, "2025-03-12"),
    ]:
        result = import_file(path, "ES", ImportOptions(**options))
        second = result.bars.ts_open[result.bars.contract == result.contracts.index("ESM5")]
        assert str(pd.Timestamp(second[0]).date()) == expected, options
        assert len(result.bars) + result.report.reported["other_contracts"] == result.report.rows_in


def test_the_importer_reads_a_written_schedule_as_its_roll_table(tmp_path: Path):
    path = tmp_path / "es.parquet"
    table = several_contracts(path)
    by_rule = import_file(path, "ES", ImportOptions(front="expiry"))
    schedule = choose_front(ExpiryRoll(), table, ES)
    write_roll_table(tmp_path / "contracts.csv", schedule)
    frame = pd.DataFrame({"ts_utc": pd.to_datetime(by_rule.bars.ts_open, utc=True), "volume": by_rule.bars.volume}
                         | {name: getattr(by_rule.bars, name) for name in ("open", "high", "low", "close")})
    (tmp_path / "front").mkdir()
    frame.to_parquet(tmp_path / "front" / "es.parquet")
    again = import_file(tmp_path / "front", "ES", ImportOptions(contracts=tmp_path / "contracts.csv"))
    assert again.contracts == list(NAMES) == by_rule.contracts
    np.testing.assert_array_equal(again.bars.contract, by_rule.bars.contract)


def test_options_of_another_rule_are_refused(tmp_path: Path):
    for values in ({"front": "dates"}, {"front": "volume", "expiries": tmp_path}, {"open_interest": tmp_path},
                   {"front": "volume", "roll_days": 3}):
        with pytest.raises(ValueError, match="front"):
            ImportOptions(**values)
