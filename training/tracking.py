"""History of every run in MLflow: one parent run per pipeline, one child per phase; training never stops for it.

Words: an *operation* is one named call to MLflow with a JSON payload; the *spool* is a JSONL file in the run
folder that takes operations while MLflow cannot be reached; a *local* run id stands for a run that so far exists
only in the spool. `replay_spool` uploads a spool later.

MLflow is imported when the first run opens, so that configuration and workers do without it.
"""

from __future__ import annotations

import base64
import io
import json
import math
import subprocess
import time
import uuid
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import Field

from algospace.config import FrozenConfig
from training.spool import Spool, parsed

SPOOL, TRACKING = "mlflow_spool.jsonl", "tracking.json"
FLUSH_SECONDS = 5.0
FLUSH_ROWS = 1000
RETRY_SECONDS = 60.0
DROPPED_METRIC = "dropped_nonfinite"
_LOCAL = "local-"
_MAX_CURVES = 60
_NAME_CHARS = frozenset("_-./ ")


class TrackingConfig(FrozenConfig):
    """Where runs are recorded. `uri` empty: an SQLite database in the run folder."""

    enabled: bool = True
    uri: str = ""
    experiment: str = Field("algospace", min_length=1)


class TrackingWarning(UserWarning):
    """The history of a run is incomplete for now; the message says what to do."""


class _Sink:
    """Carries operations to MLflow or, while it cannot be reached, into the spool."""

    def __init__(self, config: TrackingConfig, run_dir: Path) -> None:
        self.enabled, self.experiment = config.enabled, config.experiment
        self.uri = config.uri or f"sqlite:///{(run_dir / 'mlflow.db').resolve()}"
        self.run_dir, self.spool = run_dir, Spool(run_dir / SPOOL)
        self._connection: tuple[Any, str] | None = None
        self._retry_at = 0.0
        self._warned = False

    def do(self, operation: str, run_id: str, **payload: Any) -> str:
        """The operation's result; "" while it is only spooled, and always if tracking is off."""
        if not self.enabled:
            return ""
        if self._reachable_for(run_id, payload):
            from training.tracking_store import FAULTS, OPERATIONS, is_refusal

            try:
                return OPERATIONS[operation](*self.connection(), run_id, **payload)
            except FAULTS as error:
                if not is_refusal(error):
                    self._retry_at, self._connection = time.monotonic() + RETRY_SECONDS, None
                self._warn(error)
        try:
            self.spool.add({"operation": operation, "run_id": run_id, "payload": payload})
        except OSError as error:
            warnings.warn(f"{self.spool.path}: {error.strerror or error}; training goes on and tries again with "
                          f"the next figures: make room", TrackingWarning, stacklevel=3)
        return ""

    def create(self, name: str, tags: dict[str, str], params: dict[str, str], parent: str = "") -> str:
        """Id of a new run; a local id if it could only be spooled."""
        local = _LOCAL + uuid.uuid4().hex
        return self.do("create", local, name=name, tags=tags, parent=parent, params=params) or (
            local if self.enabled else "")

    def resume(self, run_id: str, tags: dict[str, str], params: dict[str, str]) -> str:
        """Id of a run that goes on: the uploaded one, if a local run has been replayed; "" if it is gone."""
        from training.tracking_store import FAULTS, find_local, is_refusal

        try:
            if run_id.startswith(_LOCAL):
                run_id = find_local(*self.connection(), run_id) or run_id
            elif time.monotonic() >= self._retry_at:
                self.connection()[0].get_run(run_id)
        except FAULTS as error:
            if is_refusal(error):
                return ""
            self._retry_at, self._connection = time.monotonic() + RETRY_SECONDS, None
            self._warn(error)
        self.do("resume", run_id, tags=tags, params=params, time_ms=_now_ms())
        return run_id

    def history(self, run_id: str) -> dict[str, list[tuple[int, float]]]:
        """Metrics already uploaded for a run; none while MLflow cannot be reached."""
        from training.tracking_store import FAULTS, metric_history

        if not self._reachable_for(run_id, {}):
            return {}
        try:
            return metric_history(self.connection()[0], run_id)
        except FAULTS as error:
            self._warn(error)
            return {}

    def connection(self) -> tuple[Any, str]:
        """(client, experiment id), opened when first needed."""
        if self._connection is None:
            from training.tracking_store import connect

            self._connection = connect(self.uri, self.experiment, self.run_dir / "mlartifacts")
        return self._connection

    def _reachable_for(self, run_id: str, payload: Mapping[str, Any]) -> bool:
        """Operations of local runs wait in the spool, where the creation of their run lies."""
        creating = "parent" in payload
        local = str(payload["parent"] if creating else run_id).startswith(_LOCAL)
        return not local and time.monotonic() >= self._retry_at

    def _warn(self, error: BaseException) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(f"MLflow at {self.uri}: {' '.join(str(error).split())[:300]}; training goes on and the "
                          f"history is kept in {self.spool.path} (upload it later with replay_spool)",
                          TrackingWarning, stacklevel=4)


