"""Rolls on real contracts: four hourly files by every rule, and the stated ratios of eleven years of NQ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from algospace.instruments import instrument
from algospace.marketdata import ImportOptions, import_file
from algospace.marketdata.continuous import (
    check_ratios,
    continuous,
    overlap_ratios,
    roll_rows,
    stated_ratios,
    with_found_ratios,
)
from algospace.marketdata.expiries import exchange_holidays, expiry_days
from algospace.marketdata.roll_table import RollSchedule, read_roll_table, write_roll_table
from algospace.marketdata.rolls import (
    ContractRows,
    DatesRoll,
    ExpiryRoll,
    OpenInterestRoll,
    VolumeRoll,
    choose_front,
    day_starts,
    front_rows,
)
from algospace.types import HOUR_NS, Bars

FILES = {"YM": "hour_DOW", "RTY": "hour_RUSSELL", "MES": "hour_SP500_micro", "MNQ": "hour_NASDAQ_micro"}


def contract_rows(path: Path) -> ContractRows:
    frame = pd.read_parquet(path)
    codes, names = pd.factorize(frame["contract"].astype(str))
    ts = frame["ts_utc"].astype("datetime64[ns, UTC]").astype("int64").to_numpy()
    volume, open_, close = (frame[name].to_numpy(np.float64) for name in ("volume", "open", "close"))
    # the files hold no open interest: a running sum of volume stands in, of the same form
    interest = frame.groupby("contract")["volume"].cumsum().to_numpy(np.float64)
    return ContractRows(ts, codes.astype(np.int32), list(names), volume, interest, open_, close)


def front_bars(rows: ContractRows, schedule: RollSchedule) -> Bars:
    kept = np.flatnonzero(front_rows(schedule, rows))
    kept = kept[np.argsort(rows.ts_open[kept], kind="stable")]
    open_, close, volume = (np.asarray(column)[kept] for column in (rows.open, rows.close, rows.volume))
    high, low = np.maximum(open_, close), np.minimum(open_, close)
    return Bars(rows.ts_open[kept], open_, high, low, close, volume, HOUR_NS, rows.contract[kept])


def days_before_expiry(rows: ContractRows, schedule: RollSchedule, symbol: str) -> list[int]:
    """Business days from each roll's trading day to the old contract's expiry."""
    expiry = expiry_days(rows.names, rows.ts_open, rows.contract, instrument(symbol))
    rolls = pd.to_datetime(schedule.first_ts[1:], utc=True).tz_convert("America/Chicago") + pd.Timedelta("7h")
    return [int(np.busday_count(day.date(), expiry[rows.names.index(old)].astype("datetime64[D]"),
                                holidays=exchange_holidays()))
            for day, old in zip(rolls, schedule.contracts, strict=False)]


@pytest.mark.parametrize("symbol", FILES)
def test_every_rule_gives_one_contract_at_a_time_in_order_of_expiry(data_root: Path, tmp_path: Path, symbol: str):
    rows = contract_rows(data_root / "futures_hourly" / f"{FILES[symbol]}.parquet")
    spec = instrument(symbol)
    by_volume = choose_front(VolumeRoll(), rows, spec)
    write_roll_table(tmp_path / "contracts.csv", by_volume)
    again = choose_front(DatesRoll(table=tmp_path / "contracts.csv"), rows, spec)
    np.testing.assert_array_equal(front_rows(again, rows), front_rows(by_volume, rows))
    for rule in (VolumeRoll(), OpenInterestRoll(), ExpiryRoll(), ExpiryRoll(days=0)):
        schedule = choose_front(rule, rows, spec)
        bars = front_bars(rows, schedule)
        assert (np.diff(bars.ts_open) > 0).all()
        assert list(schedule.contracts) == sorted(schedule.contracts)
        assert len(bars) > 38_000
        assert np.isin(schedule.first_ts[1:], day_starts(np.arange(13_000, 21_000), spec.session)).all()
    # volume moves two to five days before expiry; the exchange's own convention is five
    found = days_before_expiry(rows, by_volume, symbol)
    assert set(found) <= {2, 3, 4, 5}
    assert np.mean(np.isin(found, (3, 4))) > 0.75
    assert set(days_before_expiry(rows, choose_front(ExpiryRoll(), rows, spec), symbol)) == {5}


def test_the_spread_of_one_time_keeps_a_weekends_move_out_of_the_factor(data_root: Path):
    """Open to close over a roll on a Monday holds the weekend: up to 1 % against the two contracts' spread."""
    rows = contract_rows(data_root / "futures_hourly" / "hour_SP500_micro.parquet")
    schedule = choose_front(ExpiryRoll(days=4), rows, instrument("MES"))
    bars = front_bars(rows, schedule)
    gap = with_found_ratios(schedule, bars, rows.names).ratio_to_next[:-1]
    spread = overlap_ratios(schedule, rows)[:-1]
    assert np.isfinite(gap).all()
    assert np.isfinite(spread).all()
    assert 0.005 < np.abs(gap / spread - 1).max() < 0.02
    assert (np.abs(spread - 1) < 0.016).all()  # carry of a quarter
    series = continuous(bars, spread)
    assert series.factor[-1] == pytest.approx(1 / np.prod(spread), rel=1e-12)


