"""Bad input to `data import` and `features`: one clear line, exit code 2, nothing half-written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.command_line import Runner, runner

N = 300


def good() -> pd.DataFrame:
    close = 5000 + 0.25 * np.arange(N)
    return pd.DataFrame({"ts_utc": pd.date_range("2024-03-04 15:00", periods=N, freq="1min"), "open": close,
                         "high": close + 0.25, "low": close - 0.25, "close": close})


def broken(column: str, value: object) -> pd.DataFrame:
    data = good().astype({"ts_utc": str})
    data.loc[40, column] = value
    return data


def write_csv(data: pd.DataFrame) -> Callable[[Path], object]:
    return lambda path: data.to_csv(path.with_suffix(".csv"), index=False)


def write_truncated(path: Path) -> None:
    whole = path.with_suffix(".tmp")
    good().to_parquet(whole)
    path.with_suffix(".parquet").write_bytes(whole.read_bytes()[:-500])
    whole.unlink()


def write_folder(path: Path) -> None:
    (path / "empty").mkdir(parents=True)


def swapped() -> pd.DataFrame:
    data = good()
    text = data["ts_utc"].dt.strftime("%d/%m/%Y %H:%M")
    text[0] = "29/02/2024 15:00"  # shows which field is the day
    text[40] = data["ts_utc"][40].strftime("%m/%d/%Y %H:%M")
    return data.assign(ts_utc=text)


order = [*range(100), 150, *range(100, 150), *range(151, N)]
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing columns": (write_csv(good().drop(columns=["low", "close"])), "missing columns: low, close"),
    "unsorted": (write_csv(good().iloc[order]), "row 102: the time goes back"),
    "newest first": (write_csv(good().iloc[::-1]), "row 2: the time goes back"),
    "duplicated times": (write_csv(good().iloc[[*range(50), *range(49, N)]]), "row 52: a bar with this time"),
    "not a number": (write_csv(broken("close", np.nan)), "row 42: a number is missing"),
    "negative price": (write_csv(broken("low", -5.0)), "row 42: a price is zero or negative"),
    "high below close": (write_csv(broken("high", 4000.0)), "row 42: high or low does not enclose"),
    "swapped day and month": (write_csv(swapped()), "row 42: day and month look exchanged"),
    "unreadable time": (write_csv(broken("ts_utc", "soon")), "row 42: the time cannot be read"),
    "empty file": (lambda path: path.with_suffix(".csv").write_text(""), "the file is empty"),
    "only a header": (write_csv(good().iloc[:0]), "no data rows"),
    "no header": (lambda path: good().to_csv(path.with_suffix(".csv"), index=False, header=False),
                  "the first line must name the columns"),
    "not text": (lambda path: path.with_suffix(".csv").write_bytes(b"\xff\xfe\x00a,\x00b\n"), "not UTF-8"),
    "empty Parquet": (lambda path: path.with_suffix(".parquet").write_bytes(b""), "the file is empty"),
    "truncated Parquet": (write_truncated, "not a readable Parquet file"),
    "a directory": (write_folder, "a folder without CSV or Parquet files"),
    "no such file": (lambda path: None, "no such file"),
    "one bar": (write_csv(good().iloc[:1]), "bar width"),
}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Runner:
    """The command line in this process, with this package's commands only: (exit code, stdout, stderr)."""
    return runner(monkeypatch, capsys)


