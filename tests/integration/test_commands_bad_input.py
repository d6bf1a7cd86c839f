"""Bad input to the commands of the market pipeline: one clear line, exit code 2, nothing half-written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from algospace.features import FeatureConfig, build, read_table
from algospace.features.block_table import read_blocks
from tests.command_line import Result, Runner, runner
from tests.scale_market import SYNTH, assert_same, rolling_bars, write_catalog

N = 600
START = pd.Timestamp("2024-03-04 15:00", tz="UTC")


def bars(scale: float = 1.0, start: pd.Timestamp = START) -> pd.DataFrame:
    close = scale * (5000 + 0.25 * (np.arange(N) % 40))
    return pd.DataFrame({"ts_utc": pd.date_range(start.tz_localize(None), periods=N, freq="1min"), "open": close,
                         "high": close + 0.25, "low": close - 0.25, "close": close})


def trades(price: float = 5000.0, start: pd.Timestamp = START) -> pd.DataFrame:
    return pd.DataFrame({"ts_event": pd.date_range(start, periods=N, freq="20s"), "price": price, "size": 1})


def quotes(price: float = 5000.0, start: pd.Timestamp = START) -> pd.DataFrame:
    return pd.DataFrame({"ts_event": pd.date_range(start, periods=N, freq="20s"), "bid": price,
                         "ask": price + 0.25, "bid_qty": 1, "ask_qty": 2})


def contracts() -> pd.DataFrame:
    two = pd.concat([bars().assign(contract="ESH4"), bars().assign(contract="ESM4")])
    return two.sort_values("ts_utc", kind="stable")


OUTSIDE = {
    "zoneless": "published,name,value\n2024-03-04 16:00:00,vix,1\n",
    "clash": "published,name,value\n2024-03-04T16:00:00Z,close,1\n",
    "badname": "published,name,value\n2024-03-04T16:00:00Z,Bad Name,1\n",
    "late": "published,name,value\n2030-03-04T16:00:00Z,vix,1\n",
    "nameless": "published,value\n2024-03-04T16:00:00Z,1\n",
    "rowless": "published,name,value\n",
    "fine": "published,name,value\n2024-03-04T16:00:00Z,vix,1\n",
}
LAST_YEAR = START - pd.Timedelta(days=365)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: sources that are fine, and each kind that is not."""
    folder = tmp_path_factory.mktemp("place")
    bars().to_csv(folder / "es.csv", index=False)
    bars(start=LAST_YEAR).to_csv(folder / "old.csv", index=False)
    contracts().to_csv(folder / "contracts_two.csv", index=False)
    (folder / "mixed").mkdir()
    for name in ("a", "b"):
        bars().to_csv(folder / "mixed" / f"{name}.csv", index=False)
    (folder / "empty").mkdir()
    (folder / "file").write_text("in the way")
    for name, data in {"trades": trades(), "trades_old": trades(start=LAST_YEAR), "trades_other": trades(18000.0),
                       "trades_nq": trades().assign(symbol="NQM4"), "quotes": quotes(),
                       "quotes_old": quotes(start=LAST_YEAR), "quotes_other": quotes(18000.0)}.items():
        data.to_parquet(folder / f"{name}.parquet")
    whole = (folder / "trades.parquet").read_bytes()
    (folder / "cut.parquet").write_bytes(whole[:-200])
    for name, text in OUTSIDE.items():
        (folder / f"{name}.csv").write_text(text)
    (folder / "clash.py").write_text("def compute(bars):\n    return bars.close.diff().rename('return_1')\n")
    (folder / "broken.py").write_text("x = (\n")
    return folder


