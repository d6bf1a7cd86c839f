"""What the tracker asks of MLflow, one function per operation, called by name so that a spool can be replayed.

Every payload is plain JSON. Importing this module loads MLflow (about 1.3 s of CPU time), so it is done late.
"""

from __future__ import annotations

import base64
import logging
import os
import socket
import sqlite3
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

for _name, _value in (("MLFLOW_DISABLE_TELEMETRY", "true"), ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"),
                      ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2"), ("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")):
    os.environ.setdefault(_name, _value)  # read by MLflow when it is imported or first used

import mlflow.pyfunc  # noqa: E402
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.tracking import MlflowClient  # noqa: E402
from sqlalchemy.exc import SQLAlchemyError  # noqa: E402

import serving  # noqa: E402
from algospace import __version__  # noqa: E402
from serving.bundle import is_bundle  # noqa: E402

__all__ = ["FAULTS", "OPERATIONS", "connect", "find_local", "is_refusal", "metric_history"]

for _name in ("mlflow", "alembic"):
    logging.getLogger(_name).setLevel(logging.ERROR)

FAULTS = (MlflowException, SQLAlchemyError, OSError)
LOCAL_TAG = "algospace.local_id"
METRICS_PER_BATCH, PARAMS_PER_BATCH = 1000, 100
_PARAM_CHARS = 6000
_PROBE_SECONDS = 3.0
_MODEL_FOLDER = "model"
_REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST")
_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306}


def is_refusal(error: BaseException) -> bool:
    """The store works and refuses this one operation; trying the next one makes sense."""
    return isinstance(error, MlflowException) and error.error_code in _REFUSALS


def connect(uri: str, experiment: str, artifacts: Path) -> tuple[MlflowClient, str]:
    """(client, experiment id). A new experiment keeps its files beside an SQLite database, under `artifacts` for
    another database, and where a tracking server says. One of FAULTS if the store cannot be used."""
    _probe(uri)
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    if found is not None:
        return client, found.experiment_id
    location = None
    if not uri.startswith("http"):
        folder = _sqlite_path(uri).parent / "mlartifacts" if uri.startswith("sqlite:") else artifacts
        location = folder.resolve().as_uri()
    try:
        return client, client.create_experiment(experiment, artifact_location=location)
    except MlflowException:
        found = client.get_experiment_by_name(experiment)  # another process was faster
        if found is None:
            raise
        return client, found.experiment_id


def _sqlite_path(uri: str) -> Path:
    return Path(uri.split("///", 1)[1])


def _probe(uri: str) -> None:
    """OSError at once where MLflow would retry for a minute or more."""
    parts = urlsplit(uri)
    if parts.scheme == "sqlite":
        path = _sqlite_path(uri)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with closing(sqlite3.connect(path, timeout=_PROBE_SECONDS)) as database:
                database.execute("PRAGMA schema_version").fetchall()
        except sqlite3.Error as error:
            raise OSError(f"{path}: {error}") from error
    elif parts.hostname:
        port = parts.port or _PORTS.get(parts.scheme.partition("+")[0])
        if port:
            socket.create_connection((parts.hostname, port), timeout=_PROBE_SECONDS).close()


def find_local(client: MlflowClient, experiment_id: str, local_id: str) -> str:
    """The run that was uploaded for a run that began in the spool; "" if there is none yet."""
    runs = client.search_runs([experiment_id], f"tags.`{LOCAL_TAG}` = '{local_id}'", max_results=1)
    return str(runs[0].info.run_id) if runs else ""


def metric_history(client: MlflowClient, run_id: str) -> dict[str, list[tuple[int, float]]]:
    """Every metric of a run as (step, value) in order of step."""
    names = client.get_run(run_id).data.metrics
    return {name: sorted((m.step, m.value) for m in client.get_metric_history(run_id, name)) for name in names}


def _create(client: MlflowClient, experiment_id: str, run_id: str, name: str, tags: dict[str, str],
            parent: str, params: dict[str, str]) -> str:
    if parent:
        tags = {**tags, "mlflow.parentRunId": parent}
    run = client.create_run(experiment_id, run_name=name, tags={**tags, LOCAL_TAG: run_id} if run_id else tags)
    _params(client, experiment_id, run.info.run_id, params)
    return str(run.info.run_id)


