"""The walk-forward: every window trained, calibrated and tested from scratch, then all tests judged together.

    out/walk_forward.json, .md   the figures and their page
    out/config.yaml, run.json    the resolved configuration; the parent run in MLflow
    out/window-K/                a run's folder as `training.pipeline` leaves it, with bundle/ and report/
    out/window-K/window.json     the window's figures; days.npz holds its daily profits

A finished window with the same configuration and data is reused; an interrupted one goes on where its pipeline
stopped.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console

from algospace import __version__
from algospace.analysis import gate_report
from algospace.analysis.metrics import measure
from algospace.analysis.report import backtest_result, curves_of, write_report
from algospace.execution.result import SessionResult
from algospace.files import atomic_path, write_json, write_text
from algospace.instruments import instrument
from algospace.seeding import stream_key
from algospace.types import AnyArray, Float32Array
from serving.bundle import Bundle
from serving.policy import BundlePolicy
from training.backtest import run_session
from training.bundling import GATE_FOLDER, build_bundle
from training.config import RunConfig
from training.dataset import Dataset, Split
from training.experts import load_regime, propose, regime_columns
from training.pipeline import run_pipeline
from training.ray_session import ray_session
from training.supervised import SupervisedModel, fit_supervised, positions
from training.team_training import load_team
from training.tracking import Tracker, git_commit
from training.walk_forward.config import WalkForwardRun
from training.walk_forward.contenders import (
    ONE_CONTRACT,
    POLICY,
    TEAM,
    UNGATED,
    Stretch,
    daily_profit,
    daily_risk,
    run_nothing,
    run_one_contract,
    run_random,
    run_rules,
    scales,
)
from training.walk_forward.report import WindowResult, trials_of, walk_forward_document, write_documents
from training.walk_forward.windows import Window, plan_windows, prepare_windows

_SETTINGS = ("random_seeds", "daily_risk", "max_scale", "fixed_stop_atr", "fixed_target_r")
"""What a window's result depends on beside its run; the rest only matters to the judgement."""
_FORMAT = 2
"""Of a window's files; one of another format is tested again, its training is reused."""


def walk_forward(run: WalkForwardRun, out: Path, console: Console | None = None) -> dict[str, Any]:
    """Run all windows and write the documents; returns what `walk_forward.json` holds."""
    console = console or Console()
    windows = plan_windows(run)
    trials = trials_of(run)
    datasets = prepare_windows(run, windows, out, console.print)
    resolved = run.model_dump(mode="json")
    write_text(out / "config.yaml", yaml.safe_dump(resolved, sort_keys=False))
    tracker = Tracker.open(run.tracking, out, f"{run.name}-walk-forward", resolved, run.digest(),
                           parent_run_id=_known_parent(out, run.digest()))
    write_json(out / "run.json", {"mlflow_run_id": tracker.run_id, "config_hash": run.digest(),
                                  "git_commit": git_commit()})
    results = []
    with tracker, ray_session(*run.actors):
        for window, dataset in zip(windows, datasets, strict=True):
            results.append(_finished(run, window, dataset, out / window.name, tracker, console))
        document = walk_forward_document(run, results, trials, git_commit())
        known = out / "walk_forward.json"
        changed = not known.is_file() or json.loads(known.read_text()) != document
        pages = write_documents(out, document)
        if changed:
            _track(tracker, document, pages)
    console.print(f"report: {pages[-1]}")
    return document


def _track(tracker: Tracker, document: Mapping[str, Any], pages: Sequence[Path]) -> None:
    """The joined figures as a child run of their own, the documents as the parent's artifacts."""
    with tracker.child("joined", {}, {"trials": str(document["trials"])}) as child:
        child.metrics(0, {f"{name}/{key}": float(value) for name, figures in document["joined"].items()
                          for key, value in figures.items() if isinstance(value, int | float)})
    for path in pages:
        tracker.artifact(path)


def _known_parent(out: Path, config_hash: str) -> str | None:
    path = out / "run.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    return str(known["mlflow_run_id"]) if known.get("config_hash") == config_hash else None


