"""An evaluation's document as Markdown, as a run in MLflow, and on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from algospace.analysis.unit_judgement import POLICY
from algospace.files import write_json, write_text
from training.config import RunConfig
from training.tracking import TRACKING, Tracker

REPORT = "report.json"


def write_evaluation(document: dict[str, Any], folder: Path) -> list[Path]:
    """report.json and report.md in `folder`; returns the files, pages last.

    Controls alone, of `--control`, are no result of the core and leave its report as it is: each has a pair of
    files of its own, `control_file`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if "policies" in document:
        parts = {REPORT: document}
    else:
        parts = {control_file(kind): document | {"controls": {kind: found}, "failures": found["failures"]}
                 for kind, found in document["controls"].items()}
    for name, part in parts.items():
        write_json(folder / name, part)
        write_text((folder / name).with_suffix(".md"), page(part))
    return [(folder / name).with_suffix(suffix) for suffix in (".json", ".md") for name in parts]


def control_file(kind: str) -> str:
    """The document of a control that was evaluated alone."""
    return f"report-control-{kind}.json"


def record(document: dict[str, Any], config: RunConfig, files: Sequence[Path], store: Path,
           parent_run_id: str | None = None) -> str:
    """Keep the figures and the written files in MLflow: under the run `parent_run_id`, or as a run of its own.
    `store` is the folder of the history where the configuration names no server."""
    name, resolved = f"{config.name}-evaluation", config.model_dump(mode="json")
    if not (store / "config.yaml").is_file():  # a folder of its own; `algospace tracking upload` looks there
        write_json(store / TRACKING, {"tracking": resolved["tracking"]})
    with Tracker.open(config.tracking, store, name, resolved, config.digest(), parent_run_id) as tracker:
        tags = {"phase": EVALUATION_PHASE, "passed": not document["failures"],
                "config_hash": document["config_hash"]}
        with tracker.child(EVALUATION_PHASE, document.get("judging", {}), tags) as run:
            run.metrics(0, dict(figures(document)))
            for path in files:
                run.artifact(path)
            return run.run_id


EVALUATION_PHASE = "evaluate"


