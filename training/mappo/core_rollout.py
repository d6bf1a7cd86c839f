"""The decisions of one segment in one compiled loop: heads, draws and both half-steps of the environment.

What depends on the market alone (embeddings, and with them most of the trunk's first layer) is computed before,
in large matrix products; only the account is fed back step by step. `CoreSampler.step` states the same in torch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba as nb
import numpy as np

from agents.fused import FAST
from agents.hyperbolic import tanh_approx
from algospace.seeding import combine, to_unit
from algospace.types import AnyArray, Float32Array
from envs.core_kernels import execute_kernel, observe_kernel, vote_kernel

_VOTERS, _CHOICES = 3, 3
_MASKED_LOGIT = np.float32(-1e9)


class Weights(NamedTuple):
    """The trunk and the heads, as the loop reads them."""

    account: Float32Array      # (8, H) of the trunk's first layer
    own: Float32Array          # (D, H) the same, of an agent's own input
    agent: Float32Array        # (4, H) the same, of the agent one-hot, with the bias
    execution: Float32Array    # (12, D)
    execution_bias: Float32Array
    out: Float32Array          # (H, H) the trunk's second layer
    out_bias: Float32Array
    head: Float32Array         # (4, 3, H)
    head_bias: Float32Array    # (4, 3)
    bank: Float32Array         # (R, H) dropout masks


class Segments(NamedTuple):
    """One segment of every environment, time first; the first two also hold the row after the last decision."""

    rows: AnyArray
    account: Float32Array
    actions: AnyArray
    log_p: Float32Array
    valid: AnyArray
    alive: AnyArray
    proposal: Float32Array
    allowed: AnyArray
    rewards: Float32Array
    discounts: Float32Array


@nb.njit(cache=True)
def decision_draws(seed: Any, size: int, steps: int) -> AnyArray:
    """U[0, 1) of every decision and agent, (T, E, 4): what `rollout` draws."""
    out = np.empty((steps, size, _VOTERS + 1))
    for t in range(steps):
        for e in range(size):
            key = combine(combine(seed, e), t)
            for a in range(_VOTERS + 1):
                out[t, e, a] = to_unit(combine(key, a))
    return out


@nb.njit(inline="always", error_model="numpy")
def _decide(hidden: Any, second: Any, weights: Any, agent: int, mask_row: int, allowed: Any, u: float) -> Any:
    """First-layer sums (H,) -> (action, its log-probability): second layer, mask, head, a draw by u in [0, 1)."""
    size = hidden.size
    for h in range(size):
        hidden[h] = tanh_approx(hidden[h])
        second[h] = weights.out_bias[h]
    whole = size - size % 4
    for k in range(0, whole, 4):  # four rows at once: a quarter of the loads and stores of `second`
        v0, v1, v2, v3 = hidden[k], hidden[k + 1], hidden[k + 2], hidden[k + 3]
        for h in range(size):
            second[h] += (v0 * weights.out[k, h] + v1 * weights.out[k + 1, h] + v2 * weights.out[k + 2, h]
                          + v3 * weights.out[k + 3, h])
    for k in range(whole, size):
        for h in range(size):
            second[h] += hidden[k] * weights.out[k, h]
    z0, z1, z2 = weights.head_bias[agent, 0], weights.head_bias[agent, 1], weights.head_bias[agent, 2]
    for h in range(size):
        kept = tanh_approx(second[h]) * weights.bank[mask_row, h]
        z0 += kept * weights.head[agent, 0, h]
        z1 += kept * weights.head[agent, 1, h]
        z2 += kept * weights.head[agent, 2, h]
    z0 = z0 if allowed[0] else _MASKED_LOGIT
    z1 = z1 if allowed[1] else _MASKED_LOGIT
    z2 = z2 if allowed[2] else _MASKED_LOGIT
    top = max(z0, z1, z2)
    p0, p1, p2 = np.exp(z0 - top), np.exp(z1 - top), np.exp(z2 - top)
    total = p0 + p1 + p2
    point = np.float32(u) * total
    action = 0 if point < p0 else (1 if point < p0 + p1 else 2)
    if not allowed[action]:  # u so close to 1 that rounding passed the last allowed one
        action = 1 if allowed[1] else 0
    chosen = z0 if action == 0 else (z1 if action == 1 else z2)
    return action, chosen - top - np.log(total)


@nb.njit(cache=True, fastmath=FAST, error_model="numpy", nogil=True)
def rollout(game: Any, weights: Any, voters: Float32Array, shared: Float32Array, mask_rows: AnyArray, seed: Any,
            out: Any) -> None:
    """T decisions of E environments; `game` is an envs.vector_core.Game.

    voters (3, T, E, H): the trunk's first layer on the voters' embeddings; shared (T, E, H): the same on the
    market context; mask_rows (E, T, 4); seed uint64 of the draws. Fills `out`.
    """
    steps, size, width = shared.shape
    every = np.ones(_CHOICES, np.bool_)
    hidden, second = np.empty(width, np.float32), np.empty(width, np.float32)
    base, votes = np.empty((size, width), np.float32), np.empty((size, _VOTERS), np.int8)
    actions, own = np.empty(size, np.int8), np.empty(weights.execution_bias.size, np.float32)
    batch = game.batch
    for t in range(steps):
        observe_kernel(batch, game.market, game.rules, game.limits, out.account[t])
        for e in range(size):
            out.rows[t, e], out.alive[t, e] = batch.rows[e], batch.alive[e]
            voting = batch.voting[e] and batch.alive[e]
            key = combine(combine(seed, e), t)
            for h in range(width):
                base[e, h] = shared[t, e, h]
            for i in range(out.account.shape[2]):
                value = out.account[t, e, i]
                for h in range(width):
                    base[e, h] += value * weights.account[i, h]
            for a in range(_VOTERS):
                for h in range(width):
                    hidden[h] = voters[a, t, e, h] + base[e, h] + weights.agent[a, h]
                action, log_p = _decide(hidden, second, weights, a, mask_rows[e, t, a], every,
                                        to_unit(combine(key, a)))
                if not voting:
                    action = 1
                votes[e, a], out.actions[t, e, a] = action, action
                out.log_p[t, e, a], out.valid[t, e, a] = log_p, voting
        vote_kernel(batch, game.market, game.rules, game.limits, game.proposals, votes, game.proposal,
                    game.limit_codes)
        for e in range(size):
            out.valid[t, e, _VOTERS] = batch.asked[e]
            for i in range(_CHOICES):
                out.allowed[t, e, i] = batch.action_mask[e, i]
                out.proposal[t, e, i] = game.proposal[e, i]
            for d in range(own.size):
                own[d] = weights.execution_bias[d]
            for a in range(_VOTERS):
                for d in range(own.size):
                    own[d] += weights.execution[a * _CHOICES + votes[e, a], d]
            for i in range(_CHOICES):
                value = game.proposal[e, i]
                for d in range(own.size):
                    own[d] += value * weights.execution[_VOTERS * _CHOICES + i, d]
            for h in range(width):
                hidden[h] = base[e, h] + weights.agent[_VOTERS, h]
            for d in range(own.size):
                value = tanh_approx(own[d])
                for h in range(width):
                    hidden[h] += value * weights.own[d, h]
            u = to_unit(combine(combine(combine(seed, e), t), _VOTERS))
            action, log_p = _decide(hidden, second, weights, _VOTERS, mask_rows[e, t, _VOTERS],
                                    out.allowed[t, e], u)
            actions[e], out.actions[t, e, _VOTERS], out.log_p[t, e, _VOTERS] = action, action, log_p
        execute_kernel(batch, game.market, game.rules, game.limits, game.venue, game.side_cost, game.fills,
                       actions, out.rewards[t], out.discounts[t])
    observe_kernel(batch, game.market, game.rules, game.limits, out.account[steps])
    for e in range(size):
        out.rows[steps, e] = batch.rows[e]
