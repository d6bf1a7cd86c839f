"""The team behind its embedders: trunk and K masked heads of voters and execution, from the bundle's weights.

A graph that takes masks as an input spends its time on carrying them there: (B, K, 4, H) numbers of which each is
used three times. Here the bank stays where it is and every row reads its own stretch of it. The numbers are those
of the graphs `heads` and `execute` within float32 rounding (tests/parity/test_serving_heads.py), and they are
the same on every backend.
"""

from __future__ import annotations

from io import BytesIO

import numpy as np

from agents.mask_rows import BANK_ROWS, decision_rows
from algospace.seeding import mask_bank
from algospace.types import AnyArray, BoolArray, Float32Array
from serving import kernels
from serving.bundle import WEIGHTS, Bundle

_VOTE_COLUMNS = np.arange(0, 9, 3)

class Heads:
    """Logits of N decisions; keeps nothing between calls, so rows and threads do not meet."""

    def __init__(self, bundle: Bundle) -> None:
        core = bundle.manifest.networks.core
        self.samples = bundle.manifest.gate.iterations
        self._bank = (np.ones((BANK_ROWS, core.hidden), np.float32) if self.samples == 1 else
                      mask_bank(bundle.manifest.mask_key, BANK_ROWS, core.hidden, core.dropout))
        self._lanes, self._kept = kernels.mask_lanes(self._bank)
        with np.load(BytesIO(bundle.read(WEIGHTS)), allow_pickle=False) as arrays:
            weights = {key.removeprefix("core."): np.asarray(arrays[key], np.float32) for key in arrays.files
                       if key.startswith("core.")}
        first, dim = weights["trunk_in.weight"].T, core.embed_dim
        self._own = np.ascontiguousarray(first[:dim])
        self._context = np.ascontiguousarray(first[dim:-kernels.AGENTS])
        self._agent = np.ascontiguousarray(first[-kernels.AGENTS:] + weights["trunk_in.bias"])
        self._out = np.ascontiguousarray(weights["trunk_out.weight"].T), weights["trunk_out.bias"]
        self._act = np.ascontiguousarray(weights["execution.weight"].T), weights["execution.bias"]
        self._head, self._bias = weights["head"], weights["head_bias"]

    def starts(self, seeds: AnyArray) -> AnyArray:
        """(N,) int64: where each decision's masks begin; seeds (N,) below 2^63."""
        starts = np.empty(len(seeds), np.int64)
        kernels.mask_starts(np.asarray(seeds, np.uint64), starts)
        return starts

    def masks(self, seed: int) -> Float32Array:
        """(K, 4, H) dropout masks of a decision, voters then execution, as the graphs take them; one mask of ones
        decides without."""
        masks: Float32Array = self._bank[decision_rows(seed, self.samples, kernels.AGENTS)]
        return masks

    def votes(self, embedded: Float32Array, context: Float32Array, starts: AnyArray) -> Float32Array:
        """Embeddings (N, 3, D) and context (N, R + 3 + 8) -> the voters' logits (N, K, 3, 3)."""
        return self._logits(embedded, context, starts, slice(0, 3), np.zeros(len(starts), np.bool_))

    def execution(self, chosen: AnyArray, proposal: Float32Array, context: Float32Array, starts: AnyArray,
                  allowed: BoolArray, asked: BoolArray) -> Float32Array:
        """Votes (N, 3), encoded proposal (N, 3), allowed actions (N, 3) -> logits (N, K, 1, 3); rows that are not
        `asked` (N,) hold nothing of meaning."""
        rows = len(starts)
        decision = np.zeros((rows, 12), np.float32)
        decision[:, 9:] = proposal
        decision[np.arange(rows)[:, None], _VOTE_COLUMNS + chosen] = 1.0
        own = np.empty((rows, 1, self._act[1].size), np.float32)
        kernels.dense_tanh(decision, *self._act, own[:, 0])
        logits = self._logits(own, context, starts, slice(3, 4), ~asked)
        kernels.forbid(logits, allowed)
        return logits

    def _logits(self, own: Float32Array, context: Float32Array, starts: AnyArray, who: slice,
                skip: BoolArray) -> Float32Array:
        agents, hidden = who.stop - who.start, self._out[1].size
        state = np.empty((len(starts), agents, hidden), np.float32)
        kernels.trunk(own, context, self._own, self._context, self._agent[who], *self._out, state)
        logits = np.zeros((len(starts), self.samples, agents, 3), np.float32)
        kernels.masked_heads(state, starts, who.start, self._lanes, self._kept, self._head[who], self._bias[who],
                             skip, logits)
        return logits