def figures(document: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers worth a curve, by name."""
    yield "failures", float(len(document["failures"]))
    if "policies" in document:
        yield from _figures_of("", document)
    for kind, control in document.get("controls", {}).items():
        yield from _figures_of(f"{kind}/", control)


def _figures_of(prefix: str, document: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    fraction = document["fraction_of_limit"] or {}
    for name in ("estimate", "low", "high"):
        if fraction.get(name) is not None:
            yield f"{prefix}fraction_of_limit_{name}", float(fraction[name])
    for name in ("score", "realised", "exposure", "turnover"):
        yield f"{prefix}{name}", float(document["policies"][POLICY][name])
    yield f"{prefix}alarms", float(len(document["alarms"]))


def page(document: dict[str, Any]) -> str:
    """The whole document for a reader."""
    lines = [f"# Evaluation of {document['name']}", "", *_verdict(document), ""]
    if "policies" in document:
        lines += _section(document)
    if len(document.get("runs", {})) > 1:
        lines += ["## Trainings", "", *_runs(document["runs"]), ""]
    for kind, control in document.get("controls", {}).items():
        lines += [f"## Control: {kind}", "", *_control(kind, control), "", *_tables(control)]
    lines += ["## Made with", "", "```json", json.dumps(_origin(document), indent=2), "```", ""]
    return "\n".join(lines)


def _verdict(document: dict[str, Any]) -> list[str]:
    if not document["failures"]:
        return ["**Passed**: no alarm, no failed control."]
    return ["**Failed**:", "", *(f"- {line}" for line in document["failures"])]


def _section(document: dict[str, Any]) -> list[str]:
    fraction = document["fraction_of_limit"]
    first = "The limit earns nothing here, so there is no fraction of it." if fraction is None else (
        f"**{_percent(fraction['estimate'])} of the limit**{_range(fraction)}, over {fraction['values']} "
        f"{fraction['over']}.")
    above = "above" if document["above_trend_bayes"] else "not above"
    return [first, "", f"Scenario `{document['scenario']}`; {above} the trend-only Bayes filter on every judging "
            "market.", "", *_tables(document)]


def _tables(document: dict[str, Any]) -> list[str]:
    return [*_policies(document["policies"]), "", *_markets(document["markets"]), "",
            *_regimes(document["regimes"]), ""]


def _policies(policies: Mapping[str, Mapping[str, Any]]) -> list[str]:
    rows = [[name, f"{p['score']:+.4f}", f"{p['realised']:+.4f}",
             "-" if p["fraction_of_limit"] is None else
             _percent(p["fraction_of_limit"]["estimate"]) + _range(p["fraction_of_limit"]),
             _percent(p["exposure"]), f"{p['turnover']:.3f}", f"{p['trades']:,}"] for name, p in policies.items()]
    return _table(["contender", "score", "realised", "of the limit", "exposure", "turnover", "trades"], rows)


def _markets(markets: list[dict[str, Any]]) -> list[str]:
    rows = [[str(m["seed"]), f"{m['bars']:,}", _percent(m["fraction_of_limit"]), f"{m['policy']['score']:+.4f}",
             f"{m['policy']['realised']:+.4f}", _percent(m["policy"]["exposure"]),
             "RANG" if m["leak"]["rang"] else "silent"] for m in markets]
    return _table(["market seed", "bars", "of the limit", "score", "realised", "exposure", "leak alarm"], rows)


def _regimes(regimes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    rows = [[name, _percent(r["share_of_bars"]), _number(r["score"]), _number(r["realised"]), _number(r["limit"]),
             _percent(r["exposure"]), _percent(r["long"]), _number(r["turnover"], ".3f"),
             _percent(r["share_of_limit"]), _percent(r["fraction_of_limit"])] for name, r in regimes.items()]
    return _table(["true regime", "bars", "score", "realised", "limit", "exposure", "long", "turnover",
                   "part of the whole limit", "of the limit here"], rows)


def _runs(runs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    rows = []
    for name, run in runs.items():
        fraction, policy = run["fraction_of_limit"], run["policies"][POLICY]
        rows.append([name, "-" if fraction is None else _percent(fraction["estimate"]) + _range(fraction),
                     f"{policy['score']:+.4f}", _percent(policy["exposure"]), f"{policy['turnover']:.3f}",
                     "yes" if run["above_trend_bayes"] else "no", str(len(run["alarms"]))])
    return _table(["training", "of the limit", "score", "exposure", "turnover", "above trend_bayes", "alarms"],
                  rows)


def _control(kind: str, control: Mapping[str, Any]) -> list[str]:
    policy = control["policies"][POLICY]
    if kind == "oracle":
        multiple = control["multiple_of_limit"]
        return ["**The next bar's return was shown on purpose; nothing here is a result.**", "",
                f"Earned {policy['realised']:+.3f} ticks per bar"
                f"{'' if multiple is None else f', {multiple:.1f} times the limit'}, "
                f"{_percent(control['share_of_clairvoyant'])} of the clairvoyant; the alarm rang on "
                f"{len(control['alarms'])} of {len(control['markets'])} markets."]
    profit = control["realised"]
    return [f"In the market on {_percent(policy['exposure'])} of bars; realised {profit['estimate']:+.4f} ticks "
            f"per bar, {profit['confidence']:.0%} interval {profit['low']:+.4f} to {profit['high']:+.4f}."]


def _origin(document: Mapping[str, Any]) -> dict[str, Any]:
    names = ("version", "git_commit", "config_hash", "plan_hash", "trained_on", "shared_experts", "judging")
    return {name: document[name] for name in names if name in document}


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in rows)]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100.0 * value:.1f} %"


def _number(value: float | None, form: str = "+.4f") -> str:
    return "-" if value is None else format(value, form)


def _range(interval: Mapping[str, Any]) -> str:
    if interval["low"] is None:
        return ""
    return f" ({_percent(interval['low'])} to {_percent(interval['high'])})"
