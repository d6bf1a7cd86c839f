"""Promotion of a run's bundle in the MLflow registry: the alias moves only if every recorded check has passed.

    traded and beat    the full run on unseen data traded, and ended above every baseline, net of costs
    deflated Sharpe    at least .95, with the number of trials of the sweep that chose the configuration
    control            an evaluation of the same configuration and its controls, which must hold the martingale, no
                       alarm and no failure, judged at least as strictly as by default
    gate               calibrated, its promise kept on the validation split

The checks and their figures are tags of the model version, passed or not.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from algospace.errors import ConfigError
from training.evaluate_config import Judging

MODEL = "algospace-bundle"
MIN_DEFLATED_SHARPE = 0.95


@dataclass(frozen=True)
class Check:
    """One condition of a promotion, what was found, and whether it holds."""

    name: str
    passed: bool
    found: str


@dataclass(frozen=True)
class Promotion:
    """What was checked for a version, and whether the alias moved."""

    version: str
    alias: str
    checks: tuple[Check, ...]

    @property
    def promoted(self) -> bool:
        """All or nothing."""
        return all(check.passed for check in self.checks)


def promote(run_dir: Path, evaluation: Path, alias: str = "champion") -> Promotion:
    """Check the bundle of a finished run and, if all is well, point `alias` of its registered model at it.

    evaluation: folder (or report.json) of `algospace evaluate` for the same configuration, with the martingale
    control; there is none for recorded bars, so only runs on synthetic markets pass. Raises ConfigError where the
    run, its registered version or the evaluation is missing or is something else.
    """
    train, evaluate = ("train the run to its end first",
                       "make one with `algospace evaluate --run ... --control martingale --out ...`")
    run = _document(run_dir / "run.json", train, ("config_hash",))
    report = _document(run_dir / "report" / "report.json", train,
                       ("policy", "baselines", "significance", "gate", "hashes"))
    if report["hashes"].get("config") != run["config_hash"]:
        raise ConfigError(f"{run_dir}: its report is of another configuration than its run.json; {train}")
    judged = _document(evaluation / "report.json" if evaluation.is_dir() else evaluation, evaluate,
                       ("config_hash", "failures"))
    checks = (_beats_baselines(report), _deflated_sharpe(report), _control(judged, run["config_hash"]),
              _gate(report))
    client, version = _registered(run_dir, report["hashes"]["bundle"])
    promotion = Promotion(version, alias, checks)
    for check in checks:
        client.set_model_version_tag(MODEL, version, f"check.{check.name}",
                                     f"{'passed' if check.passed else 'failed'}: {check.found}")
    if promotion.promoted:
        client.set_registered_model_alias(MODEL, alias, version)
    return promotion


def _document(path: Path, fix: str, keys: tuple[str, ...]) -> dict[str, Any]:
    """A JSON object that holds `keys`; ConfigError otherwise."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; {fix}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ConfigError(f"{path}: not JSON; {fix}") from None
    missing = [key for key in keys if not isinstance(found, dict) or key not in found]
    if missing:
        raise ConfigError(f"{path}: holds no '{missing[0]}'; {fix}")
    return dict(found)


def _beats_baselines(report: dict[str, Any]) -> Check:
    policy = report["policy"]
    best, figures = max(report["baselines"].items(), key=lambda item: item[1]["net_pnl"])
    passed = policy["trades"] > 0 and policy["net_pnl"] > figures["net_pnl"]
    return Check("beats_baselines", passed, f"{policy['trades']} trades, net {policy['net_pnl']:,.0f}; best "
                                            f"baseline {best} {figures['net_pnl']:,.0f}")


def _deflated_sharpe(report: dict[str, Any]) -> Check:
    found = report["significance"]
    value, trials = found["deflated_sharpe"], found["trials"]
    if value is None:  # one configuration was tried: nothing to deflate by
        value = found["probabilistic_sharpe"]
    passed = value is not None and value >= MIN_DEFLATED_SHARPE
    text = "not defined" if value is None else f"{value:.3f}"
    return Check("deflated_sharpe", passed, f"{text} of {MIN_DEFLATED_SHARPE} asked, {trials} trials")


def _control(judged: dict[str, Any], config_hash: str) -> Check:
    if judged["config_hash"] != config_hash:
        return Check("control", False, "the evaluation is of another configuration")
    controls = judged.get("controls", {})
    if "martingale" not in controls:
        return Check("control", False, "the evaluation has no martingale control")
    for kind, control in controls.items():
        if control.get("config_hash") != config_hash:  # `control_overrides`, e.g. with fewer steps
            return Check("control", False, f"control {kind} is of another configuration")
        judging, asked = control.get("judging", {}), Judging()
        if not (judging.get("max_idle_exposure", 1.0) <= asked.max_idle_exposure
                and judging.get("oracle_multiple", 0.0) >= asked.oracle_multiple):
            return Check("control", False, f"control {kind} asks for less than {asked.max_idle_exposure:.0%} in "
                                           f"the market and {asked.oracle_multiple:g} times the limit")
    failures = "; ".join(judged["failures"])
    return Check("control", not failures, failures or "no alarm, every control passed")


def _gate(report: dict[str, Any]) -> Check:
    gate = report["gate"]
    if gate is None:
        return Check("gate", False, "the report has no figures of a calibration")
    kept = bool(gate["promise_kept"])
    return Check("gate", kept, f"promise {'kept' if kept else 'not kept'}, threshold {gate['threshold']:.3f}")


def _registered(run_dir: Path, bundle: str) -> tuple[Any, str]:
    """(client, version) of the registered bundle with this id, where the run's history is."""
    from algospace.config import load_config
    from training.config import RunConfig
    from training.tracking_store import connect

    tracking = load_config(RunConfig, run_dir / "config.yaml").tracking
    if not tracking.enabled:
        raise ConfigError(f"{run_dir}: trained with tracking.enabled=false, so nothing of it is registered")
    uri = tracking.uri or f"sqlite:///{(run_dir / 'mlflow.db').resolve()}"
    client, _ = connect(uri, tracking.experiment, run_dir / "mlartifacts")
    for version in client.search_model_versions(f"name='{MODEL}'"):
        if version.tags.get("bundle") == bundle:
            return client, str(version.version)
    raise ConfigError(f"{uri}: bundle {bundle[:12]} of {run_dir} is not registered there; bring the history there "
                      f"with `algospace tracking upload {run_dir}`")
