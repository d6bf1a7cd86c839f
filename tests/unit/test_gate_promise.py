"""A promise counts where it will be lived: in the session behind the gate, not among the open gate's trades."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from agents.calibration import calibrate, candidates, precision_bound, prove_promise
from agents.gate import NOTHING_PASSES, Gate, GateConfig, confidences
from training import bundling

CONFIG: Any = SimpleNamespace(gate=GateConfig(promised_precision=0.55, iterations=4), seed=0)


def trades(n: int = 1500) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    odds = rng.normal(0.0, 1.0, n)
    return np.repeat(1 / (1 + np.exp(-odds))[:, None], 4, 1), rng.random(n) < 1 / (1 + np.exp(-odds))


def keep(monkeypatch: pytest.MonkeyPatch, precision: Any) -> tuple[Any, Any, list[float]]:
    """(as fitted, as kept, thresholds tried); behind threshold t 800 trades gain with `precision(t)`."""
    raw, gained = trades()
    fitted = calibrate(raw, gained, CONFIG.gate)
    tried: list[float] = []

    def behind(*found: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        gate: Gate = found[-1]
        assert gate.temperature == fitted.temperature
        tried.append(gate.threshold)
        kept = np.arange(800) < round(800 * precision(gate.threshold))
        return np.zeros((800, 4)), kept, np.where(kept, 1.0, -1.0)

    monkeypatch.setattr(bundling, "validation_trades", behind)
    return fitted, bundling.keep_promise(fitted, raw, gained, CONFIG, None, Path(), None), tried  # type: ignore[arg-type]


def test_a_promise_that_holds_behind_the_gate_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted, kept, tried = keep(monkeypatch, lambda _: 0.7)
    assert tried == [fitted.threshold] == [kept.threshold]
    assert kept.promise_kept
    assert (kept.trades, kept.precision) == (800, pytest.approx(0.7))
    assert 0.55 <= kept.precision_bound < 0.7


def test_where_it_does_not_the_next_smaller_coverage_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    raw, gained = trades()
    fitted = calibrate(raw, gained, CONFIG.gate)
    found = candidates(confidences(raw, fitted.temperature, 0.0), gained, CONFIG.gate)
    enough = [c.threshold for c in found if c.bound >= 0.55]
    assert len(enough) > 3
    _, kept, tried = keep(monkeypatch, lambda t: 0.7 if t >= enough[2] else 0.56)
    assert tried == enough[:3]
    assert kept.threshold == enough[2] > fitted.threshold
    assert kept.coverage < fitted.coverage


def test_a_gate_whose_promise_holds_nowhere_stays_shut(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted, kept, tried = keep(monkeypatch, lambda _: 0.56)  # above the promise, but not surely
    assert len(tried) > 3
    assert fitted.promise_kept
    assert not kept.promise_kept
    assert kept.threshold == NOTHING_PASSES
    assert "stays shut" in kept.statement
    assert kept.quantiles == fitted.quantiles


def test_a_handful_of_trades_behind_the_gate_proves_nothing() -> None:
    """Ten gains of ten would reach the bound; too few are no proof, whatever they gained."""
    raw, gained = trades()
    config = CONFIG.gate
    fitted = calibrate(raw, gained, config)
    for count, kept in ((config.min_trades - 1, False), (config.min_trades, True)):
        assert precision_bound(count, count, config) > config.promised_precision
        proved = prove_promise(fitted, raw, gained, config, lambda _, n=count: np.ones(n, np.bool_))  # type: ignore
        assert proved.promise_kept is kept
        assert (proved.threshold == NOTHING_PASSES, proved.trades) == (not kept, count if kept else 0)
