"""Every reason of the one enum is reached, and what forbids trading wins over any confidence."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.gate import CLOSE, EXECUTE, REJECT, Gate, GateConfig, count_votes, execution_probabilities
from algospace.clock import ReplayClock
from algospace.execution.decision import Decision, Reason, RiskProposal
from algospace.execution.journal import MemoryJournal
from algospace.execution.preconditions import Conditions, PreconditionsConfig, forbidden, overruled
from algospace.execution.session import Session, TableFeed
from algospace.execution.venue import SimulatedVenue
from algospace.instruments import instrument
from algospace.risk.limits import Limit, LimitsConfig
from serving.batch import after_limits
from tests.session_market import random_table

WIDE = PreconditionsConfig(max_age_s=60.0)


def gate_reason(votes: tuple[int, int, int], action: int, *, sure: float = 20.0, asked: bool = True,
                config: GateConfig | None = None) -> Reason:
    """The gate's answer to logits that put `sure` on the given votes and action; every second mask less so."""
    voters = np.zeros((4, 3, 3), np.float32)
    voters[:, (0, 1, 2), votes] = sure
    voters[1::2] *= 0.05
    execution = np.zeros((4, 1, 3), np.float32)
    execution[:, 0, action] = sure
    given_action = execution_probabilities(execution) if asked else None
    return Gate(config or GateConfig(confidence_threshold=0.6)).decide(count_votes(voters), given_action).reason


def decide(watch: Conditions | None = None, reason: Reason = Reason.EXECUTE, stop: float = 5.0,
           contracts: float = 1.0, limits: LimitsConfig | None = None) -> tuple[list[Reason], int]:
    """Reasons and the number of orders of a session whose team is sure of everything."""
    table = random_table(0, n=40)

    class Sure:
        def decide(self, row: int, account: Any) -> Decision:
            proposal = RiskProposal(contracts, stop, 10.0)
            return Decision(reason, 1, 1.0, proposal, {}, {})

    journal = MemoryJournal()
    session = Session(ReplayClock(), TableFeed(table), SimulatedVenue(instrument("ES")), Sure(),
                      limits or LimitsConfig(), journal,
                      watch=None if watch is None else lambda bar, now_ns: watch, preconditions=WIDE)
    result = session.run()
    reasons = [tuple(Reason)[code] for code in result.decisions["reason"]]
    return reasons, int(result.decisions["ordered"].sum())


REACHED = {
    Reason.EXECUTE: lambda: gate_reason((2, 2, 1), EXECUTE, config=GateConfig(confidence_threshold=0.3)),
    Reason.CLOSE: lambda: gate_reason((1, 1, 1), CLOSE),
    Reason.NO_OPPORTUNITY: lambda: gate_reason((2, 0, 1), EXECUTE),
    Reason.REJECTED: lambda: gate_reason((2, 2, 2), REJECT),
    Reason.LOW_CONFIDENCE: lambda: gate_reason((2, 2, 2), EXECUTE, sure=0.5),
    Reason.HIGH_UNCERTAINTY: lambda: gate_reason(
        (2, 2, 2), EXECUTE, config=GateConfig(confidence_threshold=0.3, max_uncertainty=0.01)),
    Reason.RISK_LIMIT: lambda: decide(limits=LimitsConfig(risk_per_trade=1e-9))[0][0],
    Reason.STALE_DATA: lambda: decide(Conditions(age_s=61.0))[0][0],
    Reason.OUT_OF_SESSION: lambda: decide(Conditions(in_session=False))[0][0],
    Reason.SCHEMA_MISMATCH: lambda: decide(Conditions(schema_known=False))[0][0],
    Reason.KILL_SWITCH: lambda: decide(Conditions(killed=True))[0][0],
}


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_is_reached(reason: Reason) -> None:
    assert REACHED[reason]() is reason


@settings(max_examples=60, deadline=None)
@given(reason=st.sampled_from(list(Reason)), killed=st.booleans(), known=st.booleans(), session=st.booleans(),
       age=st.one_of(st.floats(0, 1e6), st.just(float("nan"))), held=st.sampled_from([-2.0, 0.0, 2.0]),
       direction=st.sampled_from([-1, 0, 1]))
def test_a_condition_always_wins_over_the_gate(reason: Reason, killed: bool, known: bool, session: bool,
                                               age: float, held: float, direction: int) -> None:
    conditions = Conditions(killed, known, age, session)
    why = forbidden(conditions, WIDE)
    fit = not killed and known and age <= 60.0 and session
    assert (why is None) == fit
    found = overruled(reason, conditions, WIDE, held, direction)
    if fit:
        assert found is reason
    else:
        assert found is not Reason.EXECUTE
        closes = reason is Reason.CLOSE or (reason is Reason.EXECUTE and held * direction < 0.0)
        assert found is (Reason.CLOSE if closes and known else why)


