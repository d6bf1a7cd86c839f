"""Ticks: clocks that differ, local times, clock changes, and instants that int64 does not hold."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from algospace.errors import InputError
from algospace.marketdata.ticks.clock import estimate_offset
from algospace.marketdata.timestamps import to_utc
from tests.tick_frames import START, frame, read


def test_clock_offset_is_found_reported_and_corrected_only_if_asked(tmp_path: Path) -> None:
    delay = np.random.default_rng(1).exponential(3e6, 2000).astype(np.int64) + 200_000
    data = frame(2000)
    data["ts_recv"] = data["ts_event"] + delay - 1_270_000_000
    kept = read(tmp_path, data)
    clock = kept.report.clock
    assert clock is not None
    assert clock.offset_ns == pytest.approx(-1_270_000_000, abs=2_000_000)
    assert (clock.received_early, clock.corrected) == (2000, False)
    np.testing.assert_array_equal(kept.ticks.ts_recv, data["ts_recv"])
    fixed = read(tmp_path, data, correct_clock=True)
    np.testing.assert_array_equal(fixed.ticks.ts_recv, data["ts_recv"] - clock.offset_ns)
    assert any("corrected" in line for line in fixed.report.lines())
    known = read(tmp_path, data, clock_offset_ns=-1_270_000_000)
    assert known.report.clock is not None
    assert known.report.clock.offset_ns == 0
    by_receipt = read(tmp_path, data.sort_values("ts_recv"), clock="receive")
    np.testing.assert_array_equal(by_receipt.ticks.ts, np.sort(data["ts_recv"]))


def test_single_wrong_stamps_pass_for_no_clock_offset_and_are_from_the_future(tmp_path: Path) -> None:
    data = frame(2000)
    data["ts_recv"] = data["ts_event"] + np.random.default_rng(1).integers(200_000, 5_000_000, 2000)
    data.loc[[10, 700, 1400, 1999], "ts_event"] += 20 * 10**9
    report = read(tmp_path, data, max_bad_fraction=0.01).report
    assert report.clock is not None
    assert report.clock.offset_ns == 0
    assert report.quarantined == {"from_the_future": 4}
    assert estimate_offset(np.zeros(0, np.int64), np.zeros(0, np.int64)) is None


def test_naive_local_times_across_a_clock_change(tmp_path: Path) -> None:
    utc = pd.date_range("2023-11-05 04:00", "2023-11-05 09:00", freq="20s", tz="UTC").repeat(2)
    local = utc.tz_convert("America/New_York").tz_localize(None)
    data = frame(len(utc)).drop(columns="ts_event").assign(ts_ny=local)
    result = read(tmp_path, data, "SPY")
    np.testing.assert_array_equal(result.ticks.ts, utc.as_unit("ns").asi8)
    assert result.report.zone == "America/New_York"
    assert result.report.reported["ambiguous_local_times"] == 2 * 2 * 180
    skipped = data.assign(ts_ny=pd.date_range("2024-03-10", periods=len(utc) // 2, freq="20s").repeat(2))
    report = read(tmp_path, skipped, "SPY", max_bad_fraction=0.9).report
    assert report.quarantined == {"nonexistent_local_time": 2 * 180}


def test_equal_local_times_stay_one_instant() -> None:
    local = np.full(4, pd.Timestamp("2023-11-05 01:30").value)
    ts, ambiguous = to_utc(local, "America/New_York", equal_times=True)
    assert (np.unique(ts).size, ambiguous) == (1, 4)
    assert ts[0] == pd.Timestamp("2023-11-05 05:30").value


def test_written_offsets_beside_naive_times_are_obeyed(tmp_path: Path) -> None:
    data = frame(3)
    data["ts_event"] = ["2024-03-04 15:00:00+00:00", "2024-03-04 10:00:01", "2024-03-04 16:00:02+01:00"]
    result = read(tmp_path, data, kind="csv", zone="America/New_York")
    assert (result.ticks.ts - START).tolist() == [0, 10**9, 2 * 10**9]
    assert result.report.reported["rows_with_utc_offset"] == 2
    with pytest.raises(InputError, match="contradicts"):
        read(tmp_path, frame(3), zone="America/New_York")


@pytest.mark.parametrize("times", [
    np.array(["2500-01-01", "2024-03-04", "1600-01-01"], "datetime64[s]"),
    [date(9999, 1, 1), date(2024, 3, 4), date(1600, 1, 1)]])
def test_instants_out_of_range_do_not_wrap_around(tmp_path: Path, times: object) -> None:
    data = frame(3)
    data["ts_event"] = pd.Series(times)
    result = read(tmp_path, data, zone="UTC", max_bad_fraction=0.9)
    assert result.ticks.ts.tolist() == [pd.Timestamp("2024-03-04").value]
    assert result.report.quarantined == {"unreadable_time": 2}
