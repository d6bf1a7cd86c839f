"""Advantages equal a literal reading of their definition, and the loss a literal loop over its elements."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.core_kernels import agreed_direction
from training.mappo.gae import gae
from training.mappo.learner import pivotal
from training.mappo.loss import huber, mappo_loss, mappo_loss_plain, standardise


def literal_gae(r: Any, v: Any, discount: Any, alive: Any, gamma: float, lam: float) -> Any:
    """One segment: the sum over k of (gamma lambda)^k times the TD errors up to the episode's end."""
    steps = len(r)
    advantages = np.zeros(steps)
    for t in range(steps):
        factor = 1.0
        for k in range(t, steps):
            if k > t and not alive[k]:
                break
            bootstrap = gamma * discount[k] * v[k + 1]
            advantages[t] += factor * (r[k] + bootstrap - v[k])
            factor *= gamma * lam * discount[k]
    return advantages


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 12), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_gae_is_its_definition(seed: int, segments: int, steps: int, gamma: float, lam: float) -> None:
    rng = np.random.default_rng(seed)
    r, v = rng.normal(size=(segments, steps)), rng.normal(size=(segments, steps + 1))
    ends = rng.integers(1, 2 * steps + 1, segments)  # first step that is not alive; none where beyond the segment
    terminates = rng.random(segments) < 0.5
    alive = np.arange(steps)[None] < ends[:, None]
    discount = np.ones((segments, steps))
    for b in range(segments):
        if ends[b] <= steps and terminates[b]:
            discount[b, ends[b] - 1:] = 0.0
    r32, v32, discount32 = (x.astype(np.float32) for x in (r, v, discount))
    advantages, targets = gae(r32, v32, discount32, alive, gamma, lam)
    for b in range(segments):
        expected = literal_gae(r[b], v[b], discount[b], alive[b], gamma, lam)
        kept = alive[b]
        np.testing.assert_allclose(advantages[b][kept], expected[kept], atol=1e-5)
        np.testing.assert_allclose(targets[b][kept], (expected + v[b, :-1])[kept], atol=1e-5)


def test_a_termination_hides_the_value_behind_it_and_a_truncation_bootstraps_from_it() -> None:
    one = np.ones((1, 1), np.float32)
    values, alive = np.array([[0.0, 10.0]], np.float32), np.ones((1, 1), bool)
    terminated, _ = gae(one, values, 0.0 * one, alive, 0.9, 0.95)
    truncated, _ = gae(one, values, one, alive, 0.9, 0.95)
    assert terminated[0, 0] == pytest.approx(1.0)
    assert truncated[0, 0] == pytest.approx(10.0)


def random_batch(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lead, agents, choices = (3, 4), 2, 3

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    logits = normal(*lead, agents, choices)
    actions = torch.randint(0, choices, (*lead, agents), generator=generator)
    log_p = torch.log_softmax(logits, -1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)
    return {
        "logits": logits, "actions": actions, "log_p_old": log_p + 0.3 * normal(*lead, agents),
        "valid": torch.rand(*lead, agents, generator=generator) < 0.6, "advantages": normal(*lead),
        "value_targets": 3.0 * normal(*lead), "values": normal(*lead), "values_old": normal(*lead),
        "decided": torch.rand(*lead, generator=generator) < 0.8}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([None, 0.1, 0.3]), st.sampled_from([None, 0.3, 2.0]))
def test_the_compiled_loss_and_its_gradients_equal_the_plain_one(seed: int, value_clip: float | None,
                                                                delta: float | None) -> None:
    batch = random_batch(seed)
    counts = torch.stack((batch["valid"].sum(), batch["decided"].sum())).float().clamp(min=1.0)
    found = []
    for loss in (mappo_loss, mappo_loss_plain):
        logits, values = batch["logits"].clone().requires_grad_(), batch["values"].clone().requires_grad_()
        parts = loss(**{**batch, "logits": logits, "values": values}, clip_param=0.2, value_clip=value_clip,
                     huber_delta=delta, entropy_coeff=0.02, value_coeff=0.5, counts=counts)
        (3.0 * parts.total).backward()
        found.append((*(part.detach() for part in parts), logits.grad, values.grad))
    for compiled, plain in zip(*found, strict=True):
        torch.testing.assert_close(compiled, plain, atol=2e-6, rtol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.05, 0.4), st.floats(0.1, 2.0))
