"""Nothing that becomes known after a row's close changes the row: no later quote or trade, no late receipt."""

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.features.book import book_columns
from algospace.features.flow import flow_columns
from algospace.features.tick_bars import build_bars
from algospace.types import MINUTE_NS, SECOND_NS, Quotes, Ticks

START = 1_600_000_200 * SECOND_NS // MINUTE_NS * MINUTE_NS
WIDTH = MINUTE_NS


def random_quotes(seed: int, n: int = 600) -> Quotes:
    """Updates every few seconds with pauses, received a moment later, some impossible, some out of order."""
    rng = np.random.default_rng(seed)
    ts = START + np.cumsum(rng.choice([0, 10**8, 2 * SECOND_NS, 200 * SECOND_NS], n, p=[0.2, 0.4, 0.38, 0.02]))
    bid = 100 + 0.25 * np.cumsum(rng.integers(-1, 2, n))
    ask = bid + 0.25 * rng.integers(0, 4, n)
    sizes = rng.integers(0, 9, (2, n)).astype(float)
    sizes[rng.random((2, n)) < 0.05] = np.nan
    hit = rng.random(n)
    ask = np.where(hit < 0.03, rng.choice([np.nan, 1.0, np.inf], n), ask)
    ts = np.where(hit > 0.97, ts - 50 * SECOND_NS, ts)
    return Quotes(ts, bid, ask, sizes[0], sizes[1], np.maximum.accumulate(ts) + rng.integers(0, 10**9, n))


def take(quotes: Quotes, rows: np.ndarray) -> Quotes:
    return Quotes(*(getattr(quotes, field.name)[rows] for field in fields(quotes)))


def known(quotes: Quotes, until: int) -> Quotes:
    seen = quotes.ts_recv <= until
    return take(quotes, seen)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1))
def test_future_quotes_change_nothing(seed, where):
    quotes = random_quotes(seed)
    quotes = take(quotes, np.argsort(quotes.ts_recv, kind="stable"))  # a feed delivers in order of receipt
    rows = np.arange(START // WIDTH, quotes.ts.max() // WIDTH + 2) * WIDTH
    cut = rows[int(where * (rows.size - 1))]
    whole = book_columns(quotes, rows, WIDTH)
    past = book_columns(known(quotes, cut), rows[rows <= cut], WIDTH)
    for name, column in past.items():
        np.testing.assert_array_equal(whole[name][: column.size], column, err_msg=name)


def test_a_quote_does_not_count_before_it_was_received():
    rows = START + np.arange(1, 4) * WIDTH
    ts = np.array([START + 10, START + 20])
    quotes = Quotes(ts, np.array([100.0, 200.0]), np.array([101.0, 201.0]), np.ones(2), np.ones(2),
                    np.array([START + 11, START + WIDTH + 1]))  # fmt: skip
    np.testing.assert_array_equal(book_columns(quotes, rows, WIDTH)["book_mid"], [100.5, 200.5, 200.5])
    at_close = replace(quotes, ts_recv=np.array([START + 11, rows[0]]))
    assert book_columns(at_close, rows, WIDTH)["book_mid"][0] == 200.5
    assert book_columns(at_close, rows, WIDTH)["book_age_s"][0] == 0.0


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1))
def test_future_trades_change_neither_bars_nor_flow(seed, where):
    rng = np.random.default_rng(seed)
    n = 500
    ts = START + np.sort(rng.integers(0, 60 * MINUTE_NS, n))
    ticks = Ticks(ts, 100 + rng.random(n), rng.random(n), np.full(n, 100.0), np.full(n, 101.0), None,
                  ts + rng.integers(0, 2 * SECOND_NS, n))  # fmt: skip
    bars = build_bars(ticks, ["1m", "tick:9", "volume:3.3", "dollar:900"])
    rows = bars["1m"].ts_close
    flow = flow_columns(ticks, rows, WIDTH, sides="tick_rule")
    cut = rows[int(where * (rows.size - 1))]
    past = ticks.take(ts <= cut)
    for name, series in build_bars(past, list(bars)).items():
        np.testing.assert_array_equal(series.close, bars[name].close[: len(series)])
        assert len(series) == (bars[name].ts_close <= cut).sum() or name == "1m"
    early = flow_columns(past.take(past.ts < cut), rows[rows <= cut], WIDTH, sides="tick_rule")
    for name, column in early.items():
        np.testing.assert_array_equal(column, flow[name][: column.size], err_msg=name)


def test_a_trade_received_long_after_its_bar_is_in_no_bar():
    rows = START + np.arange(1, 3) * WIDTH
    ticks = Ticks(START + np.array([1, 2, WIDTH + 3]), np.full(3, 100.0), np.ones(3), ts_recv=START + np.array(
        [2, WIDTH + SECOND_NS, WIDTH + 4]))  # fmt: skip
    assert flow_columns(ticks, rows, WIDTH)["trade_count"].tolist() == [1.0, 1.0]
    assert flow_columns(ticks, rows, WIDTH, grace_ns=SECOND_NS)["trade_count"].tolist() == [2.0, 1.0]


def test_rows_before_the_first_quote_are_unknown():
    quotes = Quotes(np.array([START + WIDTH + 1]), *(np.array([v]) for v in (100.0, 101.0, 1.0, 3.0)))
    found = book_columns(quotes, START + np.arange(1, 4) * WIDTH, WIDTH)
    assert np.isnan(found["book_mid"]).tolist() == [True, False, False]
    assert found["book_updates"].tolist() == [0.0, 1.0, 0.0]
    assert found["book_imbalance"][1] == -0.5
    assert found["book_microprice_offset"][1] == pytest.approx(100.25 - 100.5)
