"""Flow columns: batch equals tick by tick and a literal reference, and counts what the bars count."""

from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.errors import ConfigError, InputError, SchemaError
from algospace.features.clock_bars import base_and_slow_bars
from algospace.features.flow import FlowState, flow_columns, sides_of, state_for
from algospace.features.flow_bars import FlowBarBuilder, with_flow
from algospace.features.tick_bars import BarBuilder, build_bars
from algospace.instruments import instrument
from algospace.types import MINUTE_NS, SECOND_NS, Ticks

NQ = instrument("NQ")
START = 1_600_000_200 * SECOND_NS
WIDTH = 5 * MINUTE_NS


def random_ticks(seed: int, n: int = 800, faults: bool = True, quotes: bool = True, sizes: bool = True) -> Ticks:
    """Trades at or inside quotes, some unknown or crossed, with pauses, disorder, late receipt and a roll."""
    rng = np.random.default_rng(seed)
    pauses = rng.choice([0, 10**6, SECOND_NS, 60 * SECOND_NS, 600 * SECOND_NS, 5000 * SECOND_NS], n,
                        p=[0.2, 0.4, 0.3, 0.08, 0.015, 0.005])  # fmt: skip
    ts = START + np.cumsum(pauses)
    middle = 4000 + 0.25 * np.cumsum(rng.integers(-1, 2, n))
    half = rng.integers(0, 4, n) * 0.125
    price = middle + rng.choice([-1, 0, 1], n) * half
    size = rng.integers(0, 9, n).astype(float) if sizes else np.full(n, np.nan)
    bid, ask = middle - half, middle + half
    aggressor = rng.integers(-1, 2, n).astype(np.int8)
    received = ts + rng.integers(-10**9, 10**8, n)
    if faults:
        hit = rng.random(n)
        ts = np.where(hit < 0.05, ts - rng.integers(0, 400 * SECOND_NS, n), ts)
        price = np.where(hit > 0.98, np.nan, price)
        size = np.where((hit > 0.95) & (hit < 0.98), np.nan, size)
        received = np.where(rng.random(n) < 0.05, received + rng.integers(0, 900 * SECOND_NS, n), received)
        bid = np.where(rng.random(n) < 0.1, rng.choice([np.nan, 0.0, 9999.0], n), bid)
    contract = np.cumsum(rng.random(n) < 2 / n).astype(np.int32)
    return Ticks(ts, price, size, bid if quotes else None, ask if quotes else None, aggressor, received, contract)


