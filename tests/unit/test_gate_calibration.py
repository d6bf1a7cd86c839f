"""Calibration keeps its promise or says that it cannot; the online correction steers to it."""

from __future__ import annotations

import numpy as np
import pytest

from agents.calibration import AdaptiveConformal, calibrate, calibration_error, lift, reliability, risk_coverage
from agents.gate import NOTHING_PASSES, GateConfig, confidences


def trades(seed: int, n: int, temperature: float = 1.0, skill: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Raw scores (n, 8) that overstate the log odds of a gain `temperature` times; without skill all are .5."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(0.0, 1.0, n)
    gained = rng.random(n) < 1 / (1 + np.exp(-skill * odds))
    return 1 / (1 + np.exp(-(temperature * odds[:, None] + rng.normal(0.0, 0.05, (n, 8))))), gained


def test_temperature_undoes_overconfidence() -> None:
    raw, gained = trades(0, 4000, temperature=3.0)
    fitted = calibrate(raw, gained, GateConfig())
    assert fitted.temperature == pytest.approx(3.0, rel=0.1)
    assert fitted.ece_after < 0.03 < fitted.ece_before


def test_the_promised_precision_holds_on_fresh_trades() -> None:
    config = GateConfig(promised_precision=0.6, promise_level=0.9)
    kept = []
    for seed in range(40):
        fitted = calibrate(*trades(seed, 600), config)
        assert fitted.promise_kept
        raw, gained = trades(10_000 + seed, 20_000)
        passed = confidences(raw, fitted.temperature, config.kappa) >= fitted.threshold
        kept.append(gained[passed].mean() >= 0.6)
    assert np.mean(kept) >= 0.9


def test_without_skill_nothing_passes_and_the_calibration_says_so() -> None:
    shut = [calibrate(*trades(seed, 600, skill=0.0), GateConfig(promised_precision=0.55)) for seed in range(20)]
    assert sum(c.promise_kept for c in shut) <= 2
    broken = next(c for c in shut if not c.promise_kept)
    assert broken.threshold == NOTHING_PASSES > 1.0
    assert broken.coverage == 0.0
    assert broken.precision is None


def test_too_few_trades_promise_nothing() -> None:
    raw, _ = trades(1, 20)
    assert not calibrate(raw, np.ones(20, bool), GateConfig(min_trades=30)).promise_kept
    assert not calibrate(np.zeros((0, 8)), np.zeros(0, bool), GateConfig()).promise_kept


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="3 rows of scores but 2 outcomes"):
        calibrate(np.zeros((3, 4)), np.zeros(2, bool), GateConfig())


def test_the_online_correction_restores_precision_after_a_shift() -> None:
    raw, _ = trades(2, 4000)
    confidence = confidences(raw, 1.0, 0.0)
    start = float(np.quantile(confidence, 0.3))
    adaptive = AdaptiveConformal(confidence, start, promised_precision=0.6, rate=0.02)
    worse_raw, worse_gained = trades(3, 20_000, skill=0.5)
    worse = confidences(worse_raw, 1.0, 0.0)
    executed, fixed = [], worse_gained[worse >= start]
    for c, g in zip(worse, worse_gained, strict=True):
        if c >= adaptive.threshold:
            executed.append(g)
            adaptive.update(bool(g))
    assert fixed.mean() < 0.6
    assert np.mean(executed) == pytest.approx(0.6, abs=0.01)


def test_a_shut_gate_stays_shut() -> None:
    adaptive = AdaptiveConformal(np.linspace(0, 1, 50), NOTHING_PASSES, 0.55, 0.1)
    assert adaptive.update(True) == NOTHING_PASSES


def test_diagnostics() -> None:
    confidence = np.array([0.15, 0.15, 0.85, 0.85])
    gained = np.array([False, False, True, False])
    diagram = reliability(confidence, gained)
    assert diagram == {"confidence": [0.15, 0.85], "gained": [0.0, 0.5], "count": [2.0, 2.0]}
    assert calibration_error(confidence, gained) == pytest.approx(0.5 * 0.15 + 0.5 * 0.35)
    curve = risk_coverage(confidence, gained)
    assert curve["coverage"][-1] == 1.0
    assert curve["risk"][-1] == 0.75
    assert curve["risk"][0] == 0.0
    gain = lift(confidence, gained, np.array([-1.0, -1.0, 2.0, -1.0]), 0.5)
    assert gain == {"coverage": 0.5, "precision": 0.5, "precision_lift": 0.25, "net_lift": 0.75}
    assert lift(confidence, gained, gained * 1.0, 2.0)["coverage"] == 0.0
