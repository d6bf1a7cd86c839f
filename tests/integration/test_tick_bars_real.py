"""Bars, flow and book columns on real prints: ES, NQ, SPY and BTCUSDT."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from algospace.features.book import book_columns
from algospace.features.clock_bars import base_and_slow_bars
from algospace.features.flow import FlowState, flow_columns
from algospace.features.flow_bars import with_flow
from algospace.features.tick_bars import BarBuilder, build_bars
from algospace.instruments import instrument
from algospace.types import MINUTE_NS, SECOND_NS, Quotes, Ticks


def nanoseconds(column) -> np.ndarray:
    index = pd.DatetimeIndex(column)
    utc = index.tz_convert(None) if index.tz else index
    return utc.to_numpy().astype("datetime64[ns]").astype(np.int64)


def read_es(root: Path) -> Ticks:
    table = pq.read_table(root / "ticks" / "esm8_trades_20180507.parquet")
    price = table["price"].to_numpy()
    return Ticks(nanoseconds(table["ts_utc"].to_pandas()), price, np.full(price.size, np.nan))


def read_nq(root: Path) -> Ticks:
    table = pq.read_table(root / "ticks" / "nqm5_trades_20250504_databento.parquet").to_pandas()
    table = table[table["symbol"] == "NQM5"]  # the file also holds a calendar spread
    side = table["side"].map({"B": 1, "A": -1}).fillna(0).to_numpy(np.int8)
    return Ticks(nanoseconds(table["ts_event"]), table["price"].to_numpy(), table["size"].to_numpy(np.float64),
                 aggressor=side, ts_recv=nanoseconds(table["ts_recv"]))  # fmt: skip


def read_spy(root: Path) -> Ticks:
    table = pq.read_table(root / "ticks" / "spy_trade_ticks_2013_10.parquet", columns=["ts_ny", "price", "qty"])
    local = pd.DatetimeIndex(table["ts_ny"].to_numpy()).tz_localize("America/New_York").tz_convert("UTC")
    return Ticks(nanoseconds(local), table["price"].to_numpy(), table["qty"].to_numpy().astype(np.float64))


def read_btc(root: Path) -> tuple[Ticks, Quotes]:
    trades = pq.read_table(root / "ticks" / "binance_usdm_btcusdt_20240808_trades.parquet").to_pandas()
    trades = trades[trades["type"] == "MARKET"]
    side = np.where(trades["buyer_is_maker"], -1, 1).astype(np.int8)
    columns = [trades[name].to_numpy() for name in ("local_ns", "price", "qty")]
    ticks = Ticks(*columns, aggressor=side)
    book = pq.read_table(root / "ticks" / "binance_usdm_btcusdt_20240808_bbo.parquet")
    columns = [book[name].to_numpy() for name in ("local_ns", "bid", "ask", "bid_qty", "ask_qty")]
    return ticks, Quotes(*columns)


READERS = {"ES": read_es, "NQ": read_nq, "SPY": read_spy, "BTCUSDT": lambda root: read_btc(root)[0]}


@pytest.mark.parametrize("symbol", READERS)
def test_bars_equal_a_resampling_of_the_accepted_prints(data_root, symbol):
    ticks = READERS[symbol](data_root)
    series = build_bars(ticks, ["30s", "5m"])
    for name, rule in (("30s", "30s"), ("5m", "5min")):
        bars = series[name]
        in_order = ticks.ts >= np.maximum.accumulate(ticks.ts)
        kept = ticks.take(in_order & (ticks.price > 0))
        assert bars.late + bars.invalid == len(ticks) - len(kept)
        frame = pd.DataFrame({"price": kept.price, "size": kept.size}, index=pd.to_datetime(kept.ts, utc=True))
        groups = frame.resample(rule)
        prices = groups["price"].ohlc().dropna()
        n = len(bars)
        assert len(prices) - n == 1  # the last one is still open
        np.testing.assert_array_equal(bars.ts_open, nanoseconds(prices.index)[:n])
        for column in ("open", "high", "low", "close"):
            np.testing.assert_array_equal(getattr(bars, column), prices[column][:n], err_msg=column)
        volume = groups["size"].sum().reindex(prices.index).to_numpy()[:n]
        if symbol == "ES":
            assert np.isnan(bars.volume).all()
        else:
            np.testing.assert_allclose(bars.volume, volume, rtol=1e-12)


@pytest.mark.parametrize("symbol", READERS)
def test_tick_by_tick_equals_batch_on_real_prints(data_root, symbol):
    ticks = READERS[symbol](data_root).take(slice(0, 20_000))
    frames = ["1s", "1m", "5m", "tick:250"] + (["volume:1000", "dollar:5e6"] if symbol != "ES" else [])
    batch = build_bars(ticks, frames)
    builder, found = BarBuilder(frames), {name: [] for name in frames}
    for tick in zip(ticks.ts.tolist(), ticks.price.tolist(), ticks.size.tolist(), strict=True):
        for bar in builder.push(*tick):
            found[bar.frame].append(bar)
    for name, series in batch.items():
        assert len(series) == len(found[name]) > 0
        for column in ("ts_open", "ts_close", "open", "high", "low", "close", "volume", "count"):
            np.testing.assert_array_equal(getattr(series, column), [getattr(bar, column) for bar in found[name]])


def test_information_bars_hold_their_amount(data_root):
    ticks = READERS["SPY"](data_root)
    series = build_bars(ticks, ["tick:1000", "volume:100000", "dollar:2e7"])
    assert (series["tick:1000"].count == 1000).all()
    assert (series["volume:100000"].volume >= 100_000).all()
    bars = series["dollar:2e7"]
    before_last = bars.volume - ticks.size[bars.last_row]
    assert (bars.volume * bars.high >= 2e7).all()
    assert (before_last * bars.low < 2e7).all()
    bars = series["volume:100000"]
    assert bars.volume.sum() == ticks.size[: bars.last_row[-1] + 1].sum()


def test_flow_of_nq_follows_the_tape(data_root):
    ticks = read_nq(data_root)
    pair = base_and_slow_bars(ticks, MINUTE_NS, 30 * MINUTE_NS)
    flow = flow_columns(ticks, pair.base["ts_close"], MINUTE_NS, instrument("NQ"), grace_ns=SECOND_NS)
    real = pair.base["filled"] == 0
    buys, sells = ticks.aggressor > 0, ticks.aggressor < 0
    inside = ticks.ts < pair.base["ts_close"][-1]
    assert flow["trade_count"].sum() == inside.sum()
    assert flow["buy_volume"].sum() == ticks.size[buys & inside].sum()
    assert flow["session_delta"][-1] == ticks.size[buys & inside].sum() - ticks.size[sells & inside].sum()
    assert (flow["vwap"][real] <= pair.base["high"][real]).all()
    assert (flow["vwap"][real] >= pair.base["low"][real]).all()
    moves = np.sign(pair.base["close"] - pair.base["open"])
    assert np.corrcoef(moves, flow["order_imbalance"])[0, 1] > 0.3  # buying moves the price up
    by_rule = flow_columns(ticks, pair.base["ts_close"], MINUTE_NS, sides="tick_rule", grace_ns=SECOND_NS)
    assert np.corrcoef(by_rule["signed_volume"], flow["signed_volume"])[0, 1] > 0.5


def test_flow_of_es_needs_prices_only(data_root):
    ticks = read_es(data_root)
    bars = build_bars(ticks, ["5m"])["5m"]
    flow = flow_columns(ticks, bars.ts_close, 5 * MINUTE_NS, instrument("ES"), sides="tick_rule")
    np.testing.assert_array_equal(flow["trade_count"], bars.count)
    beside = with_flow(ticks, bars, instrument("ES"), sides="tick_rule").flow
    np.testing.assert_array_equal(beside["signed_volume"], flow["signed_volume"])
    assert all(np.isfinite(column).all() for column in flow.values())


def test_the_book_of_btcusdt_beside_its_bars(data_root):
    ticks, quotes = read_btc(data_root)
    width = 10 * SECOND_NS
    rows = build_bars(ticks, ["10s"])["10s"].ts_close
    book = book_columns(quotes, rows, width, instrument("BTCUSDT"))
    seen = rows > quotes.ts[0]
    assert all(np.isfinite(column[seen]).all() for column in book.values())
    last = np.searchsorted(quotes.ts, rows[seen], side="right") - 1
    np.testing.assert_array_equal(book["book_mid"][seen], (quotes.bid[last] + quotes.ask[last]) / 2)
    np.testing.assert_array_equal(book["book_bid_depth"][seen], quotes.bid_size[last])
    assert (book["book_spread"][seen] >= 0).all()
    assert (np.abs(book["book_microprice_offset"][seen]) <= book["book_spread"][seen] / 2 + 1e-9).all()
    state, joined = FlowState(width, "aggressor"), flow_columns(ticks, rows, width)
    assert set(state.columns) == set(joined)
    change = np.diff(book["book_mid"][seen])
    assert np.corrcoef(change, book["book_ofi"][seen][1:])[0, 1] > 0.3  # Cont, Kukanov and Stoikov's finding
