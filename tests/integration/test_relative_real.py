"""ES beside NQ, YM, RTY and VIX: real files of other widths, joined as of each ES row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from algospace.features import FeatureConfig, FeatureTable, SourceBar, build
from algospace.features.relative import RelativeConfig, SourceSettings, relative_columns, relative_version
from algospace.features.relative_stream import RelativeStream
from algospace.instruments import instrument
from algospace.marketdata import ImportOptions, import_file, read_source
from algospace.types import DAY_NS, Bars

CONFIG = RelativeConfig(sources={"vix": SourceSettings(max_age_bars=144)})


@pytest.fixture(scope="module")
def es(data_root: Path) -> FeatureTable:
    bars = read_source(data_root / "es_1m" / "es_1m.parquet", "ES")
    return build(bars, instrument("ES"), FeatureConfig(regime=False))


@pytest.fixture(scope="module")
def others(data_root: Path) -> dict[str, Bars]:
    hourly = data_root / "futures_hourly"
    some_bad = ImportOptions(max_bad_fraction=0.01)  # 47 daily rows break high >= max(open, close)
    return {
        "nq": read_source(data_root / "nq_cl_30m_volume" / "nq_30m_vol.parquet", "NQ"),
        "mnq": import_file(hourly / "hour_NASDAQ_micro.parquet", "MNQ", ImportOptions(front="volume")).bars,
        "ym": import_file(hourly / "hour_DOW.parquet", "YM", ImportOptions(front="expiry", roll_days=4)).bars,
        "rty": import_file(hourly / "hour_RUSSELL.parquet", "RTY", ImportOptions(front="volume")).bars,
        "vix": read_source(data_root / "equities" / "vix_5m_2025_08_2026_02.parquet", "VIX"),
        "vixd": import_file(data_root / "daily" / "vix_1d.parquet", "VIX", some_bad).bars,
    }


def test_the_indices_move_together_and_against_volatility(es: FeatureTable, others: dict[str, Bars]):
    columns = relative_columns(es, others, CONFIG)

    def fresh(name: str, column: str, bars: float) -> float:
        values = columns[f"{name}_{column}"]
        return float(np.nanmedian(values[(columns[f"{name}_age"] <= bars) & np.isfinite(values)]))

    assert fresh("nq", "correlation", 6) > 0.9
    assert fresh("mnq", "correlation", 12) > 0.9
    assert fresh("ym", "correlation", 12) > 0.8
    assert fresh("rty", "correlation", 12) > 0.75
    assert fresh("vix", "correlation", 12) < -0.7
    assert fresh("vixd", "correlation", 288) < -0.7
    assert 0.6 < fresh("mnq", "beta", 12) < 0.9  # the Nasdaq moves more than the S&P
    for name in others:  # nobody leads by an hour
        assert abs(fresh(name, "lead", 288)) < 0.15
    for name, values in columns.items():
        known = np.isfinite(values)
        assert known[np.argmax(known):].all(), name


def test_a_daily_volatility_is_the_one_of_a_day_that_has_ended(es: FeatureTable, others: dict[str, Bars]):
    seen = relative_columns(es, {"vixd": others["vixd"]})["vixd_close"]
    days = others["vixd"].ts_open // DAY_NS
    row = np.searchsorted(days, es.ts_close // DAY_NS, side="left") - 1
    np.testing.assert_array_equal(seen, others["vixd"].close[row])


def test_cutting_real_sources_changes_no_earlier_row(es: FeatureTable, others: dict[str, Bars]):
    whole = relative_columns(es, others, CONFIG)
    for cut in (9_000, 50_001):
        instant = es.ts_close[cut - 1]
        known = {name: b.slice(0, int(np.searchsorted(b.ts_open + b.width_ns, instant, side="right")))
                 for name, b in others.items()}
        part = relative_columns(es, known, CONFIG)
        for name, values in part.items():
            expected = whole[name][:cut].view(np.int64)
            np.testing.assert_array_equal(values[:cut].view(np.int64), expected, err_msg=name)


def test_live_equals_history_on_two_months(es: FeatureTable, others: dict[str, Bars]):
    first = int(np.searchsorted(es.ts_close, np.datetime64("2025-08-01", "ns").astype(np.int64)))
    part = {name: b.slice(int(np.searchsorted(b.ts_open, es.ts_close[first - 500])), len(b))
            for name, b in others.items() if name != "rty"}  # ends in March
    rows = slice(first, len(es))
    none = np.zeros(0, np.int64)
    base = FeatureTable("ES", es.ts_close[rows], es.filled[rows], es.contract[rows],
                        {"close": es.base["close"][rows]}, none, {}, es.row_30m[rows], es.config_digest)
    expected = relative_columns(base, part, CONFIG)
    stream = RelativeStream({name: b.width_ns for name, b in part.items()}, CONFIG)
    events = [(int(ts + b.width_ns), name, i) for name, b in part.items() for i, ts in enumerate(b.ts_open)]
    events += [(int(ts), "~", i) for i, ts in enumerate(base.ts_close)]  # "~" sorts behind every name
    found = []
    for ts, name, i in sorted(events):
        if name == "~":
            found.append(stream.push_base(ts, float(base.base["close"][i])))
        else:
            b = part[name]
            stream.push_other(name, SourceBar(int(b.ts_open[i]), float(b.open[i]), float(b.high[i]),
                                              float(b.low[i]), float(b.close[i]), contract=int(b.contract[i])))
    assert (stream.late, stream.invalid, stream.overdue) == (0, 0, 0)
    live = np.array(found).T.copy()
    np.testing.assert_array_equal(live.view(np.int64), np.array(list(expected.values())).view(np.int64))


def test_the_columns_join_the_table(es: FeatureTable, others: dict[str, Bars]):
    table = es.with_columns(relative_columns(es, others, CONFIG), relative_version(others, CONFIG))
    assert len(table) == len(es)
    assert table.config_digest not in (es.config_digest, "")
