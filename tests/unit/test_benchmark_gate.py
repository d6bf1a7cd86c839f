"""The gate's judgement begins its online correction anew in every market, as sessions do."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from agents.calibration import AdaptiveConformal
from agents.gate import Gate, GateConfig
from algospace.execution.decision import Decision, Reason, RiskProposal
from benchmarks.gate import Desks


class Table(SimpleNamespace):
    def __len__(self) -> int:
        return 400


def test_the_correction_begins_anew_in_every_market() -> None:
    desks = Desks.__new__(Desks)
    desks.table = Table(decision=np.ones(400, np.bool_), close=np.full(400, 100.0), day=np.zeros(400, np.int64))
    desks.bundle = SimpleNamespace(manifest=SimpleNamespace(env=SimpleNamespace(initial_equity=1e5)))
    sure = Decision(Reason.EXECUTE, 1, 0.5, RiskProposal(1, 1.0, 1.0), {}, {})
    desks.decide = lambda rows, *_: [(sure, None)] * rows.size
    desks._outcome = lambda row, _: (row, False)  # every trade loses, and is known at once
    correction = AdaptiveConformal(np.linspace(0.0, 1.0, 101), 0.2, 0.55, 0.05)
    first = desks.inject(200, Gate(GateConfig()), 1, correction)
    assert 0 < first < 200
    assert correction.threshold > 0.5
    assert desks.inject(200, Gate(GateConfig()), 1, correction) == first
