"""From a finished pipeline to a calibrated bundle."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from agents.calibration import Calibration, calibrate, prove_promise
from agents.core import CoreNet
from agents.gate import Gate, GateConfig, Verdict, Votes, confidences
from agents.risk import RiskNet
from algospace.analysis.gate_report import gate_report, write_gate_report
from algospace.execution.decision import Decision, Reason
from algospace.instruments import instrument
from algospace.types import BoolArray, FloatArray
from envs.vector_core import risk_unit_of
from serving.bundle import Bundle, BundleSpec
from serving.export import write_bundle
from serving.policy import BundlePolicy
from training.backtest import run_session
from training.config import RunConfig
from training.dataset import Dataset, Split
from training.evaluation.validation_parts import gate_part
from training.experts import load_regime, regime_columns
from training.team_training import load_team
from training.tracking import git_commit

GATE_FOLDER = "gate"
"""Folder of a run with the gate's figures and plots (algospace.analysis.gate_report)."""


def build_bundle(config: RunConfig, run_dir: Path, dataset: Dataset, out: Path) -> tuple[Bundle, dict[str, Any]]:
    """Calibrate the gate on the validation split, or what a sweep left of it, and write the bundle; returns it and
    the gate's figures, which also lie in the run's folder."""
    with tempfile.TemporaryDirectory() as scratch:
        open_gate = _write(config, run_dir, dataset, Path(scratch) / "bundle", None)
        part = gate_part(config, dataset.validation)
        raw, gained, net = validation_trades(config, open_gate, run_dir, part)
        fitted = calibrate(raw, gained, config.gate)
        proved = keep_promise(fitted, raw, gained, config, open_gate, run_dir, part)
    bundle = _write(config, run_dir, dataset, out, proved)
    figures = gate_figures(proved, raw, gained, net, config)
    write_gate_report(figures, run_dir / GATE_FOLDER)
    return bundle, figures


def keep_promise(fitted: Calibration, raw: FloatArray, gained: BoolArray, config: RunConfig, bundle: Bundle,
                 run_dir: Path, split: Split) -> Calibration:
    """agents.calibration.prove_promise, in sessions on rows of the validation split."""
    return prove_promise(fitted, raw, gained, config.gate,
                         lambda gate: validation_trades(config, bundle, run_dir, split, gate)[1])


def _write(config: RunConfig, run_dir: Path, dataset: Dataset, out: Path,
           calibration: Calibration | None) -> Bundle:
    core, risk = load_team(run_dir / "core" / "team"), load_team(run_dir / "mrms" / "team")
    core_net, risk_net = core.module.net, risk.module.net
    assert isinstance(core_net, CoreNet)
    assert isinstance(risk_net, RiskNet)
    table = dataset.train.market()
    spec = BundleSpec(
        instrument=config.market.instrument, mask_key=core.spec["mask_key"], gate=config.gate,
        calibration=calibration, env=config.core.env, risk_env=config.mrms.env,
        risk_unit=risk_unit_of(table, instrument(config.market.instrument), config.core.env, dataset.train.start,
                               dataset.train.stop),
        features=config.features, config_hash=config.digest(), data_hash=dataset.data_hash,
        git_commit=git_commit(),
        metrics={name: float(value) for name, value in core.metrics.items()})
    return write_bundle(out, spec, table.schema, core_net, risk_net, load_regime(run_dir))


class _RecordingGate(Gate):
    """A gate that remembers its last verdict's scores, which a calibration is fitted on."""

    last_raw: FloatArray = np.zeros(0)

    def decide(self, votes: Votes, execution: FloatArray | None, threshold: float | None = None) -> Verdict:
        verdict = super().decide(votes, execution, threshold)
        self.last_raw = verdict.raw
        return verdict


class _RecordingPolicy:
    """A policy whose gate is `gate`, open by default; keeps the scores (K,) of each EXECUTE, by row."""

    def __init__(self, policy: BundlePolicy, config: GateConfig, gate: Gate | None = None) -> None:
        given = gate or Gate(config, 1.0, 0.0)
        self._policy, self._gate = policy, _RecordingGate(config, given.temperature, given.threshold)
        policy.decider.gate, policy.correction = self._gate, None
        self.scores: dict[int, FloatArray] = {}

    def decide(self, row: int, account: Any) -> Decision:
        """See algospace.execution.decision.Policy."""
        decision = self._policy.decide(row, account)
        if decision.reason is Reason.EXECUTE:
            self.scores[row] = self._gate.last_raw.copy()
        return decision


def validation_trades(config: RunConfig, bundle: Bundle, run_dir: Path, split: Split,
                      gate: Gate | None = None) -> tuple[FloatArray, BoolArray, FloatArray]:
    """Every trade that the team would make on rows of the validation split with the gate open, or with `gate`.

    Returns scores (N, K) of the decisions that opened them, whether each gained net of costs, and its net P&L.
    """
    table = split.market()
    vectors = regime_columns(load_regime(run_dir), table, mirror=False)[0]
    policy = _RecordingPolicy(BundlePolicy(bundle, table, regime_vectors=vectors), config.gate, gate)
    stop = split.stop
    if config.backtest.calibration_bars:
        stop = min(stop, split.start + config.backtest.calibration_bars)
    result = run_session(bundle, policy, table, split.start, stop)
    trades = result.trades
    known = np.array([int(row) - 1 in policy.scores for row in trades["entry_row"]], np.bool_)
    trades = trades[known]
    raw = np.array([policy.scores[int(row) - 1] for row in trades["entry_row"]], np.float64)
    return raw.reshape(len(trades), config.gate.iterations), trades["net_pnl"] > 0.0, trades["net_pnl"].copy()


def gate_figures(calibration: Calibration, raw: FloatArray, gained: BoolArray, net: FloatArray,
                 config: RunConfig) -> dict[str, Any]:
    """The gate's report over its validation trades with the gate open, and what it promises."""
    confidence = confidences(raw, calibration.temperature, config.gate.kappa) if len(raw) else np.zeros(0)
    return {
        **gate_report(confidence, gained, net, calibration.threshold, seed=config.seed),
        "temperature": calibration.temperature, "promise_kept": calibration.promise_kept,
        "promised_precision": calibration.promised_precision, "promise_level": calibration.promise_level,
        "gated_trades": calibration.trades, "gated_precision": calibration.precision,
        "gated_precision_bound": calibration.precision_bound, "promise": calibration.statement,
    }
