"""Sweeps over a run's configuration with Ray Tune's schedulers and searchers.

    sweep = run_sweep(*load_tune(Path("configs/tune/quickstart.yaml")), Path("runs/sweep"))

The earlier phases are trained once and shared, trials are scored on the validation split only, every trial is a
child run in MLflow, and the best configuration is written as a file that `algospace train` accepts. A sweep that
was stopped is started again with the same folder: see `training.sweep.trial`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from rich.console import Console

from algospace import __version__
from algospace.config import load_config
from algospace.errors import ConfigError, InternalError
from algospace.files import write_text
from training.config import PHASES, RunConfig, TuningConfig
from training.ray_session import ray_session
from training.sweep.config import (
    METRIC,
    Choice,
    LogUniform,
    Parameter,
    Quantised,
    RandInt,
    TuneConfig,
    changed,
)
from training.sweep.ledger import Ledger, LedgerCallback
from training.sweep.tables import search_dataset
from training.sweep.trial import FOLDER_KEY, SHARED, SWEEP, Plan, TeamTrial, prepare_core, train_experts

BEST, _TUNE = "best.yaml", "tune"


@dataclass(frozen=True)
class SweepResult:
    """A finished sweep. `trials`: every configuration that was started, in order."""

    folder: Path
    best_id: str
    best_score: float
    best_config: Path
    trials: tuple[dict[str, Any], ...]
    tried: int
    mlflow_run_id: str


class SweepStopped(KeyboardInterrupt):
    """Stopped by the user; the folder holds what is needed to go on."""


@dataclass(frozen=True)
class SweepTrials:
    """How many configurations were tried before a run's was chosen, and their Sharpe ratios per bar on the
    validation split (fewer where a trial failed before it was scored)."""

    trials: int
    sharpes: tuple[float, ...]


def trials_of(run_dir: Path) -> SweepTrials:
    """What the deflated Sharpe ratio of a run must know about its choice: one trial where nothing was tuned.

    run_dir: a run's folder, or a sweep's.
    """
    sweep = run_dir / SWEEP
    if sweep.is_file():
        document = json.loads(sweep.read_text())
        return SweepTrials(int(document["tried"]), tuple(document["sharpes"]))
    if not (run_dir / "config.yaml").is_file():
        raise ConfigError(f"{run_dir}: neither a run's folder (config.yaml) nor a sweep's ({SWEEP})")
    tuning = load_config(RunConfig, run_dir / "config.yaml").tuning
    return SweepTrials(1, ()) if tuning is None else SweepTrials(tuning.trials, tuning.sharpes)


def run_sweep(tune: TuneConfig, base: RunConfig, folder: Path, console: Console | None = None) -> SweepResult:
    """Run the sweep in `folder`, or go on with the one that was stopped there.

    Raises ConfigError if the folder holds another sweep, SweepStopped on an interrupt, InternalError if no trial
    reached its end.
    """
    console = console or Console()
    torch.set_num_threads(base.torch_threads)  # of the shared experts, too: sums depend on it
    folder = folder.resolve()
    plan = Plan(folder, tune, base)
    config_hash = sweep_hash(tune, base)
    points = _points(tune, base) if tune.search == "random" else []
    with _only_driver(folder):
        _refuse_other(folder, config_hash)
        plan.save()
        _prepare_shared(plan, console.print)
        ledger = Ledger(plan, config_hash, console.print)
        LedgerCallback.open_ledgers[str(folder)] = ledger
        LedgerCallback.over[str(folder)] = set()
        status = "FAILED"
        try:
            with ray_session(*_resources(plan)):
                _fit(plan, ledger, points)
            if _stopped(plan, ledger):
                status = "KILLED"
                raise SweepStopped(f"stopped; the same command goes on from {folder}")
            result = _finish(plan, ledger, config_hash)
            status = "FINISHED"
        finally:
            ledger.close(status)
            del LedgerCallback.open_ledgers[str(folder)]
    return result


def _resources(plan: Plan) -> tuple[int, float]:
    """Processors and GPUs of as many trials as may run at once; with fewer a trial would wait for ever."""
    processors, gpus = (plan.tune.max_concurrent * sum(bundle.get(name, 0.0) for bundle in plan.bundles)
                        for name in ("CPU", "GPU"))
    return max(1, math.ceil(processors)), gpus


def sweep_hash(tune: TuneConfig, base: RunConfig) -> str:
    """What decides a sweep's trials and scores: not how many run at once."""
    own = tune.model_dump_json(exclude={"base", "overrides", "max_concurrent", "cpus_per_trial", "max_failures"})
    run = base.model_dump_json(exclude={"tracking"})
    return hashlib.sha256(f"{own}\n{run}\n{__version__}".encode()).hexdigest()


