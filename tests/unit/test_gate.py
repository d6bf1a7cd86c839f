"""The gate's numbers against plain numpy, and every verdict it can give."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.gate import (
    CLOSE,
    EXECUTE,
    LONG,
    NOTHING_PASSES,
    REJECT,
    Gate,
    GateConfig,
    confidences,
    count_votes,
    execution_probabilities,
)
from algospace.execution.decision import Reason
from envs.core_kernels import agreed_direction


def draws(seed: int, samples: int, scale: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Voter logits (K, 3, 3) and execution logits (K, 1, 3)."""
    rng = np.random.default_rng(seed)
    return (rng.normal(0.0, scale, (samples, 3, 3)).astype(np.float32),
            rng.normal(0.0, scale, (samples, 1, 3)).astype(np.float32))


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sure(*votes: int, action: int = EXECUTE, samples: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Logits that put nearly all probability on the given votes and action."""
    voters = np.zeros((samples, 3, 3), np.float32)
    voters[:, (0, 1, 2), votes] = 20.0
    execution = np.zeros((samples, 1, 3), np.float32)
    execution[:, 0, action] = 20.0
    return voters, execution


def judge(voters: np.ndarray, execution: np.ndarray | None, gate: Gate | None = None, **kwargs: float):
    probabilities = None if execution is None else execution_probabilities(execution)
    return (gate or Gate(GateConfig())).decide(count_votes(voters), probabilities, **kwargs)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), samples=st.integers(1, 40), temperature=st.floats(0.2, 5.0),
       kappa=st.floats(0.0, 2.0))
def test_the_gates_numbers_are_their_formulas(seed: int, samples: int, temperature: float, kappa: float) -> None:
    voters, execution = draws(seed, samples)
    votes = count_votes(voters)
    p, q = softmax(voters), softmax(execution)[:, 0]
    np.testing.assert_allclose(votes.probabilities, p, atol=1e-12)
    np.testing.assert_allclose(votes.mean, p.mean(0), atol=1e-12)
    chosen = p.mean(0).argmax(-1)
    assert votes.direction == agreed_direction(*chosen)
    verdict = Gate(GateConfig(kappa=kappa), temperature).decide(votes, q)

    speaking = chosen == votes.direction + 1 if votes.direction else np.ones(3, bool)
    agents = np.concatenate((p[:, speaking], q[:, None]), 1)
    entropy_of_mean = -(agents.mean(0) * np.log(agents.mean(0))).sum(-1)
    mean_entropy = -(agents * np.log(agents)).sum(-1).mean(0)
    assert verdict.uncertainty.entropy == pytest.approx(entropy_of_mean.mean())
    information = (entropy_of_mean - mean_entropy).mean()
    assert verdict.uncertainty.mutual_information == pytest.approx(information, abs=1e-9)
    if votes.direction:
        raw = p[:, speaking, votes.direction + 1].mean(1) * q[:, EXECUTE]
        scaled = 1 / (1 + np.exp(-np.log(raw / (1 - raw)) / temperature))
        expected = np.clip(scaled.mean() - kappa * scaled.std(), 0, 1)
        np.testing.assert_allclose(verdict.raw, raw, atol=1e-12)
        assert verdict.confidence == pytest.approx(expected, abs=1e-6)
        assert confidences(raw[None], temperature, kappa)[0] == pytest.approx(expected, abs=1e-6)


def test_equal_masks_leave_no_disagreement_and_different_ones_do() -> None:
    voters, execution = draws(3, 1)
    same = judge(np.repeat(voters, 10, 0), np.repeat(execution, 10, 0)).uncertainty
    assert same.std == pytest.approx(0.0, abs=1e-12)
    assert same.mutual_information == pytest.approx(0.0, abs=1e-12)
    different = judge(*draws(3, 10)).uncertainty
    assert different.mutual_information > 0.01


@pytest.mark.parametrize(("votes", "action", "reason"), [
    ((2, 2, 1), EXECUTE, Reason.EXECUTE),
    ((0, 1, 0), EXECUTE, Reason.EXECUTE),
    ((2, 2, 2), REJECT, Reason.REJECTED),
    ((2, 0, 1), EXECUTE, Reason.NO_OPPORTUNITY),
    ((1, 1, 1), CLOSE, Reason.CLOSE),
    ((2, 2, 2), CLOSE, Reason.CLOSE),
])
def test_verdicts(votes: tuple[int, int, int], action: int, reason: Reason) -> None:
    assert judge(*sure(*votes, action=action)).reason is reason


def test_only_execution_needs_confidence() -> None:
    voters, execution = sure(2, 2, 2)
    assert judge(voters, execution, threshold=NOTHING_PASSES).reason is Reason.LOW_CONFIDENCE
    assert judge(*sure(2, 2, 2, action=CLOSE), threshold=NOTHING_PASSES).reason is Reason.CLOSE
    assert judge(voters, None).reason is Reason.NO_OPPORTUNITY


def test_a_bound_on_uncertainty_names_itself() -> None:
    voters, execution = sure(2, 2, 2, samples=2)
    voters[1, 0] = (0.0, 20.0, 19.0)  # one mask sees it differently
    lenient, strict = (Gate(GateConfig(max_uncertainty=u), threshold=0.1) for u in (1.0, 1e-3))
    assert judge(voters, execution, lenient).reason is Reason.EXECUTE
    assert judge(voters, execution, strict).reason is Reason.HIGH_UNCERTAINTY


def test_the_bound_is_on_what_the_masks_disagree_about_not_on_what_they_all_leave_open() -> None:
    voters, execution = sure(2, 2, 2, samples=2)
    voters[:] = (0.0, 0.0, 0.5)  # far from sure, every mask alike
    verdict = judge(voters, execution, Gate(GateConfig(max_uncertainty=1e-3), threshold=0.1))
    assert verdict.uncertainty.entropy > 0.5
    assert verdict.reason is Reason.EXECUTE


def test_what_equals_a_bound_passes_it() -> None:
    voters, execution = sure(2, 2, 2, samples=2)
    voters[1, 0] = (0.0, 20.0, 19.0)
    found = judge(voters, execution)
    confidence, information = found.confidence, found.uncertainty.mutual_information
    assert 0.0 < confidence < 1.0
    assert information > 0.0
    for threshold, limit, reason in (
            (confidence, information, Reason.EXECUTE),
            (np.nextafter(confidence, 1.0), information, Reason.LOW_CONFIDENCE),
            (confidence, np.nextafter(information, 0.0), Reason.HIGH_UNCERTAINTY)):
        gate = Gate(GateConfig(max_uncertainty=limit), threshold=threshold)
        assert judge(voters, execution, gate).reason is reason


def test_kappa_charges_for_spread() -> None:
    raw = np.array([[0.9, 0.5, 0.9, 0.5]])
    assert confidences(raw, 1.0, 0.0)[0] == pytest.approx(0.7)
    assert confidences(raw, 1.0, 1.0)[0] == pytest.approx(0.5)


@settings(max_examples=80, deadline=None)
@given(spoilt=st.sampled_from(["threshold", "limit", "votes", "execution", "one mask", "temperature", "kappa"]),
       seed=st.integers(0, 10_000), temperature=st.sampled_from([1.0, 0.5, 2.0]), limit=st.none() | st.just(5.0),
       threshold=st.floats(0.0, 1.0))
def test_nan_never_trades(spoilt: str, seed: int, temperature: float, limit: float | None,
                          threshold: float) -> None:
    voters, execution = sure(LONG, LONG, LONG, samples=4)
    votes, answers = count_votes(voters), execution_probabilities(execution)
    gate = Gate(GateConfig(confidence_threshold=0.0, max_uncertainty=limit), temperature, threshold)
    assert gate.decide(votes, answers, 0.0).reason is Reason.EXECUTE
    if spoilt == "threshold":
        assert gate.decide(votes, answers, np.nan).reason is Reason.LOW_CONFIDENCE
        gate.threshold = np.nan
    elif spoilt == "limit":
        gate.config = GateConfig().model_copy(update={"max_uncertainty": np.nan, "confidence_threshold": 0.0})
    elif spoilt == "temperature":
        gate.temperature = np.nan
    elif spoilt == "kappa":
        gate.config = gate.config.model_copy(update={"kappa": np.nan})
    elif spoilt == "votes":
        votes.probabilities[:] = np.nan
    elif spoilt == "execution":
        answers[:, EXECUTE] = np.nan
    else:
        votes.probabilities[seed % 4, seed % 3, LONG] = np.nan
    assert gate.decide(votes, answers).reason is not Reason.EXECUTE
