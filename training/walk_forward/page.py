"""The page of a walk-forward in Markdown, from its document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def page(document: Mapping[str, Any]) -> str:
    """The whole page."""
    title = f"# Walk-forward: {document['name']} ({document['instrument']})"
    parts = [title, _settings(document), _bullets(document["verdict"]), "## All tests joined", _joined(document),
             _notes(document), "## At equal risk", _matched(document), "## Against random traders",
             _random(document), "## Window by window", _windows(document), _nets(document)]
    return "\n\n".join(parts) + "\n"


def _settings(document: Mapping[str, Any]) -> str:
    costs, trials = document["costs"], document["trials"]
    return (
        f"Seed {document['seed']}, configuration {document['config_hash'][:12]}, "
        f"git {document['git_commit'][:12]}, {document['training']} training, "
        f"embargo {document['embargo_bars']} bars, {_counted(trials, 'trial')}. "
        f"Costs: {costs['slippage_ticks']:g} tick of slippage and {costs['commission_per_side']:.2f} "
        f"{document['currency']} commission per contract and side. Every figure is net of them.")


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _notes(document: Mapping[str, Any]) -> str:
    return (f"Net and drawdown in {document['currency']}, on an account of {document['initial_equity']:,.0f} that "
            f"starts anew in every test; rules without M-RMS hold one contract. Sharpe and Sortino ratios are of "
            f"daily returns, annualised; intervals are 95 % of a stationary bootstrap ({document['samples']:,} "
            f"resamples). PSR: probability that the true Sharpe ratio is above 0; DSR: above that of the best of "
            f"all trials by luck. Turnover in contracts per day.")


def _joined(document: Mapping[str, Any]) -> str:
    head = ("contender", "net", "95 % interval", "Sharpe", "95 % interval", "Sortino", "drawdown", "trades", "won",
            "in market", "turnover", "costs", "PSR", "DSR", "tests won")
    rows = [(name, _money(f["net"]), _range(f["net_low"], f["net_high"], _money), _ratio(f["sharpe"]),
             _range(f["sharpe_low"], f["sharpe_high"], _ratio), _ratio(f["sortino"]), _money(f["max_drawdown"]),
             f"{f['trades']:,}", _share(f["win_rate"]), _share(f["exposure"]), f"{f['turnover']:.1f}",
             _money(f["costs"]), _ratio(f["probabilistic_sharpe"]), _ratio(f["deflated_sharpe"]),
             f"{f['windows_won']}/{len(f['windows'])}") for name, f in document["joined"].items()]
    return _table(head, rows)


def _matched(document: Mapping[str, Any]) -> str:
    text = (
        f"Each contender's days times one factor per window, which brings the standard deviation of its daily "
        f"profit on that window's validation part, known before the test begins, to {document['daily_risk']:,.0f} "
        f"{document['currency']}. Contracts are divisible here, and the gated policy takes the ungated team's "
        f"factor. The last columns are the team's profit less the contender's, and its interval.")
    head = ("contender", "net", "95 % interval", "drawdown", "policy less this", "95 % interval",
            "ungated less this", "95 % interval")
    rows = []
    for name, figures in document["joined"].items():
        found, cells = figures["matched"], []
        for team in ("policy", "ungated"):
            other = document["against"][team].get(name)
            cells += ["", ""] if other is None else [
                _money(other["matched"]["net"]),
                _range(other["matched"]["low"], other["matched"]["high"], _money)]
        rows.append((name, _money(found["net"]), _range(found["net_low"], found["net_high"], _money),
                     _money(found["max_drawdown"]), *cells))
    return f"{text}\n\n{_table(head, rows)}"


def _random(document: Mapping[str, Any]) -> str:
    text = ("`random` holds one contract, `random_mrms` takes size, stop and target from the team's own M-RMS; "
            "both are in the market as much, and draw a new side as often, as the team. p: share of them with a "
            "Sharpe ratio (a net) at least as good as the team's.")
    head = ("team", "against", "traders", "their net: median", "95 %", "p (Sharpe)", "p (net)")
    rows = [(team, kind, str(f["seeds"]), _money(f["net_median"]), _range(f["net_low"], f["net_high"], _money),
             _probability(f["p_sharpe"]), _probability(f["p_net"]))
            for team, kinds in document["random"].items() for kind, f in kinds.items()]
    return f"{text}\n\n{_table(head, rows)}"


def _windows(document: Mapping[str, Any]) -> str:
    head = ("window", "training", "validation to", "test to", "rows: train", "validation", "test", "gate",
            "policy", "trades", "Sharpe", "ungated", "trades", "Sharpe", "95 % interval", "seconds")
    rows = []
    for window in document["windows"]:
        dates, count, judged = window["dates"], window["rows"], window["judged"]
        policy, ungated = (window["contenders"][team] for team in ("policy", "ungated"))
        begin = dates.get("start", "first bar")[:10]
        rows.append((str(window["number"]), f"{begin} to {dates['train_until'][:10]}",
                     dates["validation_until"][:10], dates["test_until"][:10],
                     *(f"{count[part]:,}" for part in ("train", "validation", "test")),
                     f"{window['gate']['threshold']:.2f}" if window["gate"].get("promise_kept") else "shut",
                     _money(policy["net_pnl"]), f"{policy['trades']:,}", _ratio(judged["policy"]["sharpe"]),
                     _money(ungated["net_pnl"]), f"{ungated['trades']:,}", _ratio(judged["ungated"]["sharpe"]),
                     _range(judged["ungated"]["sharpe_low"], judged["ungated"]["sharpe_high"], _ratio),
                     f"{sum(window['seconds'].values()):.0f}"))
    return _table(head, rows)


def _nets(document: Mapping[str, Any]) -> str:
    """Net of every contender in every test."""
    numbers = [str(window["number"]) for window in document["windows"]]
    rows = [(name, *(_money(net) for net in figures["windows"]), _money(figures["net"]))
            for name, figures in document["joined"].items()]
    return _table(("net of test", *numbers, "all"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _money(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}".replace("-0", "0") if abs(value) < 0.5 else f"{value:,.0f}"


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def _probability(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _range(low: float | None, high: float | None, text: Any) -> str:
    return "–" if low is None or high is None else f"{text(low)} … {text(high)}"
