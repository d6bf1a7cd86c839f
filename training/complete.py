"""What follows the phases: unit evaluation, calibrated bundle, full run, report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from algospace.analysis import gate_report
from algospace.files import write_json
from algospace.instruments import instrument
from algospace.types import AnyArray
from serving.bundle import Bundle
from training.backtest import backtest
from training.bundling import GATE_FOLDER, build_bundle
from training.config import RunConfig
from training.dataset import Dataset, Split
from training.evaluation.units import evaluate_units
from training.experts import load_regime, regime_columns
from training.pipeline import PipelineResult
from training.supervised import fit_supervised, positions
from training.tracking import Tracker


@dataclass(frozen=True)
class CompletedRun:
    """unit: scores against the limit (None without a solved one); report: the full run's document."""

    bundle: Bundle
    unit: dict[str, Any] | None
    report: dict[str, Any]
    report_path: Path
    seconds: dict[str, float]


def complete_run(config: RunConfig, result: PipelineResult, console: Console) -> CompletedRun:
    """Evaluate, bundle and backtest a finished pipeline run."""
    dataset, run_dir = result.dataset, result.run_dir
    seconds: dict[str, float] = {}
    unit = None
    if has_limit(dataset):
        started = time.perf_counter()
        console.print(f"evaluate: unit run on {place_of(dataset.test)}")
        unit = evaluate_units(run_dir, dataset.test, config.seed)
        write_json(run_dir / "unit_scores.json", unit)
        seconds["unit_evaluation"] = time.perf_counter() - started
    started = time.perf_counter()
    console.print("bundle: calibrating the gate on the validation split")
    bundle, gate = build_bundle(config, run_dir, dataset, run_dir / "bundle")
    seconds["bundle"] = time.perf_counter() - started
    started = time.perf_counter()
    report = _full_run(config, run_dir, dataset, bundle, gate, unit, console)
    seconds["backtest"] = time.perf_counter() - started
    _track(config, result, bundle, unit, report)
    return CompletedRun(bundle, unit, report, run_dir / "report" / "report.html", seconds)


def _track(config: RunConfig, result: PipelineResult, bundle: Bundle, unit: dict[str, Any] | None,
           report: dict[str, Any]) -> None:
    """The backtest as a child run of the pipeline's: figures, report, and the bundle as a registered model."""
    run_dir = result.run_dir
    figures = {name: float(value) for name, value in report["policy"].items() if isinstance(value, int | float)}
    if unit is not None:
        figures |= {f"unit/{name}": float(value) for name, value in unit["policy"].items()}
        if unit["fraction_of_limit"] is not None:
            figures["unit/fraction_of_limit"] = float(unit["fraction_of_limit"])
    if report["gate"]:
        figures |= {f"gate/{name}": value for name, value in gate_report.figures(report["gate"]).items()}
    with Tracker.open(config.tracking, run_dir, config.name, config.model_dump(mode="json"), config.digest(),
                      parent_run_id=result.mlflow_run_id or None) as tracker:
        tags = {"phase": "backtest", "data_hash": result.dataset.data_hash, "bundle": bundle.id}
        with tracker.child("backtest", {}, tags) as run:
            run.metrics(0, figures)
            for name in ("report.html", "report.json"):
                run.artifact(run_dir / "report" / name)
            run.artifact(run_dir / GATE_FOLDER)
            run.register_model("algospace-bundle", bundle.directory, "candidate", figures,
                               f"{config.name}, bundle {bundle.id[:12]}")


def has_limit(dataset: Dataset) -> bool:
    """Whether the test markets have a solved limit to score against."""
    truths = [split.truth() for split in dataset.test]
    return all(truth is not None and truth.expected_return is not None for truth in truths)


def place_of(splits: Sequence[Split]) -> str:
    """What the test rows are, by name: whether a seed was used for tuning is not known here, so nothing is called
    unseen. `algospace evaluate` refuses seeds that the training has seen."""
    seeds = [str(split.seed) for split in splits if split.seed is not None]
    if not seeds:
        return "the test split"
    return f"test market{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}"


def _full_run(config: RunConfig, run_dir: Path, dataset: Dataset, bundle: Bundle, gate: dict[str, Any],
              unit: dict[str, Any] | None, console: Console) -> dict[str, Any]:
    split = dataset.test[0]
    stop = split.stop
    if config.backtest.full_run_bars:
        stop = min(stop, split.start + config.backtest.full_run_bars)
    console.print(f"backtest: full run over {stop - split.start:,} test bars (brackets, M-RMS, gate)")
    table = split.market()
    vectors = regime_columns(load_regime(run_dir), table, mirror=False)[0]
    notes = () if config.market.synthetic is None else (
        f"Synthetic market '{config.market.synthetic.scenario}': the figures say nothing about real markets.",)
    title = f"{config.name}: full run on {place_of([split])}"
    return backtest(
        bundle, table, split.start, stop, run_dir / "report", title=title, regime_vectors=vectors,
        supervised=_supervised(config, run_dir, dataset, split, stop), gate=gate, unit=unit, notes=notes,
        seed=config.seed,
        trial_sharpes=None if config.tuning is None else np.asarray(config.tuning.sharpes, np.float64),
        trials=1 if config.tuning is None else config.tuning.trials)


def _supervised(config: RunConfig, run_dir: Path, dataset: Dataset, test: Split, stop: int) -> AnyArray | None:
    """Positions of a classifier fitted on the training rows, for test rows [start, stop)."""
    if not config.backtest.supervised:
        return None
    train = dataset.train.market()
    net = load_regime(run_dir)
    start, end = dataset.train.start, dataset.train.stop
    spec, env = instrument(config.market.instrument), config.core.env
    commission = spec.commission if env.commission is None else env.commission
    side = env.slippage_ticks * spec.tick_size + commission / spec.multiplier
    model = fit_supervised(train, regime_columns(net, train, mirror=False)[0], start, end, config.seed,
                           max_rows=config.backtest.supervised_rows,
                           cost=side / float(np.median(train.close[start:end])))
    table = test.market()
    vectors = regime_columns(net, table, mirror=False)[0]
    return positions(model, table, test.start, stop, vectors)[test.start: stop]
