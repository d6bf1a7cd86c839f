"""The gate's calibration against MAPIE's risk control and scikit-learn, which know nothing of it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from agents.calibration import COVERAGES, Calibration, calibrate, candidates
from agents.gate import GateConfig, confidences
from algospace.analysis.gate_report import calibration_error

mapie = pytest.importorskip("mapie.risk_control", reason="MAPIE is in the dev extra")


def trades(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """One score per trade and whether it gained, more often the higher the score."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(0.0, 1.0, n)
    return 1 / (1 + np.exp(-2.0 * odds))[:, None], rng.random(n) < 1 / (1 + np.exp(-odds))


def fitted(seed: int, n: int, config: GateConfig) -> tuple[Calibration, np.ndarray, np.ndarray]:
    raw, gained = trades(seed, n)
    calibration = calibrate(raw, gained, config)
    return calibration, confidences(raw, calibration.temperature, config.kappa), gained


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("promise", [0.5, 0.6, 0.7])
def test_mapie_finds_our_thresholds_or_more_cautious_ones(seed: int, promise: float) -> None:
    """Same thresholds, same Bonferroni; MAPIE's p-values (Hoeffding-Bentkus) are bounds of our exact ones."""
    config = GateConfig(promised_precision=promise, promise_level=0.9)
    calibration, confidence, gained = fitted(seed, 1200, config)
    tried = candidates(confidence, gained, config)
    assert len(tried) == COVERAGES.size

    def proba(x: np.ndarray) -> np.ndarray:
        return np.column_stack((1.0 - x, x))

    control = mapie.BinaryClassificationController(
        proba, "precision", target_level=promise, confidence_level=0.9, fwer_method="bonferroni",
        list_predict_params=np.array([c.threshold for c in tried]))
    control.calibrate(confidence, gained.astype(int))
    ours = {c.threshold for c in tried if c.bound >= promise}
    theirs = {float(value) for value in np.ravel(control.valid_predict_params)}
    assert theirs <= ours
    exact = np.array([binom.sf(c.gains - 1, c.trades, promise) for c in tried])
    assert (exact <= np.ravel(control.p_values) + 1e-9).all()
    assert [bool(p <= 0.1 / COVERAGES.size) for p in exact] == [c.threshold in ours for c in tried]
    if theirs:  # the one in use: of those that keep the promise, the one with the most gains
        assert calibration.promise_kept
        assert calibration.threshold <= control.best_predict_param
        passed = confidence >= control.best_predict_param
        assert gained[passed].mean() >= promise
    assert calibration.promise_kept == bool(ours)


@pytest.mark.parametrize("seed", range(3))
def test_the_calibration_error_is_mapies(seed: int) -> None:
    from mapie.metrics.calibration import expected_calibration_error

    _, confidence, gained = fitted(seed, 800, GateConfig())
    theirs = expected_calibration_error(gained.astype(int), confidence, num_bins=11, split_strategy="uniform")
    assert calibration_error(confidence, gained, bins=10) == pytest.approx(theirs, abs=1e-9)  # 11 edges, 10 bins


@pytest.mark.parametrize("seed", range(3))
def test_the_temperature_is_a_logistic_regressions(seed: int) -> None:
    from sklearn.linear_model import LogisticRegression

    raw, gained = trades(seed, 2000)
    logit = np.log(raw) - np.log1p(-raw)
    theirs = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-8).fit(logit, gained)
    ours = calibrate(raw, gained, GateConfig())
    assert ours.temperature == pytest.approx(1.0 / theirs.coef_[0, 0], rel=1e-3)
