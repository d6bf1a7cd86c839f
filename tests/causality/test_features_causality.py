"""History equals live to the bit, and no row knows anything that comes after it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.errors import SchemaError
from algospace.features import (
    FeatureConfig,
    FeatureStream,
    FeatureTable,
    MlmiConfig,
    SourceBar,
    build,
    concatenate,
)
from algospace.instruments import instrument
from algospace.types import MINUTE_NS, Bars

NQ = instrument("NQ")
SMALL = FeatureConfig(mlmi=MlmiConfig(k=5))


def five_minute_bars(n: int, seed: int, volume: bool) -> Bars:
    """Random 5-minute bars with gaps, breaks and rolls; long enough for every window to be full."""
    rng = np.random.default_rng(seed)
    steps = rng.choice([1] * 60 + [2, 4, 12, 13, 14, 60], n)
    contract = np.cumsum(rng.random(n) < 0.004).astype(np.int32)
    close = np.round(4000 * np.exp(np.cumsum(rng.standard_t(4, n) * 6e-4)) * 1.01**contract, 2)
    open_ = np.concatenate([close[:1], close[:-1]]) + rng.integers(-2, 3, n) * 0.25
    high = np.maximum(open_, close) + rng.integers(0, 6, n) * 0.25
    low = np.minimum(open_, close) - rng.integers(0, 6, n) * 0.25
    size = rng.integers(0, 500, n).astype(float) if volume else np.full(n, np.nan)
    start = 1_600_000_200 // 86_400 * 86_400 * 10**9
    return Bars(start + np.cumsum(steps) * 5 * MINUTE_NS, open_, high, low, close, size, 5 * MINUTE_NS, contract)


def assert_prefix(part: FeatureTable, whole: FeatureTable) -> None:
    """`part` equals the first rows of `whole`, bit by bit."""
    n, m = len(part), len(part.ts_close_30m)
    for name in ("ts_close", "filled", "contract", "row_30m"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[:n], err_msg=name)
    np.testing.assert_array_equal(part.ts_close_30m, whole.ts_close_30m[:m])
    for name, column in part.base.items():
        np.testing.assert_array_equal(column.view(np.int64), whole.base[name][:n].view(np.int64), err_msg=name)
    for name, column in part.slow.items():
        np.testing.assert_array_equal(column.view(np.int64), whole.slow[name][:m].view(np.int64), err_msg=name)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.floats(0.02, 0.99))
def test_cutting_the_source_changes_no_earlier_row(seed, volume, share):
    bars = five_minute_bars(2600, seed, volume)
    whole = build(bars, NQ, SMALL)
    warm = [name for name, column in whole.base.items() if np.isnan(column).all() and name != "volume"]
    assert warm == [], "every column must be alive for the test to mean anything"
    assert_prefix(build(bars.slice(0, int(share * len(bars)) + 1), NQ, SMALL), whole)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6), st.integers(300, 2000))
def test_another_future_changes_no_earlier_row(seed, cut):
    bars = five_minute_bars(2200, seed, True)
    other = five_minute_bars(2200, seed + 1, True)
    shift = bars.ts_open[cut] - other.ts_open[cut]
    mixed = Bars(np.concatenate([bars.ts_open[:cut], other.ts_open[cut:] + shift]), *(
        np.concatenate([getattr(bars, c)[:cut], getattr(other, c)[cut:]])
        for c in ("open", "high", "low", "close", "volume")), bars.width_ns, bars.contract)  # fmt: skip
    known = build(bars.slice(0, cut), NQ, SMALL)
    assert_prefix(known, build(mixed, NQ, SMALL))


def live(bars: Bars, config: FeatureConfig, stream: FeatureStream | None = None) -> tuple[FeatureStream, list]:
    stream = stream or FeatureStream(NQ, config, bars.width_ns)
    rows = []
    events = zip(bars.ts_open.tolist(), bars.open.tolist(), bars.high.tolist(), bars.low.tolist(),
                 bars.close.tolist(), bars.volume.tolist(), bars.contract.tolist(), strict=True)  # fmt: skip
    for event in events:
        rows.extend(stream.push(SourceBar(*event)))
    return stream, rows


def assert_rows_equal(rows: list, table: FeatureTable) -> None:
    assert [row.ts_close for row in rows] == table.ts_close.tolist()
    assert [row.filled for row in rows] == table.filled.tolist()
    assert [row.contract for row in rows] == table.contract.tolist()
    assert [row.row_30m for row in rows] == table.row_30m.tolist()
    base = np.array([row.base for row in rows])
    np.testing.assert_array_equal(base.view(np.int64), np.array(list(table.base.values())).T.copy().view(np.int64))
    # 30-minute rows arrive with the base row that first sees them; the last may still wait for one
    slow = np.concatenate([row.slow for row in rows])
    whole = np.array(list(table.slow.values())).T.copy()
    np.testing.assert_array_equal(slow.view(np.int64), whole.view(np.int64))
    np.testing.assert_array_equal(np.concatenate([row.ts_close_30m for row in rows]), table.ts_close_30m)


@pytest.mark.parametrize("volume", [True, False])
def test_history_equals_live_on_random_bars(volume):
    bars = five_minute_bars(2600, 11, volume)
    assert_rows_equal(live(bars, SMALL)[1], build(bars, NQ, SMALL))


def nq_bars(root: Path, year: int) -> Bars:
    frame = pd.read_parquet(root / "nq_1m" / f"nq_1m_{year}.parquet")
    ts = frame["ts_utc"].astype("datetime64[ns, UTC]").astype("int64").to_numpy()
    prices = [frame[name].to_numpy(np.float64) for name in ("open", "high", "low", "close")]
    return Bars(ts, *prices, np.full(len(frame), np.nan), MINUTE_NS, frame["contract"].to_numpy(np.int32))


def test_history_equals_live_on_a_month_of_nq(data_root):
    year = nq_bars(data_root, 2020)
    month = year.slice(60_000, 92_000)  # the limit-down halt of March 2020 and a roll
    config = FeatureConfig()
    assert_rows_equal(live(month, config)[1], build(month, NQ, config))


@pytest.mark.slow
def test_history_equals_live_on_a_year_of_nq(data_root):
    year = nq_bars(data_root, 2020)
    config = FeatureConfig()
    assert_rows_equal(live(year, config)[1], build(year, NQ, config))


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 2399))
def test_blocks_and_restored_state_equal_one_run(seed, cut):
    bars = five_minute_bars(2400, seed, True)
    whole = build(bars, NQ, SMALL)
    first = FeatureStream(NQ, SMALL, bars.width_ns)
    head = first.extend(bars.slice(0, cut))
    second = FeatureStream(NQ, SMALL, bars.width_ns)
    second.restore(first.snapshot())
    assert second.snapshot() == first.snapshot()
    tail = second.extend(bars.slice(cut, len(bars)))
    joined = concatenate([head, tail])
    assert len(joined) == len(whole)
    assert_prefix(joined, whole)


def test_live_continues_from_the_state_of_history():
    bars = five_minute_bars(2400, 5, True)
    whole = build(bars, NQ, SMALL)
    stream = FeatureStream(NQ, SMALL, bars.width_ns)
    head = stream.extend(bars.slice(0, 2000))
    restored = FeatureStream(NQ, SMALL, bars.width_ns)
    restored.restore(stream.snapshot())
    _, rows = live(bars.slice(2000, 2400), SMALL, restored)
    base = np.array([row.base for row in rows])
    expected = np.array([column[len(head) :] for column in whole.base.values()]).T.copy()
    np.testing.assert_array_equal(base.view(np.int64), expected.view(np.int64))


def test_a_snapshot_does_not_change_when_its_stream_goes_on():
    bars = five_minute_bars(600, 1, True)
    stream = FeatureStream(NQ, SMALL, bars.width_ns)
    stream.extend(bars.slice(0, 500))
    snapshot = stream.snapshot()
    expected = stream.extend(bars.slice(500, 600))
    again = FeatureStream(NQ, SMALL, bars.width_ns)
    for _ in range(2):
        again.restore(snapshot)
        result = again.extend(bars.slice(500, 600))
        assert_prefix(result, expected)


def test_a_snapshot_of_another_configuration_is_refused():
    stream = FeatureStream(NQ, SMALL)
    with pytest.raises(SchemaError, match="configuration"):
        FeatureStream(NQ, FeatureConfig()).restore(stream.snapshot())
    with pytest.raises(SchemaError, match="not a snapshot"):
        stream.restore(b"PK damaged")


def test_no_feature_is_nan_after_warm_up():
    table = build(five_minute_bars(2600, 3, False), NQ, SMALL)
    late = len(table) - 200
    for name, column in table.base.items():
        if name != "volume":
            assert not np.isnan(column[late:]).any(), name
