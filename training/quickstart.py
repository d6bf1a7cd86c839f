"""The main job: synthetic market -> features -> three phases -> backtest on test seeds -> bundle -> Ray Serve ->
one decision over HTTP. Everything is written below one folder; no process is left behind."""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import configs
from algospace.config import load_config
from algospace.files import write_json
from serving.bundle import Bundle
from serving.client import ask, request_of
from serving.decider import account_record
from serving.policy import BundlePolicy
from training.config import RunConfig
from training.dataset import Split

_SERVE_SWITCHES = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
_DECISION_CALLS = 5
_UNIT = ("baselines", "bayes_limit", "fraction_of_limit", "fractions", "bars")


def run_quickstart(run_dir: Path, config_file: Path | None, overrides: list[str]) -> dict[str, Any]:
    """Run everything; returns what `summary.json` holds."""
    os.environ.update({name: os.environ.get(name, value) for name, value in _SERVE_SWITCHES.items()})
    # Serve reads its switches when it is first imported, and RLlib may import it
    from training.complete import complete_run
    from training.pipeline import run_pipeline

    started = time.perf_counter()
    console = Console()
    config = load_config(RunConfig, config_file or Path(configs.__file__).parent / "quickstart.yaml", overrides)
    result = run_pipeline(config, run_dir, console=console)
    done = complete_run(config, result, console)
    serving = time.perf_counter()
    console.print("serve: starting Ray Serve, one decision over HTTP")
    decision = decide_over_http(done.bundle, result.dataset.test[0])
    seconds = {**result.seconds, **done.seconds, "serve": time.perf_counter() - serving}
    seconds["total"] = time.perf_counter() - started
    summary = _summary(result.phases, done, decision, seconds)
    write_json(run_dir / "summary.json", summary)
    _print(console, summary, run_dir, done.report_path)
    return summary


def decide_over_http(bundle: Bundle, split: Split) -> dict[str, Any]:
    """Start the service, ask for the decision at the split's last decision row, stop the service."""
    from serving.deployment import start_service

    table = split.market()
    row = int(np.flatnonzero(np.asarray(table.decision[: split.stop]))[-1])
    policy = BundlePolicy(bundle, table)
    account = account_record(equity=bundle.manifest.env.initial_equity, day=float(table.day[row]),
                             day_start=bundle.manifest.env.initial_equity, mark=float(table.close[row]),
                             peak=bundle.manifest.env.initial_equity)
    body = request_of(bundle, policy.inputs(row, account))
    latencies = []
    with start_service(bundle.directory, secrets.token_urlsafe(24)) as service:
        for _ in range(_DECISION_CALLS):
            begun = time.perf_counter()
            answer = ask(service.url, service.token, body)
            latencies.append(1e3 * (time.perf_counter() - begun))
    return {"verdict": answer["verdict"], "confidence": answer["confidence"], "reason": answer["reason"],
            "direction": answer["direction"], "votes": answer["votes"], "model": answer["model"],
            "latency_ms": float(np.median(latencies)), "bar": str(np.datetime64(int(table.ts_close[row]), "ns"))}


def _summary(phases: dict[str, dict[str, Any]], done: Any, decision: dict[str, Any],
             seconds: dict[str, float]) -> dict[str, Any]:
    unit = done.unit or {"policy": {}}  # a market without a solved limit has no unit run
    full_run = done.report["policy"]
    scores = {name: unit[name] for name in _UNIT if name in unit}
    return {
        "phases": {name: phase["metrics"] for name, phase in phases.items()},
        "backtest": {"policy": {**unit["policy"], "net_pnl": full_run["net_pnl"]}, **scores, "full_run": full_run},
        "gate": {name: value for name, value in done.report["gate"].items() if not isinstance(value, dict)},
        "bundle": str(done.bundle.directory), "decision": decision, "seconds": seconds,
    }


def _print(console: Console, summary: dict[str, Any], run_dir: Path, report: Path) -> None:
    backtest = summary["backtest"]
    if "bayes_limit" in backtest:
        console.print(_unit_table(backtest))
    full_run, gate = backtest["full_run"], summary["gate"]
    promise = "kept on validation" if gate["promise_kept"] else "kept by no threshold, so nothing passes"
    console.print(f"full run (brackets, M-RMS, gate): {full_run['trades']} trades, net {full_run['net_pnl']:,.0f} "
                  f"USD; gate threshold {gate['threshold']:.2f}, promised precision {promise}")
    decision = summary["decision"]
    console.print(f"decision for the bar closed {decision['bar']}: {decision['verdict']} ({decision['reason']}), "
                  f"confidence {decision['confidence']:.2f}, {decision['latency_ms']:.1f} ms over HTTP")
    console.print(f"summary: {run_dir / 'summary.json'}   report: {report}   "
                  f"MLflow: mlflow ui --backend-store-uri sqlite:///{run_dir / 'mlflow.db'}")
    console.print(f"total {summary['seconds']['total']:.0f} s")


def _unit_table(backtest: dict[str, Any]) -> Table:
    """Every contender's score beside the limit, which is nothing on a martingale."""
    table = Table(title=f"Unit run on test markets {', '.join(backtest['fractions'])} (ticks per bar, noise-free)")
    for heading in ("", "score", "of the limit", "in the market", "trades"):
        table.add_column(heading, justify="left" if not heading else "right")
    limit = backtest["bayes_limit"]
    rows = [("policy", backtest["policy"]), *backtest["baselines"].items(), ("Bayes limit", limit)]
    for name, figures in rows:
        share = f"{figures['score'] / limit['score']:.0%}" if limit["score"] > 0.0 else "-"
        table.add_row(name, f"{figures['score']:.3f}", share, f"{figures['exposure']:.0%}",
                      f"{figures['trades']:,.0f}")
    return table
