"""The document of a walk-forward: every contender's tests joined, and what they prove. A loss is called a loss.

`walk_forward_document` turns windows into JSON values; `write_documents` writes them and a page in Markdown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from algospace.errors import ConfigError
from algospace.files import write_json, write_text
from algospace.instruments import instrument
from algospace.types import AnyArray, FloatArray, IntArray
from training.walk_forward.config import WalkForwardRun
from training.walk_forward.contenders import POLICY, TEAM, UNGATED
from training.walk_forward.page import page
from training.walk_forward.statistics import (
    Days,
    Judgement,
    against_random,
    days_per_year,
    difference,
    join,
    join_draws,
    judge,
    overfitting,
)


@dataclass(frozen=True)
class WindowResult:
    """One finished window: its figures and its daily profits."""

    document: dict[str, Any]
    day: IntArray
    profit: dict[str, FloatArray]  # contender -> (D,) money
    draws: dict[str, FloatArray]   # team/kind of random trader -> (S, D) money

    @staticmethod
    def load(folder: Path) -> WindowResult:
        """A window as `runner.save_window` wrote it."""
        document = json.loads((folder / "window.json").read_text())
        with np.load(folder / "days.npz") as arrays:
            return WindowResult.of(document, dict(arrays))

    @staticmethod
    def of(document: dict[str, Any], arrays: Mapping[str, AnyArray]) -> WindowResult:
        """From arrays `day`, `profit/<contender>` and `draws/<team>/<kind>`."""
        def below(prefix: str) -> dict[str, FloatArray]:
            return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}

        return WindowResult(document, arrays["day"], below("profit/"), below("draws/"))

    def days(self, contender: str, matched: bool = False) -> Days:
        """A contender's days; `matched`: scaled to the common risk."""
        factor = self.document["scales"][contender] if matched else 1.0
        return Days(self.day, factor * self.profit[contender])


def trials_of(run: WalkForwardRun) -> int:
    """Configurations tried before this one: of the sweep that chose it, or as configured, and never fewer than
    the configuration's own `tuning` section says.

    ConfigError if the sweep's summary has no number of trials.
    """
    settings = run.walk_forward
    known = 1 if run.tuning is None else run.tuning.trials
    if settings.sweep is None:
        return max(settings.trials, known)
    path = Path(settings.sweep)
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        found = summary["tried"] if "tried" in summary else summary["trials"]  # a PBT member tries several
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"walk_forward.sweep {path}: not a sweep's summary (JSON with 'trials'); give the file "
                          f"that the sweep wrote, or walk_forward.trials") from None
    trials = len(found) if isinstance(found, list | dict) else found
    if not isinstance(trials, int) or trials < 1:
        raise ConfigError(f"walk_forward.sweep {path}: 'trials' is {trials!r}, not a number of trials")
    return max(trials, known)


def walk_forward_document(run: WalkForwardRun, results: Sequence[WindowResult], trials: int,
                          commit: str) -> dict[str, Any]:
    """Everything `walk_forward.json` holds."""
    spec = instrument(run.market.instrument)
    settings = run.walk_forward
    rule = Judgement(run.core.env.initial_equity, days_per_year(spec), trials, settings.bootstrap_samples,
                     run.seed)
    names = [name for name in results[0].profit if all(name in result.profit for result in results)]
    plain = {name: join([result.days(name) for result in results]) for name in names}
    matched = {name: join([result.days(name, matched=True) for result in results]) for name in names}
    contenders = {name: {**_activity(name, results), **judge(plain[name], rule),
                         "matched": judge(matched[name], rule)} for name in names}
    random = {key: join_draws([r.day for r in results], [r.draws[key] for r in results])
              for key in results[0].draws}
    others = [name for name in names if name not in TEAM]
    document = {
        "name": run.name, "instrument": spec.symbol, "currency": spec.currency, "seed": run.seed,
        "config_hash": run.digest(), "git_commit": commit, "trials": trials,
        "initial_equity": rule.initial_equity, "daily_risk": settings.daily_risk, "training": settings.training,
        "embargo_bars": run.embargo_bars, "samples": settings.bootstrap_samples,
        "costs": {"slippage_ticks": run.core.env.slippage_ticks,
                  "commission_per_side": spec.commission if run.core.env.commission is None
                  else run.core.env.commission},
        "windows": [result.document | {"judged": {name: judge(result.days(name), rule) for name in names}}
                    for result in results],
        "joined": contenders,
        "random": {team: {key.removeprefix(f"{team}/"): against_random(plain[team], draws, rule)
                          for key, draws in random.items() if key.startswith(f"{team}/")} for team in TEAM},
        "against": {team: {name: {"plain": difference(plain[team], plain[name], rule),
                                  "matched": difference(matched[team], matched[name], rule)} for name in others}
                    for team in TEAM},
        "overfitting": overfitting(plain, settings.pbo_blocks),
    }
    return document | {"verdict": verdict(document)}


