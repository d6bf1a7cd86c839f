"""Tracking against a real SQLite store: runs, metrics, models, resuming, and life without MLflow."""

from __future__ import annotations

import json
import logging
import socket
import time
import warnings
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from training.tracking import SPOOL, Tracker, TrackingConfig, TrackingWarning, replay_spool

RESOLVED = {"name": "t", "seed": 7, "core": {"mappo": {"lr": 3e-3, "schedule": [0, 1]}}}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose database is initialised once for all tests (seconds)."""
    folder = tmp_path_factory.mktemp("tracking")
    open_tracker(folder).close()
    return folder


def uri(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


def open_tracker(folder: Path, run_dir: Path | None = None, parent: str | None = None) -> Tracker:
    return Tracker.open(TrackingConfig(uri=uri(folder)), run_dir or folder, "run", RESOLVED, "abc123", parent)


def client(folder: Path) -> MlflowClient:
    return MlflowClient(uri(folder))


def children(folder: Path, parent: str) -> list:
    store = client(folder)
    found = store.get_experiment_by_name("algospace")
    return store.search_runs([found.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'")


def artifacts(folder: Path, run_id: str, path: str | None = None) -> set[str]:
    return {item.path for item in client(folder).list_artifacts(run_id, path)}


def test_parent_and_child_carry_tags_params_metrics_and_artifacts(home: Path) -> None:
    tracker = open_tracker(home)
    run = tracker.child("rde", {"epochs": 3, "net": {"d": 64}}, {"data_hash": "d1", "seed": 7})
    for step in range(5):
        run.metrics(step, {"loss": 1.0 / (step + 1), "val/ece %": 0.5})
    run.dataset("easy", "f" * 64, 1000, "synthetic:easy:1", "training")
    run.text("note.txt", "hello")
    run.figure("plot", b"\x89PNG")
    run.curves()
    run.close()
    tracker.close()

    parent, child = client(home).get_run(tracker.run_id), client(home).get_run(run.run_id)
    assert parent.data.params["core.mappo.lr"] == "0.003"
    assert parent.data.tags["phase"] == "pipeline"
    assert [item.info.run_id for item in children(home, tracker.run_id)] == [run.run_id]
    assert (child.data.params["epochs"], child.data.params["net.d"]) == ("3", "64")
    tags = child.data.tags
    assert (tags["phase"], tags["config_hash"], tags["data_hash"], tags["seed"]) == ("rde", "abc123", "d1", "7")
    assert tags["git_commit"]
    losses = [m.value for m in client(home).get_metric_history(run.run_id, "loss")]
    assert losses == [1.0, 1 / 2, 1 / 3, 1 / 4, 1 / 5]
    assert "val/ece _" in child.data.metrics
    assert child.inputs.dataset_inputs[0].dataset.name == "easy"
    assert (parent.info.status, child.info.status) == ("FINISHED", "FINISHED")
    assert artifacts(home, tracker.run_id) == {"config.json"}
    assert {"note.txt", "plot.png", "curves"} <= artifacts(home, run.run_id)
    assert artifacts(home, run.run_id, "curves") == {"curves/loss.png", "curves/val_ece _.png"}
    assert child.info.artifact_uri.startswith((home / "mlartifacts").as_uri())


def test_nan_and_infinity_are_dropped_and_counted(home: Path) -> None:
    with open_tracker(home) as tracker, tracker.child("core", {}, {}) as run:
        run.metrics(0, {"a": float("nan"), "b": 1.0})
        run.metrics(1, {"a": float("inf"), "b": float("-inf")})
    data = client(home).get_run(run.run_id).data.metrics
    assert data == {"b": 1.0, "dropped_nonfinite": 3.0}


def test_metrics_travel_in_batches(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    original = MlflowClient.log_batch

    def counted(self, run_id, metrics=(), params=(), tags=(), synchronous=None):
        sizes.append(len(metrics))
        return original(self, run_id, metrics, params, tags, synchronous)

    monkeypatch.setattr(MlflowClient, "log_batch", counted)
    with open_tracker(home) as tracker, tracker.child("core", {}, {}) as run:
        for step in range(150):
            run.metrics(step, {f"m{i}": float(i) for i in range(15)})
    assert sum(sizes) == 2250
    assert max(sizes) <= 1000
    assert len([s for s in sizes if s]) <= 6


def test_resuming_continues_the_same_runs_and_repeats_nothing(home: Path) -> None:
    first = open_tracker(home)
    run = first.child("core", {"lr": 1}, {"data_hash": "d"})
    for step in range(10):
        run.metrics(step, {"loss": float(step)})
    run.flush()  # and then the process dies

    second = open_tracker(home, parent=first.run_id)
    again = second.child("core", {"lr": 1, "new": 2}, {"data_hash": "d"}, run_id=run.run_id)
    for step in range(6, 15):  # from the last checkpoint
        again.metrics(step, {"loss": float(step)})
    again.curves()
    again.close()
    second.close()
    assert (second.run_id, again.run_id) == (first.run_id, run.run_id)
    assert len(children(home, first.run_id)) == 1
    history = client(home).get_metric_history(run.run_id, "loss")
    assert [m.step for m in history] == list(range(15))
    assert client(home).get_run(run.run_id).data.params == {"lr": "1", "new": "2"}


def test_resuming_a_run_that_is_gone_begins_a_new_one_and_says_so(home: Path) -> None:
    with pytest.warns(TrackingWarning, match="no run"):
        tracker = open_tracker(home, parent="0" * 32)
    assert tracker.run_id != "0" * 32
    tracker.close()


def test_a_registered_model_is_found_by_alias_and_describes_its_folder(home: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        folder = tmp_path / f"core{seed}"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"seed": seed}))
        with open_tracker(home) as tracker, tracker.child("core", {}, {"data_hash": "d"}) as run:
            version = run.register_model("algospace-core", folder, "champion", {"score": 0.25}, "the core team")
        assert version == str(seed)
    store = client(home)
    found = store.get_model_version_by_alias("algospace-core", "champion")
    assert str(found.version) == "2"
    assert found.run_id == run.run_id
    assert found.tags["metric.score"] == "0.25"
    assert found.tags["data_hash"] == "d"
    assert found.description == "the core team"
    mlflow.set_tracking_uri(uri(home))
    model = mlflow.pyfunc.load_model("models:/algospace-core@champion")
    assert json.loads(model.predict(["config"])[0]) == {"config.json": {"seed": 2}}
    with pytest.raises(mlflow.exceptions.MlflowException, match="for decisions load a registered bundle"):
        model.predict(["buy or sell?"])
    assert not list((home / "mlartifacts").rglob("*.pkl"))


def test_a_failing_block_ends_its_runs_as_failed(home: Path) -> None:
    def fail() -> None:
        with open_tracker(home) as tracker, tracker.child("core", {}, {}) as run:
            names.extend([tracker.run_id, run.run_id])
            raise ValueError("boom")

    names: list[str] = []
    with pytest.raises(ValueError, match="boom"):
        fail()
    assert {client(home).get_run(name).info.status for name in names} == {"FAILED"}


def test_switched_off_it_does_nothing(tmp_path: Path) -> None:
    tracker = Tracker.open(TrackingConfig(enabled=False), tmp_path, "run", RESOLVED, "abc")
    run = tracker.child("core", {}, {}, run_id="x")
    run.metrics(0, {"a": float("nan")})
    run.dataset("d", "0", 1, "s", "training")
    run.figure("f", b"")
    run.text("t", "t")
    run.artifact(tmp_path)
    run.curves()
    assert run.register_model("m", tmp_path, "champion", {}, "") == ""
    run.close()
    tracker.close()
    assert (tracker.run_id, run.run_id) == ("", "")
    assert list(tmp_path.iterdir()) == []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def offline_run(config: TrackingConfig, run_dir: Path) -> tuple[str, str]:
    model = run_dir / "model_folder"
    model.mkdir(parents=True, exist_ok=True)
    (model / "config.json").write_text("{}")
    with Tracker.open(config, run_dir, "offline", RESOLVED, "abc") as tracker:
        with tracker.child("core", {"lr": 1}, {"data_hash": "d"}) as run:
            for step in range(3):
                run.metrics(step, {"loss": float(step)})
            run.text("note.txt", "kept")
            run.curves()
            assert run.register_model("offline-core", model, "champion", {}, "") == ""
        return tracker.run_id, run.run_id


def test_without_mlflow_training_goes_on_and_the_spool_is_uploaded_once(home: Path, tmp_path: Path) -> None:
    unreachable = TrackingConfig(uri=f"http://127.0.0.1:{free_port()}")
    begin = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        parent, child = offline_run(unreachable, tmp_path)
    assert time.perf_counter() - begin < 20.0
    assert sum(issubclass(w.category, TrackingWarning) for w in caught) == 1
    assert parent.startswith("local-")
    spool = (tmp_path / SPOOL).read_text()

    config = TrackingConfig(uri=uri(home))
    assert replay_spool(tmp_path, config) == len(spool.splitlines())
    assert not (tmp_path / SPOOL).exists()
    (tmp_path / SPOOL).write_text(spool)  # as if the first upload had not been noted
    replay_spool(tmp_path, config)
    store = client(home)
    found = store.search_runs([store.get_experiment_by_name("algospace").experiment_id],
                              f"tags.`algospace.local_id` = '{parent}'")
    assert len(found) == 1
    uploaded = children(home, found[0].info.run_id)
    assert len(uploaded) == 1
    history = store.get_metric_history(uploaded[0].info.run_id, "loss")
    assert [m.value for m in history] == [0.0, 1.0, 2.0]
    assert uploaded[0].info.status == "FINISHED"

    resumed = open_tracker(home, tmp_path, parent)
    again = resumed.child("core", {}, {}, run_id=child)
    assert (resumed.run_id, again.run_id) == (found[0].info.run_id, uploaded[0].info.run_id)
    again.close()
    resumed.close()


def test_a_damaged_database_does_not_stop_training(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"this is no database" * 100)
    with pytest.warns(TrackingWarning, match="not a database"):
        offline_run(TrackingConfig(), tmp_path)
    assert (tmp_path / SPOOL).exists()


def test_losing_mlflow_in_the_middle_spools_the_rest(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                                     ) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ConnectionResetError("gone")

    with open_tracker(home, tmp_path) as tracker:
        run = tracker.child("core", {}, {})
        run.metrics(0, {"loss": 1.0})
        run.flush()
        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, "log_batch", broken)
            run.metrics(1, {"loss": 0.5})
            with pytest.warns(TrackingWarning, match="gone"):
                run.flush()
        run.close()
    assert replay_spool(tmp_path, TrackingConfig(uri=uri(home))) >= 2
    assert [m.value for m in client(home).get_metric_history(run.run_id, "loss")] == [1.0, 0.5]
    assert client(home).get_run(run.run_id).info.status == "FINISHED"


def test_a_missing_artifact_is_the_callers_error(home: Path, tmp_path: Path) -> None:
    with open_tracker(home) as tracker, pytest.raises(FileNotFoundError, match="no such"):
        tracker.artifact(tmp_path / "nothing")


def test_mlflow_is_quiet(home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert logging.getLogger("mlflow").level >= logging.WARNING
    (tmp_path / "config.json").write_text("{}")
    with open_tracker(home) as tracker, tracker.child("core", {}, {}) as run:
        run.register_model("quiet", tmp_path, "champion", {}, "")
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