@contextmanager
def _only_driver(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"{folder}: a sweep is running here; wait for it or give another folder") from None
        yield


def _refuse_other(folder: Path, config_hash: str) -> None:
    path = folder / SWEEP
    if path.is_file() and json.loads(path.read_text())["config_hash"] != config_hash:
        raise ConfigError(f"{folder}: holds a sweep with another configuration (or of another version); give a "
                          f"new folder with --run-dir, or the configuration it was started with")


def _refuse_other_data(folder: Path, data_hash: str) -> None:
    path = folder / SWEEP
    if path.is_file() and json.loads(path.read_text()).get("data_hash", data_hash) != data_hash:
        raise ConfigError(f"{folder}: the bars have changed since this sweep was started, so its scores cannot be "
                          f"compared with new ones; restore them, or give a new folder with --run-dir")


def _prepare_shared(plan: Plan, say: Callable[[str], None]) -> None:
    """Tables, the phases that are not searched, and the core's expert columns: once for all trials."""
    shared = plan.folder / SHARED
    dataset = search_dataset(plan.base, shared, say)
    _refuse_other_data(plan.folder, dataset.data_hash)
    before = PHASES[: PHASES.index(plan.tune.phases[0])]
    if before:
        say(f"shared by all trials: {', '.join(before)}")
        with ray_session(*plan.base.actors):
            train_experts(plan.base, dataset, shared, before)
    if plan.tune.phases == ("core",):
        prepare_core(plan.base, dataset, shared)


def _points(tune: TuneConfig, base: RunConfig) -> list[dict[str, Any]]:
    """The whole list of random configurations, each different and each valid, drawn from the sweep's seed."""
    generator = np.random.default_rng(tune.seed)
    domains = {key: _domain(parameter) for key, parameter in tune.space.items()}
    points: list[dict[str, Any]] = []
    for _ in range(100 * tune.trials):
        values = {key: domain.sample(random_state=generator) for key, domain in domains.items()}
        point = {key: value.item() if hasattr(value, "item") else value for key, value in values.items()}
        if point not in points:
            changed(base, point)
            points.append(point)
        if len(points) == tune.trials:
            return points
    raise ConfigError(f"search space: it holds only {len(points)} different configurations, fewer than the "
                      f"{tune.trials} trials; lower trials or widen it")


def _domain(parameter: Any) -> Any:
    """Ray Tune's own."""
    from ray import tune

    if isinstance(parameter, Choice):
        return tune.choice(list(parameter.values))
    if isinstance(parameter, RandInt):
        return tune.randint(parameter.low, parameter.high + 1)
    if isinstance(parameter, LogUniform):
        return tune.loguniform(parameter.low, parameter.high)
    if isinstance(parameter, Quantised):
        make = tune.qrandint if parameter.whole else tune.quniform
        return make(parameter.low, parameter.high, parameter.step)
    return tune.uniform(parameter.low, parameter.high)


def _fit(plan: Plan, ledger: Ledger, points: list[dict[str, Any]]) -> None:
    """Hand the sweep to Ray Tune. PBT goes on from Tune's own state, all others from their trials' folders."""
    for name, value in (("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1"), ("RAY_AIR_NEW_OUTPUT", "0"),
                        ("TUNE_GLOBAL_CHECKPOINT_S", "5"), ("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")):
        os.environ.setdefault(name, value)
    from ray import tune

    config, storage = plan.tune, plan.folder / _TUNE
    experiment = storage / "sweep"
    pbt = config.scheduler == "pbt"
    if pbt and tune.Tuner.can_restore(str(experiment)):
        tune.Tuner.restore(str(experiment), TeamTrial, resume_errored=True).fit()
        return
    shutil.rmtree(storage, ignore_errors=True)
    space = {key: _domain(parameter) for key, parameter in config.space.items()}
    tuner = tune.Tuner(
        TeamTrial, param_space={**space, FOLDER_KEY: str(plan.folder)},
        tune_config=tune.TuneConfig(
            metric=METRIC, mode=config.mode, num_samples=config.trials, scheduler=_scheduler(config),
            search_alg=_searcher(plan, ledger, points), reuse_actors=True,
            max_concurrent_trials=config.max_concurrent if config.search == "optuna" else None),
        run_config=tune.RunConfig(
            name=experiment.name, storage_path=str(storage), verbose=0,
            callbacks=[LedgerCallback(str(plan.folder))],
            failure_config=tune.FailureConfig(max_failures=config.max_failures),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=int(pbt), checkpoint_at_end=pbt,
                                                    num_to_keep=4 if pbt else None)))
    tuner.fit()