def make(fault: str, tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    FAULTS[fault][0](folder / "src")
    found = list(folder.iterdir())
    if fault == "a directory":
        return folder / "src" / "empty"
    return found[0] if found else folder / "absent.csv"


def assert_refused(result: tuple[int, str, str], words: str, out: Path) -> None:
    code, _, err = result
    assert code == 2, err
    assert err.count("\n") == 1, err
    assert err.startswith("error: ")
    assert words in err
    assert not out.exists()
    assert not list(out.parent.glob(".*part*"))


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("command", ["import", "features"])
def test_one_line_exit_2_and_nothing_written(run: Runner, tmp_path: Path, fault: str, command: str) -> None:
    src = make(fault, tmp_path)
    out = tmp_path / ("market" if command == "import" else "table.parquet")
    words = ["data", "import"] if command == "import" else ["features"]
    result = run(*words, src, "--instrument", "ES", "--out", out)
    assert_refused(result, FAULTS[fault][1], out)
    assert str(src) in result[2]


@pytest.mark.parametrize(("arguments", "words"), [
    (["--instrument", "EZ"], "unknown instrument 'EZ'"),
    (["--instrument", "ES", "--zone", "Chicago"], "zone"),
    (["--instrument", "ES", "--columns", "close"], "role=column"),
    (["--instrument", "ES", "--columns", "clsoe=close"], "unknown column role clsoe"),
    (["--instrument", "ES", "--format", "xml"], "format"),
    (["--instrument", "ES", "--max-bad-fraction", "2"], "max_bad_fraction"),
])
def test_wrong_options_of_import(run: Runner, tmp_path: Path, arguments: list[str], words: str) -> None:
    good().to_csv(tmp_path / "a.csv", index=False)
    out = tmp_path / "market"
    result = run("data", "import", tmp_path / "a.csv", "--out", out, *arguments)
    assert_refused(result, words, out)


@pytest.mark.parametrize(("text", "arguments", "words"), [
    ("sorce: close\n", [], "unknown key 'sorce'"), ("fvg: {threshold: -1}\n", [], "fvg.threshold"),
    ("[", [], "not valid YAML"), ("base_minutes: 5\n", ["--engine", "spark"], "no such engine"),
])
def test_wrong_options_of_features(run: Runner, tmp_path: Path, text: str, arguments: list[str],
                                   words: str) -> None:
    good().to_csv(tmp_path / "a.csv", index=False)
    (tmp_path / "f.yaml").write_text(text)
    out = tmp_path / "table.parquet"
    result = run("features", tmp_path / "a.csv", "--instrument", "ES", "--out", out,
                 "--config", tmp_path / "f.yaml", *arguments)
    assert_refused(result, words, out)


@pytest.mark.parametrize("command", ["import", "features"])
def test_a_place_that_cannot_be_written_is_named(run: Runner, tmp_path: Path, command: str) -> None:
    good().to_csv(tmp_path / "a.csv", index=False)
    out = tmp_path / "a.csv" / ("market" if command == "import" else "table.parquet")
    words = ("data", "import") if command == "import" else ("features",)
    result = run(*words, tmp_path / "a.csv", "--instrument", "ES", "--out", out)
    assert_refused(result, "name a path that can be read or written", out)


def test_a_failed_import_leaves_the_catalog_as_it_was(run: Runner, tmp_path: Path) -> None:
    good().to_csv(tmp_path / "a.csv", index=False)
    out = tmp_path / "market"
    assert run("data", "import", tmp_path / "a.csv", "--instrument", "ES", "--out", out)[0] == 0
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    broken("close", -1).to_csv(tmp_path / "a.csv", index=False)
    assert run("data", "import", tmp_path / "a.csv", "--instrument", "ES", "--out", out)[0] == 2
    hourly = good().assign(ts_utc=pd.date_range("2024-05-01", periods=N, freq="1h"))
    hourly.to_csv(tmp_path / "b.csv", index=False)
    code, _, err = run("data", "import", tmp_path / "b.csv", "--instrument", "ES", "--out", out)
    assert (code, "holds 60 s bars" in err) == (2, True)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_damaged_catalogs_are_refused(run: Runner, tmp_path: Path) -> None:
    good().to_csv(tmp_path / "a.csv", index=False)
    out = tmp_path / "market"
    run("data", "import", tmp_path / "a.csv", "--instrument", "ES", "--out", out)
    month = out / "ES" / "2024-03.parquet"
    whole = month.read_bytes()
    table = tmp_path / "table.parquet"
    changed = bytearray(whole)
    changed[200] ^= 1
    for content, words in ((bytes(changed), "SHA-256"), (whole[:-100], "not a readable Parquet")):
        month.write_bytes(content)
        result = run("features", out, "--instrument", "ES", "--out", table)
        assert_refused(result, words, table)
    assert_refused(run("features", out, "--instrument", "NQ", "--out", table), "does not hold NQ", table)
    month.unlink()
    assert_refused(run("features", out, "--instrument", "ES", "--out", table), "missing", table)


def test_good_input_goes_all_the_way_to_features(run: Runner, tmp_path: Path) -> None:
    good().to_csv(tmp_path / "a.csv", index=False)
    out, table = tmp_path / "market", tmp_path / "table.parquet"
    code, text, _ = run("data", "import", tmp_path / "a.csv", "--instrument", "ES", "--out", out, "--json")
    report = json.loads(text)
    assert (code, report["rows_out"], report["rows_added"], report["bad_rows"]) == (0, N, N, 0)
    assert report["guesses"]
    code, text, _ = run("features", out, "--instrument", "ES", "--out", table, "--json")
    summary = json.loads(text)
    assert (code, summary["rows"], summary["synergies"]) == (0, N // 5, 0)
    assert table.is_file()


def test_the_installed_command_says_one_line_too(tmp_path: Path) -> None:
    out = tmp_path / "market"
    done = subprocess.run([sys.executable, "-m", "algospace.cli", "data", "import", str(tmp_path / "absent.csv"),
                           "--instrument", "ES", "--out", str(out)], capture_output=True, text=True, check=False)
    assert_refused((done.returncode, done.stdout, done.stderr), "no such file", out)


def test_a_synthetic_market_is_a_source_like_any_other(run: Runner, tmp_path: Path) -> None:
    market, table = tmp_path / "easy", tmp_path / "table.parquet"
    assert run("data", "synth", "--scenario", "easy", "--bars", "600", "--out", market)[0] == 0
    code, text, _ = run("features", market, "--instrument", "SYNTH", "--out", table, "--json")
    assert (code, json.loads(text)["rows"]) == (0, 600)


def test_relative_sources_are_found_below_the_data_root(run: Runner, tmp_path: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "root").mkdir()
    good().to_csv(tmp_path / "root" / "a.csv", index=False)
    monkeypatch.setenv("ALGOSPACE_DATA", str(tmp_path / "root"))
    assert run("data", "import", "a.csv", "--instrument", "ES", "--out", tmp_path / "market")[0] == 0
