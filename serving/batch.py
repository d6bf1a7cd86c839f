"""Many decisions in one pass: arrays in, arrays out, row i equal to the decision of row i alone.

The embedders and the M-RMS see all rows at once, in the backend's own arithmetic: a matrix product of another size
may round otherwise, so equality there is within 1e-6. Everything behind them is equal to the bit
(serving.kernels).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from agents.gate import Uncertainty
from algospace.execution.decision import Decision, Reason, RiskProposal
from algospace.execution.mechanics import ACCOUNT_DTYPE
from algospace.execution.result import REASON_CODE, REASONS
from algospace.risk.limits import Limit
from algospace.types import AnyArray, BoolArray, Float32Array, FloatArray
from envs.core_kernels import EXECUTE
from serving import kernels
from serving.desk import Desk, Offers

if TYPE_CHECKING:
    from serving.decider import Decider, DecisionInputs

LIMIT_NAMES = tuple(limit.name for limit in Limit)
REASON_NAMES = tuple(reason.value for reason in REASONS)
VOTER_NAMES = ("strategic", "tactical", "arbitrage")


@dataclass(frozen=True)
class BatchInputs:
    """N decisions, field by field as in serving.decider.DecisionInputs and MarketState.

    strategic (N, Ws, Fs), tactical (N, Wt, Ft), regime vectors (N, R), synergy (N, 3), close and atr (N,), clock
    (N, 2), lvn (N, 2), accounts (N,) ACCOUNT_DTYPE, seeds (N,) below 2^63, ts_close (N,) when the bars closed,
    ns UTC, 0 where that is not told, gate (N, 2) level and threshold of the gate's online correction, NaN where it
    is as it was calibrated.
    """

    strategic: Float32Array
    tactical: Float32Array
    regime: Float32Array
    synergy: Float32Array
    close: FloatArray
    atr: FloatArray
    clock: FloatArray
    lvn: FloatArray
    accounts: AnyArray
    seeds: AnyArray
    ts_close: AnyArray
    gate: FloatArray

    def __len__(self) -> int:
        return len(self.seeds)

    def rows(self, pick: AnyArray | slice) -> BatchInputs:
        """Some rows of these."""
        return BatchInputs(**{name: value[pick] for name, value in vars(self).items()})

    @staticmethod
    def of(rows: Sequence[DecisionInputs], regime: Float32Array) -> BatchInputs:
        """Rows of one shape, at least one; `regime` (N, R) holds their regime vectors."""
        markets = [row.market for row in rows]
        return BatchInputs(
            np.stack([row.strategic for row in rows]), np.stack([row.tactical for row in rows]), regime,
            np.stack([market.synergy for market in markets]), np.array([market.close for market in markets]),
            np.array([market.atr for market in markets]), np.array([market.clock for market in markets]),
            np.array([market.lvn for market in markets]),
            np.array([row.account for row in rows], ACCOUNT_DTYPE),
            np.array([row.seed for row in rows], np.uint64),
            np.array([market.ts_close_ns or 0 for market in markets], np.int64),
            np.array([(np.nan, np.nan) if row.gate is None else row.gate[1:] for row in rows]))


@dataclass(frozen=True)
class BatchDecisions:
    """N decisions. reasons: codes of algospace.execution.result.REASONS; orders (N, 3) contracts, stop and target
    distance; limits: codes of Limit; votes (N, 3, 3) mean probabilities; uncertainty (N, 4) as agents.gate has
    it."""

    reasons: AnyArray
    direction: AnyArray
    confidence: FloatArray
    orders: FloatArray
    limits: AnyArray
    votes: FloatArray
    uncertainty: FloatArray

    def __len__(self) -> int:
        return len(self.reasons)

    @property
    def finite(self) -> BoolArray:
        """(N,): whether every number of the row's decision is one. Where it is not, there is no decision."""
        sums = self.confidence + self.orders.sum(1) + self.votes.sum((1, 2)) + self.uncertainty.sum(1)
        found: BoolArray = np.isfinite(sums)
        return found

    def rows(self, pick: AnyArray) -> BatchDecisions:
        """Some rows of these."""
        return BatchDecisions(**{name: value[pick] for name, value in vars(self).items()})

    @staticmethod
    def of_nothing(rows: int) -> BatchDecisions:
        """Decisions that nobody was asked about: all numbers are 0."""
        return BatchDecisions(np.full(rows, REASON_CODE[Reason.NO_OPPORTUNITY], np.int8), np.zeros(rows, np.int8),
                              np.zeros(rows), np.zeros((rows, 3)), np.zeros(rows, np.int8),
                              np.zeros((rows, 3, 3)), np.zeros((rows, 4)))

    def put(self, pick: AnyArray, decided: BatchDecisions) -> None:
        """Write `decided` into the rows `pick` of these."""
        for name, value in vars(decided).items():
            getattr(self, name)[pick] = value

    def decision(self, row: int) -> Decision:
        """Row `row` as a decision of its own."""
        votes = {name: (p[0], p[1], p[2])
                 for name, p in zip(VOTER_NAMES, self.votes[row].tolist(), strict=True)}
        contracts, stop, target = self.orders[row].tolist()
        proposal = RiskProposal(contracts, stop, target, LIMIT_NAMES[self.limits[row]])
        return Decision(REASONS[self.reasons[row]], int(self.direction[row]), float(self.confidence[row]),
                        proposal, votes, Uncertainty(*self.uncertainty[row].tolist())._asdict())


