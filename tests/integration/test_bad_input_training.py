"""Bad configuration and usage of the training commands: one clear line, exit code 2, nothing written."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from algospace.cli import main
from tests.conftest import REPOSITORY

QUICKSTART = str(REPOSITORY / "configs" / "quickstart.yaml")
NQ = str(REPOSITORY / "configs" / "train" / "nq.yaml")


def refused(arguments: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch,
            capsys: pytest.CaptureFixture[str]) -> str:
    """Run the command; its one line on stderr."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["algospace", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1
    assert not [path for path in folder.rglob("*") if path.name in ("tables", "bundle", "report", "summary.json")]
    return lines[0]


@pytest.mark.parametrize(("arguments", "says"), [
    (["train", "--config", "missing.yaml"], "missing.yaml: no such configuration file"),
    (["train", "--config", QUICKSTART, "core.mapo.env_steps=5"], "core.mapo"),
    (["train", "--config", QUICKSTART, "core.mappo.env_steps=many"], "core.mappo.env_steps"),
    (["train", "--config", QUICKSTART, "--phases", "rde,cor"], "unknown phase 'cor'"),
    (["train", "--config", QUICKSTART, "noequals"], "expected key.path=value"),
    (["train", "--config", QUICKSTART, "market.instrument=XX"], "unknown instrument 'XX'"),
    (["train", "--config", QUICKSTART, "market.synthetic.scenario=esy"], "unknown scenario 'esy'"),
    (["train", "--config", QUICKSTART, "core.mappo.minibatches=7"], "minibatches"),
    (["train", "--config", QUICKSTART, "core.mappo.segment=100"], "multiple of"),
    (["train", "--config", QUICKSTART, "market.synthetic.test_seeds=[1]"], "must differ"),
    (["train", "--config", QUICKSTART, "market.synthetic.test_seeds=[]"], "market.synthetic.test_seeds"),
    (["train", "--config", QUICKSTART, "core.mappo.minibatches=0"], "core.mappo.minibatches"),
    (["train", "--config", QUICKSTART, "core.mappo.segment=0"], "core.mappo.segment"),
    (["train", "--config", QUICKSTART, "core.mappo.epochs=0"], "core.mappo.epochs"),
    (["train", "--config", QUICKSTART, "core.mappo.env_steps=0"], "core.mappo.env_steps"),
    (["train", "--config", QUICKSTART, "core.net.dropout=1"], "core.net.dropout"),
    (["train", "--config", QUICKSTART, "seed=-1"], "seed"),
    (["train", "--config", QUICKSTART, "mrms.env.episode_trades=50"], "multiple of"),
    (["train", "--config", NQ], "ALGOSPACE_DATA"),
    (["train", "--config", NQ, "market.file.path=/nowhere"], "/nowhere"),
    (["export", "--out", "x"], "exactly one of --checkpoint and --run"),
    (["export", "--out", "x", "--checkpoint", "."], "not a run's folder"),
    (["export", "--out", "x", "--run", "abc"], "no run with MLflow id 'abc'"),
    (["backtest", "--bundle", "nowhere", "--data", "d", "--out", "o"], "nowhere"),
])
def test_one_line_and_exit_code_two(arguments: list[str], says: str, tmp_path: Path,
                                    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("ALGOSPACE_DATA", raising=False)
    assert says in refused(arguments, tmp_path, monkeypatch, capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_yaml_typo_names_file_and_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                        capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "typo.yaml"
    path.write_text("name: x\nmarkt: {}\nmarket: {instrument: ES, synthetic: {}}\n")
    line = refused(["train", "--config", str(path)], tmp_path, monkeypatch, capsys)
    assert str(path) in line
    assert "unknown key 'markt'" in line


def test_dates_outside_the_data_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                          capsys: pytest.CaptureFixture[str], data_root: Path) -> None:
    monkeypatch.setenv("ALGOSPACE_DATA", str(data_root))
    config = str(REPOSITORY / "configs" / "train" / "es.yaml")
    line = refused(["train", "--config", config, "market.file.validation_until=2031-01-01",
                    "market.file.test_until=2031-06-01"], tmp_path, monkeypatch, capsys)
    assert "split of ES" in line
    assert list(tmp_path.iterdir()) == []
