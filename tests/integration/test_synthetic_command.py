"""`algospace data synth`, through its Typer command."""

import json

import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from algospace.errors import ConfigError
from algospace.files import sha256_file
from algospace.marketdata.synthetic_commands import add_synth_command


@pytest.fixture
def app():
    root, data = typer.Typer(), typer.Typer()
    root.add_typer(data, name="data")
    add_synth_command(data)
    data.command("other")(lambda: None)
    return root


def _run(app, *arguments):
    return CliRunner().invoke(app, ["data", "synth", *arguments])


def test_it_writes_bars_truth_and_manifest(app, tmp_path):
    out = tmp_path / "deep" / "easy"
    for _ in range(2):  # an earlier market is replaced
        result = _run(app, "--scenario", "easy", "--seed", "7", "--bars", "300", "--out", str(out), "--json")
        assert result.exit_code == 0, result.output
    assert json.loads(result.output)["base_bars"] == 300
    assert sorted(p.name for p in out.iterdir()) == ["bars.parquet", "manifest.json", "truth.parquet"]
    truth = pq.read_table(out / "truth.parquet")
    assert truth.column_names == ["ts_close", "regime", "belief_up", "belief_down", "belief_range", "belief_noise",
                                  "expected_return", "limit_position"]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["seed"] == 7
    assert manifest["files"]["bars.parquet"] == sha256_file(out / "bars.parquet")
    assert [p.name for p in out.parent.iterdir()] == ["easy"]


def test_minutes_on_request(app, tmp_path):
    result = _run(app, "--scenario", "stress", "--bars", "50", "--resolution", "1m", "--out", str(tmp_path / "s"))
    assert result.exit_code == 0, result.output
    assert pq.read_table(tmp_path / "s" / "bars.parquet").num_rows == 250


@pytest.mark.parametrize("wrong", [
    ("--scenario", "esay"), ("--scenario", "easy", "--bars", "0"), ("--scenario", "easy", "--resolution", "2m"),
])
def test_wrong_usage_is_one_clear_error_and_nothing_is_written(app, tmp_path, wrong):
    result = _run(app, *wrong, "--out", str(tmp_path / "x"))
    assert isinstance(result.exception, ConfigError)
    assert result.exception.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_things_is_left_alone(app, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    result = _run(app, "--scenario", "easy", "--bars", "10", "--out", str(tmp_path))
    assert isinstance(result.exception, ConfigError)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
