"""Promotion of a run's bundle in the MLflow registry: the alias moves only if every recorded check has passed.

    traded and beat    the full run on test data traded, and ended above every baseline, net of costs
    deflated Sharpe    at least .95, with the number of trials of the sweep that chose the configuration
    alarm              the core was judged, its leak alarm is silent, nothing else in its report failed
    control            controls of the same configuration, the martingale among them, without alarm or failure,
                       judged at least as strictly as by default; from the core's report and from the files that
                       `algospace evaluate --control` leaves beside it
    gate               calibrated, its promise kept on the validation split

The checks and their figures are tags of the model version, passed or not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from algospace.errors import ConfigError
from serving.aliases import Check
from training.evaluation.config import CONTROLS, EVALUATION, Judging
from training.evaluation.report import REPORT, control_file

MODEL = "algospace-bundle"
MIN_DEFLATED_SHARPE = 0.95


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


def promote(run_dir: Path, evaluation: Path | None = None, alias: str = "champion") -> Promotion:
    """Check the bundle of a finished run and, if all is well, point `alias` of its registered model at it.

    evaluation: folder (or report.json) of `algospace evaluate` for the same configuration, by default the run's
    own; the core must have been judged there, and the martingale control. Recorded bars have none, so only runs on
    synthetic markets pass. Raises ConfigError where the run, its registered version or the evaluation is missing
    or is something else.
    """
    train, evaluate = ("train the run to its end first",
                       "make one with `algospace evaluate --run RUN`, and once more with `--control martingale`")
    evaluation = run_dir / EVALUATION if evaluation is None else evaluation
    run = _document(run_dir / "run.json", train, ("config_hash",))
    report = _document(run_dir / "report" / "report.json", train,
                       ("policy", "baselines", "significance", "gate", "hashes"))
    if report["hashes"].get("config") != run["config_hash"]:
        raise ConfigError(f"{run_dir}: its report is of another configuration than its run.json; {train}")
    judged, controls = _judgements(evaluation, evaluate)
    checks = (_beats_baselines(report), _deflated_sharpe(report), _alarm(judged, run["config_hash"]),
              _control([judged, *controls], run["config_hash"]), _gate(report))
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


def _judgements(evaluation: Path, fix: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The core's report, and those of controls that were evaluated by themselves."""
    folder = evaluation if evaluation.suffix != ".json" else evaluation.parent
    keys = ("config_hash", "failures")
    judged = _document(folder / REPORT if folder == evaluation else evaluation, fix, keys)
    alone = [folder / control_file(kind) for kind in CONTROLS]
    return judged, [_document(path, fix, (*keys, "controls")) for path in alone if path.is_file()]


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


def _alarm(judged: dict[str, Any], config_hash: str) -> Check:
    """The core's own judgement; failures of controls in the same report are those of the next check."""
    if judged["config_hash"] != config_hash:
        return Check("alarm", False, "the evaluation is of another configuration")
    if "alarms" not in judged:
        return Check("alarm", False, "the evaluation holds controls alone: judge the core too, with "
                                     "`algospace evaluate --run` without --control")
    of_controls = {line for control in judged.get("controls", {}).values() for line in control.get("failures", ())}
    failures = [line for line in judged["failures"] if line not in of_controls]
    if judged["alarms"] and not failures:
        failures = [f"the leak alarm rings on market {', '.join(map(str, judged['alarms']))}"]
    return Check("alarm", not failures, "; ".join(failures) or "the leak alarm is silent")


def _control(reports: Sequence[dict[str, Any]], config_hash: str) -> Check:
    found = [item for report in reports for item in report.get("controls", {}).items()]
    if "martingale" not in dict(found):
        return Check("control", False, "the evaluation has no martingale control")
    failures: list[str] = []
    for kind, control in found:
        if control.get("config_hash") != config_hash:  # `control_overrides`, e.g. with fewer steps
            return Check("control", False, f"control {kind} is of another configuration")
        judging, asked = control.get("judging", {}), Judging()
        if not (judging.get("max_idle_exposure", 1.0) <= asked.max_idle_exposure
                and judging.get("oracle_multiple", 0.0) >= asked.oracle_multiple):
            return Check("control", False, f"control {kind} asks for less than {asked.max_idle_exposure:.0%} in "
                                           f"the market and {asked.oracle_multiple:g} times the limit")
        failures += control.get("failures", [f"control {kind} has no verdict"])
    return Check("control", not failures, "; ".join(failures) or "every control passed")


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
