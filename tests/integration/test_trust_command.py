"""The `check` commands from a file to tables, JSON, reports and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from algospace.errors import UserError
from algospace.marketdata.synthetic import generate
from algospace.trust.commands import add_check_commands

HEAD = "import numpy as np\nfrom algospace.features import Indicator\n"


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bars = generate("stress", 5, 900, "1m").bars
    path = tmp_path_factory.mktemp("market") / "bars.parquet"
    pd.DataFrame({"ts_utc": pd.DatetimeIndex(bars.ts_open.astype("datetime64[ns]"), tz="UTC"), "open": bars.open,
                  "high": bars.high, "low": bars.low, "close": bars.close, "volume": bars.volume}).to_parquet(path)
    return path


@pytest.fixture(scope="module")
def lean(market: Path) -> Path:
    path = market.with_name("lean.yaml")
    path.write_text("regime: false\n")
    return path


def invoke(*words: object) -> tuple[str, BaseException | None]:
    app = typer.Typer()
    add_check_commands(app)
    result = CliRunner().invoke(app, ["check", *map(str, words)], env={"COLUMNS": "200"})
    return result.output, result.exception


def test_lookahead_prints_every_column_and_exits_with_0(market: Path, lean: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    words = ("lookahead", market, "--instrument", "SYNTH", "--config", lean, "--cuts", 4, "--out", out)
    text, error = invoke(*words)
    assert error is None, text
    assert "base.mlmi_value" in text
    assert "0 columns look ahead" in text
    report = json.loads(out.read_text())
    assert report["clean"] is True
    assert report["live_events"] > 0
    assert json.loads(invoke(*words, "--json")[0]) == report


def test_lookahead_names_the_columns_with_one_line(market: Path, lean: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("def compute(bars):\n    return bars.close.shift(-1)\n")
    text, error = invoke("lookahead", market, "--instrument", "SYNTH", "--config", lean, "--cuts", 4,
                         "--indicator", mine)
    assert isinstance(error, UserError)
    assert error.exit_code == 2
    assert str(error).startswith("look-ahead in 1 columns: base.mine;")
    assert "LOOKS AHEAD" in text
    assert "no live twin: mine" in text


def test_warmup_of_a_range(market: Path, lean: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(HEAD + "def update(state, bar, out):\n    state[0] += bar.close\n    out[0] = state[0]\n"
                    "INDICATOR = Indicator('total', ('total',), lambda: np.zeros(1), update)\n")
    text, error = invoke("warmup", market, "--instrument", "SYNTH", "--config", lean, "--references", 2,
                         "--indicator", mine, "--json")
    assert error is None, text
    report = json.loads(text)
    assert "total" in report["named"]["depends on the whole history"]
    assert report["lengths"][0] == "1 day"
    assert invoke("warmup", market, "--instrument", "SYNTH", "--config", lean, "--references", 2)[1] is None


@pytest.mark.parametrize(("words", "message"), [
    (("--start", "never"), "--start never: not a time"),
    (("--start", "2031-01-01"), "no bars between --start and --end"),
    (("--indicator", "nowhere.py"), "nowhere.py: no such file"),
])
def test_bad_usage_is_one_line(words: tuple[str, ...], message: str, market: Path, lean: Path) -> None:
    _, error = invoke("lookahead", market, "--instrument", "SYNTH", "--config", lean, *words)
    assert isinstance(error, UserError)
    assert message in str(error)
    assert "\n" not in str(error)


def test_start_and_end_are_utc(market: Path, lean: Path) -> None:
    from algospace.trust.commands import _time, between

    bars = generate("stress", 5, 900, "1m").bars
    day = between(bars, _time("2000-01-04", "--start"), _time("2000-01-05T00:00+00:00", "--end"))
    stamps = day.ts_open.astype("datetime64[ns]")
    assert stamps[0] >= np.datetime64("2000-01-04")
    assert stamps[-1] < np.datetime64("2000-01-05")