def decide_batch(decider: Decider, inputs: BatchInputs, threshold: float | None = None) -> BatchDecisions:
    """Decide N >= 1 rows in one pass; shapes must fit the bundle (`Decider.check` on a row tells)."""
    desk = Desk(decider.bundle, len(inputs))
    observed = desk.observe(inputs.close, inputs.atr, inputs.clock, inputs.accounts)
    context = np.concatenate((inputs.regime, inputs.synergy, observed), 1)
    embedded = decider.backend.infer("embed", {"strategic": inputs.strategic,
                                               "tactical": inputs.tactical})["embedded"]
    starts = decider.heads.starts(inputs.seeds)
    logits = decider.heads.votes(embedded, context, starts)
    rows, samples = len(inputs), logits.shape[1]
    probabilities, means = np.empty((rows, samples, 3, 3)), np.empty((rows, 3, 3))
    chosen, direction = np.empty((rows, 3), np.int8), np.empty(rows, np.int8)
    kernels.count_rows(logits, probabilities, means, chosen, direction)
    voting = (inputs.synergy[:, 0] > 0.0) if decider.by_synergy else np.ones(rows, np.bool_)
    offers = desk.vote(chosen, _proposals(decider, inputs, np.where(voting, direction, 0)), voting)
    answers = decider.heads.execution(chosen, offers.encoded, context, starts, offers.allowed, offers.asked)
    gate = decider.gate
    numbers, actions = np.empty((rows, 5)), np.empty(rows, np.int64)
    kernels.judge_rows(probabilities, chosen, direction, answers, offers.asked, gate.temperature,
                       gate.config.kappa, numbers, actions)
    default = gate.threshold if threshold is None else threshold
    own = np.full(rows, np.nan) if threshold is not None else inputs.gate[:, 1]
    reasons = _reasons(decider, direction, actions, numbers, offers, desk.held,
                       np.where(np.isnan(own), default, own))
    return BatchDecisions(reasons, direction, numbers[:, 0].copy(), offers.orders, offers.limits, means,
                          numbers[:, 1:])


def _proposals(decider: Decider, inputs: BatchInputs, direction: AnyArray) -> Float32Array:
    """(N, 2, 3), of which only the wanted side of rows with a direction is filled."""
    proposals = np.zeros((len(inputs), 2, 3), np.float32)
    wanted = np.flatnonzero(direction)
    if wanted.size:
        every = wanted.size == len(inputs)
        pick = slice(None) if every else wanted
        proposals[pick] = decider.proposer.propose_sides(
            inputs.strategic[pick], inputs.tactical[pick], inputs.regime[pick], inputs.atr[pick],
            inputs.lvn[pick], direction[pick])
    return proposals


def _reasons(decider: Decider, direction: AnyArray, actions: AnyArray, numbers: FloatArray, offers: Offers,
             held: FloatArray, thresholds: FloatArray) -> AnyArray:
    """Codes of the final reasons (N,)."""
    codes = np.empty(len(actions), np.int8)
    table = zip(direction.tolist(), actions.tolist(), numbers.tolist(), offers.asked.tolist(),
                offers.allowed[:, EXECUTE].tolist(), offers.orders[:, 0].tolist(), offers.limits.tolist(),
                held.tolist(), thresholds.tolist(), strict=True)
    for row, (way, action, (confidence, *measures), asked, may, contracts, code, position, limit
              ) in enumerate(table):
        reason = decider.gate._reason(way, action, confidence, Uncertainty(*measures), limit)
        if asked:
            reason = after_limits(reason, way, position, contracts, code != 0, may)
        codes[row] = REASON_CODE[reason]
    return codes


def after_limits(reason: Reason, direction: int, held: float, contracts: float, limited: bool,
                 may_execute: bool) -> Reason:
    """What the hard limits leave of the gate's answer.

    A team trained on unit mechanics knows no size and may execute what the limits, or the risk team's zero, leave
    nothing of. The position that such an EXECUTE is against is closed all the same, as it was in training: no
    limit keeps anybody in a position.
    """
    if reason is Reason.REJECTED and limited and not may_execute:
        return Reason.RISK_LIMIT
    if reason is Reason.EXECUTE and contracts <= 0.0:
        if held * direction < 0.0:
            return Reason.CLOSE
        return Reason.RISK_LIMIT if limited else Reason.REJECTED
    return reason
