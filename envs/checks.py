"""Contracts that every batched environment keeps, as functions to call from tests. Each raises AssertionError."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from algospace.seeding import uniforms
from algospace.types import AnyArray, Float32Array
from envs.config import SIZE_CHOICES, STOP_CHOICES, TARGET_CHOICES
from envs.core_kernels import ACCOUNT_FEATURES
from envs.risk_kernels import RISK_FEATURES
from envs.vector_core import VectorCoreEnv
from envs.vector_risk import VectorRiskEnv

VectorEnv = VectorCoreEnv | VectorRiskEnv
_RISK_CHOICES = (SIZE_CHOICES, STOP_CHOICES, TARGET_CHOICES)


class Step(NamedTuple):
    """What one step showed and gave."""

    rows: AnyArray
    observed: Float32Array
    alive: AnyArray
    rewards: Float32Array
    discounts: Float32Array


def choices(env: VectorEnv, seed: int, tick: int) -> AnyArray:
    """Random actions (E, 4) or (E, 3), by (seed, tick) and the environments' global numbers."""
    bounds = (3, 3, 3, 3) if isinstance(env, VectorCoreEnv) else _RISK_CHOICES
    u = np.empty((env.first_env + env.num_envs, len(bounds)))
    uniforms(np.uint64(seed), tick, u)
    return (u[env.first_env:] * bounds).astype(np.int8)


def take_step(env: VectorEnv, actions: AnyArray) -> Step:
    """Observe, act on (E, A) actions, and report."""
    core = isinstance(env, VectorCoreEnv)
    observed = np.empty((env.num_envs, ACCOUNT_FEATURES if core else RISK_FEATURES), np.float32)
    rewards, discounts = np.empty(env.num_envs, np.float32), np.empty(env.num_envs, np.float32)
    env.observe(observed)
    rows, alive = env.rows.copy(), env.alive.copy()
    if isinstance(env, VectorCoreEnv):
        env.vote(np.ascontiguousarray(actions[:, :3]))
        env.execute(np.ascontiguousarray(actions[:, 3]), rewards, discounts)
    else:
        env.step(actions, rewards, discounts)
    return Step(rows, observed, alive, rewards, discounts)


def play(env: VectorEnv, segments: int, length: int, seed: int) -> list[Step]:
    """`segments` segments of `length` random steps."""
    steps = []
    for segment in range(segments):
        env.begin_segment()
        steps += [take_step(env, choices(env, seed, segment * length + t)) for t in range(length)]
    return steps


def same(first: list[Step], second: list[Step]) -> None:
    """Two trajectories are equal to the last bit."""
    assert len(first) == len(second)
    for t, (a, b) in enumerate(zip(first, second, strict=True)):
        for name, x, y in zip(Step._fields, a, b, strict=True):
            assert x.tobytes() == y.tobytes(), f"step {t}: {name} differ"


def check_values(steps: list[Step]) -> None:
    """Everything is finite, discounts are 0 or 1, and the dead earn nothing."""
    for step in steps:
        assert np.isfinite(step.observed).all()
        assert np.isfinite(step.rewards).all()
        assert np.isin(step.discounts, (0.0, 1.0)).all()
        assert not step.rewards[~step.alive].any()


def check_determinism(make: Callable[[], VectorEnv], segments: int, length: int, seed: int) -> None:
    """Two environments of one making live the same lives."""
    same(play(make(), segments, length, seed), play(make(), segments, length, seed))


def check_shards(make: Callable[[int, int], VectorEnv], segments: int, length: int, seed: int, size: int) -> None:
    """`make(first_env, num_envs)`: environments 0..size-1 do the same in one batch or split into shards."""
    whole = play(make(0, size), segments, length, seed)
    cut = size // 3 + 1
    parts = [play(make(first, count), segments, length, seed) for first, count in ((0, cut), (cut, size - cut))]
    joined = [Step(*(np.concatenate(fields) for fields in zip(*both, strict=True)))
              for both in zip(*parts, strict=True)]
    same(whole, joined)


def check_state(make: Callable[[], VectorEnv], segments: int, length: int, seed: int) -> None:
    """An environment that takes over another's state continues as that one does."""
    original, successor = make(), make()
    play(original, segments, length, seed)
    state: dict[str, Any] = original.get_state()
    kept = {name: array.copy() for name, array in state.items()}
    expected = play(original, segments, length, seed + 1)
    for name, array in state.items():
        assert array.tobytes() == kept[name].tobytes(), f"get_state gave a view of {name}"
    successor.set_state(state)
    same(expected, play(successor, segments, length, seed + 1))


def check_balance(env: VectorEnv, multiplier: float, initial: float) -> None:
    """equity = start + realised + unrealised - costs, in every account (markets without rolls)."""
    account = env.accounts
    unrealised = np.where(account["position"] != 0.0,
                          account["position"] * (account["mark"] - account["entry"]) * multiplier, 0.0)
    balance = initial + account["realised"] + unrealised - account["costs"]
    np.testing.assert_allclose(account["equity"], balance, rtol=0.0, atol=1e-5 * initial / 1e3)
