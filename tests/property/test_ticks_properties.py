"""Properties of tick imports: no row is lost, no exception but the error tree, no half-written catalog."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.errors import AlgoSpaceError
from algospace.marketdata.ticks import TickCatalog, TickImportOptions, TickImportResult, import_ticks
from algospace.marketdata.ticks.rules import RULES, judge_order
from algospace.marketdata.timestamps import to_utc
from algospace.types import DAY_NS, SECOND_NS, Ticks

QUICK = settings(max_examples=40, deadline=None)
START = int(pd.Timestamp("2024-03-04 15:00").value)
CELLS = {"ts_event": ["", "soon", "0", "-5", "9" * 25, "2024-03-04 15:00:01", "1709564400000000000"],
         "price": ["", "x", "nan", "inf", "-1", "0", "1e400", "5000.25"],
         "size": ["", "-1", "0", "many", "nan", "3"], "symbol": ["", "ESH4-ESM4", "ESH4"],
         "cond": ["", "20100000", "1", "2000"], "sequence": ["", "7", "x", "-1"]}
BROKEN_CELL = st.tuples(st.integers(0, 199), st.sampled_from(sorted(CELLS)), st.integers(0, 9))


def frame(n: int, seed: int) -> pd.DataFrame:
    """n plausible trades with every kind of column."""
    rng = np.random.default_rng(seed)
    ts = START + np.cumsum(rng.integers(0, 10**9, n))
    return pd.DataFrame({"ts_event": ts, "ts_recv": ts + rng.integers(1, 10**6, n), "symbol": "ESH4",
                         "price": 5000 + 0.25 * np.cumsum(rng.integers(-1, 2, n)), "size": rng.integers(1, 9, n),
                         "cond": rng.choice(["1", "20000020", "20100000"], n), "sequence": np.arange(n)})


def lenient_import(path: Path) -> TickImportResult | None:
    """The import without a limit of bad rows; None if it refused the file in one line."""
    try:
        return import_ticks(path, "ES", TickImportOptions(max_bad_fraction=1.0))
    except AlgoSpaceError as error:
        if "\n" in str(error):
            raise AssertionError("an error is one line") from error
        return None


def rows_are_conserved(result: TickImportResult, rows: int) -> None:
    report = result.report
    assert report.rows_in == rows
    assert report.rows_in == len(result.ticks) + report.filtered_rows + report.bad_rows
    assert result.quarantine.num_rows == report.bad_rows
    assert np.isfinite(result.ticks.price).all()
    assert (result.ticks.price > 0).all()
    assert (np.diff(result.ticks.ts) >= 0).all()
    assert set(result.quarantine.column("rule").to_pylist()) <= set(RULES)


@QUICK
@given(st.integers(0, 99), st.lists(BROKEN_CELL, max_size=25), st.sets(st.integers(0, 199), max_size=5),
       st.booleans())
def test_broken_cells_and_lines_cost_their_own_rows_only(seed: int, cells: list[tuple[int, str, int]],
                                                         torn: set[int], shuffled: bool) -> None:
    data = frame(200, seed).astype(str)
    for row, column, pick in cells:
        data.loc[row, column] = CELLS[column][pick % len(CELLS[column])]
    if shuffled:
        data = data.sample(frac=1, random_state=seed)
    lines = data.to_csv(index=False).splitlines()
    for row in torn:
        lines[row + 1] += ",and,more"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        result = lenient_import(path)
        if result is None:
            return
        rows_are_conserved(result, 200)
        touched = len({row for row, *_ in cells} | torn)
        if not shuffled:  # a wrong time that fits the order may cost its neighbours; the rest stays
            assert len(result.ticks) + result.report.filtered_rows >= 200 - 12 * touched - 1


@QUICK
@given(st.integers(0, 10**6), st.sampled_from(["cut", "flip", "noise"]))
def test_damaged_parquet_is_refused_or_read_but_never_a_crash(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    buffer = io.BytesIO()
    frame(300, 1).to_parquet(buffer, compression=None if seed % 2 else "snappy")
    data = bytearray(buffer.getvalue())
    if kind == "cut":
        data = data[:int(rng.integers(0, len(data)))]
    elif kind == "flip":
        for at in rng.integers(0, len(data), 5):
            data[at] ^= 1 << int(rng.integers(0, 8))
    else:
        at = int(rng.integers(0, len(data) - 60))
        data[at:at + 50] = rng.bytes(50)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.parquet"
        path.write_bytes(data)
        result = lenient_import(path)
        if result is not None:
            rows_are_conserved(result, result.report.rows_in)


@QUICK
@given(st.lists(st.sampled_from([1, 2.5, "x", None, True, "5000"]), min_size=1, max_size=20),
       st.sampled_from(["price", "ts_event", "size", "symbol", "cond", "sequence"]))
def test_columns_of_mixed_types(values: list[object], column: str) -> None:
    data = frame(len(values), 3)
    data[column] = pd.Series(values, dtype=object).map(lambda v: None if v is None else str(v))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.parquet"
        data.to_parquet(path)
        result = lenient_import(path)
        if result is not None:
            rows_are_conserved(result, len(values))


@QUICK
@given(st.integers(0, 10**6), st.integers(1, 5))
def test_messages_sent_again_are_found_wherever_they_come(seed: int, blocks: int) -> None:
    rng = np.random.default_rng(seed)
    data = frame(300, seed).drop(columns="cond")
    again, copies = data, 0
    for _ in range(blocks):
        start = int(rng.integers(0, 250))
        block = data.iloc[start:start + int(rng.integers(2, 40))]
        at = int(rng.integers(start + len(block), 300 + 1)) if start + len(block) < 300 else 300
        position = int(np.searchsorted(again["sequence"].cummax(), at))
        again = pd.concat([again.iloc[:position], block, again.iloc[position:]], ignore_index=True)
        copies += len(block)
    with tempfile.TemporaryDirectory() as folder:
        again.to_parquet(Path(folder) / "t.parquet")
        result = import_ticks(Path(folder) / "t.parquet", "ES", TickImportOptions(max_bad_fraction=1.0))
    rows_are_conserved(result, len(again))
    np.testing.assert_array_equal(result.ticks.ts, data["ts_event"])
    assert result.report.quarantined == {"duplicate": copies}


@QUICK
@given(st.lists(st.integers(0, 400), min_size=1, max_size=80), st.integers(0, 50))
def test_what_is_left_never_goes_back_by_more_than_allowed(seconds: list[int], allowed: int) -> None:
    ts = np.array(seconds, np.int64) * SECOND_NS
    codes = np.zeros(ts.size, np.uint8)
    judge_order(ts, codes, allowed * SECOND_NS, 60 * SECOND_NS)
    left = ts[codes == 0]
    assert left.size
    assert (np.diff(left) >= -allowed * SECOND_NS).all()


@QUICK
@given(st.sampled_from(["America/New_York", "Europe/London", "Australia/Sydney"]), st.integers(0, 10**6))
def test_local_ticks_in_order_get_their_instants_back(zone: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    start = pd.Timestamp("2023-09-01", tz="UTC") + pd.Timedelta(days=int(rng.integers(0, 200)))
    # steps below an hour, many of them none: ticks share instants
    seconds = np.cumsum(rng.choice([0, 0, 1, 600, 3000], 3000))
    utc = start.value + seconds * SECOND_NS
    local = pd.DatetimeIndex(utc, tz="UTC").tz_convert(ZoneInfo(zone)).tz_localize(None).as_unit("ns").asi8
    back, _ = to_utc(local, zone, equal_times=True)
    np.testing.assert_array_equal(back, utc)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6))
def test_files_in_any_order_and_repeatedly_make_one_catalog(seed: int, pieces: int) -> None:
    rng = np.random.default_rng(seed)
    n = 400
    ts = START + np.cumsum(rng.choice([1, 10**9, 2000 * SECOND_NS], n))  # days apart, no instant shared
    ticks = Ticks(ts, 5000 + rng.integers(0, 9, n) / 4, rng.integers(1, 5, n).astype(float))
    cuts = np.r_[0, np.sort(rng.choice(np.arange(1, n), pieces - 1, replace=False)), n]
    order = rng.permutation(np.repeat(np.arange(pieces), 2))
    with tempfile.TemporaryDirectory() as folder:
        catalog = TickCatalog(folder)
        for k in order:
            catalog.write("ES", ticks.take(slice(int(cuts[k]), int(cuts[k + 1]))), source=f"file{k}")
        read = catalog.read("ES")
        for name, column in ticks.columns().items():
            np.testing.assert_array_equal(column, read.columns()[name])
        days = catalog.manifest("ES")["days"]
        assert sum(day["rows"] for day in days.values()) == n
        assert list(days) == sorted({str(np.datetime64(int(t) // DAY_NS, "D")) for t in ts})
        assert not [p for p in Path(folder).iterdir() if p.name.startswith(".")]
