"""The backtest: the full run of a bundle, beside every baseline, as JSON and a self-contained page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from algospace.analysis.baselines import run_baselines, turnover_of
from algospace.analysis.report import backtest_result, curves_of, write_report
from algospace.clock import ReplayClock
from algospace.execution.journal import MemoryJournal
from algospace.execution.session import Session, TableFeed
from algospace.execution.venue import SimulatedVenue
from algospace.features.market_table import MarketTable
from algospace.types import AnyArray, Float32Array
from serving.bundle import Bundle
from serving.policy import BundlePolicy


def backtest(bundle: Bundle, table: MarketTable, start: int, stop: int, out: Path, *, title: str,
             regime_vectors: Float32Array | None = None, supervised: AnyArray | None = None,
             gate: dict[str, Any] | None = None, unit: dict[str, Any] | None = None,
             notes: tuple[str, ...] = (), seed: int = 0) -> dict[str, Any]:
    """Run rows [start, stop) of `table` with the bundle's team, gate and limits; write report.json and .html.

    supervised: positions (stop - start,) of a classifier fitted on the training split. Returns the document.
    """
    env = bundle.manifest.env
    venue = SimulatedVenue(bundle.instrument, env.slippage_ticks, env.commission, env.intrabar)
    policy = BundlePolicy(bundle, table, seed=seed, regime_vectors=regime_vectors)
    result = Session(ReplayClock(), TableFeed(table, start, stop), venue, policy, env.limits, MemoryJournal(),
                     reverse=env.reverse, initial_equity=env.initial_equity).run()
    exposure = float(np.mean(result.position != 0.0))
    baselines = run_baselines(
        table, start, stop, bundle.instrument, turnover=turnover_of(result), exposure=exposure,
        slippage_ticks=env.slippage_ticks, commission=env.commission, intrabar=env.intrabar,
        initial_equity=env.initial_equity, seed=seed, supervised=supervised)
    hashes = {"bundle": bundle.id, "config": bundle.manifest.config_hash, "data": bundle.manifest.data_hash,
              "git commit": bundle.manifest.git_commit}
    document = backtest_result(result, baselines, hashes=hashes, title=title, gate=gate, unit=unit, notes=notes,
                               seed=seed)
    out.mkdir(parents=True, exist_ok=True)
    write_report(out, document, curves_of(result, baselines))
    return document
