"""Properties: times agree with independent libraries; imports conserve rows; the catalog merges to one truth."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.marketdata import Catalog, ImportOptions, import_file
from algospace.marketdata.quality import RULES, judge_order
from algospace.marketdata.timestamps import (
    NO_TIME,
    assemble,
    civil_from_days,
    days_from_civil,
    read_fields,
    to_utc,
)
from algospace.types import Bars

QUICK = settings(max_examples=40, deadline=None)
MOMENTS = st.datetimes(datetime(1971, 1, 1), datetime(2099, 12, 31)).map(lambda t: t.replace(microsecond=0))


def read_times(texts: list[str], day_first: bool) -> np.ndarray:
    fields = read_fields(pa.array(texts, pa.large_string()))
    out, swapped = np.empty(len(texts), np.int64), np.empty(len(texts), np.bool_)
    assemble(fields.layout, fields.year, fields.first, fields.second, fields.nanos, fields.shift, day_first, out,
             swapped)
    return out


@QUICK
@given(st.lists(MOMENTS, min_size=1, max_size=20), st.sampled_from(
    ["%Y-%m-%d %H:%M:%S", "%Y%m%d%H%M%S", "%d/%m/%Y %H:%M:%S", "%-d.%-m.%Y %-H:%M:%S", "%Y-%m-%dT%H:%M:%S.000Z"]))
def test_time_texts_read_back(moments: list[datetime], pattern: str) -> None:
    expected = [int(t.replace(tzinfo=UTC).timestamp()) * 10**9 for t in moments]
    np.testing.assert_array_equal(read_times([t.strftime(pattern) for t in moments], True), expected)


@QUICK
@given(st.lists(st.text(max_size=24), min_size=1, max_size=10))
def test_nonsense_is_unreadable_or_a_plausible_time_but_never_a_crash(texts: list[str]) -> None:
    out = read_times(texts, True)
    known = out[out != NO_TIME]
    assert ((known > -6 * 10**18) & (known < 8 * 10**18)).all()


@QUICK
@given(st.integers(-100_000, 100_000))
def test_civil_dates_agree_with_datetime(days: int) -> None:
    date = datetime(1970, 1, 1) + timedelta(days=days)
    assert civil_from_days(days) == (date.year, date.month, date.day)
    assert days_from_civil(date.year, date.month, date.day) == days


@QUICK
@given(st.sampled_from(["America/Chicago", "Asia/Jerusalem", "Europe/London", "Australia/Sydney", "UTC"]),
       st.datetimes(datetime(2000, 1, 1), datetime(2050, 1, 1)), st.sampled_from([5, 30, 60]))
def test_local_clock_in_order_gives_the_utc_instants_back(zone: str, start: datetime, minutes: int) -> None:
    # hourly instants over a year cross every clock change
    utc = start.replace(tzinfo=UTC, second=0, microsecond=0) + np.arange(0, 9000) * timedelta(minutes=minutes)
    local = [t.astimezone(ZoneInfo(zone)).replace(tzinfo=UTC) for t in utc]
    ns = np.array([int(t.timestamp()) for t in local]) * 10**9
    back, _ = to_utc(ns, zone)
    np.testing.assert_array_equal(back, np.array([int(t.timestamp()) for t in utc]) * 10**9)


@QUICK
@given(st.lists(st.integers(0, 60), min_size=1, max_size=60))
def test_what_is_left_is_strictly_increasing(minutes: list[int]) -> None:
    ts = np.array(minutes, np.int64) * 60 * 10**9
    codes = np.zeros(ts.size, np.uint8)
    judge_order(ts, ts, codes)
    assert (np.diff(ts[codes == 0]) > 0).all()
    assert (codes == 0).any()
    if (np.diff(ts) > 0).all():
        assert not codes.any()


CELLS = st.sampled_from(["nan", "-1", "1e9", "inf", "", "x"])


@QUICK
@given(st.lists(st.tuples(st.integers(0, 39), st.integers(1, 5), CELLS), max_size=6), st.lists(
    st.integers(0, 39), max_size=3))
def test_every_row_is_kept_or_quarantined_with_a_rule(faults: list[tuple[int, int, str]],
                                                       short: list[int]) -> None:
    lines = [[f"2024-03-04 15:{k:02d}", "10", "11", "9", "10.5", "3"] for k in range(40)]
    for row, column, text in faults:
        lines[row][column] = text
    for row in short:
        lines[row] = lines[row][:3]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.csv"
        path.write_text("ts_utc,open,high,low,close,volume\n" + "\n".join(",".join(line) for line in lines) + "\n")
        result = import_file(path, "ES", ImportOptions(max_bad_fraction=1.0))
    rows = result.quarantine.column("row").to_pylist()
    assert len(result.bars) + len(rows) == result.report.rows_in == 40
    assert len(set(rows)) == len(rows)
    assert set(result.quarantine.column("rule").to_pylist()) <= set(RULES)
    assert set(rows) <= {row + 2 for row, *_ in faults} | {row + 2 for row in short}
    assert np.isfinite(result.bars.close).all()


def some_bars(n: int, seed: int, volume: bool = True) -> Bars:
    rng = np.random.default_rng(seed)
    start = pd.Timestamp("2024-01-30").value
    close = 100 + rng.normal(0, 1, n).cumsum() * 0.1
    return Bars(start + np.arange(n) * 3600 * 10**9, close, close + 1, close - 1, close,
                rng.integers(0, 9, n).astype(float) if volume else np.full(n, np.nan), 3600 * 10**9,
                np.sort(rng.integers(0, 3, n)).astype(np.int32))


def same(a: Bars, b: Bars) -> bool:
    return a.width_ns == b.width_ns and all(
        np.array_equal(getattr(a, name), getattr(b, name), equal_nan=name != "ts_open")
        for name in ("ts_open", "open", "high", "low", "close", "volume", "contract"))


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 1500), st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_catalog_of_overlapping_parts_is_the_catalog_of_the_whole(n: int, a: float, b: float,
                                                                   volume: bool) -> None:
    bars = some_bars(n, n, volume)
    low, high = sorted((int(a * (n - 1)), int(b * (n - 1))))
    with tempfile.TemporaryDirectory() as folder:
        whole, parts = Catalog(Path(folder) / "w"), Catalog(Path(folder) / "p")
        names = ["H", "M", "U"]
        whole.write("ES", bars, names)
        parts.write("ES", bars.slice(low, n), names)
        parts.write("ES", bars.slice(0, high + 1), names)
        assert same(parts.read("ES"), bars)
        again = whole.write("ES", bars, names)
        assert (again.months, again.added, again.replaced) == (0, 0, 0)
        assert whole.manifest("ES")["months"].keys() == parts.manifest("ES")["months"].keys()
        as_of = int(bars.ts_open[low]) + bars.width_ns
        assert same(whole.read("ES", as_of_ns=as_of), bars.slice(0, low + 1))
        assert same(whole.read("ES", as_of_ns=as_of - 1), bars.slice(0, low))
        window = whole.read("ES", int(bars.ts_open[low]), int(bars.ts_open[high]))
        assert same(window, bars.slice(low, high))
