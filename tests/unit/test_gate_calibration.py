"""Calibration keeps its promise or says that it cannot; the online correction steers to it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from agents.calibration import AdaptiveConformal, calibrate, candidates, precision_bound
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


def test_the_promise_names_its_bound_and_what_it_rests_on() -> None:
    config = GateConfig(promised_precision=0.6, promise_level=0.9)
    raw, gained = trades(4, 600)
    fitted = calibrate(raw, gained, config)
    passed = confidences(raw, fitted.temperature, config.kappa) >= fitted.threshold
    assert fitted.precision is not None
    assert fitted.precision_bound is not None
    assert fitted.trades == passed.sum()
    assert fitted.precision_bound == precision_bound(int(gained[passed].sum()), fitted.trades, config)
    assert 0.6 <= fitted.precision_bound < fitted.precision
    assert f"{fitted.precision_bound:.1%} with probability 90%" in fitted.statement
    shut = calibrate(raw, gained, GateConfig(promised_precision=0.99))
    assert shut.precision_bound is None
    assert shut.statement == "cannot promise 99.0% of executed trades with a net gain from 600 trades: the gate " \
                             "stays shut"


def test_each_coverage_passes_its_share_of_the_trades_and_has_the_exact_bound() -> None:
    """At the bound so many gains or more have just the probability that all thresholds tried share."""
    config, rng = GateConfig(promise_level=0.8, min_trades=50), np.random.default_rng(0)
    confidence, gained = rng.permutation(300) / 300.0, rng.random(300) < 0.6
    tried = candidates(confidence, gained, config)
    assert [c.trades for c in tried] == [300, 270, 240, 210, 180, 150, 120, 90, 60]
    for found in tried:
        best = np.argsort(confidence)[300 - found.trades:]
        assert (found.threshold, found.gains) == (confidence[best].min(), gained[best].sum())
        assert binom.sf(found.gains - 1, found.trades, found.bound) == pytest.approx((1.0 - 0.8) / 10)


def test_the_first_threshold_that_keeps_the_promise_is_the_largest_coverage() -> None:
    config = GateConfig(promised_precision=0.6)
    raw, gained = trades(5, 900)
    fitted = calibrate(raw, gained, config)
    tried = candidates(confidences(raw, fitted.temperature, 0.0), gained, config)
    assert [c.trades for c in tried] == sorted((c.trades for c in tried), reverse=True)
    kept = [c for c in tried if c.bound >= 0.6]
    assert kept[0].threshold == fitted.threshold
    assert all(c.gains <= c.trades and c.bound <= c.gains / c.trades for c in tried)


@settings(max_examples=40, deadline=None)
@given(outcomes=st.lists(st.booleans(), min_size=1, max_size=400), rate=st.floats(0.001, 0.2))
def test_the_correction_never_opens_beyond_the_promise_and_bounds_the_losses(outcomes: list[bool],
                                                                              rate: float) -> None:
    confidence = np.linspace(0.01, 1.0, 100)
    adaptive = AdaptiveConformal(confidence, 0.5, 0.6, rate, floor=0.01)
    start, floored = adaptive.level, False
    for gained in outcomes:
        threshold = adaptive.update(gained)
        assert threshold >= 0.5
        assert threshold in confidence
        floored |= adaptive.level == 0.01
    lost = outcomes.count(False) / len(outcomes)
    if not floored:
        assert lost <= 0.4 + start / (rate * len(outcomes)) + 1e-9


def test_the_correction_is_a_fold_over_the_outcomes() -> None:
    rng = np.random.default_rng(0)
    confidence, outcomes = rng.random(500), rng.random(300) < 0.5
    first, second = (AdaptiveConformal(confidence, 0.4, 0.6, 0.02) for _ in range(2))
    for gained in outcomes:
        first.update(bool(gained))
    second.update(False)
    second.reset()
    for gained in outcomes:
        second.update(bool(gained))
    assert (first.level, first.threshold) == (second.level, second.threshold)


@given(outcomes=st.lists(st.booleans(), max_size=60), cut=st.integers(0, 60))
def test_whoever_keeps_the_level_needs_no_state_in_the_correction(outcomes: list[bool], cut: int) -> None:
    confidence = np.linspace(0.0, 1.0, 101)
    stateful, stateless = (AdaptiveConformal(confidence, 0.4, 0.6, 0.05) for _ in range(2))
    for gained in outcomes:
        stateful.update(gained)
    level = stateless.after(stateless.after(None, outcomes[:cut]), outcomes[cut:])
    assert (level, stateless.threshold_at(level)) == (stateful.level, stateful.threshold)
    assert stateless.level == stateless.after(None, ())


def test_a_bundles_correction_starts_at_its_calibrated_threshold() -> None:
    fitted = calibrate(*trades(6, 900), GateConfig(promised_precision=0.6))
    adaptive = AdaptiveConformal.of(fitted, 0.02)
    assert adaptive is not None
    assert adaptive.threshold == fitted.threshold
    assert adaptive.level == pytest.approx(fitted.coverage, abs=0.01)
    assert AdaptiveConformal.of(fitted, 0.0) is None
    assert AdaptiveConformal.of(None, 0.02) is None
    shut = calibrate(*trades(6, 900, skill=0.0), GateConfig(promised_precision=0.9))
    assert AdaptiveConformal.of(shut, 0.02) is None