def test_the_order_of_precedence() -> None:
    everything = dict(killed=True, schema_known=False, age_s=1e9, in_session=False)
    healed = dict(killed=False, schema_known=True, age_s=0.0, in_session=True)
    for name, reason in zip(everything, (Reason.KILL_SWITCH, Reason.SCHEMA_MISMATCH, Reason.STALE_DATA,
                                         Reason.OUT_OF_SESSION), strict=True):
        assert forbidden(Conditions(**everything), WIDE) is reason
        everything[name] = healed[name]
    assert forbidden(Conditions(**everything), WIDE) is None
    assert forbidden(Conditions(age_s=1e9), PreconditionsConfig()) is None  # no bound asks nothing


@pytest.mark.parametrize("watch", [Conditions(killed=True), Conditions(schema_known=False),
                                   Conditions(age_s=61.0), Conditions(in_session=False)])
def test_under_a_condition_nothing_is_ordered(watch: Conditions) -> None:
    reasons, orders = decide(watch)
    assert orders == 0
    assert set(reasons) == {forbidden(watch, WIDE)}
    assert decide(Conditions())[1] > 0


def test_under_a_condition_a_reversal_closes_and_opens_nothing() -> None:
    """A session that was long when the switch was thrown is flat behind it, and stays so."""
    table = random_table(0, n=60)

    class Turning:
        def decide(self, row: int, account: Any) -> Decision:
            return Decision(Reason.EXECUTE, 1 if row < 30 else -1, 1.0, RiskProposal(1.0, 1e6, 1e6), {}, {})

    journal = MemoryJournal()
    result = Session(ReplayClock(), TableFeed(table), SimulatedVenue(instrument("ES")), Turning(),
                     LimitsConfig(risk_per_trade=1.0, daily_loss=1.0), journal, initial_equity=1e9,
                     watch=lambda bar, now_ns: Conditions(killed=bar.row >= 30), preconditions=WIDE).run()
    before, after = result.position[result.rows < 30], result.position[result.rows > 33]
    assert before[-1] > 0.0
    assert set(after.tolist()) == {0.0}
    late = [tuple(Reason)[d["reason"]] for d in result.decisions[result.decisions["row"] >= 30]]
    assert late[0] is Reason.CLOSE
    assert set(late) == {Reason.CLOSE, Reason.KILL_SWITCH}


def test_no_limit_keeps_anybody_in_a_position() -> None:
    """A limit wins over opening; what the order would close is closed all the same."""
    for direction, held, limited in itertools.product((-1, 1), (-2.0, 0.0, 2.0), (False, True)):
        found = after_limits(Reason.EXECUTE, direction, held, 0.0, limited, False)
        if held * direction < 0.0:
            assert found is Reason.CLOSE
        else:
            assert found is (Reason.RISK_LIMIT if limited else Reason.REJECTED)
    assert after_limits(Reason.REJECTED, 1, 0.0, 0.0, True, False) is Reason.RISK_LIMIT
    assert after_limits(Reason.CLOSE, 1, 1.0, 0.0, True, False) is Reason.CLOSE


@pytest.mark.parametrize(("limits", "stop", "contracts", "limit"), [
    (LimitsConfig(risk_per_trade=1e-9), 5.0, 1.0, Limit.RISK_PER_TRADE),
    (LimitsConfig(daily_loss=1e-9), 5.0, 1.0, Limit.DAILY_LOSS),
    (LimitsConfig(), 0.0, 1.0, Limit.RISK_PER_TRADE),  # no stop: nobody knows the risk
])
def test_a_hard_limit_wins_over_a_team_that_is_sure(limits: LimitsConfig, stop: float, contracts: float,
                                                    limit: Limit) -> None:
    reasons, orders = decide(limits=limits, stop=stop, contracts=contracts)
    assert orders == 0
    assert set(reasons) == {Reason.RISK_LIMIT}
    assert limit is not Limit.NONE


def test_conditions_are_told_from_the_decision_alone() -> None:
    """A refused decision keeps the team's answer, so that a report can say what was refused."""
    table = random_table(1, n=30)
    asked = Decision(Reason.EXECUTE, -1, 0.75, RiskProposal(2.0, 5.0, 10.0), {"a": (1.0, 0.0, 0.0)}, {"std": 0.1})

    class Same:
        def decide(self, row: int, account: Any) -> Decision:
            return asked

    journal = MemoryJournal()
    Session(ReplayClock(), TableFeed(table), SimulatedVenue(instrument("ES")), Same(), LimitsConfig(), journal,
            watch=lambda bar, now_ns: Conditions(killed=True)).run()
    decided = [record for record in journal if type(record).__name__ == "Decided"]
    assert decided
    for record in decided:
        assert record.reason == "KILL_SWITCH"
        assert (record.direction, record.confidence, record.contracts) == (-1, 0.75, 2.0)
    assert dataclasses.replace(asked, reason=Reason.KILL_SWITCH).verdict == "REJECT"
