"""The report of a backtest: what happened, beside every baseline, as report.json and a self-contained page.

`backtest_result` turns runs into the JSON document; `write_report` writes it and renders it. A loss is written as
a loss, and a lead that the bootstrap interval does not support is not called a lead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from algospace.analysis.html import render
from algospace.analysis.metrics import (
    bar_returns,
    daily_returns,
    measure,
    rows_per_year,
    stationary_bootstrap,
)
from algospace.analysis.overfitting import deflated_sharpe, probabilistic_sharpe
from algospace.execution.mechanics import FillCause
from algospace.execution.result import SessionResult
from algospace.files import atomic_directory, write_json, write_text
from algospace.types import FloatArray, IntArray

MIN_DAYS_FOR_DAILY = 20
TRADE_SAMPLE = 30
POLICY = "policy"


@dataclass(frozen=True)
class Curves:
    """What the plots draw: (n,) time, equity by name (`policy` first), the policy's position."""

    ts_close: IntArray
    equity: dict[str, FloatArray]
    position: FloatArray


def curves_of(policy: SessionResult, baselines: Mapping[str, SessionResult]) -> Curves:
    """Curves of runs over the same rows; ValueError if a baseline covers others."""
    for name, run in baselines.items():
        if not np.array_equal(run.rows, policy.rows):
            raise ValueError(f"baseline '{name}' covers other rows than the policy: "
                             f"{run.rows[[0, -1]]} and {policy.rows[[0, -1]]}")
    equity = {POLICY: policy.equity, **{name: run.equity for name, run in baselines.items()}}
    return Curves(policy.ts_close, equity, policy.position)


def backtest_result(policy: SessionResult, baselines: Mapping[str, SessionResult], *,
                    hashes: Mapping[str, str] | None = None, title: str = "Backtest",
                    trial_sharpes: FloatArray | None = None, pbo: float | None = None,
                    gate: Mapping[str, Any] | None = None, unit: Mapping[str, Any] | None = None,
                    notes: tuple[str, ...] = (), seed: int = 0, trials: int = 1) -> dict[str, Any]:
    """The JSON document of a backtest.

    hashes: config, data, bundle, git commit. trial_sharpes: Sharpe ratios per bar of every configuration
    tried, for the deflated Sharpe; trials: how many, if some were never scored; pbo: probability of overfitting
    over those. gate: `reliability` {predicted, observed, counts}, `risk_coverage` {coverage, risk, base_risk} and
    scalar figures (ece, lift, threshold). unit: scores of the unit run on synthetic data.
    """
    metrics = {name: measure(run).as_dict() for name, run in {POLICY: policy, **baselines}.items()}
    against = {name: compare(policy, run, seed) for name, run in baselines.items()}
    return {
        "title": title,
        "instrument": policy.instrument.symbol,
        "currency": policy.instrument.currency,
        "period": {"start": _iso(policy.ts_close[0]), "end": _iso(policy.ts_close[-1]), "bars": len(policy)},
        "costs": {"commission_per_side": float(policy.venue["commission"]),
                  "slippage_ticks": float(policy.venue["slippage"] / policy.venue["tick"])},
        "policy": metrics[POLICY],
        "baselines": {name: metrics[name] for name in baselines},
        "against": against,
        "verdict": verdict(policy, against),
        "significance": significance(policy, trial_sharpes, seed, trials) | {"probability_of_overfitting": pbo},
        "reasons": policy.reason_counts(),
        "monthly": monthly_table(policy),
        "trade_sample": trade_sample(policy),
        "gate": dict(gate) if gate else None,
        "unit": dict(unit) if unit else None,
        "hashes": dict(hashes or {}),
        "notes": list(notes),
    }


def significance(run: SessionResult, trial_sharpes: FloatArray | None, seed: int = 0,
                 trials: int = 1) -> dict[str, Any]:
    """Bootstrap intervals and Sharpe probabilities on daily returns (on bars if there are under 20 days).

    trial_sharpes: per bar, of every configuration tried; they are scaled to the period of the returns. trials: how
    many were tried, if some were never scored.
    """
    returns, per_year, unit = _returns_for_tests(run)
    intervals = stationary_bootstrap(returns, per_year, seed=seed)
    deflated = None
    if trial_sharpes is not None and returns.size > 2:
        deflated = deflated_sharpe(returns, trial_sharpes * np.sqrt(len(run) / returns.size), trials)
    return {
        "returns": unit,
        "annual_return": intervals["mean"].as_dict(),
        "sharpe": intervals["sharpe"].as_dict(),
        "probabilistic_sharpe": probabilistic_sharpe(returns) if returns.size > 2 else None,
        "deflated_sharpe": deflated,
        "trials": trials if trial_sharpes is None else max(int(trial_sharpes.size), trials),
    }


