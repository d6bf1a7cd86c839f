"""The ways a decision is made are one logic: alone, in a batch, in a session, in the gate's judgement."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from agents.gate import Gate, GateConfig, Uncertainty, confidences, count_votes, execution_probabilities
from algospace.execution.decision import Reason
from benchmarks.gate import Desks
from envs.config import CoreEnvConfig
from serving import kernels
from serving.backends import make_backend
from serving.batch import BatchInputs
from serving.decider import Decider
from serving.policy import BundlePolicy
from tests.serving_market import accounts, random_bundle, rows, serving_table

LOGITS = st.one_of(st.sampled_from([0.0, 1.0, -1.0, 30.0, -1e9]), st.floats(-60, 60, width=32))
WAYS = {"full": CoreEnvConfig(), "unit": CoreEnvConfig(mechanics="unit"),
        "synergy": CoreEnvConfig(decision_points="synergy")}


@settings(max_examples=150, deadline=None)
@given(votes=arrays(np.float32, (3, 4, 3, 3), elements=LOGITS),
       answers=arrays(np.float32, (3, 4, 1, 3), elements=LOGITS), asked=arrays(np.bool_, 3),
       temperature=st.floats(0.05, 20), kappa=st.floats(0, 3), threshold=st.floats(0, 1),
       most=st.one_of(st.none(), st.floats(0, 1)))
def test_rows_are_judged_as_the_gate_judges_one(votes: np.ndarray, answers: np.ndarray, asked: np.ndarray,
                                                temperature: float, kappa: float, threshold: float,
                                                most: float | None) -> None:
    gate = Gate(GateConfig(iterations=4, kappa=kappa, max_uncertainty=most), temperature, threshold)
    probabilities, means = np.empty((3, 4, 3, 3)), np.empty((3, 3, 3))
    chosen, direction = np.empty((3, 3), np.int8), np.empty(3, np.int8)
    kernels.count_rows(votes, probabilities, means, chosen, direction)
    numbers, actions = np.empty((3, 5)), np.empty(3, np.int64)
    kernels.judge_rows(probabilities, chosen, direction, answers, asked, temperature, kappa, numbers, actions)
    for row in range(3):
        alone = count_votes(votes[row])
        np.testing.assert_array_equal(probabilities[row], alone.probabilities)
        np.testing.assert_array_equal(means[row], alone.mean)
        np.testing.assert_array_equal(chosen[row], alone.chosen)
        assert direction[row] == alone.direction
        verdict = gate.decide(alone, execution_probabilities(answers[row]) if asked[row] else None)
        np.testing.assert_array_equal(numbers[row], [verdict.confidence, *verdict.uncertainty])
        confidence, *measures = numbers[row].tolist()
        assert gate._reason(int(direction[row]), int(actions[row]), confidence, Uncertainty(*measures),
                            threshold) is verdict.reason
        assert verdict.confidence == confidences(verdict.raw[None], temperature, kappa)[0]  # as calibrated


@pytest.mark.parametrize("name", WAYS)
def test_a_batch_of_one_is_the_row_to_the_bit_at_every_threshold(tmp_path: Path, name: str) -> None:
    bundle = random_bundle(tmp_path / "bundle", env=WAYS[name])
    table = serving_table()
    policy, decider = BundlePolicy(bundle, table), Decider(bundle, make_backend("onnx", bundle))
    decider.heads._bias[3, 2] = 0.5  # random weights never want to close
    seen: set[Reason] = set()
    with_synergy = [row for row in rows(table, 900) if table.synergy[row, 0] > 0.0]
    for row in (*rows(table, 6), *with_synergy[:12]):
        for account in accounts(table, row):
            one = policy.inputs(row, account)
            for threshold in (None, 0.0, 0.3, 1.01):
                alone = decider.decide(one, threshold)
                together = decider.decide_batch(BatchInputs.of([one], one.regime[None]), threshold).decision(0)
                assert together == alone
                seen.add(alone.reason)
    assert {Reason.EXECUTE, Reason.CLOSE, Reason.LOW_CONFIDENCE, Reason.NO_OPPORTUNITY} <= seen


def test_the_gates_judgement_decides_as_a_session_does(tmp_path: Path) -> None:
    """benchmarks.gate, whose scores calibrations are fitted on, against the policy of a session."""
    bundle = random_bundle(tmp_path / "bundle")
    table = serving_table()
    desks, policy = Desks(bundle, table), BundlePolicy(bundle, table)
    gate, seen = policy.decider.gate, set()
    picked = np.array(rows(table, 12))
    for kind in range(4):
        held = np.array([accounts(table, int(row))[kind] for row in picked])
        for row, account, (decision, verdict) in zip(picked.tolist(), held, desks.decide(picked, held, gate),
                                                     strict=True):
            expected = policy.decide(row, account)
            assert (decision.reason, decision.direction) == (expected.reason, expected.direction)
            seen.add(decision.reason)
            if verdict is not None:
                assert (decision.confidence, decision.proposal) == (expected.confidence, expected.proposal)
                fitted = confidences(verdict.raw[None], gate.temperature, gate.config.kappa)[0]
                assert decision.confidence == fitted
    assert {Reason.EXECUTE, Reason.RISK_LIMIT} <= seen
