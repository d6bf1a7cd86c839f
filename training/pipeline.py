"""The pipeline: data, then phases rde -> mrms -> core, each tracked, resumable, and reused when nothing changed.

run_dir/
    config.yaml            the resolved configuration
    tables/                market tables (training.dataset)
    rde/ mrms/ core/       phase.json (hash, status, figures), model or team, checkpoint while running
    mlflow.db, artifacts/  the tracking store
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from algospace import __version__
from algospace.errors import ConfigError
from algospace.files import write_json, write_text
from training.config import PHASES, RunConfig
from training.dataset import Dataset, prepare_dataset
from training.evaluation.validation_parts import gate_part
from training.phases import RUNNERS, PhaseContext
from training.ray_session import ray_session
from training.tracking import PhaseRun, Tracker, git_commit

# the number of runners and checkpoints changes no bit of the result
_WITHOUT_EFFECT: Any = {"mappo": {"num_env_runners", "checkpoint_every"}}
_MODELS = {"rde": "model", "mrms": "team", "core": "team"}


@dataclass(frozen=True)
class PipelineResult:
    """What a pipeline run left behind."""

    run_dir: Path
    dataset: Dataset
    phases: dict[str, dict[str, Any]]
    seconds: dict[str, float]
    mlflow_run_id: str


class _Reporter:
    """A phase's figures to MLflow, its progress to the console."""

    def __init__(self, run: PhaseRun, bar: Progress, name: str) -> None:
        self._run, self._bar = run, bar
        self._task = bar.add_task(name, total=None)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Figures at a step."""
        self._run.metrics(step, values)

    def progress(self, done: int, total: int) -> None:
        """How far the phase is."""
        self._bar.update(self._task, completed=done, total=total)


def run_pipeline(config: RunConfig, run_dir: Path, phases: Sequence[str] = PHASES,
                 console: Console | None = None, dataset: Dataset | None = None) -> PipelineResult:
    """Run the given phases in order; finished ones with the same hash are reused and say so.

    dataset: tables that are already there, e.g. those of one window of a walk-forward; else they are prepared.
    """
    console = console or Console()
    unknown = [name for name in phases if name not in PHASES]
    if unknown:
        raise ConfigError(f"unknown phase '{unknown[0]}'; known: {', '.join(PHASES)}")
    if config.markets:
        raise ConfigError("this trains one market; `algospace train` trains on several (`markets`) together")
    torch.set_num_threads(config.torch_threads)
    started = time.perf_counter()
    dataset = dataset or prepare_dataset(config, run_dir, console.print)
    gate_part(config, dataset.validation)  # refused now, not when the team has been trained
    write_text(run_dir / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    seconds = {"data": time.perf_counter() - started}
    tracker = Tracker.open(config.tracking, run_dir, config.name, config.model_dump(mode="json"),
                           config.digest(), parent_run_id=_known_parent(run_dir, config.digest()))
    write_json(run_dir / "run.json", {"mlflow_run_id": tracker.run_id, "config_hash": config.digest(),
                                      "data_hash": dataset.data_hash, "git_commit": git_commit()})
    results: dict[str, dict[str, Any]] = {}
    with tracker, ray_session(*config.actors):
        for name in [p for p in PHASES if p in phases]:
            results[name] = _run_phase(name, config, dataset, run_dir, tracker, console)
            seconds[name] = results[name]["seconds"]
    return PipelineResult(run_dir, dataset, results, seconds, tracker.run_id)


def _known_parent(run_dir: Path, config_hash: str) -> str | None:
    """The run folder's MLflow run, if it is of this configuration: MLflow's parameters cannot change."""
    path = run_dir / "run.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    return str(known["mlflow_run_id"]) if known.get("config_hash") == config_hash else None


def phase_hash(name: str, config: RunConfig, dataset: Dataset, run_dir: Path) -> str:
    """What a phase's result depends on: its section, the data, the seed, the version and the phases before."""
    parts = [name, __version__, str(config.seed), config.name, dataset.data_hash, str(config.torch_threads)]
    parts.append(getattr(config, name).model_dump_json(exclude=_WITHOUT_EFFECT))
    before = PHASES[: PHASES.index(name)]  # type: ignore[arg-type]
    for upstream in before:
        state = _read_state(run_dir / upstream)
        if state.get("status") != "finished":
            raise ConfigError(f"phase '{name}' needs '{upstream}', which has not finished in {run_dir}; "
                              f"run it first: --phases {','.join((*before, name))}")
        parts.append(state["hash"])
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def stale_phase(config: RunConfig, dataset: Dataset, run_dir: Path) -> str | None:
    """The first phase that has not finished with this configuration, data and experts; None if all have."""
    for name in PHASES:
        state = _read_state(run_dir / name)
        if state.get("status") != "finished" or state["hash"] != phase_hash(name, config, dataset, run_dir):
            return name
    return None


def _read_state(folder: Path) -> dict[str, Any]:
    path = folder / "phase.json"
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def _run_phase(name: str, config: RunConfig, dataset: Dataset, run_dir: Path, tracker: Tracker,
               console: Console) -> dict[str, Any]:
    folder = run_dir / name
    digest = phase_hash(name, config, dataset, run_dir)
    state = _read_state(folder)
    if state.get("hash") == digest and state.get("status") == "finished":
        console.print(f"{name}: reusing the finished phase (same configuration, data and experts)")
        return {**state, "seconds": 0.0, "reused": True}
    resumed = state.get("mlflow_run_id") if state.get("hash") == digest else None
    if resumed is None:
        _clear(folder)
    else:
        console.print(f"{name}: resuming")
    started = time.perf_counter()
    run = tracker.child(name, json.loads(getattr(config, name).model_dump_json()),
                        {"phase": name, "seed": str(config.seed), "data_hash": dataset.data_hash,
                         "phase_hash": digest}, run_id=resumed)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "phase.json", {"hash": digest, "status": "running", "mlflow_run_id": run.run_id})
    with run:
        train = dataset.train
        run.dataset("train", dataset.data_hash, train.stop - train.start, str(train.table.name), "training")
        with _progress(console) as bar:
            context = PhaseContext(config, dataset, run_dir, folder, _Reporter(run, bar, name))
            metrics = RUNNERS[name](context)
        seconds = time.perf_counter() - started
        run.metrics(0, {f"final/{key}": value for key, value in metrics.items()})
        run.curves()
        model = run.register_model(f"algospace-{name}", folder / _MODELS[name], "candidate", metrics,
                                   f"{config.name}, phase {name}, config {config.digest()[:12]}")
    finished = {"hash": digest, "status": "finished", "mlflow_run_id": run.run_id, "metrics": metrics,
                "model_version": model, "seconds": seconds}
    write_json(folder / "phase.json", finished)
    console.print(f"{name}: finished in {seconds:.0f} s")
    return finished


def _clear(folder: Path) -> None:
    """A phase whose inputs changed starts from nothing."""
    shutil.rmtree(folder, ignore_errors=True)


def _progress(console: Console) -> Progress:
    return Progress(TextColumn("{task.description:>6}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                    console=console, transient=True)
