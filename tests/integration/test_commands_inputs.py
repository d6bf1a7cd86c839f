"""The commands with every kind of input, on small synthetic data: the results equal the library's own calls."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from algospace.features import FeatureConfig, FeatureTable, build, read_table
from algospace.features.block_table import read_blocks
from algospace.features.book import book_columns
from algospace.features.driver import build_from_ticks
from algospace.features.flow import flow_columns
from algospace.features.outside import load_outside, outside_columns
from algospace.features.own import build_with_own, load_indicator
from algospace.features.relative import RelativeConfig, relative_columns, relative_names
from algospace.instruments import instrument
from algospace.marketdata import read_source
from algospace.marketdata.ticks import QuoteImportOptions, TickCatalog, import_quotes, import_ticks
from algospace.types import MINUTE_NS
from tests.command_line import runner
from tests.conftest import REPOSITORY
from tests.scale_market import assert_same

SYNTH = instrument("SYNTH")
WIDTH = 5 * MINUTE_NS
LATENCY_NS = 2_000_000_000  # the receive clock of the quotes and of the late trades is this far behind
OWN = REPOSITORY / "docs/examples/my_indicator.py"
Runner = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Inputs:
    """What a user would have on disk, all over one time: bars, trades, quotes, another instrument, a calendar."""

    folder: Path

    @property
    def bars(self) -> Path:
        return self.folder / "bars.csv"

    @property
    def trades(self) -> Path:
        return self.folder / "trades.parquet"

    @property
    def late_trades(self) -> Path:
        return self.folder / "late.parquet"

    @property
    def quotes(self) -> Path:
        return self.folder / "quotes.parquet"

    @property
    def other(self) -> Path:
        return self.folder / "nq.csv"

    @property
    def outside(self) -> Path:
        return self.folder / "calendar.csv"


def _write_inputs(folder: Path) -> None:
    rng = np.random.default_rng(3)
    n, start = 2000, pd.Timestamp("2024-03-04 15:00", tz="UTC")
    close = 5000 + 0.25 * np.cumsum(rng.integers(-3, 4, n))
    times = start + pd.to_timedelta(np.arange(n), unit="min")
    bars = {"open": close, "high": close + 0.5, "low": close - 0.5, "close": close, "volume": 10.0}
    pd.DataFrame({"ts_utc": times.tz_localize(None), **bars}).to_csv(folder / "bars.csv", index=False)
    other = close * 3.5 // 0.25 * 0.25
    bars = {"open": other, "high": other + 1, "low": other - 1, "close": other}
    pd.DataFrame({"ts_utc": times.tz_localize(None), **bars}).to_csv(folder / "nq.csv", index=False)

    ts = (times.as_unit("ns").asi8[:, None] + rng.integers(0, MINUTE_NS, (n, 4))).ravel()
    ts.sort()
    price = np.repeat(close, 4) + 0.25 * rng.integers(-1, 2, 4 * n)
    trades = pd.DataFrame({"ts_event": pd.to_datetime(ts, utc=True), "price": price,
                           "side": rng.choice(["A", "B"], ts.size), "size": rng.integers(1, 9, ts.size)})
    trades.to_parquet(folder / "trades.parquet")
    received = pd.to_datetime(ts + rng.integers(100_000, 900_000, ts.size) - LATENCY_NS, utc=True)
    trades.assign(ts_recv=received).to_parquet(folder / "late.parquet")
    bid = price - 0.25
    sizes = rng.integers(1, 50, (2, ts.size))
    quotes = pd.DataFrame({"local_ns": ts - LATENCY_NS, "bid": bid, "ask": bid + 0.25, "bid_qty": sizes[0],
                           "ask_qty": sizes[1]})
    quotes.to_parquet(folder / "quotes.parquet")
    (folder / "calendar.csv").write_text(
        "published,event,name,value,kind\n2024-03-04T18:00:00Z,2024-03-04T00:00:00Z,vix,15.39,level\n"
        "2024-03-04T16:00:00Z,2024-03-05T12:30:00Z,payrolls,1,event\n"
        "2024-03-04T20:03:11Z,,news_score,-0.8,score\n")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("inputs")
    _write_inputs(folder)
    return Inputs(folder)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Runner:
    """The command line in this process with --json: what it prints, which must be JSON and nothing else."""
    words = runner(monkeypatch, capsys)

    def call(*arguments: object) -> Any:
        code, out, err = words(*arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    return call


def _features(run: Runner, out: Path, src: Path, *options: object) -> FeatureTable:
    summary = run("features", src, "--instrument", "SYNTH", "--out", out, *options)
    table = read_table(out)
    assert (summary["rows"], summary["columns"]) == (len(table), len(table.base))
    assert not [path for path in out.parent.iterdir() if path.name.startswith(".")]
    return table


def _assert_columns(table: FeatureTable, expected: dict[str, Any]) -> None:
    for name, values in expected.items():
        np.testing.assert_array_equal(table.base[name], values, err_msg=name)


def test_library_and_own_indicator(run: Runner, inputs: Inputs, tmp_path: Path) -> None:
    table = _features(run, tmp_path / "t.parquet", inputs.bars, "--library", "rsi_14,adx_14", "--indicator", OWN)
    config = FeatureConfig(library=("rsi_14", "adx_14"))
    bars = read_source(inputs.bars, SYNTH)
    assert_same(table, build_with_own(bars, SYNTH, config, [load_indicator(OWN)]))
    assert np.isfinite(table.base["rsi_14"]).any()
    assert np.isfinite(table.base["ema_distance_24"]).any()


def test_every_input_beside_bars(run: Runner, inputs: Inputs, tmp_path: Path) -> None:
    table = _features(run, tmp_path / "t.parquet", inputs.bars, "--relative", f"NQ={inputs.other}", "--outside",
                      inputs.outside, "--ticks", inputs.trades, "--quotes", inputs.quotes)
    plain = build(read_source(inputs.bars, SYNTH), SYNTH)
    _assert_columns(table, plain.base)
    others = {"nq": read_source(inputs.other, "NQ")}
    _assert_columns(table, relative_columns(plain, others, RelativeConfig(base_minutes=5)))
    _assert_columns(table, outside_columns(load_outside(inputs.outside), plain.ts_close))
    ticks = import_ticks(inputs.trades, SYNTH).ticks
    _assert_columns(table, flow_columns(ticks, plain.ts_close, WIDTH, SYNTH))
    quotes = import_quotes(inputs.quotes, SYNTH).quotes
    _assert_columns(table, book_columns(quotes, plain.ts_close, WIDTH, SYNTH))
    sides = set(table.base) - set(plain.base)
    assert {*relative_names(["nq"], RelativeConfig()), "vix", "payrolls_until", "news_score"} <= sides
    assert all(np.isfinite(table.base[name]).any() for name in sides)
    first = int(np.argmax(np.isfinite(table.base["vix"])))  # published at 18:00, about midnight
    assert table.ts_close[first] == pd.Timestamp("2024-03-04 18:00", tz="UTC").value


def test_ticks_from_a_file_and_from_a_catalog_with_the_clock_of_their_import(
        run: Runner, inputs: Inputs, tmp_path: Path) -> None:
    market = tmp_path / "market"
    report = run("data", "import", inputs.late_trades, "--instrument", "SYNTH", "--out", market)
    assert report["ticks_added"] == report["rows_out"] == 8000
    offset = report["clock"]["offset_ns"]
    assert abs(offset + LATENCY_NS) < 1_000_000
    from_file = _features(run, tmp_path / "file.parquet", inputs.late_trades, "--quotes", inputs.quotes)
    from_catalog = _features(run, tmp_path / "catalog.parquet", market, "--quotes", inputs.quotes)
    assert_same(from_catalog, from_file)
    ticks = TickCatalog(market).read("SYNTH")
    plain = build_from_ticks(ticks, SYNTH, FeatureConfig(), [])
    _assert_columns(from_file, {**plain.base, **flow_columns(ticks, plain.ts_close, WIDTH, SYNTH)})
    moved = import_quotes(inputs.quotes, SYNTH, QuoteImportOptions(clock_offset_ns=offset)).quotes
    _assert_columns(from_file, book_columns(moved, plain.ts_close, WIDTH, SYNTH))


def test_a_catalog_of_bars_and_ticks_gives_bars_and_lends_its_ticks(
        run: Runner, inputs: Inputs, tmp_path: Path) -> None:
    market = tmp_path / "market"
    run("data", "import", inputs.trades, "--instrument", "SYNTH", "--out", market)
    run("data", "import", inputs.bars, "--instrument", "SYNTH", "--out", market)
    plain = build(read_source(inputs.bars, SYNTH), SYNTH)
    assert_same(_features(run, tmp_path / "plain.parquet", market), plain)
    table = _features(run, tmp_path / "flow.parquet", market, "--ticks", market)
    _assert_columns(table, flow_columns(TickCatalog(market).read("SYNTH"), plain.ts_close, WIDTH, SYNTH))


def test_wider_bars_give_the_same_columns_in_a_file_and_in_blocks(
        run: Runner, inputs: Inputs, tmp_path: Path) -> None:
    bars = pd.read_csv(inputs.bars, parse_dates=["ts_utc"]).set_index("ts_utc")
    wide = bars.resample("30min").agg({"open": "first", "high": "max", "low": "min", "close": "last",
                                       "volume": "sum"})
    wide.reset_index().to_csv(tmp_path / "wide.csv", index=False)
    table = _features(run, tmp_path / "t.parquet", tmp_path / "wide.csv")
    run("features", tmp_path / "wide.csv", "--instrument", "SYNTH", "--out", tmp_path / "blocks")
    assert_same(read_blocks(tmp_path / "blocks" / "SYNTH"), table)
    assert len(table) == len(wide)


def test_one_minute_base_bars_by_configuration(run: Runner, inputs: Inputs, tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("base_minutes: 1\n")
    table = _features(run, tmp_path / "t.parquet", inputs.bars, "--config", tmp_path / "one.yaml", "--relative",
                      f"NQ={inputs.other}", "--ticks", inputs.trades)
    assert len(table) == 2000
    ticks = import_ticks(inputs.trades, SYNTH).ticks
    _assert_columns(table, flow_columns(ticks, table.ts_close, MINUTE_NS, SYNTH))


def test_synthetic_ticks_are_a_source_like_any_other(run: Runner, tmp_path: Path) -> None:
    made = run("data", "synth", "--scenario", "stress", "--bars", "300", "--resolution", "ticks", "--seed", "2",
               "--out", tmp_path / "ticks")
    run("data", "synth", "--scenario", "stress", "--bars", "300", "--seed", "2", "--out", tmp_path / "bars")
    table = _features(run, tmp_path / "t.parquet", tmp_path / "ticks")
    bars = _features(run, tmp_path / "b.parquet", tmp_path / "bars", "--ticks", tmp_path / "ticks")
    shared = np.isin(bars.ts_close, table.ts_close)
    assert made["rows"] > 10 * len(table) > 0
    assert shared.sum() == len(table)
    flow = set(table.base) - set(build(read_source(tmp_path / "bars", SYNTH), SYNTH).base)
    assert flow
    for name in ("open", "high", "low", "close", "volume", *flow):
        np.testing.assert_array_equal(bars.base[name][shared], table.base[name], err_msg=name)


def test_list_names_every_column_of_a_table(run: Runner, inputs: Inputs, tmp_path: Path) -> None:
    listed = run("features", "--list")
    built_in, library = ({column["name"] for column in group} for group in listed.values())
    table = _features(run, tmp_path / "t.parquet", inputs.bars, "--library", "all")
    assert set(table.base) == built_in | library
    columns = [column for group in listed.values() for column in group]
    assert all(column[key] for column in columns for key in ("formula", "unit", "source"))


def test_checks_and_augmentation_print_json_and_keep_it(run: Runner, inputs: Inputs, tmp_path: Path) -> None:
    out = tmp_path / "lookahead.json"
    report = run("check", "lookahead", inputs.bars, "--instrument", "SYNTH", "--cuts", "2", "--indicator", OWN,
                 "--out", out)
    assert json.loads(out.read_text()) == report
    assert "ema_distance_24" in {column["column"] for column in report["columns"]}
    varied = run("data", "augment", inputs.bars, "--instrument", "SYNTH", "--operators", "noise", "--seed", "1",
                 "--out", tmp_path / "varied")
    assert varied["rows"] == 2000
    assert len(_features(run, tmp_path / "v.parquet", tmp_path / "varied")) == 400


@pytest.mark.usefixtures("ray_cluster")
def test_local_blocks_and_ray_give_one_result(run: Runner, inputs: Inputs, tmp_path: Path) -> None:
    market = tmp_path / "market"
    run("data", "import", inputs.bars, "--instrument", "SYNTH", "--out", market)
    run("data", "import", inputs.other, "--instrument", "NQ", "--out", market)
    local = _features(run, tmp_path / "local.parquet", market, "--library", "rsi_14", "--indicator", OWN)
    shared = ("--library", "rsi_14", "--indicator", OWN)
    for engine in ("local", "ray"):
        reports = run("features", market, "--instrument", "all", "--out", tmp_path / engine, "--engine", engine,
                      *shared)
        assert [(r["name"], r["error"]) for r in reports] == [("NQ", None), ("SYNTH", None)]
        assert_same(read_blocks(tmp_path / engine / "SYNTH"), local)
    assert_same(_features(run, tmp_path / "ray.parquet", market, "--engine", "ray", *shared), local)
    again = run("features", market, "--instrument", "SYNTH,NQ", "--out", tmp_path / "local", *shared)
    assert all(report["kept"] == report["blocks"] for report in again)