@pytest.fixture(scope="module")
def markets(place: Path) -> Path:
    """Catalogs: of bars and of ticks of ES."""
    from algospace.marketdata import Catalog, import_file
    from algospace.marketdata.ticks import TickCatalog, import_ticks

    Catalog(place / "market").write_import("ES", import_file(place / "es.csv", "ES"))
    TickCatalog(place / "ticks").write_import("ES", import_ticks(place / "trades.parquet", "ES"))
    return place


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], markets: Path) -> Runner:
    """The command line in this process, started in the user's folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(markets)
    return runner(monkeypatch, capsys)


def assert_refused(result: Result, words: str, out: Path) -> None:
    code, stdout, err = result
    assert (code, stdout) == (2, ""), err
    assert err.count("\n") == 1, err
    assert err.startswith("error: ")
    assert words in err
    assert not out.exists()
    assert not list(out.parent.glob(".*"))


FEATURES = {
    "library: no such column": ("--library rsi14", "--library: unknown library column 'rsi14'"),
    "library: twice": ("--library rsi_14,rsi_14", "named twice"),
    "indicator: no such file": ("--indicator no.py", "no.py: no such file"),
    "indicator: not Python": ("--indicator broken.py", "broken.py, line 1"),
    "indicator: a column that exists": ("--indicator clash.py", "clash.py, line 1: its column 'return_1' exists"),
    "relative: no equals sign": ("--relative NQ", "--relative NQ: expected SYMBOL=SRC"),
    "relative: no source": ("--relative NQ=", "expected SYMBOL=SRC"),
    "relative: unknown symbol": ("--relative NX=es.csv", "unknown instrument 'NX'"),
    "relative: no such file": ("--relative NQ=no.csv", "no.csv: no such file"),
    "relative: twice": ("--relative NQ=es.csv --relative nq=es.csv", "nq is given twice"),
    "relative: itself": ("--relative ES=es.csv", "ES is the table itself"),
    "relative: another year": ("--relative NQ=old.csv", "old.csv: bars of NQ from 2023-03-05"),
    "relative: ticks": ("--relative ES=ticks --relative NQ=es.csv", "the table itself"),
    "relative: a catalog of ticks": ("--relative NQ=ticks", "ticks: the catalog holds ticks, but no bars of NQ"),
    "relative: not in the catalog": ("--relative NQ=market", "does not hold NQ"),
    "outside: no zone": ("--outside zoneless.csv", "zoneless.csv, row 2: 'published' has no time zone"),
    "outside: a column that exists": ("--outside clash.csv", "clash.csv: its column 'close' exists already"),
    "outside: twice": ("--outside fine.csv --outside fine.csv", "fine.csv: its column 'vix' exists already"),
    "outside: no column name": ("--outside badname.csv", "'Bad Name' is not a column name"),
    "outside: published later": ("--outside late.csv", "late.csv: its first publication is of 2030-03-04"),
    "outside: no name": ("--outside nameless.csv", "no column 'name'"),
    "outside: no rows": ("--outside rowless.csv", "rowless.csv: no rows"),
    "outside: no such file": ("--outside no.csv", "no.csv: no such file"),
    "outside: a folder": ("--outside empty", "empty: no such file"),
    "outside: truncated": ("--outside cut.parquet", "cut.parquet: "),
    "ticks: no such file": ("--ticks no.parquet", "no.parquet: no such file"),
    "ticks: empty folder": ("--ticks empty", "empty: a folder without"),
    "ticks: truncated": ("--ticks cut.parquet", "cut.parquet: not a readable Parquet file"),
    "ticks: another symbol": ("--ticks trades_nq.parquet", "no symbol is an outright contract of ES: NQM4"),
    "ticks: another instrument's prices": ("--ticks trades_other.parquet", "about 18000, those of ES about 500"),
    "ticks: another year": ("--ticks trades_old.parquet", "trades from 2023-03-05"),
    "ticks: quotes": ("--ticks quotes.parquet", "missing columns: price"),
    "ticks: bars": ("--ticks es.csv", "missing columns: price"),
    "quotes: trades": ("--quotes trades.parquet", "missing columns: bid, ask"),
    "quotes: another year": ("--quotes quotes_old.parquet", "quotes from 2023-03-05"),
    "quotes: another instrument's prices": ("--quotes quotes_other.parquet", "about 18000"),
    "quotes: a catalog": ("--quotes ticks", "ticks: a folder without"),
    "config: no such file": ("--config no.yaml", "no.yaml: no such configuration file"),
    "config: not text": ("--config cut.parquet", "cut.parquet: not valid YAML"),
    "engine: unknown": ("--engine spark", "--engine spark: no such engine"),
    "engine: with ticks": ("--engine ray --ticks trades.parquet", "--ticks needs --engine local"),
    "engine: frame form": ("--engine ray --indicator clash.py", "compute() works on history only"),
}


@pytest.mark.parametrize("fault", FEATURES)
def test_options_of_features(run: Runner, tmp_path: Path, fault: str) -> None:
    options, words = FEATURES[fault]
    out = tmp_path / "t.parquet"
    assert_refused(run("features", "es.csv", "--instrument", "ES", "--out", out, *options.split()), words, out)


@pytest.mark.parametrize(("arguments", "out", "words"), [
    ("", None, "features needs SRC and --instrument and --out as well"),
    ("es.csv --instrument ES", None, "features needs --out as well"),
    ("es.csv", "t.parquet", "features needs --instrument as well"),
    ("es.csv --instrument EZ", "t.parquet", "unknown instrument 'EZ'"),
    ("market --instrument ES,NQ", "t.parquet", "one file holds one instrument"),
    ("market --instrument all", "t.parquet", "one file holds one instrument"),
    ("market --instrument ,", "t", "--instrument: name at least one"),
    ("empty --instrument all", "t", "empty: no instruments"),
    ("no --instrument all", "t", "no: no such file"),
    ("market --instrument ES --relative NQ=es.csv", "t", "--relative is for one instrument"),
    ("es.csv --instrument ES", "t.csv", "tables are Parquet"),
    ("trades.parquet --instrument ES --ticks trades.parquet", "t.parquet", "holds ticks itself; leave --ticks"),
    ("trades_nq.parquet --instrument ES", "t.parquet", "no symbol is an outright contract of ES"),
    ("trades.parquet --instrument ES --indicator clash.py", "t.parquet", "compute() works on history only"),
    ("cut.parquet --instrument ES", "t.parquet", "cut.parquet: not a readable Parquet file"),
    ("ticks --instrument NQ", "t.parquet", "the catalog holds ticks, but no bars of NQ"),
    ("ticks --instrument all", "t", "ticks: it holds ticks and no bars"),
    ("ticks --instrument ES", "t", "ticks: holds ticks of ES and no bars"),
    ("trades.parquet --instrument ES --engine ray", "t.parquet", "trades.parquet: holds ticks of ES and no bars"),
])
def test_sources_and_places_of_features(run: Runner, tmp_path: Path, arguments: str, out: str | None,
                                        words: str) -> None:
    target = tmp_path / (out or "none")
    result = run("features", *arguments.split(), *(("--out", target) if out else ()))
    assert_refused(result, words, target)


IMPORTS = {
    "an option of ticks with bars": ("es.csv --symbol ESM4", "--symbol is for ticks"),
    "a clock with bars": ("es.csv --clock receive", "--clock is for ticks"),
    "an overlap with bars": ("es.csv --overlap replace", "--overlap is for ticks"),
    "settings of ticks with bars": ("es.csv --set now_ns=1", "--set is for ticks"),
    "an option of bars with ticks": ("trades.parquet --front volume", "--front is for bars"),
    "a width with ticks": ("trades.parquet --width-s 60", "--width-s is for bars"),
    "no such kind": ("es.csv --kind tick", "--kind tick: choose one of"),
    "bars as ticks": ("es.csv --kind ticks", "missing columns: price"),
    "ticks as bars": ("trades.parquet --kind bars", "it holds trades: say --kind ticks"),
    "quotes": ("quotes.parquet", "quotes.parquet: best bids and asks, for which there is no catalog"),
    "no receive time": ("trades.parquet --clock receive", "no receive time"),
    "no such clock": ("trades.parquet --clock local", "clock"),
    "negative disorder": ("trades.parquet --max-disorder-ns -1", "max_disorder_ns"),
    "unknown setting": ("trades.parquet --set disorder=1", "unknown key 'disorder'"),
    "no such overlap": ("trades.parquet --overlap merge", "--overlap merge: choose"),
    "another symbol": ("trades_nq.parquet", "no symbol is an outright contract of ES"),
    "a symbol that is not there": ("trades_nq.parquet --symbol ESM4", "no row is left"),
    "truncated": ("cut.parquet", "cut.parquet: not a readable Parquet file"),
    "several contracts": ("contracts_two.csv", "choose one contract a day with --front"),
    "dates without a table": ("contracts_two.csv --front dates", "data import: front dates needs roll_dates"),
    "a table that is not there": ("contracts_two.csv --front dates --roll-dates no.csv", "no.csv: "),
    "interest that is not there": ("contracts_two.csv --front open_interest", "give --open-interest FILE"),
    "days without expiry": ("contracts_two.csv --roll-days 5", "roll_days is read with front expiry only"),
    "no such rule": ("contracts_two.csv --front oldest", "front"),
    "files of several series": ("mixed", "b.csv: it begins at 2024-03-04T15:00:00Z, before a.csv ends"),
    "a catalog": ("market", "market: a folder without"),
}


@pytest.mark.parametrize("fault", IMPORTS)
def test_options_of_import(run: Runner, tmp_path: Path, fault: str) -> None:
    options, words = IMPORTS[fault]
    out = tmp_path / "new"
    assert_refused(run("data", "import", *options.split(), "--instrument", "ES", "--out", out), words, out)


@pytest.mark.parametrize(("arguments", "words"), [
    ("data augment market --instrument ES", "--operators"),
    ("data augment market --instrument ES --operators nois", "operators"),
    ("data augment market --instrument ES --operators regime_resample", "with --labels"),
    ("data augment ticks --instrument ES --operators noise", "ticks: the catalog holds ticks, but no bars of ES"),
    ("data synth --scenario calm", "unknown scenario 'calm'"),
    ("data synth --scenario easy --tick-option imbalance=0.1", "works with --resolution ticks only"),
    ("check lookahead market --instrument ES --library rsi", "unknown library column 'rsi'"),
    ("check lookahead ticks --instrument ES", "ticks: the catalog holds ticks, but no bars of ES"),
    ("check warmup market --instrument ES --start soon", "--start soon: not a time"),
    ("check warmup market --instrument ES --start 2030-01-01", "no bars between --start and --end"),
    ("check warmup market --instrument ES", "too short for a warm-up"),
])
def test_other_commands(run: Runner, tmp_path: Path, arguments: str, words: str) -> None:
    out = tmp_path / "new"
    assert_refused(run(*arguments.split(), "--out", out), words, out)


@pytest.mark.parametrize("arguments", ["features es.csv --instrument ES", "data import es.csv --instrument ES",
                                       "data augment es.csv --instrument ES --operators noise"])
def test_a_file_in_the_way_stays(run: Runner, markets: Path, arguments: str) -> None:
    code, out, err = run(*arguments.split(), "--out", "file")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: file: is a file")
    assert (markets / "file").read_text() == "in the way"


def test_an_older_table_survives_a_failed_run(run: Runner, tmp_path: Path) -> None:
    out = tmp_path / "t.parquet"
    assert run("features", "es.csv", "--instrument", "ES", "--out", out)[0] == 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert run("features", "es.csv", "--instrument", "ES", "--out", out, "--outside", "clash.csv")[0] == 2
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert len(read_table(out)) == N // 5


def test_one_bad_instrument_does_not_stop_the_others(run: Runner, tmp_path: Path) -> None:
    code, out, err = run("features", "market", "--instrument", "ES,NQ", "--out", tmp_path / "blocks")
    assert (code, err.count("\n")) == (2, 1)
    assert "1 of 2 instruments: NQ: market: the catalog does not hold NQ" in err
    assert out.startswith("ES: 120 rows")
    assert len(read_blocks(tmp_path / "blocks" / "ES")) == N // 5


def test_a_killed_build_continues_and_ends_as_if_it_had_not_been_killed(run: Runner, tmp_path: Path) -> None:
    market = write_catalog(tmp_path / "market", rolling_bars(1))
    (tmp_path / "lean.yaml").write_text("regime: false\n")
    arguments = ["features", str(market), "--instrument", "SYNTH", "--out", str(tmp_path / "blocks"), "--config",
                 str(tmp_path / "lean.yaml")]
    command = subprocess.Popen([sys.executable, "-m", "algospace.cli", *arguments], stdout=subprocess.DEVNULL)
    folder = tmp_path / "blocks" / "SYNTH"
    deadline = time.monotonic() + 60
    while not list(folder.glob("*.state")) and time.monotonic() < deadline and command.poll() is None:
        time.sleep(0.002)
    os.kill(command.pid, signal.SIGKILL)
    assert command.wait() == -signal.SIGKILL
    code, _, err = run(*arguments)
    assert code == 0, err
    assert not [path for path in folder.iterdir() if path.suffix == ".part"]
    assert_same(read_blocks(folder), build(rolling_bars(1), SYNTH, FeatureConfig(regime=False)))


@pytest.mark.parametrize(("arguments", "words"), [
    (["features", "--bogus"], "No such option: --bogus"), (["nope"], "No such command 'nope'"),
    (["data", "import", "x.csv"], "Missing option '--instrument'"),
    (["check", "lookahead", "x", "--instrument", "ES", "--cuts", "0"], "Invalid value for '--cuts'"),
])
def test_a_wrong_option_is_one_line_too(run: Runner, arguments: list[str], words: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err
