"""The backtest: the full run of a bundle, beside every baseline, as JSON and a self-contained page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from algospace.analysis.baselines import run_baselines, turnover_of
from algospace.analysis.report import backtest_result, curves_of, write_report
from algospace.clock import ReplayClock
from algospace.errors import ConfigError
from algospace.execution.decision import Policy
from algospace.execution.journal import Journal, MemoryJournal
from algospace.execution.result import SessionResult
from algospace.execution.session import Session, TableFeed
from algospace.execution.venue import SimulatedVenue
from algospace.features import build
from algospace.features.market_table import MarketTable
from algospace.features.matrices import assemble
from algospace.marketdata import read_source
from algospace.types import AnyArray, Float32Array, FloatArray
from serving.bundle import Bundle
from serving.page.recording import write_recording
from serving.policy import BundlePolicy
from training.dataset import nanoseconds

UNGATED = "ungated"
"""The same team with the gate open, reported beside the baselines: what the gate adds or takes away."""


def backtest(bundle: Bundle, table: MarketTable, start: int, stop: int, out: Path, *, title: str,
             regime_vectors: Float32Array | None = None, supervised: AnyArray | None = None,
             gate: dict[str, Any] | None = None, unit: dict[str, Any] | None = None,
             notes: tuple[str, ...] = (), seed: int = 0,
             trial_sharpes: FloatArray | None = None, trials: int = 1) -> dict[str, Any]:
    """Run rows [start, stop) of `table` with the bundle's team, gate and limits; write report.json and .html, and
    what the trading page replays (`replay`).

    supervised: positions (stop - start,) of a classifier fitted on the training split. trial_sharpes: per bar,
    of every configuration that a sweep scored; trials: how many it tried. Returns the document.
    """
    env = bundle.manifest.env
    policy = BundlePolicy(bundle, table, seed=seed, regime_vectors=regime_vectors)
    journal = MemoryJournal()
    result = run_session(bundle, policy, table, start, stop, journal)
    policy.threshold = 0.0
    ungated = run_session(bundle, policy, table, start, stop)
    imitated = result if len(result.trades) else ungated
    baselines = {UNGATED: ungated} | run_baselines(
        table, start, stop, bundle.instrument, turnover=turnover_of(imitated),
        exposure=float(np.mean(imitated.position != 0.0)),
        slippage_ticks=env.slippage_ticks, commission=env.commission, intrabar=env.intrabar,
        initial_equity=env.initial_equity, seed=seed, supervised=supervised)
    hashes = {"bundle": bundle.id, "config": bundle.manifest.config_hash, "data": bundle.manifest.data_hash,
              "git commit": bundle.manifest.git_commit}
    document = backtest_result(result, baselines, hashes=hashes, title=title, gate=gate, unit=unit, notes=notes,
                               seed=seed, trial_sharpes=trial_sharpes, trials=trials)
    out.mkdir(parents=True, exist_ok=True)
    write_report(out, document, curves_of(result, baselines))
    write_recording(out / "replay", result, journal, table, title=title, model=bundle.id)
    return document


def run_session(bundle: Bundle, policy: Policy, table: MarketTable, start: int, stop: int,
                journal: Journal | None = None) -> SessionResult:
    """The full run over rows [start, stop): brackets, costs and hard limits of the bundle's environment.

    journal: where its records go; by default they are forgotten."""
    env = bundle.manifest.env
    venue = SimulatedVenue(bundle.instrument, env.slippage_ticks, env.commission, env.intrabar)
    session = Session(ReplayClock(), TableFeed(table, start, stop), venue, policy, env.limits,
                      MemoryJournal() if journal is None else journal, reverse=env.reverse,
                      initial_equity=env.initial_equity)
    return session.run()


def backtest_bars(bundle: Bundle, source: Path, out: Path, start: str | None = None, stop: str | None = None,
                  seed: int = 0) -> dict[str, Any]:
    """Backtest on recorded bars: features with the bundle's settings, normalised with its statistics.

    SchemaError if the bundle was trained on features with settings other than these.
    """
    bars = read_source(source, bundle.manifest.instrument)
    features = build(bars, bundle.instrument, bundle.manifest.features)
    table = assemble(features, bundle.schema, bundle.instrument)
    first = table.first_decision
    if start is not None:
        first = max(first, int(np.searchsorted(table.ts_close, nanoseconds(start))))
    last = len(table) if stop is None else int(np.searchsorted(table.ts_close, nanoseconds(stop)))
    if last - first < 2:
        raise ConfigError(f"{source}: no rows to trade between {start or 'the start'} and {stop or 'the end'}")
    title = f"{bundle.manifest.instrument}: {source.name}"
    return backtest(bundle, table, first, last, out, title=title, seed=seed)