class _Run:
    """A run that ends once: FINISHED, or FAILED where its block raises, or KILLED where it is interrupted."""

    def __init__(self, sink: _Sink, run_id: str, tags: dict[str, str]) -> None:
        self._sink, self.run_id, self._tags = sink, run_id, tags
        self._open = True

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a file, or a folder under its own name, into the run's artifacts (in `folder`)."""
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder to keep with the run")
        self._sink.do("artifact", self.run_id, path=str(path.resolve()), folder=folder)

    def figure(self, name: str, png: bytes) -> None:
        """Keep a PNG image under `name`."""
        self._content(name if name.endswith(".png") else f"{name}.png", png)

    def text(self, name: str, text: str) -> None:
        """Keep a text file under `name`."""
        self._content(name, text.encode())

    def close(self, status: str = "FINISHED") -> None:
        """End the run with an MLflow status; closing again changes nothing."""
        if self._open:
            self._open = False
            self._sink.do("end", self.run_id, status=status, time_ms=_now_ms())

    def _content(self, name: str, data: bytes) -> None:
        self._sink.do("content", self.run_id, name=name, data=base64.b64encode(data).decode())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        self.close("FINISHED" if kind is None else "KILLED" if interrupted else "FAILED")


class Tracker(_Run):
    """The parent run of a pipeline."""

    @classmethod
    def open(cls, config: TrackingConfig, run_dir: Path, name: str, resolved: dict[str, Any], digest: str,
             parent_run_id: str | None = None) -> Tracker:
        """Open the parent run, or go on with `parent_run_id`.

        resolved: the whole configuration (kept as parameters and as `config.json`); digest: its hash.
        """
        sink = _Sink(config, Path(run_dir))
        tags = {"config_hash": digest, "git_commit": git_commit(), "seed": str(resolved.get("seed", "none"))}
        run_id = _open_run(sink, name, {**tags, "phase": "pipeline"}, _flat(resolved), "", parent_run_id)
        tracker = cls(sink, run_id, tags)
        if run_id != parent_run_id:
            tracker.text("config.json", json.dumps(resolved, indent=2, sort_keys=True, default=str))
        return tracker

    def child(self, phase: str, params: dict[str, Any], tags: dict[str, Any], run_id: str | None = None
              ) -> PhaseRun:
        """A nested run for one phase (or one trial), or the one with `run_id` resumed."""
        texts = {**self._tags, "phase": phase, **{key: str(value) for key, value in tags.items()}}
        opened = _open_run(self._sink, phase, texts, _flat(params), self.run_id, run_id)
        resumed = bool(run_id) and opened != "" and self._sink.enabled
        return PhaseRun(self._sink, opened, texts, self._sink.history(opened) if resumed else {})


def _open_run(sink: _Sink, name: str, tags: dict[str, str], params: dict[str, str], parent: str,
              run_id: str | None) -> str:
    if run_id and sink.enabled:
        resumed = sink.resume(run_id, tags, params)
        if resumed:
            return resumed
        warnings.warn(f"MLflow at {sink.uri} has no run {run_id} to resume; a new one begins", TrackingWarning,
                      stacklevel=3)
    return sink.create(name, tags, params, parent)


