"""The page of a report: plain HTML with inline style and images, readable offline and in ten years."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from algospace.analysis import plots

if TYPE_CHECKING:
    from algospace.analysis.report import Curves

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1d2733;max-width:980px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin-bottom:.2rem}h2{font-size:1.15rem;margin-top:2rem;border-bottom:1px solid #dde3ea}
table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums;display:block;overflow-x:auto}
th,td{padding:.25rem .55rem;text-align:right;white-space:nowrap;border-bottom:1px solid #eef1f5}
th:first-child,td:first-child{text-align:left}th{font-weight:600;background:#f6f8fa}
.loss{color:#a12a27}.gain{color:#22703a}.quiet{color:#66717e}img{max-width:100%}
.verdict{background:#f6f8fa;border-left:4px solid #0b5fa5;padding:.5rem 1rem}.verdict.bad{border-color:#a12a27}
code{font-size:12px;word-break:break-all}
"""
# (key, heading, format); money is signed, shares are shown in percent
_COLUMNS = (
    ("net_pnl", "net P&L", "money"), ("annual_return", "annual return", "percent"), ("sharpe", "Sharpe", "ratio"),
    ("sortino", "Sortino", "ratio"), ("calmar", "Calmar", "ratio"), ("max_drawdown", "max drawdown", "percent"),
    ("var_95", "VaR 95", "percent"), ("es_95", "ES 95", "percent"), ("var_99", "VaR 99", "percent"),
    ("es_99", "ES 99", "percent"), ("trades", "trades", "count"), ("win_rate", "win rate", "percent"),
    ("profit_factor", "profit factor", "ratio"), ("exposure", "exposure", "percent"),
    ("turnover", "contracts/day", "ratio"), ("costs", "costs", "count"),
)


def render(result: Mapping[str, Any], curves: Curves) -> str:
    """The whole page."""
    title = escape(str(result["title"]))
    body = "\n".join(section for section in _sections(result, curves) if section)
    return (f"<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>"
            f"<meta name=\"viewport\" content=\"width=device-width\"><style>{_STYLE}</style></head>\n"
            f"<body>\n{body}\n</body></html>\n")


def _sections(result: Mapping[str, Any], curves: Curves) -> Iterable[str]:
    yield _head(result)
    yield _verdict(result)
    yield _section("Results after costs", _metrics_table(result) + _definitions())
    yield _section("Net profit against the baselines", _image(plots.equity_plot(curves.ts_close, curves.equity),
                                                              "net profit of policy and baselines"))
    yield _section("Drawdown of the policy", _image(
        plots.drawdown_plot(curves.ts_close, curves.equity["policy"]), "drawdown"))
    yield _section("Exposure of the policy", _image(
        plots.exposure_plot(curves.ts_close, curves.position), "share of time long and short"))
    yield _section("Could it be luck?", _significance(result))
    yield _section("Unit run against the limit", _unit(result["unit"])) if result.get("unit") else ""
    yield _section("Decision gate", _gate(result["gate"])) if result.get("gate") else ""
    yield _section("Reasons", _reasons(result["reasons"]))
    yield _section(f"Net P&L by month, {result['currency']}", _monthly(result["monthly"]))
    yield _section("Trades", _trades(result))
    yield _section("What this was run on", _provenance(result))


def _head(result: Mapping[str, Any]) -> str:
    period, costs = result["period"], result["costs"]
    return (f"<h1>{escape(str(result['title']))}</h1><p class=\"quiet\">{escape(result['instrument'])}, "
            f"{period['start'][:10]} to {period['end'][:10]}, {period['bars']:,} base bars; commission "
            f"{costs['commission_per_side']:g} {escape(result['currency'])} and slippage "
            f"{costs['slippage_ticks']:g} tick per contract and side</p>")


def _verdict(result: Mapping[str, Any]) -> str:
    bad = " bad" if result["policy"]["net_pnl"] < 0.0 or not all(
        other["beats"] for other in result["against"].values()) else ""
    lines = "".join(f"<p>{escape(line)}</p>" for line in (*result["verdict"], *result.get("notes", ())))
    return f"<div class=\"verdict{bad}\">{lines}</div>"


def _section(heading: str, content: str) -> str:
    return f"<section><h2>{escape(heading)}</h2>\n{content}</section>" if content else ""


def _image(data: str, text: str) -> str:
    return f"<img alt=\"{escape(text)}\" src=\"data:image/png;base64,{data}\">"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML already."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _show(value: Any, kind: str) -> str:
    """A number as a person reads it; what is undefined is a dash."""
    if value is None:
        return "–"
    if kind == "money":
        shown = f"{value:,.0f}"
        colour = "quiet" if shown in ("0", "-0") else "loss" if value < 0.0 else "gain"
        return f"<span class=\"{colour}\">{shown.replace('-0', '0') if colour == 'quiet' else shown}</span>"
    if kind == "percent":
        return f"{100.0 * value:.2f} %"
    return f"{value:,.0f}" if kind == "count" else f"{value:,.2f}"


