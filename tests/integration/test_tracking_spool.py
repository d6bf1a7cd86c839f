"""The spool loses nothing: not to a full disk, a kill, a broken upload or a run that goes on meanwhile."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from tests.integration.test_tracking_mlflow import client, free_port, offline_run, open_tracker, uri
from training import tracking_store
from training.tracking import SPOOL, PhaseRun, Tracker, TrackingConfig, TrackingWarning, replay_spool

pytestmark = pytest.mark.filterwarnings("ignore::training.tracking.TrackingWarning")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tracking")
    open_tracker(folder).close()
    return folder


@pytest.fixture
def offline() -> TrackingConfig:
    return TrackingConfig(uri=f"http://127.0.0.1:{free_port()}")


def store(home: Path) -> TrackingConfig:
    return TrackingConfig(uri=uri(home))


def operations(folder: Path) -> list[str]:
    return [json.loads(line)["operation"] for line in (folder / SPOOL).read_text().splitlines()]


def losses(home: Path, run: PhaseRun) -> list[float]:
    config = store(home)
    found = tracking_store.find_local(*tracking_store.connect(config.uri, config.experiment, home), run.run_id)
    return [metric.value for metric in client(home).get_metric_history(found, "loss")]


def report(run: PhaseRun, step: int) -> None:
    run.metrics(step, {"loss": float(step)})
    run.flush()


def test_a_full_disk_does_not_stop_training_and_what_it_refused_is_written_later(
        home: Path, offline: TrackingConfig, tmp_path: Path) -> None:
    with Tracker.open(offline, tmp_path, "n", {}, "abc") as tracker, tracker.child("core", {}, {}) as run:
        report(run, 0)
        spool = tmp_path / SPOOL
        spool.rename(tmp_path / "kept")
        spool.symlink_to("/dev/full")
        with pytest.warns(TrackingWarning, match="No space left on device"):
            report(run, 1)
        report(run, 2)
        spool.unlink()
        (tmp_path / "kept").rename(spool)
        report(run, 3)
    replay_spool(tmp_path, store(home))
    assert losses(home, run) == [0.0, 1.0, 2.0, 3.0]


def test_half_a_line_of_a_killed_run_costs_that_operation_only(home: Path, offline: TrackingConfig,
                                                               tmp_path: Path) -> None:
    tracker = Tracker.open(offline, tmp_path, "n", {}, "abc")
    run = tracker.child("core", {}, {})
    report(run, 0)
    with (tmp_path / SPOOL).open("a") as stream:
        stream.write('{"operation": "metr')  # and then the process is killed
    report(run, 1)
    run.close()
    tracker.close()
    with pytest.warns(TrackingWarning, match="1 line.*not whole"):
        replay_spool(tmp_path, store(home))
    assert losses(home, run) == [0.0, 1.0]
    assert not (tmp_path / SPOOL).exists()


def test_what_a_run_adds_during_an_upload_stays_in_the_spool(home: Path, offline: TrackingConfig, tmp_path: Path,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = Tracker.open(offline, tmp_path, "n", {}, "abc")
    run = tracker.child("core", {}, {})
    report(run, 0)

    def meanwhile(*args: Any, **payload: Any) -> str:
        if step := len(seen) == 0:
            seen.append(step)
            report(run, 1)
        return original(*args, **payload)

    seen: list[bool] = []
    original: Callable[..., str] = tracking_store.OPERATIONS["metrics"]
    monkeypatch.setitem(tracking_store.OPERATIONS, "metrics", meanwhile)
    replay_spool(tmp_path, store(home))
    assert operations(tmp_path) == ["metrics"]
    run.close()
    tracker.close()
    replay_spool(tmp_path, store(home))
    assert losses(home, run) == [0.0, 1.0]


def test_an_upload_that_was_killed_registers_no_model_twice(home: Path, offline: TrackingConfig, tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    offline_run(offline, tmp_path)
    with monkeypatch.context() as patch:
        def killed(*args: Any, **payload: Any) -> str:
            raise KeyboardInterrupt

        patch.setitem(tracking_store.OPERATIONS, "end", killed)
        with pytest.raises(KeyboardInterrupt):
            replay_spool(tmp_path, store(home))
    replay_spool(tmp_path, store(home))
    assert [str(version.version) for version in client(home).search_model_versions("name='offline-core'")] == ["1"]


def test_a_resumption_uploaded_late_does_not_reopen_a_run_that_has_ended(home: Path, tmp_path: Path,
                                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_tracker(home, tmp_path)
    first.close("FAILED")
    with monkeypatch.context() as patch:
        def gone(*args: Any, **payload: Any) -> str:
            raise ConnectionResetError("gone")

        patch.setattr(MlflowClient, "update_run", gone)
        again = open_tracker(home, tmp_path, first.run_id)
    assert operations(tmp_path) == ["resume"]
    again._sink._retry_at = 0.0  # MLflow is back
    again.close()
    assert client(home).get_run(first.run_id).info.status == "FINISHED"
    replay_spool(tmp_path, store(home))
    assert client(home).get_run(first.run_id).info.status == "FINISHED"
