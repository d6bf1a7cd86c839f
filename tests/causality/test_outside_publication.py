"""Publication time, not event time, decides what a row knows of an outside series."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.features import FeatureConfig, FeatureTable, build
from algospace.features.outside import (
    OutsideConfig,
    OutsideSeries,
    OutsideStream,
    daily_publications,
    outside_columns,
    outside_series,
    outside_version,
)
from algospace.instruments import instrument
from algospace.types import DAY_NS, HOUR_NS, MINUTE_NS, Bars, FloatArray, IntArray

START = 1_700_000_000 // 86_400 * DAY_NS
KINDS = ("level", "event", "score", "corporate_action")
CLOSES: IntArray = START + np.arange(1, 1200) * 5 * MINUTE_NS
SPAN = int(CLOSES[-1]) - START


def stamps(ns: object) -> pd.DatetimeIndex:
    return pd.DatetimeIndex(np.asarray(ns, np.int64).astype("datetime64[ns]"), tz="UTC")


def series_of(published: object, event: object, value: object, kind: str) -> OutsideSeries:
    return outside_series(pd.DataFrame({"published": stamps(published), "event": stamps(event), "value": value,
                                        "name": "x", "kind": kind}).drop_duplicates(["published", "event"]))


def assert_bits(a: dict[str, FloatArray], b: dict[str, FloatArray], rows: slice = slice(None)) -> None:
    assert list(a) == list(b)
    for name in a:
        np.testing.assert_array_equal(np.ascontiguousarray(a[name][rows]).view(np.int64),
                                      np.ascontiguousarray(b[name][rows]).view(np.int64), err_msg=name)


@st.composite
def publications(draw: st.DrawFn) -> tuple[list[int], list[int], list[float]]:
    """Times on a grid of minutes, so that they meet bar closes, each other and their events."""
    n = draw(st.integers(1, 12))
    minutes = st.integers(0, SPAN // MINUTE_NS)
    published = [START + m * MINUTE_NS for m in draw(st.lists(minutes, min_size=n, max_size=n))]
    event = [START + m * MINUTE_NS for m in draw(st.lists(minutes, min_size=n, max_size=n))]
    value = draw(st.lists(st.sampled_from([0.25, 0.5, 1.0, 1.5, 3.0]), min_size=n, max_size=n))
    return published, event, value


@settings(max_examples=60, deadline=None)
@given(publications(), st.sampled_from(KINDS), st.integers(0, SPAN // MINUTE_NS))
def test_what_is_published_later_changes_no_earlier_row(rows, kind, minute):
    """Cut at any time, whatever the events are: the rows until then are the same."""
    series, cut = series_of(*rows, kind), START + minute * MINUTE_NS
    known = int(np.searchsorted(CLOSES, cut, side="right"))
    assert_bits(outside_columns(series.known_at(cut), CLOSES), outside_columns(series, CLOSES), slice(0, known))


@settings(max_examples=60, deadline=None)
@given(publications(), st.sampled_from(KINDS), st.integers(0, SPAN // MINUTE_NS), st.integers(-3000, 3000))
def test_moving_events_of_unpublished_rows_changes_nothing(rows, kind, minute, shift):
    """Event times of what is published after the cut may be anything, even long before it."""
    published, event, value = (np.array(part) for part in rows)
    cut = START + minute * MINUTE_NS
    moved = np.where(published > cut, event + shift * MINUTE_NS, event)
    known = int(np.searchsorted(CLOSES, cut, side="right"))
    assert_bits(outside_columns(series_of(published, moved, value, kind).known_at(cut), CLOSES),
                outside_columns(series_of(published, event, value, kind), CLOSES), slice(0, known))
    assert_bits(outside_columns(series_of(published, moved, value, kind), CLOSES),
                outside_columns(series_of(published, event, value, kind), CLOSES), slice(0, known))


@settings(max_examples=30, deadline=None)
@given(publications(), st.sampled_from(["level", "score"]), st.integers(1, 200))
def test_moving_publications_moves_the_columns(rows, kind, bars):
    """Published k bars later, with events as they are: every column comes k bars later."""
    published, event, value = (np.array(part) for part in rows)
    early = outside_columns(series_of(published, event, value, kind), CLOSES)
    late = outside_columns(series_of(published + bars * 5 * MINUTE_NS, event, value, kind), CLOSES)
    for name in early:
        np.testing.assert_array_equal(late[name][bars:], early[name][:-bars], err_msg=name)


def test_an_event_long_before_its_publication_leaks_nothing():
    """A number about yesterday, published today, is known today."""
    published = START + 2 * DAY_NS
    columns = outside_columns(series_of([published], [START - 30 * DAY_NS], [7.0], "level"), CLOSES)
    first = int(np.searchsorted(CLOSES, published))
    assert CLOSES[first] == published, "known in the bar that closes with it"
    assert np.isnan(columns["x"][:first]).all()
    assert (columns["x"][first:] == 7.0).all()
    assert columns["x_age"][first] == 0.0
    assert columns["x_age"][first + 12] == 1.0


def live(series: OutsideSeries, config: OutsideConfig, order: IntArray) -> dict[str, FloatArray]:
    """Through the stream, each publication pushed at some time before the first close that knows it."""
    stream = OutsideStream(series.keys, config)
    rows = []
    waiting = list(order)
    for ts in CLOSES.tolist():
        for i in [i for i in waiting if series.published[i] <= ts + 10 * MINUTE_NS]:  # some ahead of their time
            stream.push(series.keys[series.key[i]].name, int(series.published[i]), float(series.value[i]),
                        int(series.event[i]))
            waiting.remove(i)
        rows.append(stream.at(ts))
    assert stream.late == 0
    return {name: np.array([row[name] for row in rows]) for name in stream.columns}


@settings(max_examples=10, deadline=None)
@given(st.lists(publications(), min_size=4, max_size=4), st.randoms(use_true_random=False))
def test_the_stream_equals_history_to_the_bit(parts, random):
    """All four kinds at once, pushed in any order and a little ahead of time."""
    frames = [pd.DataFrame({"published": stamps(p), "event": stamps(e), "value": v, "name": f"x_{kind}",
                            "kind": kind}) for (p, e, v), kind in zip(parts, KINDS, strict=True)]
    frame = pd.concat(frames, ignore_index=True).drop_duplicates(["name", "published", "event"])
    series = outside_series(frame)
    order = list(range(len(series)))
    random.shuffle(order)
    config = OutsideConfig(max_age_hours=40.0, max_event_hours=20.0, half_life_hours=7.0)
    assert_bits(live(series, config, np.array(order)), outside_columns(series, CLOSES, config))


def nq_table(root: Path) -> FeatureTable:
    frame = pd.read_parquet(root / "nq_1m" / "nq_1m_2020.parquet").iloc[60_000:92_000]
    ts = frame["ts_utc"].astype("datetime64[ns, UTC]").astype("int64").to_numpy()
    prices = [frame[name].to_numpy(np.float64) for name in ("open", "high", "low", "close")]
    bars = Bars(ts, *prices, np.full(len(frame), np.nan), MINUTE_NS, frame["contract"].to_numpy(np.int32))
    return build(bars, instrument("NQ"), FeatureConfig(regime=False))


def test_daily_vix_is_known_at_the_end_of_its_day(data_root: Path) -> None:
    """On NQ bars of March 2020, over the change of the clocks: a day's close appears at 16:15 New York."""
    daily = pd.read_parquet(data_root / "daily" / "vix_1d.parquet")
    table = nq_table(data_root)
    series = outside_series(daily_publications(daily), "vix_1d.parquet")
    config = OutsideConfig()
    columns = outside_columns(series, table.ts_close, config)
    joined = table.with_columns(columns, outside_version(series.keys, config))
    assert np.isfinite(joined.base["vix"]).all()
    local = stamps(table.ts_close).tz_convert("America/New_York")
    closes = daily.set_index(daily["ts_utc"].dt.date)["close"]
    days = sorted(closes.index)
    for i in range(0, len(table), 97):
        over = local[i].time() >= pd.Timestamp("16:15").time()
        known = (bisect_right if over else bisect_left)(days, local[i].date())
        assert joined.base["vix"][i] == closes[days[known - 1]], local[i]
    changes = np.flatnonzero(np.diff(joined.base["vix"])) + 1
    assert changes.size > 10
    moments = {(t.hour, t.minute) for t in local[changes]}
    assert (16, 15) in moments
    assert all((hour, minute) >= (16, 15) for hour, minute in moments)
    assert max(columns["vix_age"]) < 24 * 5


def test_twelve_hours_of_event_time_change_nothing_on_vix(data_root: Path) -> None:
    frame = daily_publications(pd.read_parquet(data_root / "daily" / "vix_1d.parquet").tail(300))
    closes = stamps(frame["published"].astype("int64").to_numpy())[0].value + np.arange(20_000) * 15 * MINUTE_NS
    expected = outside_columns(outside_series(frame), closes)
    moved = frame.assign(event=frame["event"] - pd.Timedelta("12h"))
    assert_bits(outside_columns(outside_series(moved), closes), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_late_receipt_counts_from_the_next_row_and_is_counted(kind: str) -> None:
    series = series_of([START, START + HOUR_NS], [START, START + HOUR_NS], [1.0, 2.0], kind)
    stream = OutsideStream(series.keys)
    stream.push("x", START + HOUR_NS, 2.0)
    stream.at(START + 2 * HOUR_NS)
    stream.push("x", START, 1.0)
    late = stream.at(START + 3 * HOUR_NS)
    assert stream.late == 1
    expected = outside_columns(series, np.array([START + 3 * HOUR_NS]))
    for name, values in expected.items():
        assert late[name] == pytest.approx(values[0], rel=1e-12), name