def test_the_loss_is_the_mean_over_single_decisions(seed: int, clip: float, delta: float) -> None:
    batch = random_batch(seed)
    constants = {"clip_param": clip, "value_clip": clip, "huber_delta": delta, "entropy_coeff": 0.02,
                 "value_coeff": 0.5}
    parts = mappo_loss(**batch, **constants)
    policy, entropy, kl, outside, value = [], [], [], [], []
    data = {name: tensor.tolist() for name, tensor in batch.items()}
    for b in range(3):
        for t in range(4):
            if data["decided"][b][t]:
                target, new, old = (data[k][b][t] for k in ("value_targets", "values", "values_old"))
                near = old + min(max(new - old, -clip), clip)
                value.append(max(literal_huber(new - target, delta), literal_huber(near - target, delta)))
            for a in range(2):
                if not data["valid"][b][t][a]:
                    continue
                scores = data["logits"][b][t][a]
                total = sum(math.exp(x) for x in scores)
                p = [math.exp(x) / total for x in scores]
                change = math.log(p[data["actions"][b][t][a]]) - data["log_p_old"][b][t][a]
                ratio, advantage = math.exp(change), data["advantages"][b][t]
                policy.append(-min(ratio * advantage, min(max(ratio, 1 - clip), 1 + clip) * advantage))
                entropy.append(-sum(x * math.log(x) for x in p))
                kl.append(ratio - 1 - change)
                outside.append(float(abs(ratio - 1) > clip))

    def mean(values: list[float]) -> float:
        return sum(values) / max(len(values), 1)

    total = mean(policy) + 0.5 * mean(value) - 0.02 * mean(entropy)
    expected = [total, mean(policy), mean(value), mean(entropy), mean(kl), mean(outside)]
    assert [float(part) for part in parts] == pytest.approx(expected, abs=2e-5)


def literal_huber(error: float, delta: float) -> float:
    return 0.5 * error**2 if abs(error) <= delta else delta * (abs(error) - 0.5 * delta)


def test_decisions_that_nobody_made_have_no_gradient() -> None:
    batch = random_batch(1)
    batch["logits"].requires_grad_()
    batch["values"].requires_grad_()
    mappo_loss(**batch, clip_param=0.2, value_clip=0.2, huber_delta=10.0, entropy_coeff=0.01,
               value_coeff=0.5).total.backward()
    assert not batch["logits"].grad[~batch["valid"]].any()
    assert not batch["values"].grad[~batch["decided"]].any()


def test_a_batch_without_decisions_has_loss_zero() -> None:
    batch = random_batch(2)
    nothing = {"valid": torch.zeros_like(batch["valid"]), "decided": torch.zeros_like(batch["decided"])}
    parts = mappo_loss(**{**batch, **nothing}, clip_param=0.2, value_clip=0.2, huber_delta=1.0, entropy_coeff=0.0,
                       value_coeff=0.5)
    assert all(float(part) == 0.0 for part in parts)


def test_a_forbidden_action_leaves_entropy_and_gradient_finite() -> None:
    batch = random_batch(3)
    logits = batch["logits"].masked_fill(torch.tensor([False, True, False]), -1e9).requires_grad_()
    batch["actions"] = batch["actions"] // 2 * 2
    parts = mappo_loss(**{**batch, "logits": logits}, clip_param=0.2, value_clip=0.2, huber_delta=10.0,
                       entropy_coeff=0.01, value_coeff=0.5)
    parts.total.backward()
    assert torch.isfinite(logits.grad).all()
    assert torch.isfinite(parts.entropy)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31))
def test_standardised_advantages(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, valid = rng.normal(3.0, 2.0, (4, 5)).astype(np.float32), rng.random((4, 5)) < 0.6
    out = standardise(torch.from_numpy(x), torch.from_numpy(valid)).numpy()
    assert not out[~valid].any()
    if valid.sum() >= 2:
        np.testing.assert_allclose(out[valid], (x[valid] - x[valid].mean()) / x[valid].std(ddof=1), atol=1e-4)


def test_a_vote_is_pivotal_exactly_where_it_could_change_the_opportunity() -> None:
    every = torch.cartesian_prod(*(torch.arange(3),) * 4)
    found = pivotal(every)
    for votes, answer in zip(every.tolist(), found.tolist(), strict=True):
        for voter in range(3):
            outcomes = {agreed_direction(*votes[:voter], other, *votes[voter + 1: 3]) for other in range(3)}
            assert answer[voter] == (len(outcomes) > 1)
        assert answer[3]


def test_huber_is_quadratic_then_linear() -> None:
    out = huber(torch.tensor([-3.0, -1.0, 0.5, 4.0]), 2.0)
    assert out.tolist() == pytest.approx([4.0, 0.5, 0.125, 6.0])