@pytest.mark.parametrize(("options", "first_of_202412"), [
    ({"front": "volume"}, "2024-09-16 22:00"), ({"front": "expiry"}, "2024-09-12 22:00"),
    ({"front": "expiry", "roll_days": 2}, "2024-09-17 22:00"),
])
def test_the_importer_rolls_mes_by_rule(data_root: Path, options: dict, first_of_202412: str):
    source = data_root / "futures_hourly" / "hour_SP500_micro.parquet"
    result = import_file(source, "MES", ImportOptions(**options))
    assert result.report.bad_rows == 0
    assert len(result.bars) + result.report.reported["other_contracts"] == 91_529
    new = result.bars.ts_open[result.bars.contract == result.contracts.index("202412")]
    assert str(pd.Timestamp(new[0]))[:16] == first_of_202412


def test_the_stated_ratios_of_nq_divide(data_root: Path):
    """32 of 40 rolls agree with the bars to 3e-10; eight were stated from prints one to five ticks away.

    The table's ratio is new open / old close, so our forward factor is 1 / its running product; multiplying
    instead doubles every jump.
    """
    table = read_roll_table(data_root / "nq_1m" / "contracts.csv")
    frame = pd.concat([pd.read_parquet(path, columns=["ts_utc", "open", "close", "contract"])
                       for path in sorted((data_root / "nq_1m").glob("*.parquet"))], ignore_index=True)
    # the last and the first bars of each contract are all that a roll reads
    change = np.flatnonzero(np.diff(frame["contract"].to_numpy())) + 1
    part = frame.iloc[np.unique(np.r_[0, change - 1, change, len(frame) - 1])]
    codes, names = pd.factorize(part["contract"].astype(str))
    open_, close = part["open"].to_numpy(np.float64), part["close"].to_numpy(np.float64)
    bars = Bars(part["ts_utc"].astype("datetime64[ns, UTC]").astype("int64").to_numpy(), open_,
                np.maximum(open_, close), np.minimum(open_, close), close, np.full(len(part), np.nan), 60 * 10**9,
                codes.astype(np.int32))
    rolls = roll_rows(bars)
    assert rolls.size == 40
    mismatches = check_ratios(table, bars, list(names))
    assert len(mismatches) == 8
    assert not any(m.inverse for m in mismatches)
    assert max(abs(m.stated / m.found - 1) for m in mismatches) < 3e-4
    stated = stated_ratios(table, bars, list(names))
    ours = continuous(bars)
    np.testing.assert_allclose(ours.factor[rolls], 1 / np.cumprod(stated), rtol=1.1e-3)
    agrees = np.abs(stated * bars.close[rolls - 1] / bars.open[rolls] - 1) < 1e-9
    assert agrees.sum() == 32
    step = ours.factor[rolls] / ours.factor[rolls - 1]
    np.testing.assert_allclose(step[agrees], 1 / stated[agrees], rtol=1e-9)

    def jumps(series: Bars) -> np.ndarray:
        return np.abs(np.log(series.open[rolls] / series.close[rolls - 1]))

    raw = jumps(bars)
    assert raw.max() == pytest.approx(0.0099, abs=1e-4)
    assert jumps(ours.adjusted).max() < 1e-15
    assert jumps(continuous(bars, stated).adjusted).max() < 3e-4
    wrong = jumps(continuous(bars, 1 / stated).adjusted)  # multiplied instead of divided
    np.testing.assert_allclose(wrong[agrees], 2 * raw[agrees], rtol=1e-5)
    assert wrong.max() > 0.019