def window_hash(run: WalkForwardRun, window: Window, dataset: Dataset) -> str:
    """What a window's result depends on."""
    settings = {name: getattr(run.walk_forward, name) for name in _SETTINGS}
    values = window.config.model_dump(mode="json", exclude={"tracking"})
    text = json.dumps([__version__, _FORMAT, dataset.data_hash, settings, values], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _finished(run: WalkForwardRun, window: Window, dataset: Dataset, folder: Path, tracker: Tracker,
              console: Console) -> WindowResult:
    """The window's result: read where it is there, else made."""
    digest = window_hash(run, window, dataset)
    path = folder / "window.json"
    if path.is_file() and json.loads(path.read_text())["hash"] == digest:
        console.print(f"{window.name}: reusing the finished window (same configuration and data)")
        return WindowResult.load(folder)
    console.print(f"{window.name}: training to {window.dates()['train_until']}, validation to "
                  f"{window.dates()['validation_until']}, test to {window.dates()['test_until']}")
    tags = {"window": str(window.number), "data_hash": dataset.data_hash, **window.dates()}
    with tracker.child(window.name, {}, tags) as child:
        document, arrays = evaluate_window(run, window, dataset, folder, console)
        save_window(folder, {**document, "hash": digest, "mlflow_run_id": child.run_id}, arrays)
        child.metrics(0, {f"{name}/{key}": float(value) for name, figures in document["contenders"].items()
                          for key, value in figures.items() if isinstance(value, int | float)})
        child.metrics(0, {f"gate/{name}": value for name, value in gate_report.figures(document["gate"]).items()})
        for name in ("report.html", "report.json"):
            if (folder / "report" / name).is_file():
                child.artifact(folder / "report" / name)
        if (folder / GATE_FOLDER).is_dir():
            child.artifact(folder / GATE_FOLDER)
    return WindowResult.load(folder)


def save_window(folder: Path, document: Mapping[str, Any], arrays: Mapping[str, AnyArray]) -> None:
    """Days first, figures last: a window with `window.json` is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / "days.npz") as part, open(part, "wb") as stream:
        np.savez_compressed(stream, **dict(arrays))  # type: ignore[arg-type]
    write_json(folder / "window.json", document)


def evaluate_window(run: WalkForwardRun, window: Window, dataset: Dataset, folder: Path,
                    console: Console) -> tuple[dict[str, Any], dict[str, AnyArray]]:
    """Train, calibrate and test one window; returns its document and its arrays of daily profits."""
    config, settings = window.config, run.walk_forward
    started = time.perf_counter()
    pipeline = run_pipeline(config, folder, console=console, dataset=dataset)
    trained = time.perf_counter()
    console.print(f"{window.name}: calibrating the gate on the validation part")
    bundle, gate = build_bundle(config, folder, dataset, folder / "bundle")
    market = _Market.open(config, folder, dataset)
    console.print(f"{window.name}: testing the team, every rule and {settings.random_seeds} random traders")
    before = _risks(run, bundle, market, dataset.validation)
    (test,) = dataset.test
    runs = _runs(run, bundle, market, test, gated=True)
    seeds = np.array([stream_key("walk-forward random", config.seed, seed) % 2**31
                      for seed in range(settings.random_seeds)], np.int64)
    draws = {f"{team}/{kind}": values for team in TEAM
             for kind, values in run_random(market.stretch(test), runs[team], seeds).items()}
    _write_page(bundle, window, runs, gate, folder)
    factor = scales(before, settings.daily_risk, settings.max_scale)
    days, _ = daily_profit(runs[POLICY])
    arrays: dict[str, AnyArray] = {"day": days, **{f"profit/{name}": daily_profit(result)[1]
                                                   for name, result in runs.items()},
                                   **{f"draws/{name}": values for name, values in draws.items()}}
    document = {
        "number": window.number, "dates": window.dates(),
        "rows": {"train": dataset.train.stop - dataset.train.start, "validation": dataset.validation.stop
                 - dataset.validation.start, "test": test.stop - test.start},
        "config_hash": config.digest(), "data_hash": dataset.data_hash, "bundle": bundle.id,
        "contenders": {name: measure(result).as_dict() for name, result in runs.items()},
        "scales": {name: factor.get(name, 1.0) for name in runs},
        "validation_risk": before,
        "gate": {name: value for name, value in gate.items() if not isinstance(value, dict)},
        "reasons": runs[POLICY].reason_counts(),
        "phases": {name: phase["metrics"] for name, phase in pipeline.phases.items()},
        "seconds": {"training": trained - started, "test": time.perf_counter() - trained},
    }
    return document, arrays


@dataclass(frozen=True)
class _Market:
    """A window's table with its frozen experts' columns and its supervised classifier."""

    config: RunConfig
    split: Split
    vectors: Float32Array
    proposals: Float32Array
    supervised: SupervisedModel | None

    @staticmethod
    def open(config: RunConfig, folder: Path, dataset: Dataset) -> _Market:
        table = dataset.train.market()
        vectors = regime_columns(load_regime(folder), table, mirror=False)[0]
        proposals = propose(load_team(folder / "mrms" / "team"), table, vectors)
        return _Market(config, dataset.train, vectors, proposals, _fit(config, dataset.train, vectors))

    def stretch(self, split: Split) -> Stretch:
        table, env = split.market(), self.config.core.env
        side = None
        if self.supervised is not None:
            held = positions(self.supervised, table, split.start, split.stop, self.vectors)
            side = held[split.start: split.stop]
        return Stretch(table, split.start, split.stop, instrument(self.config.market.instrument), env,
                       self.proposals, side)


def _fit(config: RunConfig, train: Split, vectors: Float32Array) -> SupervisedModel | None:
    """The classifier of the training rows."""
    if not config.backtest.supervised:
        return None
    table, env, spec = train.market(), config.core.env, instrument(config.market.instrument)
    commission = spec.commission if env.commission is None else env.commission
    side = env.slippage_ticks * spec.tick_size + commission / spec.multiplier
    return fit_supervised(table, vectors, train.start, train.stop, config.seed,
                          max_rows=config.backtest.supervised_rows,
                          cost=side / float(np.median(table.close[train.start: train.stop])))


def _runs(run: WalkForwardRun, bundle: Bundle, market: _Market, split: Split, gated: bool
          ) -> dict[str, SessionResult]:
    """The team (gated as well, if asked for) and every rule over a split."""
    table, stretch, settings = split.market(), market.stretch(split), run.walk_forward
    policy = BundlePolicy(bundle, table, seed=market.config.seed, regime_vectors=market.vectors)
    runs = {}
    if gated and is_shut(bundle):
        runs[POLICY] = run_nothing(stretch)
    elif gated:
        runs[POLICY] = run_session(bundle, policy, table, split.start, split.stop)
    policy.threshold = 0.0
    runs[UNGATED] = run_session(bundle, policy, table, split.start, split.stop)
    runs[ONE_CONTRACT] = run_one_contract(stretch, runs[UNGATED])
    return runs | run_rules(stretch, settings.fixed_stop_atr, settings.fixed_target_r)


def is_shut(bundle: Bundle) -> bool:
    """Whether no confidence reaches the calibrated threshold: no need to ask the team bar by bar."""
    calibration = bundle.manifest.calibration
    return calibration is not None and calibration.threshold > 1.0


def _risks(run: WalkForwardRun, bundle: Bundle, market: _Market, validation: Split) -> dict[str, float]:
    """Standard deviation of a day's profit on the validation part, which ends before the test begins."""
    runs = _runs(run, bundle, market, validation, gated=False)
    return {name: daily_risk(daily_profit(result)[1]) for name, result in runs.items()}


def _write_page(bundle: Bundle, window: Window, runs: Mapping[str, SessionResult], gate: dict[str, Any],
                folder: Path) -> None:
    """The window's own report: the same page as a backtest's."""
    others = {name: result for name, result in runs.items() if name != POLICY}
    hashes = {"bundle": bundle.id, "config": bundle.manifest.config_hash, "data": bundle.manifest.data_hash,
              "git commit": bundle.manifest.git_commit}
    document = backtest_result(runs[POLICY], others, hashes=hashes, gate=gate, seed=window.config.seed,
                               title=f"{window.config.name}: test of one window of a walk-forward")
    (folder / "report").mkdir(parents=True, exist_ok=True)
    write_report(folder / "report", document, curves_of(runs[POLICY], others))

