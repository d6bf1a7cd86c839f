"""Plots of the report as self-contained PNG data; matplotlib is loaded only when one is drawn."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from algospace.analysis.metrics import drawdown_curve
from algospace.types import AnyArray, FloatArray, IntArray

POLICY_COLOUR = "#0b5fa5"
COLOURS = ("#d1781f", "#3a8f4d", "#8a4fb0", "#b0413e", "#7a6a58", "#3e9aa8", "#a3a12c")
MAX_POINTS = 3000
_DPI = 110


def _figure(height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    return figure, axes


def _png(figure: Any) -> str:
    """Base64 of the figure; no creation date in the file, so that equal plots are equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return base64.b64encode(buffer.getvalue()).decode()


def thin(size: int) -> IntArray:
    """At most MAX_POINTS rows of a curve, first and last included."""
    return np.unique(np.linspace(0, size - 1, min(size, MAX_POINTS)).astype(np.int64))


def _times(ts: IntArray) -> AnyArray:
    return ts.astype("datetime64[ns]")


def _money_axis(axes: Any) -> None:
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def equity_plot(ts: IntArray, equity: Mapping[str, FloatArray], policy: str = "policy") -> str:
    """Net profit of the policy and of every baseline over time."""
    figure, axes = _figure(3.6)
    rows = thin(ts.size)
    colours = iter(COLOURS * (1 + len(equity) // len(COLOURS)))
    for name, curve in equity.items():
        mine = name == policy
        axes.plot(_times(ts[rows]), curve[rows] - curve[0], label=name.replace("_", " "),
                  color=POLICY_COLOUR if mine else next(colours), linewidth=2.0 if mine else 1.0,
                  alpha=1.0 if mine else 0.8, zorder=3 if mine else 2)
    axes.axhline(0.0, color="#888", linewidth=0.8)
    axes.set_ylabel("net profit")
    _money_axis(axes)
    figure.legend(loc="outside upper center", ncols=6, fontsize=8, frameon=False)
    return _png(figure)


def drawdown_plot(ts: IntArray, equity: FloatArray) -> str:
    """Distance of the policy's equity below its peak."""
    figure, axes = _figure(2.0)
    rows = thin(ts.size)
    axes.fill_between(_times(ts[rows]), 100.0 * drawdown_curve(equity)[rows], 0.0, color="#b0413e", alpha=0.6,
                      linewidth=0.0)
    axes.set_ylabel("drawdown, %")
    return _png(figure)


def exposure_plot(ts: IntArray, position: FloatArray) -> str:
    """Share of bars long and short in about a hundred equal stretches of time."""
    figure, axes = _figure(2.0)
    parts = np.array_split(np.arange(ts.size), min(120, ts.size))
    at = _times(np.array([ts[part[0]] for part in parts]))
    long = np.array([np.mean(position[part] > 0.0) for part in parts]) * 100.0
    short = np.array([np.mean(position[part] < 0.0) for part in parts]) * 100.0
    axes.fill_between(at, long, 0.0, step="post", color=POLICY_COLOUR, alpha=0.7, linewidth=0.0, label="long")
    axes.fill_between(at, -short, 0.0, step="post", color=COLOURS[0], alpha=0.7, linewidth=0.0, label="short")
    axes.axhline(0.0, color="#888", linewidth=0.8)
    axes.set_ylim(-105, 105)
    axes.set_ylabel("exposure, %")
    figure.legend(loc="outside upper center", ncols=2, fontsize=8, frameon=False)
    return _png(figure)


def reasons_plot(reasons: Mapping[str, int]) -> str:
    """How often each reason was given."""
    ordered = sorted(reasons.items(), key=lambda item: item[1])
    figure, axes = _figure(0.7 + 0.32 * max(len(ordered), 1))
    bars = axes.barh([name for name, _ in ordered], [count for _, count in ordered], color=POLICY_COLOUR,
                     alpha=0.8)
    axes.bar_label(bars, [f"{count:,}" for _, count in ordered], padding=3, fontsize=8)
    axes.set_xlabel("decisions")
    axes.margins(x=0.12)
    axes.grid(axis="y", alpha=0.0)
    _x_money(axes)
    return _png(figure)


def _x_money(axes: Any) -> None:
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def reliability_plot(predicted: FloatArray, observed: FloatArray, counts: AnyArray) -> str:
    """Confidence of executed decisions against the share that gained; marks grow with the number of trades."""
    figure, axes = _figure(3.4)
    axes.plot([0, 1], [0, 1], color="#888", linewidth=0.8, linestyle="--", label="perfect calibration")
    known = counts > 0
    size = 20.0 + 160.0 * counts[known] / max(float(counts.max(initial=1)), 1.0)
    axes.plot(predicted[known], observed[known], color=POLICY_COLOUR, linewidth=1.0)
    axes.scatter(predicted[known], observed[known], s=size, color=POLICY_COLOUR, alpha=0.8, label="gate")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("confidence")
    axes.set_ylabel("share of trades with a net gain")
    axes.legend(loc="upper left", fontsize=8, frameon=False)
    return _png(figure)


def risk_coverage_plot(coverage: FloatArray, risk: FloatArray, base_risk: float | None = None) -> str:
    """Share of losing trades against the share of proposals executed, most confident first."""
    figure, axes = _figure(3.0)
    axes.plot(coverage, risk, color=POLICY_COLOUR, linewidth=1.6, label="gate")
    if base_risk is not None:
        axes.axhline(base_risk, color="#888", linewidth=0.8, linestyle="--", label="random rejection")
    axes.set_xlim(0, 1)
    axes.set_xlabel("coverage: share of proposals executed")
    axes.set_ylabel("risk: share of losing trades")
    axes.legend(loc="lower right", fontsize=8, frameon=False)
    return _png(figure)
