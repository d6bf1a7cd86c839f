"""What a gate's confidence is worth, from trades in time order: (confidence, gained, net result) each.

    reliability      share that gained per bin of confidence, and the calibration error over the bins
    risk_coverage    share of losing trades among the most confident ones; its area (AURC) against chance
                     and the best
    lift             precision of what passes minus that of random rejection at equal coverage, with an interval

Sources: expected calibration error, Naeini, Cooper and Hauskrecht 2015 (doi:10.1609/aaai.v29i1.9602);
risk-coverage curve, El-Yaniv and Wiener 2010 (JMLR 11); its area, Geifman, Uziel and El-Yaniv 2019 (arXiv
1805.08206).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from algospace.analysis import plots
from algospace.analysis.intervals import optimal_block, stationary_rows
from algospace.files import atomic_path, write_json
from algospace.types import BoolArray, FloatArray, IntArray

BINS = 10
"""Bins of reliability diagrams and calibration errors."""
CURVE_POINTS = 101
CONFIDENCE = 0.95
RESAMPLES = 2_000
DOCUMENT = "gate.json"


def gate_report(confidence: FloatArray, gained: BoolArray, net: FloatArray, threshold: float, *, bins: int = BINS,
                resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """Everything at once, as plain numbers; the arrays (N,) are in time order, `net` in account currency."""
    trades = _checked(confidence, gained, net)
    if not trades:
        return {"trades": 0, "threshold": threshold}
    diagram, curve = reliability(confidence, gained, bins), risk_coverage(confidence, gained)
    return {
        "trades": trades, "threshold": threshold, "precision_of_all": float(gained.mean()),
        "ece": calibration_error(confidence, gained, bins), "ece_bins": bins,
        "ece_equal_count": calibration_error(confidence, gained, bins, equal_count=True),
        "brier": float(np.mean((confidence - gained) ** 2)),
        **area_under(confidence, gained), **lift(confidence, gained, net, threshold, resamples, seed),
        "reliability": {"predicted": diagram["confidence"], "observed": diagram["gained"],
                        "counts": diagram["count"]},
        "risk_coverage": {**curve, "base_risk": float(1.0 - gained.mean())},
    }


def write_gate_report(document: Mapping[str, Any], folder: Path) -> list[Path]:
    """`gate.json` and, where there are trades, the two plots in `folder`; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / DOCUMENT, dict(document))
    files = [folder / DOCUMENT]
    for name, png in gate_plots(document).items():
        with atomic_path(folder / f"{name}.png") as part:
            part.write_bytes(png)
        files.append(folder / f"{name}.png")
    return files


def gate_plots(document: Mapping[str, Any]) -> dict[str, bytes]:
    """PNG by name of a report's document; empty without trades."""
    diagram, curve = document.get("reliability"), document.get("risk_coverage")
    if not diagram or not curve:
        return {}
    drawn = {"reliability": plots.reliability_plot(*(np.asarray(diagram[key], np.float64)
                                                     for key in ("predicted", "observed", "counts"))),
             "risk_coverage": plots.risk_coverage_plot(np.asarray(curve["coverage"], np.float64),
                                                       np.asarray(curve["risk"], np.float64), curve["base_risk"])}
    return {name: base64.b64decode(text) for name, text in drawn.items()}


def figures(document: Mapping[str, Any]) -> dict[str, float]:
    """The document's numbers, for a tracking server."""
    return {name: float(value) for name, value in document.items()
            if isinstance(value, int | float) and np.isfinite(value)}


def reliability(confidence: FloatArray, gained: BoolArray, bins: int = BINS, *,
                equal_count: bool = False) -> dict[str, list[float]]:
    """Reliability diagram: per non-empty bin of confidence its mean, the share that gained, and the count.

    Bins are of equal width, [k/bins, (k+1)/bins), or hold equal numbers of trades.
    """
    index = _equal_count(confidence, bins) if equal_count else np.minimum(
        (confidence * bins).astype(np.int64), bins - 1)
    filled = [b for b in range(bins) if (index == b).any()]
    return {
        "confidence": [float(confidence[index == b].mean()) for b in filled],
        "gained": [float(gained[index == b].mean()) for b in filled],
        "count": [float((index == b).sum()) for b in filled],
    }


def calibration_error(confidence: FloatArray, gained: BoolArray, bins: int = BINS, *,
                      equal_count: bool = False) -> float:
    """Expected calibration error: mean |confidence - precision| over bins, weighted by count; 0 without trades."""
    if confidence.size == 0:
        return 0.0
    data = reliability(confidence, gained, bins, equal_count=equal_count)
    gaps = np.abs(np.array(data["confidence"]) - np.array(data["gained"]))
    return float((gaps * np.array(data["count"])).sum() / confidence.size)


def _equal_count(confidence: FloatArray, bins: int) -> IntArray:
    """Bin of each trade; equal confidences share one."""
    from scipy import stats  # 60 MB and half a second, which no service needs

    ranks = stats.rankdata(confidence, "min").astype(np.int64) - 1
    return ranks * bins // confidence.size


