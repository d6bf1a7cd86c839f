"""Real trades and quotes: exact counts of what is accepted and left out, the spread symbol, the clock offset."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from algospace.errors import InputError
from algospace.marketdata.ticks import (
    QuoteImportOptions,
    TickCatalog,
    TickImportOptions,
    import_quotes,
    import_ticks,
    looks_like_quotes,
    looks_like_ticks,
)

ES = "ticks/esm8_trades_20180507.parquet"
NQ = "ticks/nqm5_trades_20250504_databento.parquet"
BTC = "ticks/binance_usdm_btcusdt_20240808_trades.parquet"
BBO = "ticks/binance_usdm_btcusdt_20240808_bbo.parquet"
SPY = "ticks/spy_trade_ticks_2013_10.parquet"


def test_kinds_of_files_are_told_apart(data_root: Path) -> None:
    assert all(looks_like_ticks(data_root / name) for name in (ES, NQ, BTC, SPY))
    assert looks_like_quotes(data_root / BBO)
    assert not looks_like_ticks(data_root / BBO)
    for bars in ("nq_1m", "es_1m/es_1m.parquet", "raw/nq_30m_tradestation.csv", "daily/vix_1d.parquet",
                 "futures_hourly/hour_DOW.parquet", "equities", "btc_1m", "nq_cl_30m_volume"):
        assert not looks_like_ticks(data_root / bars), bars
        assert not looks_like_quotes(data_root / bars), bars


def test_es_trades_are_all_kept(data_root: Path) -> None:
    result = import_ticks(data_root / ES, "ES")
    raw = pd.read_parquet(data_root / ES)
    assert (result.report.rows_in, result.report.rows_out, result.report.bad_rows) == (74_907, 74_907, 0)
    np.testing.assert_array_equal(result.ticks.ts, raw["ts_utc"].dt.as_unit("ns").astype(np.int64))
    np.testing.assert_array_equal(result.ticks.price, raw["price"])
    assert np.isnan(result.ticks.size).all()
    assert "size: no such column, so unknown" in result.report.guesses


def test_nq_keeps_the_front_contract_and_sets_the_spread_aside(data_root: Path) -> None:
    result = import_ticks(data_root / NQ, "NQ")
    report, ticks = result.report, result.ticks
    assert (report.rows_in, report.rows_out, report.bad_rows) == (9_887, 9_846, 0)
    assert report.filtered == {"spread_symbol": 14, "other_symbol": 27}
    assert result.contracts == ["NQM5"]
    raw = pd.read_parquet(data_root / NQ).query("symbol == 'NQM5'")
    np.testing.assert_array_equal(ticks.price, raw["price"])
    np.testing.assert_array_equal(ticks.ts_recv, raw["ts_recv"].astype(np.int64))
    np.testing.assert_array_equal(ticks.aggressor, raw["side"].map({"B": 1, "A": -1, "N": 0}))
    assert ticks.price.min() > 10_000  # a spread trades at a difference of prices
    assert report.clock is not None
    assert report.clock.offset_ns == 0
    both = import_ticks(data_root / NQ, "NQ", TickImportOptions(symbols=("NQM5", "NQU5"), max_bad_fraction=0.01))
    assert both.report.rows_out + both.report.bad_rows == 9_873
    with pytest.raises(InputError, match="no symbol is an outright contract of ES"):
        import_ticks(data_root / NQ, "ES")


def test_btcusdt_receive_clock_is_found_1_27_s_behind(data_root: Path) -> None:
    kept = import_ticks(data_root / BTC, "BTCUSDT")
    clock = kept.report.clock
    assert clock is not None
    assert clock.offset_ns == pytest.approx(-1_270_000_000, abs=20_000_000)
    assert clock.received_early == kept.report.rows_out == 21_313
    fixed = import_ticks(data_root / BTC, "BTCUSDT", TickImportOptions(correct_clock=True))
    assert fixed.ticks.ts_recv is not None
    delay = fixed.ticks.ts_recv - fixed.ticks.ts
    assert (delay < 0).mean() <= 0.002
    assert delay.min() > -1_000_000
    raw = pd.read_parquet(data_root / BTC)
    np.testing.assert_array_equal(kept.ticks.aggressor, np.where(raw["buyer_is_maker"], -1, 1))
    np.testing.assert_array_equal(kept.ticks.ts, raw["exch_ms"] * 10**6)
    received = import_ticks(data_root / BTC, "BTCUSDT", TickImportOptions(clock="receive"))
    np.testing.assert_array_equal(received.ticks.ts, raw["local_ns"])


def test_btcusdt_quotes_take_the_offset_of_the_trades_and_surround_them(data_root: Path) -> None:
    trades = import_ticks(data_root / BTC, "BTCUSDT")
    assert trades.report.clock is not None
    offset = trades.report.clock.offset_ns
    result = import_quotes(data_root / BBO, "BTCUSDT", QuoteImportOptions(clock_offset_ns=offset))
    assert (result.report.rows_in, result.report.rows_out, result.report.bad_rows) == (66_089, 66_089, 0)
    raw = pd.read_parquet(data_root / BBO)
    np.testing.assert_array_equal(result.quotes.ts, raw["local_ns"] - offset)
    np.testing.assert_array_equal(result.quotes.bid_size, raw["bid_qty"])

    def at_the_touch(ts: np.ndarray) -> float:
        """Share of the trades that are at the bid or the ask of the last quote before them."""
        row = np.searchsorted(ts, trades.ticks.ts, side="right") - 1
        price, row = trades.ticks.price[row >= 0], row[row >= 0]
        distance = np.minimum(abs(price - result.quotes.bid[row]), abs(price - result.quotes.ask[row]))
        return float((distance < 0.05).mean())

    assert at_the_touch(result.quotes.ts) > 3 * at_the_touch(raw["local_ns"].to_numpy())


def test_spy_conditions_are_counted_and_new_york_time_is_understood(data_root: Path) -> None:
    started = time.perf_counter()
    result = import_ticks(data_root / SPY, "SPY")
    seconds = time.perf_counter() - started
    report, ticks = result.report, result.ticks
    assert (report.rows_in, report.rows_out, report.bad_rows) == (1_887_460, 1_885_509, 0)
    assert report.zone == "America/New_York"
    assert report.conditions["regular"] == 943_655
    assert report.conditions["intermarket_sweep"] == 912_703
    assert report.filtered["condition:average_price"] == report.conditions["average_price"] == 1_624
    assert report.filtered_rows == 1_951
    assert report.reported["flagged_by_vendor"] == 10
    raw = pd.read_parquet(data_root / SPY)
    utc = raw["ts_ny"].dt.tz_localize("America/New_York").dt.tz_convert("UTC").dt.as_unit("ns").astype(np.int64)
    codes = raw["cond"].astype(str).map(lambda text: int(text, 16)).to_numpy()
    left_out = sum(1 << bit for bit in (1, 2, 3, 9, 11, 14, 18, 20, 22, 24, 25, 26))
    keep = (codes & left_out) == 0
    np.testing.assert_array_equal(ticks.ts, utc[keep])
    np.testing.assert_array_equal(ticks.price, raw["price"][keep])
    assert {row["price"] for row in report.largest_outliers} == {165.59}  # the rows that the vendor suspects
    assert seconds < 15  # about 1.3 s on an idle core
    everything = import_ticks(data_root / SPY, "SPY", TickImportOptions(exclude_conditions=(), drop_flagged=True))
    assert (everything.report.rows_out, everything.report.filtered) == (1_887_450, {"flagged_by_vendor": 10})


def test_spy_through_the_catalog_day_by_day(data_root: Path, tmp_path: Path) -> None:
    result = import_ticks(data_root / SPY, "SPY")
    catalog = TickCatalog(tmp_path)
    assert catalog.write_import("SPY", result).added == 1_885_509
    assert catalog.write_import("SPY", result).days == 0
    assert catalog.days("SPY") == [f"2013-10-{day:02d}" for day in (7, 8, 9, 10, 11)]
    prices = np.concatenate([ticks.price for _, ticks in catalog.iterate("SPY")])
    np.testing.assert_array_equal(prices, result.ticks.price)
