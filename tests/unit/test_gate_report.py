"""The gate's figures against counting by hand, and their errors against what they claim."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.analysis.gate_report import (
    area_under,
    calibration_error,
    figures,
    gate_plots,
    gate_report,
    lift,
    reliability,
    risk_coverage,
    selective_risk,
    write_gate_report,
)


def trades(seed: int, n: int, skill: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Confidences in [0, 1], gains that follow them with `skill`, net results."""
    rng = np.random.default_rng(seed)
    confidence = rng.random(n)
    gained = rng.random(n) < 0.5 + skill * (confidence - 0.5)
    return confidence, gained, np.where(gained, 100.0, -100.0) + rng.normal(0, 10, n)


def test_reliability_and_its_error_by_hand() -> None:
    confidence = np.array([0.15, 0.15, 0.85, 0.85])
    gained = np.array([False, False, True, False])
    diagram = reliability(confidence, gained)
    assert diagram == {"confidence": [0.15, 0.85], "gained": [0.0, 0.5], "count": [2.0, 2.0]}
    assert calibration_error(confidence, gained) == pytest.approx(0.5 * 0.15 + 0.5 * 0.35)
    assert calibration_error(confidence, gained, 1) == pytest.approx(0.25)
    assert calibration_error(np.zeros(0), np.zeros(0, bool)) == 0.0


def test_equal_counts_keep_equal_confidences_together() -> None:
    confidence, gained = np.repeat([0.2, 0.5, 0.9], [5, 3, 4]), np.arange(12) % 2 == 0
    diagram = reliability(confidence, gained, 6, equal_count=True)
    assert diagram["confidence"] == pytest.approx([0.2, 0.5, 0.9])
    assert diagram["count"] == [5.0, 3.0, 4.0]
    spread = reliability(np.linspace(0, 1, 100), np.arange(100) % 2 == 0, 10, equal_count=True)
    assert spread["count"] == [10.0] * 10


def test_risk_at_every_coverage_by_hand_and_ties_in_random_order() -> None:
    confidence, gained = np.array([0.9, 0.1, 0.5]), np.array([True, False, False])
    np.testing.assert_allclose(selective_risk(confidence, gained), [0.0, 0.5, 2 / 3])
    tied = selective_risk(np.array([0.5, 0.5, 0.1]), np.array([True, False, True]))
    np.testing.assert_allclose(tied, [0.5, 0.5, 1 / 3])
    curve = risk_coverage(confidence, gained)
    assert curve == {"coverage": [1 / 3, 2 / 3, 1.0], "risk": pytest.approx([0.0, 0.5, 2 / 3])}
    assert len(risk_coverage(*trades(0, 5000, 1.0)[:2])["risk"]) == 101
    assert risk_coverage(np.zeros(0), np.zeros(0, bool)) == {"coverage": [], "risk": []}


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(2, 200))
def test_areas_lie_between_the_best_order_and_the_worst(seed: int, n: int) -> None:
    confidence, gained, _ = trades(seed, n, 0.5)
    found = area_under(confidence, gained)
    assert found["aurc_best"] - 1e-12 <= found["aurc"]
    assert found["aurc_best"] <= found["aurc_random"] + 1e-12
    perfect = area_under(gained.astype(float), gained)
    assert perfect["aurc"] <= found["aurc"] + 1e-12
    chance = area_under(np.full(n, 0.5), gained)
    assert chance["aurc"] == pytest.approx(chance["aurc_random"])
    assert chance["aurc_gain"] == pytest.approx(0.0, abs=1e-9)


def test_lift_by_hand_and_where_there_is_none() -> None:
    gained, net = np.array([False, False, True, False]), np.array([-1.0, -1.0, 2.0, -1.0])
    found = lift(np.array([0.1, 0.2, 0.9, 0.8]), gained, net, 0.5, resamples=99)
    assert (found["coverage"], found["passed"], found["precision"]) == (0.5, 2, 0.5)
    assert (found["precision_lift"], found["net_lift"]) == (0.25, 0.75)
    assert found["p_random"] == pytest.approx(0.5)  # the one gain is among 2 of 4
    for threshold in (0.0, 2.0):  # everything passes, or nothing
        none = lift(np.full(4, 0.5), gained, net, threshold)
        assert (none["precision_lift"], none["precision_lift_p"], none["p_random"]) == (0.0, 1.0, 1.0)


def test_skill_is_seen_and_its_absence_is_not_taken_for_skill() -> None:
    skilled = lift(*trades(1, 1500, 0.6), threshold=0.7)
    assert skilled["precision_lift_low"] > 0.0
    assert skilled["precision_lift_p"] < 0.01
    assert skilled["p_random"] < 0.01
    blind = [lift(*trades(seed, 400, 0.0), threshold=0.7, resamples=300) for seed in range(60)]
    for key in ("precision_lift_p", "p_random", "net_lift_p"):
        assert sum(found[key] < 0.05 for found in blind) <= 8  # 3 expected
    covered = sum(found["precision_lift_low"] <= 0.0 <= found["precision_lift_high"] for found in blind)
    assert covered >= 50


def test_dependence_widens_the_interval() -> None:
    rng = np.random.default_rng(3)
    confidence = np.repeat(rng.random(60), 25)  # 60 stretches of one mood each
    gained = np.repeat(rng.random(60) < 0.5, 25)
    net = np.where(gained, 1.0, -1.0)
    found = lift(confidence, gained, net, 0.6, resamples=500)
    order = rng.permutation(1500)
    mixed = lift(confidence[order], gained[order], net[order], 0.6, resamples=500)
    assert found["precision_lift_block"] > 5.0
    width, mixed_width = (f["precision_lift_high"] - f["precision_lift_low"] for f in (found, mixed))
    assert width > 2.0 * mixed_width
    assert found["precision_lift_p"] > found["p_random"]


def test_the_report_is_plain_numbers_in_files(tmp_path: Path) -> None:
    document = gate_report(*trades(4, 300, 0.5), threshold=0.6, resamples=99)
    assert document["trades"] == 300
    assert document["ece_bins"] == 10
    assert document["risk_coverage"]["base_risk"] == pytest.approx(1 - document["precision_of_all"])
    assert all(np.isfinite(value) for value in figures(document).values())
    assert {"ece", "aurc", "precision_lift", "precision_lift_p"} <= set(figures(document))
    files = write_gate_report(document, tmp_path / "gate")
    assert [path.name for path in files] == ["gate.json", "reliability.png", "risk_coverage.png"]
    assert json.loads(files[0].read_text()) == document
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in files[1:])
    again = gate_report(*trades(4, 300, 0.5), threshold=0.6, resamples=99)
    assert again == document


def test_no_trades_make_a_report_without_plots(tmp_path: Path) -> None:
    nothing = np.zeros(0)
    document = gate_report(nothing, nothing.astype(bool), nothing, threshold=1.01)
    assert document == {"trades": 0, "threshold": 1.01}
    assert gate_plots(document) == {}
    assert [path.name for path in write_gate_report(document, tmp_path)] == ["gate.json"]


def test_what_does_not_fit_together_is_refused() -> None:
    with pytest.raises(ValueError, match="one value per trade"):
        gate_report(np.zeros(3), np.zeros(2, bool), np.zeros(3), 0.5)
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        gate_report(np.array([0.5, np.nan]), np.zeros(2, bool), np.zeros(2), 0.5)
