"""Quotes: their rules, and the clock offset that the trades of the venue show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from algospace.errors import InputError
from algospace.features.book import book_columns
from algospace.marketdata.ticks import QuoteImportOptions, QuoteImportResult, import_quotes
from algospace.marketdata.ticks.quality import iso_precise
from algospace.types import MINUTE_NS, SECOND_NS

START = 1_723_161_255_088_169_167


def frame(n: int = 2000) -> pd.DataFrame:
    """n plausible best bids and asks."""
    bid = 61800 + 0.1 * np.cumsum(np.random.default_rng(2).integers(-1, 2, n))
    return pd.DataFrame({"local_ns": START + np.arange(n) * 10**7, "bid": bid, "bid_qty": 1.5, "ask": bid + 0.1,
                         "ask_qty": 2.0})


def read(tmp_path: Path, data: pd.DataFrame, **options: object) -> QuoteImportResult:
    data.to_parquet(tmp_path / "q.parquet")
    result = import_quotes(tmp_path / "q.parquet", "BTCUSDT", QuoteImportOptions(**options))  # type: ignore
    report = result.report
    assert report.rows_in == len(result.quotes) + report.filtered_rows + report.bad_rows == len(data)
    assert result.quarantine.num_rows == report.bad_rows
    return result


def test_receive_times_stamp_quotes_that_have_no_other(tmp_path: Path) -> None:
    result = read(tmp_path, frame())
    np.testing.assert_array_equal(result.quotes.ts, frame()["local_ns"])
    np.testing.assert_array_equal(result.quotes.ask_size, 2.0)
    assert result.report.stamped_by == "receive"
    moved = read(tmp_path, frame(), clock_offset_ns=-1_271_000_000)
    np.testing.assert_array_equal(moved.quotes.ts, frame()["local_ns"] + 1_271_000_000)


def test_event_times_stamp_quotes_that_have_them(tmp_path: Path) -> None:
    data = frame().assign(ts_event=frame()["local_ns"] - 10**6)
    result = read(tmp_path, data)
    np.testing.assert_array_equal(result.quotes.ts, data["ts_event"])
    np.testing.assert_array_equal(result.quotes.ts_recv, data["local_ns"])
    assert result.report.clock is not None
    assert result.report.clock.median_ns == 10**6


@pytest.mark.parametrize(("column", "value", "rule"), [
    ("bid", np.nan, "non_finite"), ("ask", np.inf, "non_finite"), ("bid", 0.0, "non_positive_price"),
    ("bid", 1e6, "crossed"), ("bid_qty", -1.0, "negative_size"), ("ask_qty", np.nan, "non_finite"),
    ("local_ns", START, "disorder"), ("local_ns", START + 10**15, "from_the_future")])
def test_a_bad_quote_is_quarantined(tmp_path: Path, column: str, value: float, rule: str) -> None:
    data = frame()
    data.loc[40, column] = value
    result = read(tmp_path, data)
    assert result.report.quarantined == {rule: 1}
    assert result.quarantine.to_pylist()[0]["row"] == 41
    with pytest.raises(InputError, match=f"row 41: .*{rule}"):
        read(tmp_path, data.iloc[:300])


def test_locked_quotes_are_counted_and_kept(tmp_path: Path) -> None:
    data = frame()
    data.loc[7, "ask"] = data.loc[7, "bid"]
    result = read(tmp_path, data)
    assert (result.report.reported["locked"], len(result.quotes)) == (1, 2000)


def test_sizes_may_be_absent(tmp_path: Path) -> None:
    result = read(tmp_path, frame()[["local_ns", "bid", "ask"]])
    assert np.isnan(result.quotes.bid_size).all()
    assert "bid_size: unknown" in result.report.guesses


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_databentos_fixed_point_quotes_are_read_in_points(tmp_path: Path, kind: str) -> None:
    bid = np.array([20_000.25, 20_000.5, 20_000.0])
    data = pd.DataFrame({"ts_recv": START + np.arange(3), "ts_event": START + np.arange(3), "rtype": 1,
                         "action": "A", "price": (bid * 1e9).astype(np.int64),
                         "bid_px_00": (bid * 1e9).astype(np.int64),
                         "ask_px_00": ((bid + 0.25) * 1e9).astype(np.int64),
                         "bid_sz_00": 2, "ask_sz_00": 3})
    data.loc[1, "ask_px_00"] = 2**63 - 1  # one side of the book is empty
    path = tmp_path / f"mbp.{kind}"
    data.to_parquet(path) if kind == "parquet" else data.to_csv(path, index=False)
    result = import_quotes(path, "NQ", QuoteImportOptions(max_bad_fraction=0.5))
    assert result.report.layout == "Databento quotes"
    assert result.report.quarantined == {"non_finite": 1}
    np.testing.assert_array_equal(result.quotes.bid, bid[[0, 2]])
    np.testing.assert_array_equal(result.quotes.ask, bid[[0, 2]] + 0.25)


def test_one_update_received_late_does_not_hide_those_after_it(tmp_path: Path) -> None:
    """A file in the order of events is read in the order of receipt, so history is what a live feed would show."""
    data = frame(600).assign(ts_event=START + np.arange(600) * SECOND_NS)
    data["local_ns"] = data["ts_event"] + 10**6
    data.loc[5, "local_ns"] += 1200 * SECOND_NS
    result = read(tmp_path, data)
    assert result.report.reported["received_out_of_order"] == 1
    np.testing.assert_array_equal(result.quotes.bid, np.r_[np.delete(data["bid"], 5), data["bid"][5]])
    assert result.report.first == iso_precise(START)
    rows = START // MINUTE_NS * MINUTE_NS + np.arange(1, 11) * MINUTE_NS
    updates = book_columns(result.quotes, rows, MINUTE_NS)["book_updates"]
    received = np.delete(data["local_ns"].to_numpy(), 5)
    expected = [((received > end - MINUTE_NS) & (received <= end)).sum() for end in rows]
    np.testing.assert_array_equal(updates, expected)