def _activity(name: str, results: Sequence[WindowResult]) -> dict[str, Any]:
    """Trades, share won, exposure, turnover and costs over all tests."""
    figures = [result.document["contenders"][name] for result in results]
    trades = sum(one["trades"] for one in figures)
    won = sum(one["trades"] * one["win_rate"] for one in figures if one["trades"])
    bars = sum(one["bars"] for one in figures)
    return {
        "windows": [one["net_pnl"] for one in figures],
        "windows_won": sum(one["net_pnl"] > 0.0 for one in figures),
        "trades": trades, "win_rate": won / trades if trades else None,
        "exposure": sum(one["exposure"] * one["bars"] for one in figures) / bars,
        "turnover": sum(one["contracts_traded"] for one in figures) / sum(one["days"] for one in figures),
        "costs": sum(one["costs"] for one in figures),
    }


def verdict(document: Mapping[str, Any]) -> list[str]:
    """Plain sentences on the team, gated and ungated."""
    lines = []
    for team, title in ((POLICY, "The policy"), (UNGATED, "The team with the gate open")):
        lines += _sentences(document, team, title)
    found = document["overfitting"]
    if found["pbo"] is not None:
        lines.append(f"Choosing the best of {len(found['contenders'])} contenders on half of the days: below the "
                     f"median on the other half in {found['pbo']:.0%} of {found['splits']} splits.")
    return lines


def _sentences(document: Mapping[str, Any], team: str, title: str) -> list[str]:
    figures, currency = document["joined"][team], document["currency"]
    if not figures["trades"] and figures["net"] == 0.0:
        return [f"{title} did not trade in any of the {len(figures['windows'])} tests."]
    net, low, high = figures["net"], figures["net_low"], figures["net_high"]
    lines = [f"{title} {'made' if net > 0.0 else 'lost'} {abs(net):,.0f} {currency} after costs in "
             f"{figures['trades']:,} trades, {figures['windows_won']} of {len(figures['windows'])} tests with a "
             f"profit; {_certainty(low, high)}"]
    ahead = [name for name, other in document["against"][team].items() if other["matched"]["net"] > 0.0]
    surely = [name for name, other in document["against"][team].items()
              if other["matched"]["net"] > 0.0 and other["matched"]["sure"]]
    lines.append(f"At equal risk it was ahead of {_listed(ahead)}; beyond chance of {_listed(surely)}.")
    if figures["deflated_sharpe"] is not None:
        lines.append(f"Deflated Sharpe ratio: the true one is above what the best of {document['trials']} trials "
                     f"without skill would show with probability {figures['deflated_sharpe']:.2f}.")
    for kind, found in document["random"][team].items():
        if found["p_sharpe"] is not None:
            lines.append(f"Against {found['seeds']} random traders of the same turnover ({kind}): p = "
                         f"{found['p_sharpe']:.3f} by Sharpe ratio.")
    return lines


def _certainty(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "too few days for an interval: no edge is proven."
    sure = low > 0.0 or high < 0.0
    return f"95 % interval {low:,.0f} to {high:,.0f}" + ("." if sure else ", which holds zero: no edge is proven.")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"


def write_documents(out: Path, document: Mapping[str, Any]) -> tuple[Path, Path]:
    """walk_forward.json and walk_forward.md; returns their paths."""
    data, text = out / "walk_forward.json", out / "walk_forward.md"
    write_json(data, document)
    write_text(text, page(document))
    return data, text
