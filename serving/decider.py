"""From features to a decision: one pure function of (bundle, backend, inputs, seed).

The account observation, the opportunity, the hard limits and the allowed actions come from the environment's own
compiled half-steps (`envs.core_kernels`), run on one environment: serving cannot drift from training.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from agents.dropout import MaskBank
from agents.gate import Verdict, Votes, count_votes, execution_probabilities
from algospace.errors import SchemaError
from algospace.execution.decision import Decision, Reason, RiskProposal
from algospace.execution.mechanics import ACCOUNT_DTYPE
from algospace.risk.limits import Limit, limit_contracts
from algospace.types import Float32Array
from envs.core_kernels import ACCOUNT_FEATURES, BAR_DTYPE, EXECUTE, Market, observe_kernel, vote_kernel
from envs.vector_core import build_rules, empty_batch, read_only
from serving.backends import Backend
from serving.bundle import Bundle
from serving.proposals import Proposer

VOTER_NAMES = ("strategic", "tactical", "arbitrage")
Propose = Callable[[int], Float32Array]
"""Direction -> proposals (1, 2, 3), of which only that direction's side is read."""
NO_PROPOSAL = RiskProposal(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class MarketState:
    """What the account's observation and the limits need of the market, in raw points and exchange time.

    atr: of base bars; clock: hour_sin, hour_cos of the bar's close; synergy: (type/4, direction, bars/10) of the
    bar; lvn: signed distance in points from the close to the nearest low volume node (NaN: none) and its
    strength, 0..100.
    """

    close: float
    atr: float
    clock: tuple[float, float]
    synergy: Float32Array
    lvn: tuple[float, float] = (math.nan, 0.0)


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


class Decider:
    """The team and the gate of one bundle on one backend. Not for use by several threads at once."""

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        manifest = bundle.manifest
        self.bundle, self.backend, self.schema = bundle, backend, bundle.schema
        self.gate = bundle.gate()
        self.proposer = Proposer(bundle, backend)
        core = manifest.networks.core
        self._bank = MaskBank(manifest.mask_key, core.hidden, core.dropout)
        self._samples = manifest.gate.iterations
        self._ones = np.ones((1, 4, core.hidden), np.float32)
        self._by_synergy = manifest.env.decision_points == "synergy"
        self._desk = _Desk(bundle)

    def decide(self, inputs: DecisionInputs, threshold: float | None = None) -> Decision:
        """Decide from complete inputs; SchemaError if a shape does not fit the bundle."""
        self.check(inputs)
        windows = {"strategic": inputs.strategic[None], "tactical": inputs.tactical[None]}
        regime = self.regime_vector(inputs.regime)
        embedded = self.backend.infer("embed", windows)["embedded"]
        market = inputs.market

        def propose(direction: int) -> Float32Array:
            return self.proposer.propose(inputs.strategic[None], inputs.tactical[None], regime[None],
                                         np.array([market.atr]), np.array([market.lvn]), direction)

        return self.decide_embedded(embedded, regime, propose, market, inputs.account, inputs.seed, threshold)

    def decide_embedded(self, embedded: Float32Array, regime: Float32Array, propose: Propose,
                        market: MarketState, account: Any, seed: int, threshold: float | None = None) -> Decision:
        """Decide from embeddings (1, 3, D) and the regime vector (R,); `propose` is asked if a side is wanted."""
        observed = self._desk.observe(market, account)
        masks = self.masks(seed)
        context = {"regime": regime[None], "synergy": market.synergy[None], "account": observed}
        logits = self.backend.infer(
            "heads", {"embedded": embedded, "masks": masks[None, :, :3], **context})["logits"]
        votes = count_votes(logits[0])
        voting = not self._by_synergy or market.synergy[0] > 0.0
        asked, allowed, encoded, proposal = self._desk.vote(votes, propose, voting)
        if not asked:
            return _decision(Reason.NO_OPPORTUNITY, self.gate.decide(votes, None), votes, NO_PROPOSAL)
        one_hot = np.zeros((1, 3, 3), np.float32)
        one_hot[0, (0, 1, 2), votes.chosen] = 1.0
        answer = self.backend.infer("execute", {
            "votes": one_hot, "proposal": encoded, "allowed": allowed, "masks": masks[None, :, 3:], **context})
        verdict = self.gate.decide(votes, execution_probabilities(answer["logits"][0]), threshold)
        reason = verdict.reason
        refused = proposal.limit != Limit.NONE.name and not allowed[0, EXECUTE]
        if reason is Reason.REJECTED and refused:
            reason = Reason.RISK_LIMIT
        elif reason is Reason.EXECUTE and proposal.contracts <= 0.0:
            # unit mechanics know no size: the hard limits and the risk team's zero still stand
            reason = Reason.REJECTED if proposal.limit == Limit.NONE.name else Reason.RISK_LIMIT
        return _decision(reason, verdict, votes, proposal)

    def masks(self, seed: int) -> Float32Array:
        """(K, 4, H) dropout masks of a decision, voters then execution; one mask of ones decides without."""
        if self._samples == 1:
            return self._ones
        return self._bank.masks[self._bank.decision_rows(seed, self._samples, 4)].numpy()

    def regime_vector(self, regime: Float32Array) -> Float32Array:
        """(R,): as given, or the RDE's answer to a regime window."""
        if regime.ndim == 1:
            return regime
        return self.backend.infer("rde", {"window": regime[None]})["regime"][0]

    def check(self, inputs: DecisionInputs) -> None:
        """SchemaError if a shape does not fit the bundle."""
        schema, size = self.schema, self.bundle.manifest.regime_size
        expected: dict[str, list[tuple[int, ...]]] = {
            "strategic": [(schema.strategic.window, schema.strategic.width)],
            "tactical": [(schema.tactical.window, schema.tactical.width)], "regime": [(size,)]}
        if self.bundle.has("rde"):
            expected["regime"].append((schema.regime.window, schema.regime.width))
        for name, shapes in expected.items():
            found = getattr(inputs, name).shape
            if found not in shapes:
                raise SchemaError(f"{name} has shape {found}, the bundle needs {' or '.join(map(str, shapes))}")
        if inputs.market.synergy.shape != (3,):
            raise SchemaError(f"synergy has shape {inputs.market.synergy.shape}, the bundle needs (3,)")


class _Desk:
    """One environment of the batched kernels, filled with the real account and the present bar."""

    def __init__(self, bundle: Bundle) -> None:
        config = bundle.manifest.env
        self._rules = build_rules(bundle.instrument, config, bundle.manifest.risk_unit)
        self._limits = config.limits.record()[()]
        self._bars = np.zeros(1, BAR_DTYPE)
        self._clock = np.zeros((1, 2), np.float32)
        self._market = Market(read_only(self._bars), read_only(self._clock),
                              read_only(np.zeros(1, np.int32)))
        self._batch = empty_batch(1, self._market, self._rules)
        self._multiplier = bundle.instrument.multiplier
        self._encoded = np.zeros((1, 3), np.float32)
        self._codes = np.zeros(1, np.int8)
        self._nothing = np.zeros((1, 2, 3), np.float32)
        self._money = 0.0, 0.0  # equity and its value at the day's start, in account currency

    def observe(self, market: MarketState, account: Any) -> Float32Array:
        """The account features (1, 8)."""
        self._bars["close"], self._bars["atr"] = market.close, market.atr
        self._clock[0] = market.clock
        self._batch.accounts[0] = account
        self._money = float(account["equity"]), float(account["day_start"])
        if self._rules.unit:
            self._as_unit(self._batch.accounts[0], market.close)
        out = np.empty((1, ACCOUNT_FEATURES), np.float32)
        observe_kernel(self._batch, self._market, self._rules, self._limits, out)
        return out

    def _as_unit(self, account: Any, close: float) -> None:
        """A real account as a policy trained on unit mechanics knows it: a side, and money as a fraction of the
        notional held (of one contract when flat)."""
        notional = close * self._multiplier * max(1.0, abs(account["position"]))
        account["equity"] = (account["equity"] - account["day_start"]) / notional
        account["day_start"] = 0.0
        account["position"] = np.sign(account["position"])
        account["stop"] = account["target"] = np.nan

    def vote(self, votes: Votes, propose: Propose,
             voting: bool) -> tuple[bool, Float32Array, Float32Array, RiskProposal]:
        """(asked, allowed actions (1, 3), encoded proposal (1, 3), the proposal after limits)."""
        batch = self._batch
        proposals = propose(votes.direction) if votes.direction and voting else self._nothing
        batch.voting[0] = voting
        vote_kernel(batch, self._market, self._rules, self._limits, read_only(proposals),
                    votes.chosen.astype(np.int8)[None], self._encoded, self._codes)
        contracts, stop, target = batch.order[0].tolist()
        proposal = NO_PROPOSAL
        if batch.opportunity[0] != 0:
            code = int(self._codes[0])
            if self._rules.unit:  # the team saw the proposal as it was; what leaves the desk is limited
                contracts, code = self._limited(contracts, stop)
            proposal = RiskProposal(contracts, stop, target, Limit(code).name)
        return (bool(batch.asked[0]), batch.action_mask.astype(np.float32), self._encoded.copy(), proposal)


    def _limited(self, contracts: float, stop: float) -> tuple[float, int]:
        """Contracts after the hard limits, and the limit's code."""
        risk = stop * self._multiplier + self._rules.exit_cost if stop > 0.0 else 0.0
        allowed, code = limit_contracts(self._limits, contracts, risk, *self._money, 0)
        return float(allowed), int(code)


def _decision(reason: Reason, verdict: Verdict, votes: Votes, proposal: RiskProposal) -> Decision:
    means = {name: (float(p[0]), float(p[1]), float(p[2]))
             for name, p in zip(VOTER_NAMES, votes.mean, strict=True)}
    return Decision(reason, votes.direction, verdict.confidence, proposal, means,
                    verdict.uncertainty._asdict())


def account_record(**fields: float) -> Any:
    """An ACCOUNT_DTYPE record, flat and without levels except for `fields`."""
    record = np.zeros(1, ACCOUNT_DTYPE)
    record["stop"] = record["target"] = np.nan
    for name, value in fields.items():
        record[name] = value
    return record[0]
