"""A whole run goes on without MLflow, and `algospace tracking upload` brings its history there later."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.tracking import MlflowClient

from algospace import cli
from algospace.config import load_config
from tests.conftest import REPOSITORY
from tests.integration.test_pipeline_run import TINY, run
from tests.integration.test_tracking_mlflow import free_port, offline_run
from training.config import RunConfig
from training.evaluation.report import record
from training.tracking import SPOOL, TrackingConfig, TrackingWarning

EXPERIMENT = "desk-one"
QUICKSTART = REPOSITORY / "configs" / "quickstart.yaml"


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["algospace", "tracking", "upload", *(str(word) for word in words)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


def offline(folder: Path) -> str:
    """A run's folder with a spool of a store that does not answer; that store."""
    store = f"http://127.0.0.1:{free_port()}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrackingWarning)
        offline_run(TrackingConfig(uri=store), folder)
    config = load_config(RunConfig, QUICKSTART, [f"tracking.uri={store}", f"tracking.experiment={EXPERIMENT}"])
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return store


def test_upload_says_what_it_did_and_a_second_time_that_nothing_waits(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    offline(tmp_path)
    count = len((tmp_path / SPOOL).read_text().splitlines())
    store = f"sqlite:///{tmp_path / 'later.db'}"
    code, out, _ = call(monkeypatch, capsys, tmp_path, "--uri", store)
    assert (code, out) == (0, f"{tmp_path}: {count} operations uploaded\n")
    code, out, _ = call(monkeypatch, capsys, tmp_path, "--uri", store)
    assert (code, out) == (0, f"{tmp_path}: nothing waits to be uploaded\n")


def test_a_store_that_still_does_not_answer_keeps_everything(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    store = offline(tmp_path)
    spool = (tmp_path / SPOOL).read_text()
    code, out, err = call(monkeypatch, capsys, tmp_path)
    assert (code, out) == (1, "")
    assert store in err
    assert "try again later" in err
    assert (tmp_path / SPOOL).read_text() == spool


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(monkeypatch, capsys, tmp_path)
    assert code == 2
    assert "no config.yaml" in err


def _walk_forward(folder: Path) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"walk_forward": {"windows": 5}}))


def _sweep(folder: Path) -> None:
    tracking = yaml.safe_load((folder / "config.yaml").read_text())["tracking"]
    (folder / "plan.json").write_text(json.dumps({"tune": {}, "base": {"tracking": tracking}}))
    (folder / "config.yaml").unlink()


def _evaluation(folder: Path) -> None:
    config = load_config(RunConfig, folder / "config.yaml")
    (folder / "config.yaml").unlink()
    with pytest.warns(TrackingWarning):
        record({"failures": [], "config_hash": "h", "fraction_of_limit": None, "alarms": [], "controls": {}},
               config, [], folder)


def _evaluation_of_old(folder: Path) -> None:
    (folder / "config.yaml").unlink()


@pytest.mark.parametrize("kind", [_walk_forward, _sweep, _evaluation, _evaluation_of_old])
def test_the_history_of_whatever_keeps_one_can_be_uploaded(
        kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    store = offline(tmp_path)
    kind(tmp_path)
    code, _, err = call(monkeypatch, capsys, tmp_path)
    assert ("give its store with --uri" if kind is _evaluation_of_old else store) in err
    assert code == (2 if kind is _evaluation_of_old else 1)
    later = f"sqlite:///{tmp_path / 'later.db'}"
    code, out, _ = call(monkeypatch, capsys, tmp_path, "--uri", later)
    assert code == 0
    assert "operations uploaded" in out
    if kind is not _evaluation_of_old:
        assert MlflowClient(later).get_experiment_by_name(EXPERIMENT) is not None


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_whole_pipeline_without_mlflow_is_uploaded_later(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config(RunConfig, QUICKSTART, [*TINY, f"tracking.uri=http://127.0.0.1:{free_port()}"])
    with pytest.warns(TrackingWarning):
        result, _ = run(config, tmp_path / "run")
    assert all((tmp_path / "run" / name / "phase.json").is_file() for name in ("rde", "mrms", "core"))
    assert result.mlflow_run_id.startswith("local-")
    capsys.readouterr()
    store = f"sqlite:///{tmp_path / 'later.db'}"
    code, out, _ = call(monkeypatch, capsys, tmp_path / "run", "--uri", store)
    assert code == 0
    assert "operations uploaded" in out
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name(config.tracking.experiment)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert {r.data.tags["phase"] for r in runs} == {"pipeline", "rde", "mrms", "core"}
    assert {r.info.status for r in runs} == {"FINISHED"}
    core = next(r for r in runs if r.data.tags["phase"] == "core")
    figures = json.loads((tmp_path / "run" / "core" / "phase.json").read_text())["metrics"]
    assert core.data.metrics["final/env_steps"] == figures["env_steps"]
    assert str(client.get_model_version_by_alias("algospace-core", "candidate").version) == "1"