def _resume(client: MlflowClient, experiment_id: str, run_id: str, tags: dict[str, str], params: dict[str, str],
            time_ms: int = 0) -> str:
    """Parameters cannot change in MLflow: only new ones are added. A run that ended after the resumption, which an
    upload brings late, stays ended."""
    run = client.get_run(run_id)
    known = run.data.params
    if (run.info.end_time or 0) <= time_ms:
        client.update_run(run_id, status="RUNNING")
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    _params(client, experiment_id, run_id, {key: value for key, value in params.items() if key not in known})
    return run_id


def _params(client: MlflowClient, experiment_id: str, run_id: str, params: dict[str, str]) -> str:
    items = [Param(key, value[:_PARAM_CHARS]) for key, value in params.items()]
    for first in range(0, len(items), PARAMS_PER_BATCH):
        client.log_batch(run_id, params=items[first:first + PARAMS_PER_BATCH])
    return ""


def _metrics(client: MlflowClient, experiment_id: str, run_id: str,
             rows: Sequence[tuple[str, float, int, int]]) -> str:
    """rows: (name, value, timestamp in ms, step)."""
    for first in range(0, len(rows), METRICS_PER_BATCH):
        client.log_batch(run_id, metrics=[Metric(*row) for row in rows[first:first + METRICS_PER_BATCH]])
    return ""


def _dataset(client: MlflowClient, experiment_id: str, run_id: str, name: str, digest: str, rows: int,
             source: str, context: str) -> str:
    dataset = Dataset(name, digest, "local", source, profile=f'{{"num_rows": {rows}}}')
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])
    return ""


def _content(client: MlflowClient, experiment_id: str, run_id: str, name: str, data: str) -> str:
    """name: path inside the artifacts; data: base64."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(name).name
        path.write_bytes(base64.b64decode(data))
        client.log_artifact(run_id, str(path), str(Path(name).parent) if "/" in name else None)
    return ""


def _artifact(client: MlflowClient, experiment_id: str, run_id: str, path: str, folder: str | None) -> str:
    if Path(path).is_dir():
        client.log_artifacts(run_id, path, str(Path(folder or "") / Path(path).name))
    else:
        client.log_artifact(run_id, path, folder)
    return ""


def _model(client: MlflowClient, experiment_id: str, run_id: str, name: str, directory: str, alias: str,
           metrics: dict[str, str], tags: dict[str, str], description: str) -> str:
    """Log and register; returns the version. Leaner than `log_model`, which would infer requirements.

    A bundle becomes a model that decides (serving.mlflow_model), any other folder one that describes it. What the
    run has registered already, before an upload or a phase that is repeated broke off, keeps its version.
    """
    requirements = [f"mlflow=={mlflow.__version__}"]
    if is_bundle(directory):
        script, artifacts = Path(serving.__file__).with_name("mlflow_model.py"), {"bundle": directory}
        requirements.append(f"algospace=={__version__}")
    else:
        script, artifacts = Path(__file__).with_name("model_card.py"), {"directory": directory}
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / _MODEL_FOLDER
        with warnings.catch_warnings(record=True):  # MLflow has no words for a decision's request
            mlflow.pyfunc.save_model(
                str(saved), python_model=str(script), artifacts=artifacts, pip_requirements=requirements,
                metadata={"description": description, "metrics": metrics})
        client.log_artifacts(run_id, str(saved), _MODEL_FOLDER)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"{client.get_run(run_id).info.artifact_uri}/{_MODEL_FOLDER}"
    own = {**tags, **{f"metric.{key}": value for key, value in metrics.items()}}
    there = [found for found in client.search_model_versions(f"name='{name}' and run_id='{run_id}'")
             if own.items() <= found.tags.items()]
    version = there[0] if there else client.create_model_version(
        name, source, run_id=run_id, description=description, tags=own)
    client.set_registered_model_alias(name, alias, version.version)
    return str(version.version)


def _end(client: MlflowClient, experiment_id: str, run_id: str, status: str, time_ms: int) -> str:
    client.set_terminated(run_id, status=status, end_time=time_ms)
    return ""


OPERATIONS: dict[str, Callable[..., str]] = {
    "create": _create, "resume": _resume, "params": _params, "metrics": _metrics, "dataset": _dataset,
    "content": _content, "artifact": _artifact, "model": _model, "end": _end,
}
