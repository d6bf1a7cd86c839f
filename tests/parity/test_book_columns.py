"""Book columns: batch equals update by update to the bit, and a literal reference."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from algospace.errors import InputError, SchemaError
from algospace.features.book import BookState, book_columns
from algospace.features.book_kernels import RING, is_valid
from algospace.instruments import instrument
from algospace.types import MINUTE_NS, SECOND_NS, Quotes

NQ = instrument("NQ")
START = 1_600_000_200 * SECOND_NS // MINUTE_NS * MINUTE_NS
WIDTH = MINUTE_NS


def random_quotes(seed: int, n: int = 400, faults: bool = True, received: bool = True) -> Quotes:
    """Updates with pauses and equal stamps; faults: crossed, missing and late ones, unknown sizes."""
    rng = np.random.default_rng(seed)
    ts = START + np.cumsum(rng.choice([0, 10**8, 2 * SECOND_NS, 200 * SECOND_NS], n, p=[0.2, 0.4, 0.38, 0.02]))
    bid = 100 + 0.25 * np.cumsum(rng.integers(-1, 2, n))
    ask = bid + 0.25 * rng.integers(0, 4, n)
    sizes = rng.integers(0, 9, (2, n)).astype(float)
    recv = ts + np.sort(rng.integers(0, 10**9, n))
    if faults:
        hit = rng.random(n)
        sizes[rng.random((2, n)) < 0.05] = rng.choice([np.nan, np.nan, -1.0])
        ask = np.where(hit < 0.03, rng.choice([np.nan, 1.0, np.inf], n), ask)
        ts = np.where(hit > 0.97, ts - 50 * SECOND_NS, ts)
        recv = np.where((hit > 0.94) & (hit < 0.96), recv - 10 * SECOND_NS, recv)
    return Quotes(ts, bid, ask, sizes[0], sizes[1], recv if received else None)


def rows_of(quotes: Quotes) -> np.ndarray:
    return np.arange(START // WIDTH, quotes.ts.max() // WIDTH + 3) * WIDTH


@settings(max_examples=25, deadline=None)
@example(4809, False, 1, 1)  # a valid update of a bar that an invalid one lies behind
@given(st.integers(0, 10**6), st.booleans(), st.integers(0, 40), st.integers(1, 399))
def test_update_by_update_equals_batch_to_the_bit(seed, received, lag, cut):
    """Rows may be read up to `lag` bars after they closed, and the state may move to another process."""
    quotes = random_quotes(seed, received=received)
    rows = rows_of(quotes)
    batch = book_columns(quotes, rows, WIDTH, NQ)
    state = BookState(WIDTH, NQ)
    known = quotes.ts if quotes.ts_recv is None else quotes.ts_recv
    found, due, newest = [], rows.tolist(), 0
    for i in range(quotes.ts.size):
        if i == cut:
            snapshot, state = state.snapshot(), BookState(WIDTH, NQ)
            state.restore(snapshot)
        if is_valid(quotes.bid[i], quotes.ask[i], quotes.bid_size[i], quotes.ask_size[i]):
            newest = max(newest, int(known[i]))
        while due and due[0] + lag * WIDTH < newest:
            found.append(state.close(due.pop(0)))
        recv = None if quotes.ts_recv is None else int(quotes.ts_recv[i])
        state.push(int(quotes.ts[i]), quotes.bid[i], quotes.ask[i], quotes.bid_size[i], quotes.ask_size[i], recv)
    found += [state.close(ts_close) for ts_close in due]
    for name, column in batch.items():
        np.testing.assert_array_equal(column, [row[name] for row in found], err_msg=name)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_columns_follow_the_written_rules(seed):
    quotes = random_quotes(seed, faults=False)
    rows = rows_of(quotes)
    found = book_columns(quotes, rows, WIDTH, NQ)
    known, bid, ask = quotes.ts_recv, quotes.bid, quotes.ask
    bids, asks = quotes.bid_size, quotes.ask_size
    for j, end in enumerate(rows):
        n = int((known <= end).sum())
        inside = range(int((known <= end - WIDTH).sum()), n)
        ofi = 0.0
        for i in inside:
            if i:
                ofi += bids[i] * (bid[i] >= bid[i - 1]) - bids[i - 1] * (bid[i] <= bid[i - 1])
                ofi += asks[i - 1] * (ask[i] >= ask[i - 1]) - asks[i] * (ask[i] <= ask[i - 1])
        assert found["book_ofi"][j] == ofi
        assert found["book_updates"][j] == len(inside)
        if n == 0:
            assert np.isnan(found["book_mid"][j])
            continue
        last = n - 1
        b, a = bids[last], asks[last]
        assert found["book_mid"][j] == (bid[last] + ask[last]) / 2
        assert found["book_spread_ticks"][j] == (ask[last] - bid[last]) / 0.25
        assert found["book_age_s"][j] == pytest.approx((end - known[last]) / 1e9)
        assert found["book_imbalance"][j] == ((b - a) / (b + a) if b + a else 0.0)
        edges = np.array([max(known[i], end - WIDTH) for i in range(max(inside.start - 1, 0), n)] + [end])
        spreads = (ask - bid)[max(inside.start - 1, 0) : n]
        time = np.diff(edges)
        if time.sum():
            assert found["book_spread_mean"][j] == pytest.approx((spreads * time).sum() / time.sum())


def test_without_sizes_there_are_no_depth_columns():
    quotes = random_quotes(0, faults=False)
    none = np.full(quotes.ts.size, np.nan)
    found = book_columns(Quotes(quotes.ts, quotes.bid, quotes.ask, none, none), rows_of(quotes), WIDTH)
    assert set(found) == {"book_mid", "book_spread", "book_age_s", "book_spread_mean", "book_updates"}
    full = book_columns(quotes, rows_of(quotes), WIDTH)
    seen = np.cumsum(full["book_updates"]) > 0
    assert all(np.isfinite(column[seen]).all() for column in full.values())


def test_faulty_updates_are_counted_and_misuse_is_named():
    state = BookState(WIDTH)
    assert state.push(START + 10, 100.0, 101.0, 1.0, 1.0)
    for bid, ask, size in ((np.nan, 101.0, 1.0), (102.0, 101.0, 1.0), (0.0, 1.0, 1.0), (100.0, np.inf, 1.0),
                           (100.0, 101.0, -1.0)):  # fmt: skip
        assert not state.push(START + 11, bid, ask, size, 1.0)
    assert not state.push(START + 9, 100.0, 101.0)
    state.close(START + WIDTH)
    assert not state.push(START + WIDTH, 100.0, 101.0)
    assert (state.late, state.invalid) == (2, 5)
    with pytest.raises(InputError, match="grid"):
        state.close(START + WIDTH)
    for i in range(1, RING + 3):
        state.push(START + i * WIDTH + 1, 100.0, 101.0)
    with pytest.raises(InputError, match="too late"):
        state.close(START + 2 * WIDTH)
    with pytest.raises(SchemaError, match="same configuration"):
        BookState(2 * WIDTH).restore(state.snapshot())


def test_what_is_dropped_is_told() -> None:
    quotes = random_quotes(11)
    with pytest.warns(UserWarning, match=r"order book: [1-9]\d* late and [1-9]\d* invalid quotes dropped"):
        book_columns(quotes, rows_of(quotes), WIDTH, NQ)
