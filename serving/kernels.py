"""Compiled parts of a decision behind the embedders, N rows at once: trunk, masked heads, votes, gate, sizes.

Every sum runs in one fixed order whatever N is and however wide the processor's vectors are, so that a row's
answer does not depend on the rows beside it.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np

from agents.gate import _judge, _softmax_and_mean, agreed
from agents.hyperbolic import tanh_approx
from agents.mask_rows import BANK_ROWS
from algospace.errors import InternalError
from algospace.risk.limits import limit_contracts
from algospace.seeding import combine
from algospace.types import AnyArray, BoolArray, Float32Array, FloatArray, IntArray

AGENTS = 4
STRIDE = 2 * AGENTS
"""A decision's masks are every second row of the bank, agent by agent: one agent's are STRIDE rows apart."""
_LANES = 16
_MASKED_LOGIT = np.float32(-1e9)
_MOST_SAMPLES = 256


@nb.njit(cache=True, error_model="numpy")
def dense_tanh(inputs: Float32Array, weight: Float32Array, bias: Float32Array, out: Float32Array) -> None:
    """tanh(inputs (N, I) times weight (I, O) + bias (O,)) -> out (N, O)."""
    for n in range(inputs.shape[0]):
        for j in range(out.shape[1]):
            out[n, j] = bias[j]
        for i in range(inputs.shape[1]):
            x = inputs[n, i]
            for j in range(out.shape[1]):
                out[n, j] += x * weight[i, j]
        for j in range(out.shape[1]):
            out[n, j] = tanh_approx(out[n, j])


@nb.njit(cache=True, error_model="numpy")
def trunk(own: Float32Array, context: Float32Array, w_own: Float32Array, w_context: Float32Array,
          agent: Float32Array, w_out: Float32Array, b_out: Float32Array, out: Float32Array) -> None:
    """own (N, A, D), context (N, C), agent (A, H), the first layer's columns of these agents with its bias
    -> hidden (N, A, H)."""
    rows, agents, hidden = out.shape
    shared, first = np.empty(hidden, np.float32), np.empty(hidden, np.float32)
    for n in range(rows):
        shared[:] = np.float32(0.0)
        for i in range(context.shape[1]):
            x = context[n, i]
            for j in range(hidden):
                shared[j] += x * w_context[i, j]
        for a in range(agents):
            for j in range(hidden):
                first[j] = shared[j] + agent[a, j]
            for i in range(own.shape[2]):
                x = own[n, a, i]
                for j in range(hidden):
                    first[j] += x * w_own[i, j]
            for j in range(hidden):
                first[j] = tanh_approx(first[j])
                out[n, a, j] = b_out[j]
            for i in range(hidden):
                x = first[i]
                for j in range(hidden):
                    out[n, a, j] += x * w_out[i, j]
            for j in range(hidden):
                out[n, a, j] = tanh_approx(out[n, a, j])


def mask_lanes(bank: Float32Array) -> tuple[AnyArray, np.float32]:
    """The bank (BANK_ROWS, H) laid out for `masked_heads`: (STRIDE, H, L) of 0 and 1, where [r, :, i] is row
    (i * STRIDE + r) mod BANK_ROWS, and what 1 stands for; the masks of one agent's samples lie side by side.

    Bytes, because with many samples the time goes into fetching them. InternalError if the bank holds more than
    zeros and one other value.
    """
    kept = bank.max()
    if not np.isin(bank, (0.0, kept)).all():
        raise InternalError("a bank of masks holds more than zeros and one other value")
    per_residue = BANK_ROWS // STRIDE
    lanes = (bank != 0.0).view(np.uint8).reshape(per_residue, STRIDE, -1).transpose(1, 2, 0)
    return np.ascontiguousarray(np.concatenate((lanes, lanes[:, :, :_MOST_SAMPLES + _LANES]), 2)), kept


@nb.njit(cache=True)
def mask_starts(seeds: AnyArray, starts: IntArray) -> None:
    """Where the masks of decisions with the given seeds (N,) uint64 begin in the bank: see MaskBank."""
    for n in range(seeds.size):
        starts[n] = np.int64(combine(seeds[n], np.uint64(0)) % np.uint64(BANK_ROWS))


@nb.njit(cache=True)
def masked_heads(hidden: Float32Array, starts: IntArray, first_agent: int, lanes: AnyArray, kept: Any,
                 weight: Float32Array, bias: Float32Array, skip: BoolArray, logits: Float32Array) -> None:
    """hidden (N, A, H) times the masks that begin at bank row `starts` (N,), `kept` where a lane is 1; weight
    (A, H, 3), bias (A, 3) -> logits (N, K, A, 3); rows that `skip` (N,) names are left alone.

    Two units at a time, added one after the other: a sum is fetched and stored once for both.
    """
    rows, samples, agents, actions = logits.shape
    units, nothing = hidden.shape[2], np.float32(0.0)
    padded = (samples + _LANES - 1) // _LANES * _LANES
    acc = np.empty((3, padded), np.float32)
    first, second, third = acc[0], acc[1], acc[2]
    for n in range(rows):
        if skip[n]:
            continue
        for a in range(agents):
            row = starts[n] + 2 * (first_agent + a) + 1
            residue, at = row % STRIDE, (row % BANK_ROWS) // STRIDE
            acc[:] = nothing
            for j in range(0, units, 2):
                i = min(j + 1, units - 1)  # a last odd unit goes with nothing
                x, y = hidden[n, a, j], hidden[n, a, i] if i > j else nothing
                v, w = weight[a, j], weight[a, i]
                x0, x1, x2 = kept * (x * v[0]), kept * (x * v[1]), kept * (x * v[2])
                y0, y1, y2 = kept * (y * w[0]), kept * (y * w[1]), kept * (y * w[2])
                one, other = lanes[residue, j, at:at + padded], lanes[residue, i, at:at + padded]
                for k in range(padded):
                    p, q = np.float32(one[k]), np.float32(other[k])
                    first[k] = (first[k] + p * x0) + q * y0
                    second[k] = (second[k] + p * x1) + q * y1
                    third[k] = (third[k] + p * x2) + q * y2
            for k in range(samples):
                for c in range(actions):
                    logits[n, k, a, c] = acc[c, k] + bias[a, c]


@nb.njit(cache=True)
def forbid(logits: Float32Array, allowed: BoolArray) -> None:
    """Execution logits (N, K, 1, 3): actions that `allowed` (N, 3) denies become impossible."""
    for n in range(logits.shape[0]):
        for k in range(logits.shape[1]):
            for c in range(3):
                if not allowed[n, c]:
                    logits[n, k, 0, c] = _MASKED_LOGIT


@nb.njit(cache=True)
def count_rows(logits: Float32Array, probabilities: FloatArray, mean: FloatArray, chosen: AnyArray,
               direction: AnyArray) -> None:
    """agents.gate.count_votes for every row: voter logits (N, K, 3, 3) -> probabilities (N, K, 3, 3), their mean
    (N, 3, 3), votes (N, 3) int8 and the agreed direction (N,) int8."""
    for n in range(logits.shape[0]):
        p, m = _softmax_and_mean(logits[n])
        probabilities[n], mean[n] = p, m
        for a in range(3):
            chosen[n, a] = np.argmax(m[a])
        direction[n] = agreed(chosen[n, 0], chosen[n, 1], chosen[n, 2])


@nb.njit(cache=True)
def judge_rows(probabilities: FloatArray, chosen: AnyArray, direction: AnyArray, execution: Float32Array,
               asked: BoolArray, temperature: float, kappa: float, numbers: FloatArray, actions: AnyArray) -> None:
    """agents.gate's judgement of every row: execution logits (N, K, 1, 3) -> numbers (N, 5) confidence, entropy,
    mutual information, std, agreement, and actions (N,), -1 where execution is not asked."""
    nothing = np.zeros((0, 3))
    for n in range(probabilities.shape[0]):
        wanted: Any = np.int64(direction[n])
        agreeing = np.zeros(3, np.bool_)
        for a in range(3):
            agreeing[a] = wanted != 0 and chosen[n, a] == wanted + 1
        given = nothing
        if asked[n]:
            given = np.ascontiguousarray(_softmax_and_mean(execution[n])[0][:, 0])
        _, answer, action = _judge(probabilities[n], agreeing, wanted, given, temperature, kappa)
        for i in range(5):
            numbers[n, i] = answer[i]
        actions[n] = action


@nb.njit(cache=True)
def limit_rows(limits: Any, orders: FloatArray, opportunity: AnyArray, money: FloatArray, multiplier: float,
               exit_cost: float, codes: AnyArray) -> None:
    """The hard limits on orders (N, 3) of a team that was trained without sizes; money (N, 2) is equity and its
    value at the day's start, account currency."""
    for n in range(orders.shape[0]):
        if opportunity[n] == 0:
            continue
        stop = orders[n, 1]
        risk = stop * multiplier + exit_cost if stop > 0.0 else 0.0
        orders[n, 0], codes[n] = limit_contracts(limits, orders[n, 0], risk, money[n, 0], money[n, 1], 0)
