"""From features to a decision: one pure function of (bundle, backend, inputs, seed).

The embedders, the M-RMS and the RDE run on the backend; trunk, masked heads, account and limits on compiled code
that is the same for one row and for many (serving.heads, serving.desk, serving.batch).
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from agents.gate import Verdict, Votes, count_votes, execution_probabilities
from algospace.errors import InternalError, SchemaError
from algospace.execution.decision import Decision, Reason, RiskProposal
from algospace.execution.mechanics import ACCOUNT_DTYPE
from algospace.types import AnyArray, Float32Array
from envs.core_kernels import EXECUTE
from serving.backends import Backend
from serving.batch import LIMIT_NAMES, VOTER_NAMES, BatchDecisions, BatchInputs, after_limits, decide_batch
from serving.bundle import Bundle
from serving.correction import GateLevel
from serving.desk import Desk
from serving.heads import Heads
from serving.proposals import Proposer

Propose = Callable[[int], Float32Array]
"""Direction -> proposals (1, 2, 3), of which only that direction's side is read."""
NO_PROPOSAL = RiskProposal(0.0, 0.0, 0.0)
_REGIMES_KEPT = 1024


@dataclass(frozen=True)
class MarketState:
    """What the account's observation and the limits need of the market, in raw points and exchange time.

    atr: of base bars; clock: hour_sin, hour_cos of the bar's close; synergy: (type/4, direction, bars/10) of the
    bar; lvn: signed distance in points from the close to the nearest low volume node (NaN: none) and its
    strength, 0..100; ts_close_ns: when the bar closed (UTC), where that is told.
    """

    close: float
    atr: float
    clock: tuple[float, float]
    synergy: Float32Array
    lvn: tuple[float, float] = (math.nan, 0.0)
    ts_close_ns: int | None = None


@dataclass(frozen=True)
class DecisionInputs:
    """One decision. Windows are normalised as the bundle's schema says, oldest row first: strategic (48, Fs),
    tactical (60, Ft); `regime` is the regime vector (8,) or the regime window (96, Fr). `account` is one
    ACCOUNT_DTYPE record. `seed` chooses the dropout masks."""

    strategic: Float32Array
    tactical: Float32Array
    regime: Float32Array
    market: MarketState
    account: Any
    seed: int
    gate: GateLevel | None = None
    """Where the gate's online correction stands; None: as it was calibrated."""