def on_time(ticks: Ticks, grace: int = 250_000_000) -> Ticks:
    """What a feed hands to the bars: nothing received later than the grace period after its bar's end."""
    return ticks.take(ticks.ts_recv <= ticks.ts // WIDTH * WIDTH + WIDTH + grace)


def literal(ticks: Ticks, ts_close: np.ndarray, sides: str) -> pd.DataFrame:
    """The written rules, per bar, over trades that are all in order, valid and on time, without rolls."""
    change = pd.Series(ticks.price).diff()
    direction = np.sign(change).replace(0, np.nan).ffill().fillna(0)
    middle = (ticks.bid + ticks.ask) / 2
    quoted = (ticks.bid > 0) & (ticks.bid <= ticks.ask)
    side = {
        "aggressor": ticks.aggressor.astype(float), "tick_rule": direction.to_numpy(),
        "lee_ready": np.where(quoted & (ticks.price != middle), np.sign(ticks.price - middle), direction),
    }[sides]  # fmt: skip
    frame = pd.DataFrame({
        "bar": ticks.ts // WIDTH * WIDTH + WIDTH, "price": ticks.price, "size": ticks.size,
        "buy": np.where(side > 0, ticks.size, 0.0), "sell": np.where(side < 0, ticks.size, 0.0),
        "spread": np.where(quoted, ticks.ask - ticks.bid, np.nan),
        "effective": np.where(quoted, 2 * np.abs(ticks.price - middle), np.nan),
        "value": ticks.price * ticks.size,
    })  # fmt: skip
    local = pd.to_datetime(frame["bar"] - 1, utc=True).dt.tz_convert(ZoneInfo("America/Chicago"))
    day = (local.dt.tz_localize(None) + pd.Timedelta(hours=7)).dt.floor("D")
    frame["delta"] = (frame["buy"] - frame["sell"]).groupby(day).cumsum()
    groups = frame.groupby("bar")
    found = pd.DataFrame({
        "trade_count": groups.size(), "vwap": groups["value"].sum() / groups["size"].sum(),
        "trade_size_mean": groups["size"].mean(), "trade_size_max": groups["size"].max(),
        "buy_volume": groups["buy"].sum(), "sell_volume": groups["sell"].sum(),
        "session_delta": groups["delta"].last(), "spread_mean": groups["spread"].mean(),
        "spread_close": groups["spread"].last(), "effective_spread": groups["effective"].mean(),
    })  # fmt: skip
    found["vwap"] = found["vwap"].fillna(groups["price"].mean())
    found = found.reindex(ts_close)
    levels = ["vwap", "spread_mean", "spread_close", "effective_spread"]
    found[levels] = found[levels].ffill()
    found["signed_volume"] = found["buy_volume"] - found["sell_volume"]
    found["order_imbalance"] = found["signed_volume"] / (found["buy_volume"] + found["sell_volume"])
    found["spread_close_ticks"] = found["spread_close"] / NQ.tick_size
    row_day = (pd.to_datetime(ts_close - 1, utc=True).tz_convert("America/Chicago").tz_localize(None)
               + pd.Timedelta(hours=7)).floor("D")  # fmt: skip
    found["session_delta"] = found["session_delta"].groupby(np.asarray(row_day)).ffill()
    return found.fillna({name: 0.0 for name in found.columns if name not in levels})


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["aggressor", "lee_ready", "tick_rule"]))
def test_columns_follow_the_written_rules(seed, sides):
    ticks = random_ticks(seed, faults=False)
    ticks = Ticks(**{**ticks.columns(), "contract": None})
    ts_close = base_and_slow_bars(ticks).base["ts_close"]
    found = flow_columns(ticks, ts_close, WIDTH, NQ, sides=sides)
    expected = literal(ticks, ts_close, sides)
    assert set(found) == set(expected.columns)
    for name, column in found.items():
        np.testing.assert_allclose(column, expected[name], rtol=1e-12, atol=1e-12, err_msg=name)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0, 100 * SECOND_NS]), st.booleans(), st.booleans(),
       st.sampled_from(["auto", "lee_ready", "tick_rule", None]), st.integers(1, 700))  # fmt: skip
def test_tick_by_tick_equals_batch_to_the_bit(seed, disorder, quotes, sizes, sides, cut):
    ticks = random_ticks(seed, quotes=quotes, sizes=sizes)
    sides = "auto" if sides == "lee_ready" and not quotes else sides
    rows = base_and_slow_bars(on_time(ticks), max_disorder_ns=disorder).base["ts_close"]
    batch = flow_columns(ticks, rows, WIDTH, NQ, sides=sides, max_disorder_ns=disorder)
    state = state_for(ticks, WIDTH, NQ, sides=sides, max_disorder_ns=disorder)
    found, due = [], list(rows)
    in_order = ticks.columns()
    for i in range(len(ticks)):
        if i == cut:  # a restart in between
            snapshot = state.snapshot()
            state = state_for(ticks, WIDTH, NQ, sides=sides, max_disorder_ns=disorder)
            state.restore(snapshot)
        tick = {name: column[i].item() for name, column in in_order.items()}
        probe = FlowState(WIDTH, max_disorder_ns=disorder)  # an accepted trade closes rows before it counts
        probe.trade[:], probe.bars[:] = state.trade, state.bars
        if probe.push(tick["ts"], tick["price"], tick["size"], ts_recv=tick["ts_recv"]):
            while due and due[0] <= tick["ts"]:
                found.append(state.close(int(due.pop(0))))
        state.push(**tick)
    found += [state.close(int(ts_close)) for ts_close in due]
    assert tuple(batch) == state.columns
    for name, column in batch.items():
        np.testing.assert_array_equal(column, [row[name] for row in found], err_msg=name)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0, 100 * SECOND_NS]))
def test_flow_counts_the_trades_of_the_bars(seed, disorder):
    ticks = on_time(random_ticks(seed))
    series = build_bars(ticks, ["5m"], max_disorder_ns=disorder)["5m"]
    flow = flow_columns(ticks, series.ts_close, WIDTH, NQ, max_disorder_ns=disorder)
    np.testing.assert_array_equal(flow["trade_count"], series.count)
    known = ~np.isnan(series.volume)
    assert (flow["vwap"][known] <= series.high[known] * (1 + 1e-12)).all()
    assert (flow["vwap"][known] >= series.low[known] * (1 - 1e-12)).all()
    np.testing.assert_array_equal(flow["signed_volume"], flow["buy_volume"] - flow["sell_volume"])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0, 100 * SECOND_NS]), st.sampled_from(["auto", "tick_rule"]),
       st.sampled_from(["5m", "1h", "tick:1", "tick:17", "volume:40", "dollar:90000"]))  # fmt: skip
