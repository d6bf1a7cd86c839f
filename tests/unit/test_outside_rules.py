"""What a file of outside publications must satisfy, and what each kind's columns say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from algospace.errors import InputError
from algospace.features.outside import (
    OutsideConfig,
    OutsideKey,
    OutsideStream,
    load_outside,
    outside_columns,
    outside_series,
    outside_version,
)
from algospace.types import HOUR_NS, FloatArray, IntArray

DAY = pd.Timestamp("2024-05-01", tz="UTC")
HOURS: IntArray = DAY.value + np.arange(0, 200) * HOUR_NS
GOOD = "published,name,value\n2024-05-01T10:00:00Z,vix,15.5\n2024-05-02 06:00-04:00,vix,16.5\n"


def at(hours: float) -> pd.Timestamp:
    return DAY + pd.Timedelta(hours=hours)


def columns(rows: list[tuple[float, float, float]], kind: str, **config: float) -> dict[str, FloatArray]:
    """Of (published, event, value), in hours from the first of HOURS."""
    frame = pd.DataFrame([(at(p), at(e), v) for p, e, v in rows], columns=["published", "event", "value"])
    return outside_columns(outside_series(frame.assign(name="x", kind=kind)), HOURS, OutsideConfig(**config))


def test_csv_and_parquet_give_the_same(tmp_path: Path) -> None:
    text = tmp_path / "a.csv"
    text.write_text(GOOD)
    binary = tmp_path / "a.parquet"
    pd.DataFrame({"published": [at(10), at(34)], "name": "vix", "value": [15.5, 16.5]}).to_parquet(binary)
    for path in (text, binary):
        series = load_outside(path)
        assert series.keys == (OutsideKey("vix", "level"),)
        np.testing.assert_array_equal(series.published, [at(10).value, at(34).value])
        np.testing.assert_array_equal(series.event, series.published)
        found = outside_columns(series, HOURS)["vix"]
        assert np.isnan(found[9])
        assert (found[[10, 33, 34]] == [15.5, 15.5, 16.5]).all()


def test_the_order_of_rows_does_not_matter() -> None:
    rows = pd.DataFrame({"published": [at(h) for h in (5, 1, 9, 3)], "name": "x", "value": [5.0, 1.0, 9.0, 3.0]})
    for frame in (rows, rows.iloc[::-1], rows.sort_values("published")):
        found = outside_columns(outside_series(frame), HOURS)["x"]
        np.testing.assert_array_equal(found[[1, 4, 8, 9]], [1.0, 3.0, 5.0, 9.0])


FAULTS = {
    "no zone": ("published,name,value\n2024-05-01T10:00:00Z,x,1\n2024-05-01T11:00:00,x,1\n", "row 3",
                "'published' has no time zone"),
    "not a time": ("published,name,value\nyesterday Z,x,1\n", "row 2", "'published' is not a time"),
    "missing time": ("published,name,value\n,x,1\n", "row 2", "'published' is missing"),
    "event without zone": ("published,event,name,value\n2024-05-01T10:00:00Z,2024-05-01,x,1\n", "row 2",
                           "'event' has no time zone"),
    "NaN": ("published,name,value\n2024-05-01T10:00:00Z,x,\n", "row 2", "'value' is not a finite number"),
    "infinite": ("published,name,value\n2024-05-01T10:00:00Z,x,inf\n", "row 2", "'value' is not a finite number"),
    "text": ("published,name,value\n2024-05-01T10:00:00Z,x,high\n", "row 2", "'value' is not a finite number"),
    "name": ("published,name,value\n2024-05-01T10:00:00Z,My Series,1\n", "row 2",
             "'My Series' is not a column name"),
    "kind": ("published,name,value,kind\n2024-05-01T10:00:00Z,x,1,rumour\n", "row 2", "unknown kind 'rumour'"),
    "two kinds": ("published,name,value,kind\n2024-05-01T10:00:00Z,x,1,level\n2024-05-01T11:00:00Z,x,1,score\n",
                  "row 3", "appears with two kinds"),
    "two series, one column": ("published,name,value\n2024-05-01T10:00:00Z,x,1\n2024-05-01T11:00:00Z,x_age,1\n",
                               "row 3", "a column of the series is one of another series"),
    "beyond int64": ("published,name,value\n9999-12-31T10:00:00Z,x,1\n", "row 2",
                     "'published' lies outside the years 1678 to 2261"),
    "contradiction": ("published,name,value\n2024-05-01T10:00:00Z,x,1\n2024-05-01T10:00:00Z,x,2\n", "row",
                      "another value for the same event"),
    "factor": ("published,name,value,kind\n2024-05-01T10:00:00Z,x,-2,corporate_action\n", "row 2",
               "a price factor that is not positive"),
    "surface of events": ("published,name,value,kind,tenor\n2024-05-01T10:00:00Z,x,1,event,30d\n", "row 2",
                          "only levels are surface points"),
    "column": ("published,name,value,colour\n2024-05-01T10:00:00Z,x,1,red\n", "", "unknown column 'colour'"),
    "missing column": ("published,name\n2024-05-01T10:00:00Z,x\n", "", "no column 'value'"),
    "empty": ("published,name,value\n", "", "no rows"),
    "nothing": ("", "", "not readable"),
}


@pytest.mark.parametrize(("text", "row", "rule"), FAULTS.values(), ids=FAULTS)
def test_a_fault_names_file_row_and_rule(text: str, row: str, rule: str, tmp_path: Path) -> None:
    path = tmp_path / "outside.csv"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_outside(path)
    message = str(caught.value)
    assert message.startswith(f"{path}")
    assert row in message
    assert rule in message
    assert "\n" not in message
    assert caught.value.exit_code == 2


def test_a_parquet_file_without_zone_or_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "outside.parquet"
    pd.DataFrame({"published": [at(1).tz_localize(None)], "name": "x", "value": 1.0}).to_parquet(path)
    with pytest.raises(InputError, match="'published' has no time zone"):
        load_outside(path)
    far = pd.Series(["2024-05-01", "9999-12-31"], dtype="datetime64[us]").dt.tz_localize("UTC")
    frame = pd.DataFrame({"published": at(1), "event": far, "name": "x", "value": 1.0})
    frame.to_parquet(path)
    with pytest.raises(InputError, match="row 3: 'event' lies outside the years 1678 to 2261"):
        load_outside(path)
    path.write_bytes(b"PAR1 damaged")
    with pytest.raises(InputError, match="not readable"):
        load_outside(path)
    with pytest.raises(InputError, match="no such file"):
        load_outside(tmp_path / "nowhere.csv")


def test_odd_rows_are_kept_and_noted() -> None:
    frame = pd.DataFrame({"published": [at(1), at(1), at(2)], "event": [at(0), at(0), at(9)], "name": "x",
                          "value": [1.0, 1.0, 2.0]})
    series = outside_series(frame)
    assert len(series) == 2
    assert any("1 equal rows" in note for note in series.notes)
    assert any("published before the time they are about, the first in row 4" in note for note in series.notes)


def test_a_revision_counts_from_its_publication_on() -> None:
    """First 1.0 for hour 0, revised to 1.5 at hour 20; a revision of an older event does not come back."""
    rows = [(2, 0, 1.0), (20, 0, 1.5), (30, 24, 2.0), (40, 0, 1.7)]
    found = columns(rows, "level")
    np.testing.assert_array_equal(found["x"][[2, 19, 20, 29, 30, 39, 40, 60]],
                                  [1.0, 1.0, 1.5, 1.5, 2.0, 2.0, 2.0, 2.0])
    np.testing.assert_array_equal(found["x_age"][[2, 19, 20, 30, 40]], [0.0, 17.0, 0.0, 0.0, 10.0])
    assert np.isnan(found["x"][:2]).all()
    assert np.nanmax(columns(rows, "level", max_age_hours=6.0)["x_age"]) == 6.0


def test_a_schedule_is_known_from_its_publication_on() -> None:
    """Events at hours 50 and 80, published at hour 10; one at hour 60 published at 55; the one at 80 cancelled."""
    found = columns([(10, 50, 1.0), (10, 80, 1.0), (55, 60, 1.0), (70, 80, 0.0)], "event", max_event_hours=48.0)
    until, since = found["x_until"], found["x_since"]
    assert (until[:10] == 48.0).all(), "nothing is scheduled yet"
    np.testing.assert_array_equal(until[[10, 49, 50, 54, 55, 59, 60, 69, 70]],
                                  [40.0, 1.0, 30.0, 26.0, 5.0, 1.0, 20.0, 11.0, 48.0])
    np.testing.assert_array_equal(since[[10, 49, 50, 59, 60, 90, 199]], [48.0, 48.0, 0.0, 9.0, 0.0, 30.0, 48.0])


def test_an_event_reported_afterwards_is_unknown_until_then() -> None:
    found = columns([(30, 20, 1.0)], "event", max_event_hours=48.0)
    np.testing.assert_array_equal(found["x_since"][[20, 29, 30, 40]], [48.0, 48.0, 10.0, 20.0])


def test_scores_add_up_and_halve() -> None:
    found = columns([(0, 0, 1.0), (24, 24, 0.5), (24, 24, 0.5)], "score", half_life_hours=24.0)
    expected = [1.0, 2**-0.5, 2 ** (-23 / 24), 1.5, 0.75]
    np.testing.assert_allclose(found["x"][[0, 12, 23, 24, 48]], expected, rtol=1e-14)
    np.testing.assert_array_equal(found["x_age"][[0, 23, 24, 25]], [0.0, 23.0, 0.0, 1.0])


def test_a_factor_is_pending_from_publication_and_in_effect_from_the_event() -> None:
    """A split at hour 50 announced at 10; a dividend at 80 announced at 60, revised at 70; one told too late."""
    found = columns([(10, 50, 0.5), (60, 80, 0.99), (70, 80, 0.98), (120, 110, 0.25)], "corporate_action")
    factor, pending = found["x_factor"], found["x_pending"]
    np.testing.assert_array_equal(factor[[0, 49, 50, 79, 80, 119, 120]],
                                  [1.0, 1.0, 0.5, 0.5, 0.49, 0.49, 0.1225])
    np.testing.assert_array_equal(pending[[9, 10, 49, 50, 60, 70, 80, 120]],
                                  [1.0, 0.5, 0.5, 1.0, 0.99, 0.98, 1.0, 1.0])
    np.testing.assert_array_equal(found["x_until"][[9, 10, 50, 60, 80]], [168.0, 40.0, 168.0, 20.0, 168.0])


def test_surface_points_are_columns_of_their_own() -> None:
    frame = pd.DataFrame({"published": [at(1)] * 4, "name": "iv", "value": [0.2, 0.25, 0.3, 0.22],
                          "horizon": ["30d", "30d", "91", "1Y"], "delta": ["-25", "50", "-12.50", ""]})
    found = outside_columns(outside_series(frame), HOURS)
    values = {name: column[-1] for name, column in found.items() if not name.endswith("_age")}
    assert values == {"iv_30d_m25": 0.2, "iv_30d_50": 0.25, "iv_91_m12p5": 0.3, "iv_1y": 0.22}
    numbers = outside_series(frame.assign(horizon=[30, 30, 91, 365], delta=[-25.0, 50.0, -12.5, np.nan]))
    assert [key.name for key in numbers.keys] == ["iv_30_50", "iv_30_m25", "iv_365", "iv_91_m12p5"]


def test_the_version_says_what_columns_mean_not_what_was_published() -> None:
    first = outside_series(pd.DataFrame({"published": [at(1)], "name": "x", "value": 1.0}))
    more = outside_series(pd.DataFrame({"published": [at(1), at(2)], "name": "x", "value": [1.0, 2.0]}))
    other = outside_series(pd.DataFrame({"published": [at(1)], "name": "x", "value": 1.0, "kind": "score"}))
    config = OutsideConfig()
    assert outside_version(first.keys, config) == outside_version(more.keys, config)
    assert outside_version(first.keys, config) != outside_version(other.keys, config)
    assert outside_version(first.keys, config) != outside_version(first.keys, OutsideConfig(max_age_hours=1.0))


def test_a_stream_refuses_what_a_file_refuses() -> None:
    stream = OutsideStream([OutsideKey("x", "level")])
    with pytest.raises(ValueError, match="not a finite number"):
        stream.push("x", 0, float("nan"))
    with pytest.raises(KeyError):
        stream.push("y", 0, 1.0)
    stream.at(10)
    with pytest.raises(ValueError, match="time runs backwards"):
        stream.at(9)