def _metrics_table(result: Mapping[str, Any]) -> str:
    """One row per measure, one column per run: sixteen measures fit a page that way."""
    runs = {"policy": result["policy"], **result["baselines"]}
    rows = [[escape(heading), *(_show(run[key], kind) for run in runs.values())]
            for key, heading, kind in _COLUMNS]
    return _table(["", *(name.replace("_", " ") for name in runs)], rows)


def _definitions() -> str:
    return ("<p class=\"quiet\">Returns are changes of equity over the initial equity (nothing is reinvested); "
            "VaR and ES are daily losses; baselines hold a fixed number of contracts; "
            "a dash means that a figure is not defined for this run.</p>")


def _significance(result: Mapping[str, Any]) -> str:
    found = result["significance"]
    rows = [
        ["annual return", _show(found["annual_return"]["estimate"], "percent"),
         _bounds(found["annual_return"], "percent")],
        ["Sharpe", _show(found["sharpe"]["estimate"], "ratio"), _bounds(found["sharpe"], "ratio")],
        ["probability that the true Sharpe is above 0", _show(found["probabilistic_sharpe"], "percent"), ""],
        [f"deflated Sharpe ({found['trials']} trials)", _show(found["deflated_sharpe"], "percent"), ""],
        ["probability of backtest overfitting", _show(found["probability_of_overfitting"], "percent"), ""],
    ]
    rows += [[f"annual return minus {escape(name.replace('_', ' '))}",
              _show(other["annual_return_difference"]["estimate"], "percent"),
              _bounds(other["annual_return_difference"], "percent")] for name, other in result["against"].items()]
    method = (f"<p class=\"quiet\">Stationary bootstrap of returns per {found['returns']} (Politis and Romano "
              "1994).</p>")
    return _table(["", "estimate", "95 % interval"], rows) + method


def _bounds(interval: Mapping[str, Any], kind: str) -> str:
    if interval["low"] is None:
        return "–"
    return f"{_show(interval['low'], kind)} … {_show(interval['high'], kind)}"


def _unit(unit: Mapping[str, Any]) -> str:
    """Scores by run, whatever figures they hold."""
    runs = {name: run for name, run in unit.items() if isinstance(run, Mapping)}
    keys = list(dict.fromkeys(key for run in runs.values() for key in run))
    rows = [[escape(name.replace("_", " ")), *(_scalar(run.get(key)) for key in keys)]
            for name, run in runs.items()]
    scalars = "".join(f"<p>{escape(name.replace('_', ' '))}: {_scalar(value)}</p>" for name, value in unit.items()
                      if not isinstance(value, Mapping))
    return scalars + (_table(["", *keys], rows) if rows else "")


def _scalar(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:,.4g}" if isinstance(value, float) else escape(str(value))


def _gate(gate: Mapping[str, Any]) -> str:
    parts = [f"<p>{escape(name.replace('_', ' '))}: {_scalar(value)}</p>" for name, value in gate.items()
             if not isinstance(value, Mapping | list | tuple)]
    reliability, coverage = gate.get("reliability"), gate.get("risk_coverage")
    if reliability:
        parts.append(_image(plots.reliability_plot(
            *(np.asarray(reliability[key], np.float64) for key in ("predicted", "observed", "counts"))),
            "reliability diagram"))
    if coverage:
        parts.append(_image(plots.risk_coverage_plot(
            np.asarray(coverage["coverage"], np.float64), np.asarray(coverage["risk"], np.float64),
            coverage.get("base_risk")), "risk-coverage curve"))
    return "".join(parts)


def _reasons(reasons: Mapping[str, int]) -> str:
    if not reasons:
        return "<p>No decision was asked.</p>"
    return _image(plots.reasons_plot(reasons), "decisions by reason")


def _monthly(table: Mapping[str, Mapping[str, float]]) -> str:
    rows = [[year, *(_show(months.get(f"{m:02d}"), "money") if f"{m:02d}" in months else "" for m in range(1, 13)),
             _show(sum(months.values()), "money")] for year, months in table.items()]
    return _table(["", *_MONTHS, "year"], rows)


def _trades(result: Mapping[str, Any]) -> str:
    sample = result["trade_sample"]
    if not sample:
        return "<p>No trade was closed.</p>"
    rows = [[trade["entry"].replace("T", " ").removesuffix("Z"), trade["exit"].replace("T", " ").removesuffix("Z"),
             f"{trade['quantity']:+g}", f"{trade['entry_price']:,.2f}", f"{trade['exit_price']:,.2f}",
             escape(trade["cause"].lower()), _show(trade["confidence"], "ratio"), _show(trade["net_pnl"], "money")]
            for trade in sample]
    total = result["policy"]["trades"]
    note = "" if len(sample) == total else f"<p class=\"quiet\">{len(sample)} of {total:,}, evenly spread.</p>"
    return note + _table(["entry (bar close, UTC)", "exit", "contracts", "entry price", "exit price", "exit by",
                          "confidence", "net P&L"], rows)


def _provenance(result: Mapping[str, Any]) -> str:
    rows = [[escape(name.replace("_", " ")), f"<code>{escape(str(value))}</code>"]
            for name, value in result["hashes"].items()]
    return _table(["", ""], rows) if rows else "<p class=\"quiet\">No hashes were given.</p>"