def test_bars_of_any_frame_carry_the_flow_of_their_trades(seed, disorder, sides, frame):
    ticks = random_ticks(seed)
    series = build_bars(ticks, [frame], max_disorder_ns=disorder)[frame]
    series = with_flow(ticks, series, NQ, sides=sides, max_disorder_ns=disorder)
    builder = FlowBarBuilder(frame, sides_of(ticks, sides), True, NQ, max_disorder_ns=disorder)
    found = []
    for i in range(len(ticks)):
        tick = {name: column[i].item() for name, column in ticks.columns().items() if name != "ts_recv"}
        found += builder.push(**tick)
    assert len(found) == len(series)
    np.testing.assert_array_equal(series.flow["trade_count"], series.count)
    np.testing.assert_array_equal(series.ts_close, [bar.ts_close for bar, _ in found])
    for name, column in series.flow.items():
        np.testing.assert_array_equal(column, [flow[name] for _, flow in found], err_msg=name)
    if frame == "5m":
        everything = Ticks(**{**ticks.columns(), "ts_recv": None})
        beside = flow_columns(everything, series.ts_close, WIDTH, NQ, sides=sides, max_disorder_ns=disorder)
        for name, column in beside.items():
            np.testing.assert_array_equal(series.flow[name], column, err_msg=name)


def test_a_live_chain_of_bars_and_flow():
    """Each tick first closes bars, their rows are read, then it counts: the same as batch."""
    ticks = random_ticks(3)
    builder, state, rows = BarBuilder(["5m"]), state_for(ticks, WIDTH, NQ), []
    kept = on_time(ticks)
    for i in range(len(kept)):
        tick = {name: column[i].item() for name, column in kept.columns().items()}
        for bar in builder.push(tick["ts"], tick["price"], tick["size"], tick["contract"]):
            rows.append((bar.ts_close, state.close(bar.ts_close)))
        state.push(**tick)
    batch = flow_columns(kept, np.array([ts for ts, _ in rows]), WIDTH, NQ)
    for name, column in batch.items():
        np.testing.assert_array_equal(column, [row[name] for _, row in rows], err_msg=name)
    assert (state.late, state.invalid) == (builder.late["5m"], builder.invalid["5m"])


def test_columns_appear_only_where_the_data_has_them():
    plain = Ticks(np.array([START]), np.array([100.0]), np.array([np.nan]))
    rows = np.array([START // WIDTH * WIDTH + WIDTH])
    assert set(flow_columns(plain, rows, WIDTH)) == {"trade_count", "vwap", "trade_size_mean", "trade_size_max"}
    assert "session_delta" in flow_columns(plain, rows, WIDTH, sides="tick_rule")
    quoted = Ticks(plain.ts, plain.price, plain.size, np.array([99.0]), np.array([100.0]))
    found = flow_columns(quoted, rows, WIDTH, NQ)
    row = {name: column[0] for name, column in found.items()}
    assert (row["buy_volume"], row["spread_close_ticks"], row["effective_spread"]) == (1.0, 4.0, 1.0)
    with pytest.raises(ConfigError, match="aggressor"):
        flow_columns(plain, rows, WIDTH, sides="aggressor")


def test_misuse_is_named():
    state = FlowState(WIDTH)
    edge = START // WIDTH * WIDTH
    with pytest.raises(InputError, match="grid"):
        state.close(edge + 1)
    state.push(edge + 1, 100.0)
    state.push(edge + WIDTH + 1, 100.0)
    state.push(edge + 2 * WIDTH + 1, 100.0)
    with pytest.raises(ValueError, match="later bar"):
        state.close(edge + WIDTH)
    with pytest.raises(SchemaError, match="same configuration"):
        FlowState(WIDTH, quotes=True).restore(state.snapshot())
    with pytest.raises(SchemaError, match="not a snapshot"):
        state.restore(b"nonsense")


def test_what_is_dropped_is_told() -> None:
    ts = np.array([10, 20, 15, 30]) * SECOND_NS
    ticks = Ticks(ts, np.array([100.0, 100.25, 100.0, np.nan]), np.ones(4))
    with pytest.warns(UserWarning, match="order flow: 1 late and 1 invalid trades dropped"):
        flow_columns(ticks, np.array([MINUTE_NS]), MINUTE_NS)