def selective_risk(confidence: FloatArray, gained: BoolArray) -> FloatArray:
    """(N,): expected share of losing trades among the k + 1 most confident ones; ties come in random order."""
    order = np.argsort(-confidence, kind="stable")
    lost, sorted_confidence = (~gained[order]).astype(np.float64), confidence[order]
    _, first, count = np.unique(-sorted_confidence, return_index=True, return_counts=True)
    share = np.add.reduceat(lost, first) / count
    risk: FloatArray = np.cumsum(np.repeat(share, count)) / np.arange(1, lost.size + 1)
    return risk


def risk_coverage(confidence: FloatArray, gained: BoolArray, points: int = CURVE_POINTS) -> dict[str, list[float]]:
    """Share of losing trades against the share that passes, most confident first, at most `points` points."""
    if confidence.size == 0:
        return {"coverage": [], "risk": []}
    risk = selective_risk(confidence, gained)
    rows = np.unique(np.linspace(0, risk.size - 1, min(points, risk.size)).round().astype(np.int64))
    return {"coverage": ((rows + 1) / risk.size).tolist(), "risk": risk[rows].tolist()}


def area_under(confidence: FloatArray, gained: BoolArray) -> dict[str, float]:
    """`aurc`: mean selective risk over all coverages; `aurc_random`: that of random rejection; `aurc_best`: that
    of an order with every gain before every loss; `aurc_gain`: share of the way from chance to the best."""
    n, wins = confidence.size, int(gained.sum())
    k = np.arange(1, n + 1)
    found, chance = float(selective_risk(confidence, gained).mean()), float(1.0 - wins / n)
    best = float((np.maximum(k - wins, 0) / k).mean())
    return {"aurc": found, "aurc_random": chance, "aurc_best": best,
            "aurc_gain": (chance - found) / (chance - best) if chance > best else 0.0}


def lift(confidence: FloatArray, gained: BoolArray, net: FloatArray, threshold: float, resamples: int = RESAMPLES,
         seed: int = 0) -> dict[str, float]:
    """The gate against random rejection at equal coverage, whose expectation is the mean over all trades.

    precision_lift, net_lift: mean over what passes minus mean over all, with 95 % percentile intervals of the
    stationary bootstrap over trades in time order (block length of Politis and White for the statistic's influence
    on each trade) and one-sided p-values of the bootstrap centred at no lift. p_random: the exact probability that
    random rejection passes at least as many gains (hypergeometric). Nothing passes or everything: no lift, p 1.
    """
    from scipy import stats

    passed = confidence >= threshold
    share = float(passed.mean()) if passed.size else 0.0
    found = {"coverage": share, "passed": int(passed.sum()),
             "precision": float(gained[passed].mean()) if passed.any() else 0.0}
    for name, values in (("precision", gained.astype(np.float64)), ("net", np.asarray(net, np.float64))):
        found |= {f"{name}_{key}": value for key, value in _lift(values, passed, resamples, seed).items()}
    wins = int(gained[passed].sum())
    chance = stats.hypergeom.sf(wins - 1, gained.size, int(gained.sum()), found["passed"]) if passed.any() else 1.0
    return found | {"p_random": float(chance)}


def _lift(values: FloatArray, passed: BoolArray, resamples: int, seed: int) -> dict[str, float]:
    if not passed.any() or passed.all():
        return {"lift": 0.0, "lift_low": 0.0, "lift_high": 0.0, "lift_p": 1.0, "lift_block": 1.0}
    estimate = float(values[passed].mean() - values.mean())
    influence = passed * (values - values[passed].mean()) / passed.mean() - (values - values.mean())
    block = optimal_block(influence)
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        rows = stationary_rows(values.size, block, rng)
        some = passed[rows]
        if some.any():  # without a trade that passes there is nothing to compare
            drawn.append(values[rows][some].mean() - values[rows].mean())
    found = np.array(drawn)
    low, high = np.quantile(found, (0.5 - CONFIDENCE / 2.0, 0.5 + CONFIDENCE / 2.0))
    beaten = int((found - estimate >= estimate).sum())
    return {"lift": estimate, "lift_low": float(low), "lift_high": float(high),
            "lift_p": (1 + beaten) / (found.size + 1), "lift_block": block}


def _checked(confidence: FloatArray, gained: BoolArray, net: FloatArray) -> int:
    if not confidence.shape == gained.shape == net.shape or confidence.ndim != 1:
        raise ValueError(f"confidence {confidence.shape}, gained {gained.shape} and net {net.shape} must be one "
                         f"value per trade each")
    if confidence.size and not (np.isfinite(confidence).all() and confidence.min() >= 0.0
                                and confidence.max() <= 1.0):
        raise ValueError("confidences must lie in [0, 1]")
    return int(confidence.size)