class Decider:
    """The team and the gate of one bundle on one backend. Not for use by several threads at once."""

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        manifest = bundle.manifest
        self.bundle, self.backend, self.schema = bundle, backend, bundle.schema
        self.gate = bundle.gate()
        self.proposer = Proposer(bundle, backend)
        self.heads = Heads(bundle)
        self.by_synergy = manifest.env.decision_points == "synergy"
        self._desk = Desk(bundle, 1)
        self._nothing = np.zeros((1, 2, 3), np.float32)
        self._regimes: OrderedDict[bytes, Float32Array] = OrderedDict()
        self._shapes = _shapes(bundle)

    def decide(self, inputs: DecisionInputs, threshold: float | None = None) -> Decision:
        """Decide from complete inputs; `threshold` replaces theirs. SchemaError if a shape does not fit the
        bundle, InternalError if the model gives no finite decision."""
        self.check(inputs)
        windows = {"strategic": inputs.strategic[None], "tactical": inputs.tactical[None]}
        regime = self.regime_vector(inputs.regime)
        embedded = self.backend.infer("embed", windows)["embedded"]
        market = inputs.market

        def propose(direction: int) -> Float32Array:
            return self.proposer.propose(inputs.strategic[None], inputs.tactical[None], regime[None],
                                         np.array([market.atr]), np.array([market.lvn]), direction)

        threshold = self.threshold(inputs) if threshold is None else threshold
        return self.decide_embedded(embedded, regime, propose, market, inputs.account, inputs.seed, threshold)

    def threshold(self, inputs: DecisionInputs) -> float:
        """The confidence that an EXECUTE needs: the calibrated one, or as the trades since have corrected it."""
        return self.gate.threshold if inputs.gate is None else inputs.gate.threshold

    def decide_batch(self, inputs: BatchInputs, threshold: float | None = None) -> BatchDecisions:
        """Decide many rows in one pass (serving.batch)."""
        return decide_batch(self, inputs, threshold)

    def decide_embedded(self, embedded: Float32Array, regime: Float32Array, propose: Propose,
                        market: MarketState, account: Any, seed: int, threshold: float | None = None) -> Decision:
        """Decide from embeddings (1, 3, D) and the regime vector (R,); `propose` is asked if a side is wanted.

        The steps are those of serving.batch, functions of heads, desk and gate. Its arrays for N rows cost a
        single decision half as much again (0.76 instead of 0.49 ms), so the order of the steps is written twice;
        tests/property/test_decision_ways.py compares the two to the bit.
        """
        desk = self._desk
        observed = desk.observe(market.close, market.atr, market.clock, account)
        context = np.concatenate((regime[None], market.synergy[None], observed), 1)
        starts = self.heads.starts(np.array([seed], np.uint64))
        votes = count_votes(self.heads.votes(embedded, context, starts)[0])
        voting = not self.by_synergy or bool(market.synergy[0] > 0.0)
        proposals = propose(votes.direction) if votes.direction and voting else self._nothing
        chosen = votes.chosen.astype(np.int8)[None]
        offers = desk.vote(chosen, proposals, voting)
        if not offers.asked[0]:
            return _decision(Reason.NO_OPPORTUNITY, self.gate.decide(votes, None), votes, NO_PROPOSAL)
        answer = self.heads.execution(chosen, offers.encoded, context, starts, offers.allowed, offers.asked)
        verdict = self.gate.decide(votes, execution_probabilities(answer[0]), threshold)
        contracts, stop, target = offers.orders[0].tolist()
        code = int(offers.limits[0])
        reason = after_limits(verdict.reason, votes.direction, float(desk.held[0]), contracts, code != 0,
                              bool(offers.allowed[0, EXECUTE]))
        return _decision(reason, verdict, votes, RiskProposal(contracts, stop, target, LIMIT_NAMES[code]))

    def masks(self, seed: int) -> Float32Array:
        """(K, 4, H) dropout masks of a decision, voters then execution, as the graphs take them; one mask of ones
        decides without."""
        return self.heads.masks(seed)

    def regime_vector(self, regime: Float32Array) -> Float32Array:
        """(R,): as given, or the RDE's answer to a regime window, which is remembered: a window changes once in
        30 minutes. The RDE sees one window at a time, so that the answer never depends on what else was asked."""
        if regime.ndim == 1:
            return regime
        window = np.ascontiguousarray(regime)
        key = hashlib.sha256(window.data).digest()
        known = self._regimes.get(key)
        if known is None:
            known = self.backend.infer("rde", {"window": window[None]})["regime"][0].copy()
            known.flags.writeable = False
            self._regimes[key] = known
            if len(self._regimes) > _REGIMES_KEPT:
                self._regimes.popitem(last=False)
        else:
            self._regimes.move_to_end(key)
        return known

    def regime_vectors(self, windows: AnyArray) -> Float32Array:
        """(N, R) of regime windows (N, Wr, Fr)."""
        return np.stack([self.regime_vector(window) for window in windows])

    def check(self, inputs: DecisionInputs) -> None:
        """SchemaError if a shape does not fit the bundle."""
        for name, shapes in self._shapes.items():
            found = getattr(inputs, name).shape
            if found not in shapes:
                raise SchemaError(f"{name} has shape {found}, the bundle needs {' or '.join(map(str, shapes))}")
        if inputs.market.synergy.shape != (3,):
            raise SchemaError(f"synergy has shape {inputs.market.synergy.shape}, the bundle needs (3,)")


def _shapes(bundle: Bundle) -> dict[str, list[tuple[int, ...]]]:
    """The shapes that the matrices and the regime of a decision may have."""
    schema = bundle.schema
    shapes: dict[str, list[tuple[int, ...]]] = {
        "strategic": [(schema.strategic.window, schema.strategic.width)],
        "tactical": [(schema.tactical.window, schema.tactical.width)], "regime": [(bundle.manifest.regime_size,)]}
    if bundle.has("rde"):
        shapes["regime"].append((schema.regime.window, schema.regime.width))
    return shapes


def _decision(reason: Reason, verdict: Verdict, votes: Votes, proposal: RiskProposal) -> Decision:
    mean = votes.mean.tolist()
    numbers = (verdict.confidence, *verdict.uncertainty, proposal.contracts, proposal.stop_distance,
               proposal.target_distance, *(sum(voter) for voter in mean))
    if not all(map(math.isfinite, numbers)):
        raise InternalError("the model gives no finite decision on these inputs")
    means = {name: (short, wait, long) for name, (short, wait, long) in zip(VOTER_NAMES, mean, strict=True)}
    return Decision(reason, votes.direction, verdict.confidence, proposal, means,
                    verdict.uncertainty._asdict())


def account_record(**fields: float) -> Any:
    """An ACCOUNT_DTYPE record, flat and without levels except for `fields`."""
    record = np.zeros(1, ACCOUNT_DTYPE)
    record["stop"] = record["target"] = np.nan
    for name, value in fields.items():
        record[name] = value
    return record[0]