def _scheduler(config: TuneConfig) -> Any:
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    from training.sweep.population import Population

    if config.scheduler == "asha":
        return ASHAScheduler(max_t=config.rungs, grace_period=config.asha.grace,
                             reduction_factor=config.asha.reduction)
    if config.scheduler == "none":
        return FIFOScheduler()
    bounds = {key: parameter for key, parameter in config.space.items()
              if not isinstance(parameter, Choice | Quantised)}

    def mutations(parameter: Parameter) -> Any:
        if isinstance(parameter, Choice):
            return list(parameter.values)
        return parameter.grid if isinstance(parameter, Quantised) else _domain(parameter)

    def within_bounds(values: dict[str, Any]) -> dict[str, Any]:
        """A perturbed value may leave its range: x 1.2 of 0.95 is no discount."""
        kept = {key: min(max(values[key], bound.low), bound.high) for key, bound in bounds.items()}
        return {**values, **kept}

    return Population(
        config.seed, time_attr="training_iteration", perturbation_interval=config.pbt.interval,
        hyperparam_mutations={key: mutations(parameter) for key, parameter in config.space.items()},
        quantile_fraction=config.pbt.quantile, resample_probability=config.pbt.resample,
        custom_explore_fn=within_bounds, log_config=False)


def _searcher(plan: Plan, ledger: Ledger, points: list[dict[str, Any]]) -> Any:
    """Random: the fixed list. Optuna: first what an earlier start has tried (repeated from its folders, so that
    the sampler learns of it as it did then), then the sampler's own, from a seed of its own."""
    config = plan.tune
    if config.search == "random":
        from ray.tune.search.basic_variant import BasicVariantGenerator

        # a population needs all its members alive, and takes turns where there is no room for them: one after the
        # other, nobody would be left to hand a team to
        at_once = 0 if config.scheduler == "pbt" else config.max_concurrent
        return BasicVariantGenerator(points_to_evaluate=points, max_concurrent=at_once)
    from ray.tune.search.optuna import OptunaSearch

    earlier = [dict(trial["changes"]) for trial in ledger.trials.values()]
    return OptunaSearch(points_to_evaluate=earlier or None, seed=(config.seed + len(earlier)) % 2**32)


def _stopped(plan: Plan, ledger: Ledger) -> bool:
    """Whether trials are left: Ray Tune answers an interrupt by returning early."""
    if plan.tune.scheduler == "pbt":  # a restored population repeats nothing, so the ledger alone knows
        waiting = any(trial["state"] == "running" for trial in ledger.trials.values())
        return waiting or len(ledger.trials) < plan.tune.trials
    return len(LedgerCallback.over[str(plan.folder)]) < plan.tune.trials


def _finish(plan: Plan, ledger: Ledger, config_hash: str) -> SweepResult:
    """Choose by validation score, write the best configuration and the number of trials."""
    best = ledger.best()
    if best is None:
        errors = [trial.get("error", "") for trial in ledger.trials.values()]
        raise InternalError(f"no trial reached its end; the first error: {next(filter(None, errors), 'none')}")
    key, trial = best
    score = float(trial["rungs"][-1][METRIC])
    tuning = _tuning(plan, config_hash, ledger.tried(), ledger.sharpes())
    config = changed(plan.base, trial["changes"]).model_copy(update={"tuning": tuning})
    path = plan.folder / BEST
    write_text(path, f"# Best of {tuning.trials} trials of sweep '{plan.tune.name}': {METRIC} {score:.4f}.\n"
               + yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    ledger.document |= {"best": key, "best_score": score, "tried": tuning.trials, "sharpes": list(tuning.sharpes)}
    ledger.write()
    ledger.tracker.artifact(path)
    ledger.tracker.artifact(ledger.path)
    return SweepResult(plan.folder, key, score, path, tuple(ledger.trials.values()), tuning.trials,
                       ledger.tracker.run_id)


def _tuning(plan: Plan, config_hash: str, tried: int, sharpes: tuple[float, ...]) -> TuningConfig:
    """What the best configuration says of its choice. A base that was itself the best of a sweep brings that one's
    trials along: all of them were tried before this configuration was found."""
    before = plan.base.tuning
    if before is not None:
        tried, sharpes = tried + before.trials, (*before.sharpes, *sharpes)
    return TuningConfig(sweep=plan.tune.name, config_hash=config_hash, trials=tried, sharpes=sharpes)
