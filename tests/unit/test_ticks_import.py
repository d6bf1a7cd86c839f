"""Ticks: what is guessed, what is left out, which rule a bad row breaks, and that no row disappears."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from algospace.errors import ConfigError, InputError
from algospace.instruments import instrument
from algospace.marketdata import Catalog
from algospace.marketdata.ticks import (
    TickImportOptions,
    import_ticks,
    looks_like_quotes,
    looks_like_ticks,
)
from algospace.marketdata.ticks.conditions import judge_codes, recognise
from algospace.marketdata.ticks.symbols import is_outright, is_spread
from tests.tick_frames import START, frame, read, save


def test_csv_and_parquet_of_the_same_trades_agree_to_the_nanosecond(tmp_path: Path) -> None:
    data = frame()
    data["ts_event"] += 123
    a, b = read(tmp_path, data), read(tmp_path, data, kind="csv")
    for name, column in a.ticks.columns().items():
        np.testing.assert_array_equal(column, b.ticks.columns()[name])
    assert a.ticks.ts[0] == START + 123
    assert set(a.ticks.columns()) == {"ts", "price", "size"}


def test_one_broken_time_costs_only_its_own_row_its_nanoseconds(tmp_path: Path) -> None:
    data = frame()
    data["ts_event"] += 1
    texts = data.assign(ts_event=data["ts_event"].astype(str))
    texts.loc[7, "ts_event"] = "soon"
    result = read(tmp_path, texts, kind="csv", max_bad_fraction=0.1)
    assert result.report.quarantined == {"unreadable_time": 1}
    np.testing.assert_array_equal(result.ticks.ts, np.delete(data["ts_event"].to_numpy(), 7))
    assert result.quarantine.to_pylist()[0]["row"] == 9


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_databento_sides_actions_and_fixed_point_prices(tmp_path: Path, kind: str) -> None:
    data = frame(5).assign(action=["T", "T", "F", "T", "A"], side=["B", "A", "A", "N", "B"], rtype=0)
    data["price"] = (data["price"] * 1e9).astype(np.int64)
    result = read(tmp_path, data, kind=kind)
    assert result.report.layout == "Databento trades"
    assert result.report.filtered == {"action:F": 1, "action:A": 1}
    assert result.ticks.aggressor is not None
    assert result.ticks.aggressor.tolist() == [1, -1, 0]
    assert result.ticks.price[0] == frame(1)["price"][0]
    assert any("1e-9" in guess for guess in result.report.guesses)


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_databentos_mark_for_no_price_is_no_price(tmp_path: Path, kind: str) -> None:
    data = frame(5).assign(rtype=0)
    points = data["price"].to_numpy()
    for name, offset in (("price", 0.0), ("bid_px_00", -0.25), ("ask_px_00", 0.25)):
        data[name] = ((points + offset) * 1e9).astype(np.int64)
    data.loc[1, "ask_px_00"] = data.loc[3, "price"] = 2**63 - 1
    result = read(tmp_path, data, kind=kind, max_bad_fraction=0.5)
    assert result.report.quarantined == {"non_finite": 1}
    np.testing.assert_array_equal(result.ticks.price, points[[0, 1, 2, 4]])
    np.testing.assert_array_equal(result.ticks.bid, points[[0, 1, 2, 4]] - 0.25)
    np.testing.assert_array_equal(result.ticks.ask, np.array([1, np.nan, 1, 1]) * (points[[0, 1, 2, 4]] + 0.25))


def test_a_broken_cell_among_fixed_point_prices_costs_only_its_own_row(tmp_path: Path) -> None:
    data = frame(5).assign(rtype=0)
    points = data["price"].to_numpy()
    data["price"] = (points * 1e9).astype(np.int64).astype(str)
    data.loc[2, "price"] = "4999.75?"
    result = read(tmp_path, data, kind="csv", max_bad_fraction=0.5)
    assert result.report.quarantined == {"non_finite": 1}
    np.testing.assert_array_equal(result.ticks.price, np.delete(points, 2))


def test_whole_prices_in_points_stay_points(tmp_path: Path) -> None:
    data = frame(5).assign(rtype=0, price=np.arange(20_000, 20_005))
    for kind in ("parquet", "csv"):
        np.testing.assert_array_equal(read(tmp_path, data, kind=kind).ticks.price, data["price"])


def test_binance_buyer_is_maker_means_a_seller_crossed(tmp_path: Path) -> None:
    data = pd.DataFrame({"exch_ms": [1723161256322, 1723161256344], "price": [61800.3, 61800.2], "qty": [0.1, 0.2],
                         "buyer_is_maker": [True, False], "type": ["MARKET", "INSURANCE_FUND"]})
    for kind in ("parquet", "csv"):
        result = read(tmp_path, data, "BTCUSDT", kind=kind, exclude_conditions=())
        assert result.ticks.aggressor is not None
        assert result.ticks.aggressor.tolist() == [-1, 1]
        assert result.ticks.ts[0] == 1723161256322 * 10**6
        assert read(tmp_path, data, "BTCUSDT", kind=kind).report.filtered == {"condition:insurance_fund": 1}


def test_fix_and_signed_aggressors(tmp_path: Path) -> None:
    for words, meaning in (([1, 2, 0], [1, -1, 0]), ([1, -1, 0], [1, -1, 0]), (["Buy", "SELL", "?"], [1, -1, 0])):
        result = read(tmp_path, frame(3).assign(aggressor=words))
        assert result.ticks.aggressor is not None
        assert result.ticks.aggressor.tolist() == meaning
    assert result.report.reported["aggressor_words_unknown"] == 1


@pytest.mark.parametrize(("symbol", "spread", "outright"), [
    ("NQM5", False, True), ("NQM5-NQU5", True, False), ("NQ:BF M5-U5-Z5", True, False), ("NQ.c.0", False, True),
    ("MNQM5", False, False), ("NQ", False, True), ("NQM2025", False, True)])
def test_spreads_and_outrights(symbol: str, spread: bool, outright: bool) -> None:
    assert (is_spread(symbol, instrument("NQ")), is_outright(symbol, instrument("NQ"))) == (spread, outright)


def test_the_outright_is_picked_and_the_rest_counted(tmp_path: Path) -> None:
    data = frame(300).assign(symbol="ESM4")
    data.loc[[5, 9], "symbol"] = "ESM4-ESU4"
    data.loc[50, "symbol"] = "ESU4"
    result = read(tmp_path, data)
    assert result.contracts == ["ESM4"]
    assert result.report.filtered == {"spread_symbol": 2, "other_symbol": 1}
    chosen = read(tmp_path, data, symbols=("ESM4", "esu4"))
    assert (chosen.contracts, chosen.report.reported["rolls"]) == (["ESM4", "ESU4"], 2)
    assert chosen.report.reported["rolls_back"] == 1  # they trade side by side
    other = read(tmp_path, frame(300).assign(symbol="AAPL"))
    assert "symbol: AAPL, the only one, is taken for ES" in other.report.guesses
    for symbol in ("ES", "ESM4"):
        own = read(tmp_path, frame(300).assign(symbol=symbol))
        assert not any(guess.startswith("symbol:") for guess in own.report.guesses)


def test_unclear_symbols_stop_the_import_with_their_list(tmp_path: Path) -> None:
    data = frame(300).assign(symbol=["ESM4", "ESU4", "ESM4-ESU4"] * 100)
    with pytest.raises(InputError, match=r"several contracts of ES: ESM4 \(100 rows\), ESU4 \(100 rows\)"):
        read(tmp_path, data)
    with pytest.raises(InputError, match="no symbol is an outright contract of NQ"):
        import_ticks(save(tmp_path / "x.parquet", frame(300).assign(symbol="ESM4")), "NQ")
    with pytest.raises(InputError, match="no row is left"):
        read(tmp_path, data, symbols=("ESZ4",))


def test_a_row_without_a_symbol_is_not_guessed_into_a_contract(tmp_path: Path) -> None:
    data = frame(300).assign(symbol="ESM4")
    data.loc[3, "symbol"] = None
    assert read(tmp_path, data, max_bad_fraction=0.1).report.quarantined == {"missing_symbol": 1}


def test_condition_codes_as_mask_letters_and_words() -> None:
    mask, letters = recognise(["20000020", "1"], "auto"), recognise(["@F I", "W", "@"], "auto")
    assert mask.names("20100000") == ("average_price", "trade_through_exempt")
    assert letters.names("@ W") == ("regular", "average_price")
    assert recognise(["MARKET"], "auto").names("MARKET") == ("market",)
    assert judge_codes(["1", "20100000", ""], mask, None, ()) == ["", "condition:average_price", ""]
    assert judge_codes(["1", "20100000"], mask, ("20100000",), ()) == ["", "condition:20100000"]
    assert judge_codes(["1", "20"], mask, (), ("intermarket_sweep",)) == ["condition:not_included", ""]
    with pytest.raises(ConfigError):
        recognise(["W"], "mask")


def test_flags_are_counted_and_left_out_only_if_asked(tmp_path: Path) -> None:
    data = frame().assign(suspicious=0)
    data.loc[[4, 8], "suspicious"] = 1
    assert read(tmp_path, data).report.reported["flagged_by_vendor"] == 2
    assert read(tmp_path, data, drop_flagged=True).report.filtered == {"flagged_by_vendor": 2}


BREAKS = [("price", np.nan, "non_finite"), ("price", np.inf, "non_finite"), ("price", 0.0, "non_positive_price"),
          ("price", -3.0, "non_positive_price"), ("size", -1.0, "negative_size"), ("size", np.nan, "non_finite"),
          ("ts_event", 0, "unreadable_time"), ("ts_event", START, "disorder"),
          ("ts_event", START + 10**15, "from_the_future")]


@pytest.mark.parametrize(("column", "value", "rule"), BREAKS)
def test_a_bad_row_is_quarantined_with_its_rule_and_place(tmp_path: Path, column: str, value: float,
                                                          rule: str) -> None:
    data = frame(2000)
    data.loc[17, column] = value
    result = read(tmp_path, data, kind="csv", max_bad_fraction=0.01)
    assert result.report.quarantined == {rule: 1}
    row = result.quarantine.to_pylist()[0]
    assert (row["source"], row["row"], row["rule"]) == ("t.csv", 19, rule)
    with pytest.raises(InputError, match=rf"t.csv, row 19: .*rule {rule}.*; ") as caught:
        read(tmp_path, data.iloc[:300], kind="csv")
    assert caught.value.exit_code == 2


def test_a_block_from_the_future_is_set_aside_and_a_late_tick_is_disorder(tmp_path: Path) -> None:
    data = frame(2000)
    data.loc[100:139, "ts_event"] += 3600 * 10**9
    data.loc[1500, "ts_event"] -= 5 * 10**9
    report = read(tmp_path, data, max_bad_fraction=0.1).report
    assert report.quarantined == {"from_the_future": 40, "disorder": 1}


def test_a_real_break_is_no_future_even_with_a_late_tick_behind_it(tmp_path: Path) -> None:
    data = frame(2000)
    data.loc[1000:, "ts_event"] += 7200 * 10**9
    data.loc[1003, "ts_event"] -= 7000 * 10**9
    assert read(tmp_path, data, max_bad_fraction=0.1).report.quarantined == {"disorder": 1}


def test_the_first_tick_can_be_from_the_future_too(tmp_path: Path) -> None:
    data = frame(2000)
    data.loc[0, "ts_event"] += 10**16
    assert read(tmp_path, data).report.quarantined == {"from_the_future": 1}


def test_disorder_within_the_allowance_is_kept_and_counted(tmp_path: Path) -> None:
    data = frame(300)
    data.loc[100, "ts_event"] -= 400_000_000
    result = read(tmp_path, data, max_disorder_ns=200_000_000)
    assert (len(result.ticks), result.report.reported["older_than_the_row_before"]) == (300, 1)
    with pytest.raises(InputError, match="--max-disorder-ns"):
        read(tmp_path, data)


def test_ticks_after_now_are_from_the_future(tmp_path: Path) -> None:
    data = frame(1000)
    now = int(data["ts_event"].iloc[-2])
    assert read(tmp_path, data, now_ns=now).report.quarantined == {"from_the_future": 1}


def test_messages_sent_again_are_duplicates_but_prints_of_one_message_are_not(tmp_path: Path) -> None:
    data = frame(2000).assign(sequence=np.arange(2000) // 2)
    data.loc[1::2, ["ts_event", "price", "size"]] = data.loc[::2, ["ts_event", "price", "size"]].to_numpy()
    assert read(tmp_path, data).report.bad_rows == 0  # every message holds two equal prints
    again = pd.concat([data.iloc[:1000], data.iloc[990:1000], data.iloc[1000:]], ignore_index=True)
    assert read(tmp_path, again, max_bad_fraction=0.1).report.quarantined == {"duplicate": 10}


def test_without_identity_equal_prints_are_only_counted(tmp_path: Path) -> None:
    data = frame(300).loc[np.repeat(np.arange(300), 2)].reset_index(drop=True)
    report = read(tmp_path, data).report
    assert (report.bad_rows, report.reported["identical_prints"]) == (0, 300)
    with_id = data.assign(trade_id=np.repeat(np.arange(300), 2))
    assert read(tmp_path, with_id, max_bad_fraction=0.6).report.quarantined == {"duplicate": 300}


def test_columns_can_be_named(tmp_path: Path) -> None:
    data = frame().rename(columns={"ts_event": "when", "price": "paid", "size": "lots"})
    with pytest.raises(InputError, match="missing columns: ts, price"):
        read(tmp_path, data)
    named = read(tmp_path, data, columns={"ts": "when", "price": "paid", "size": "lots"})
    np.testing.assert_array_equal(named.ticks.price, frame()["price"])
    with pytest.raises(ValueError, match="unknown column role"):
        TickImportOptions(columns={"colour": "paid"})


def test_date_and_time_of_day_columns(tmp_path: Path) -> None:
    moment = pd.to_datetime(frame(20)["ts_event"])
    data = frame(20).drop(columns="ts_event").assign(Date=moment.dt.strftime("%Y-%m-%d"),
                                                     Time=moment.dt.strftime("%H:%M:%S.%f"))
    result = read(tmp_path, data, kind="csv", zone="UTC")
    np.testing.assert_array_equal(result.ticks.ts, frame(20)["ts_event"])


def test_trades_quotes_and_bars_are_told_apart(tmp_path: Path) -> None:
    trades = save(tmp_path / "trades.csv", frame())
    bars = save(tmp_path / "bars.parquet", pd.DataFrame({"ts_utc": [1], "open": [1.], "high": [1.], "low": [1.],
                                                         "close": [1.], "price": [1.]}))
    quotes = save(tmp_path / "q.parquet", pd.DataFrame({"ts": [1], "bid": [1.], "ask": [1.]}))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    assert [looks_like_ticks(p) for p in (trades, bars, quotes, tmp_path / "broken.parquet", tmp_path / "no")] == [
        True, False, False, False, False]
    assert [looks_like_quotes(p) for p in (trades, bars, quotes)] == [False, False, True]


def test_a_folder_is_read_in_the_order_of_names_and_each_file_picks_its_contract(tmp_path: Path) -> None:
    data = frame(400)
    save(tmp_path / "2024-03-04.parquet", data.iloc[:200].assign(symbol="ESH4"))
    save(tmp_path / "2024-03-05.parquet", data.iloc[200:].assign(symbol="ESM4"))
    seen: list[str] = []
    result = import_ticks(tmp_path, "ES", progress=seen.append)
    assert seen == ["2024-03-04.parquet", "2024-03-05.parquet"]
    assert result.contracts == ["ESH4", "ESM4"]
    assert result.ticks.contract is not None
    assert np.flatnonzero(np.diff(result.ticks.contract)).tolist() == [199]


def test_outliers_are_named_with_their_place_and_kept(tmp_path: Path) -> None:
    data = frame(500)
    data.loc[77, "price"] += 400
    report = read(tmp_path, data).report
    assert (report.reported["outliers"], report.rows_out) == (1, 500)
    assert (report.largest_outliers[0]["file"], report.largest_outliers[0]["row"]) == ("t.parquet", 78)
    assert any("row 78" in line for line in report.lines())


def test_refused_files_leave_nothing_behind(tmp_path: Path) -> None:
    assert Catalog(tmp_path).symbols() == []
    for name, data, match in [("empty.csv", b"", "empty"), ("head.csv", b"ts,price\n", "no data rows"),
                              ("bad.parquet", b"PAR1", "not a readable Parquet"),
                              ("x.csv.gz", b"\x1f\x8b\x08", "cannot be read"),
                              ("bytes.csv", b"ts,price\n1,2\n1,2,\xd5\n", "row 3: not UTF-8"),
                              ("twice.csv", b"ts,price,price\n1,2,3\n", "repeat")]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=match):
            import_ticks(tmp_path / name, "ES")


def test_binance_exchange_dumps_have_an_identity(tmp_path: Path) -> None:
    data = pd.DataFrame({"id": [7, 8, 8, 9], "price": [61800.3] * 4, "qty": [0.1] * 4, "quote_qty": [6180.0] * 4,
                         "time": 1723161256322 + np.arange(4), "is_buyer_maker": ["true", "false"] * 2})
    result = read(tmp_path, data, "BTCUSDT", kind="csv", max_bad_fraction=0.5)
    assert result.report.quarantined == {"duplicate": 1}
    elsewhere = frame().assign(id=42)  # an instrument's id is no trade's
    assert read(tmp_path, elsewhere).report.bad_rows == 0