class PhaseRun(_Run):
    """The child run of one phase. Metrics are buffered; those a resumed run repeats are not logged twice."""

    def __init__(self, sink: _Sink, run_id: str, tags: dict[str, str],
                 history: dict[str, list[tuple[int, float]]]) -> None:
        super().__init__(sink, run_id, tags)
        self._history = history
        self._resumed_at = {name: points[-1][0] for name, points in history.items()}
        self._buffer: list[tuple[str, float, int, int]] = []
        self._flushed_at = time.monotonic()
        dropped = history.get(DROPPED_METRIC)
        self._dropped = int(dropped[-1][1]) if dropped else 0

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log values at a step. NaN and infinity are left out and counted in `dropped_nonfinite`."""
        if not self._sink.enabled:
            return
        dropped = self._dropped
        for name, value in values.items():
            name = "".join(c if c.isalnum() or c in _NAME_CHARS else "_" for c in name)
            if step <= self._resumed_at.get(name, step - 1):
                continue
            if math.isfinite(value):
                self._add(name, float(value), step)
            else:
                self._dropped += 1
        if self._dropped > dropped:
            self._add(DROPPED_METRIC, float(self._dropped), step)
        if len(self._buffer) >= FLUSH_ROWS or time.monotonic() - self._flushed_at > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Send the buffered metrics."""
        self._flushed_at = time.monotonic()
        if self._buffer:
            rows, self._buffer = self._buffer, []
            self._sink.do("metrics", self.run_id, rows=rows)

    def dataset(self, name: str, digest: str, rows: int, source: str, context: str) -> None:
        """Record a data set as input (`context`: training, validation or test); nothing is copied."""
        # MLflow allows 36 characters for the digest; the whole hash is in the source
        self._sink.do("dataset", self.run_id, name=name, digest=digest[:36], rows=rows, context=context,
                      source=json.dumps({"source": source, "sha256": digest}))

    def curves(self) -> None:
        """Plot every metric of more than one step into the artifact folder `curves`."""
        self.flush()
        if not self._sink.enabled:
            return
        curves = {name: points for name, points in self._history.items() if len(points) > 1}
        plot = _CurvePlot()
        for name, points in list(curves.items())[:_MAX_CURVES]:
            self.figure(f"curves/{name.replace('/', '_')}.png", plot.png(name, points))

    def register_model(self, name: str, directory: Path, alias: str, metrics: Mapping[str, float],
                       description: str) -> str:
        """Register a folder as a version of model `name` under an alias (`models:/name@alias`).

        Returns the version, "" where tracking is off or the registration waits in the spool. Loaded with
        `mlflow.pyfunc` a bundle decides (serving.mlflow_model), another folder describes itself (`model_card.py`).
        """
        directory = Path(directory)
        if not directory.is_dir():
            raise FileNotFoundError(f"{directory}: no such folder to register as model '{name}'")
        return self._sink.do("model", self.run_id, name=name, directory=str(directory.resolve()), alias=alias,
                             metrics={key: str(value) for key, value in metrics.items()}, tags=self._tags,
                             description=description)

    def close(self, status: str = "FINISHED") -> None:
        """Send what is buffered and end the run."""
        self.flush()
        super().close(status)

    def _add(self, name: str, value: float, step: int) -> None:
        self._buffer.append((name, value, _now_ms(), step))
        self._history.setdefault(name, []).append((step, value))


def replay_spool(run_dir: Path, config: TrackingConfig) -> int:
    """Upload the spool of a run folder; returns how many operations went through.

    Operations that MLflow refuses stay in the spool; local runs become real ones, once: their local id is a tag.
    Raises one of MLflow's errors where it still cannot be reached, with the rest kept in the spool.
    """
    sink = _Sink(config, Path(run_dir))
    lines = sink.spool.lines()
    if not lines:
        return 0
    from training.tracking_store import FAULTS, OPERATIONS, find_local, is_refusal

    connection, records = sink.connection(), parsed(lines)
    if len(records) < len(lines):
        warnings.warn(f"{sink.spool.path}: {len(lines) - len(records)} line(s) are not whole, from a process that "
                      f"was killed; they are left out", TrackingWarning, stacklevel=2)

    @cache
    def real(run_id: str) -> str:
        return (find_local(*connection, run_id) or run_id) if run_id.startswith(_LOCAL) else run_id

    kept: list[dict[str, Any]] = []
    for place, record in enumerate(records):
        operation, run_id, payload = record["operation"], record["run_id"], record["payload"]
        try:
            if operation != "create":
                OPERATIONS[operation](*connection, real(run_id), **payload)
            elif not find_local(*connection, run_id):
                OPERATIONS[operation](*connection, run_id, **{**payload, "parent": real(payload["parent"])})
        except FAULTS as error:
            if not is_refusal(error) and not isinstance(error, FileNotFoundError):
                sink.spool.settle(lines, kept + records[place:])
                raise
            kept.append(record)
    sink.spool.settle(lines, kept)
    return len(records) - len(kept)


@cache
def git_commit() -> str:
    """Commit of the source tree this file belongs to, "-dirty" if it was changed since; "none" outside git."""
    here = Path(__file__)

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", "-C", str(here.parent), *arguments], capture_output=True, text=True,
                              timeout=10, check=False)

    try:
        if git("ls-files", "--error-unmatch", here.name).returncode != 0:
            return "none"  # installed somewhere inside another repository
        commit = git("rev-parse", "HEAD").stdout.strip()
        return commit + ("-dirty" if git("diff", "--quiet", "HEAD").returncode else "")
    except (OSError, subprocess.TimeoutExpired):
        return "none"  # no git on this machine


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values as `a.b.c` -> text; lists as JSON."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, default=str)
    return flat


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class _CurvePlot:
    """One small plot, drawn again for every metric: new axes for each would take three times as long."""

    def __init__(self) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self._figure = Figure(figsize=(5.0, 2.6), dpi=80)
        FigureCanvasAgg(self._figure)
        self._axes = self._figure.add_subplot()
        self._axes.tick_params(labelsize=7)
        self._line = self._axes.plot([], [], color="#0b5fa5", linewidth=1.2)[0]

    def png(self, name: str, points: list[tuple[int, float]]) -> bytes:
        """One metric over its steps."""
        self._line.set_data([step for step, _ in points], [value for _, value in points])
        self._axes.relim()
        self._axes.autoscale_view()
        self._axes.set_title(name, fontsize=9)
        buffer = io.BytesIO()
        self._figure.savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()