def compare(policy: SessionResult, baseline: SessionResult, seed: int = 0) -> dict[str, Any]:
    """Policy minus baseline: net profit, and the interval of the annualised difference of returns."""
    mine, per_year, _ = _returns_for_tests(policy)
    theirs, _, _ = _returns_for_tests(baseline)
    difference = stationary_bootstrap(mine - theirs, per_year, seed=seed)["mean"]
    lead = float(policy.equity[-1] - baseline.equity[-1])
    sure = difference.low is not None and difference.high is not None and (
        difference.low > 0.0 or difference.high < 0.0)
    return {"net_pnl_difference": lead, "annual_return_difference": difference.as_dict(),
            "beats": lead > 0.0, "significant": sure}


def verdict(policy: SessionResult, against: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Plain sentences: what was earned after costs, and against each baseline (values of `compare`)."""
    net, currency = float(policy.equity[-1]) - policy.initial_equity, policy.instrument.currency
    amount = f"{abs(net):,.0f} {currency}"
    if not policy.fills.size:
        lines = ["The policy did not trade."]
    elif net > 0.0:
        lines = [f"The policy made a profit of {amount} after costs."]
    elif net < 0.0:
        lines = [f"The policy lost {amount} after costs."]
    else:
        lines = ["The policy came out even after costs."]
    for name, other in against.items():
        lead = other["net_pnl_difference"]
        whom, words = name.replace("_", " "), "beats" if lead > 0.0 else "loses to"
        doubt = "" if other["significant"] else "; the difference is within chance (95 % interval holds 0)"
        lines.append(f"It {words} {whom} by {abs(lead):,.0f} {currency} after costs{doubt}." if lead
                     else f"It ends level with {whom} after costs.")
    return lines


def monthly_table(run: SessionResult) -> dict[str, dict[str, float]]:
    """Net profit by UTC year and month: {"2021": {"01": …}}."""
    months = run.ts_close.astype("datetime64[ns]").astype("datetime64[M]")
    pnl = np.diff(run.equity, prepend=run.initial_equity)
    table: dict[str, dict[str, float]] = {}
    for month in np.unique(months):
        year, number = str(month).split("-")
        table.setdefault(year, {})[number] = float(pnl[months == month].sum())
    return table


def trade_sample(run: SessionResult, size: int = TRADE_SAMPLE) -> list[dict[str, Any]]:
    """At most `size` trades, evenly spread over the run, first and last included."""
    trades = run.trades
    chosen = np.unique(np.linspace(0, trades.size - 1, min(size, trades.size)).astype(np.int64))
    ts_close, first = run.ts_close, int(run.rows[0])
    return [{
        "entry": _iso(ts_close[trade["entry_row"] - first]), "exit": _iso(ts_close[trade["exit_row"] - first]),
        "quantity": float(trade["quantity"]), "entry_price": float(trade["entry_price"]),
        "exit_price": float(trade["exit_price"]), "net_pnl": float(trade["net_pnl"]),
        "cause": FillCause(int(trade["cause"])).name,
        "confidence": float(trade["confidence"]) if math.isfinite(trade["confidence"]) else None,
    } for trade in trades[chosen]]


def write_report(out_dir: Path | str, result: Mapping[str, Any], curves: Curves) -> Path:
    """Write `report.json` and `report.html` into `out_dir`; returns the path of the page.

    Both are complete before either appears; the folder may hold other files. ValueError if the result holds
    NaN or infinity.
    """
    out_dir = Path(out_dir)
    page = render(result, curves)
    with atomic_directory(out_dir / ".report") as staging:
        write_json(staging / "report.json", result)
        write_text(staging / "report.html", page)
    staged = out_dir / ".report"
    for name in ("report.json", "report.html"):
        (staged / name).replace(out_dir / name)
    staged.rmdir()
    return out_dir / "report.html"


def _returns_for_tests(run: SessionResult) -> tuple[FloatArray, float, str]:
    """(returns, periods per year, their unit): days where there are enough, else bars."""
    per_year = rows_per_year(run)
    daily = daily_returns(run)
    if daily.size >= MIN_DAYS_FOR_DAILY:
        return daily, per_year * daily.size / len(run), "day"
    return bar_returns(run), per_year, "bar"


def _iso(ts: Any) -> str:
    return str(np.datetime64(int(ts), "ns").astype("datetime64[s]")) + "Z"
