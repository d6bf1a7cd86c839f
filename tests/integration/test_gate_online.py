"""The gate's online correction in the trading session: causal, a fold over the journal, equal when replayed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from agents.calibration import AdaptiveConformal
from algospace.clock import ReplayClock
from algospace.execution.decision import Decision, Reason
from algospace.execution.journal import Filled, MemoryJournal
from algospace.execution.outcomes import ClosedTrade, LearnsFromTrades, closed_trades
from algospace.execution.session import Session, TableFeed
from algospace.execution.venue import SimulatedVenue
from algospace.instruments import instrument
from serving.policy import BundlePolicy
from tests.session_market import ReplayPolicy, random_orders, random_table


class LearningPolicy(ReplayPolicy):
    """Order arrays behind a gate that follows the outcomes; remembers what it knew at each decision."""

    def __init__(self, orders: Any, start: int) -> None:
        super().__init__(orders, start)
        self.correction = AdaptiveConformal(np.linspace(0.0, 1.0, 101), 0.2, 0.7, 0.05)
        self.trades: list[ClosedTrade] = []
        self.known: list[tuple[int, int, float]] = []  # (row, trades, threshold) at each decision

    def began(self) -> None:
        self.correction.reset()
        self.trades, self.known = [], []

    def closed(self, trade: ClosedTrade) -> None:
        self.trades.append(trade)
        self.correction.update(trade.gained)

    def decide(self, row: int, account: Any) -> Decision:
        decision = super().decide(row, account)
        threshold = self.correction.threshold
        self.known.append((row, len(self.trades), threshold))
        if decision.reason is Reason.EXECUTE and decision.confidence < threshold:
            return Decision(Reason.LOW_CONFIDENCE, decision.direction, decision.confidence, decision.proposal,
                            decision.votes, decision.uncertainty)
        return decision


def run(seed: int, stop: int = 300, policy: LearningPolicy | None = None) -> tuple[Any, MemoryJournal, Any]:
    table = random_table(seed, rolls=3, missing=0.05)
    learner = policy or LearningPolicy(random_orders(seed + 1, table, 0, 300, rate=0.6), 0)
    journal = MemoryJournal()
    session = Session(ReplayClock(), TableFeed(table, 0, stop), SimulatedVenue(instrument("ES")), learner, None,
                      journal)
    return session.run(), journal, learner


@pytest.mark.parametrize("seed", range(3))
def test_every_closed_trade_is_told_once_when_it_is_known(seed: int) -> None:
    result, journal, policy = run(seed)
    expected = [ClosedTrade(int(t["entry_row"]), int(t["exit_row"]), float(t["quantity"]), float(t["net_pnl"]))
                for t in result.trades]
    assert policy.trades == expected == closed_trades(journal)
    assert len(expected) > 20
    exits = np.array([trade.exit_row for trade in expected])
    for row, known, _ in policy.known:  # at a close the bar's own fills are known, and nothing after them
        assert known == int((exits <= row).sum())
    assert len({threshold for *_, threshold in policy.known}) > 3


def test_a_trade_that_ends_level_has_not_gained() -> None:
    assert [ClosedTrade(1, 2, 1.0, pnl).gained for pnl in (-0.01, 0.0, 0.01)] == [False, False, True]


@pytest.mark.parametrize("seed", range(3))
def test_a_session_replayed_is_equal_to_the_bit_even_with_the_same_policy(seed: int) -> None:
    first, journal, policy = run(seed)
    known = list(policy.known)
    second, again, _ = run(seed, policy=policy)
    assert policy.known == known
    assert list(journal) == list(again)
    for name in ("equity", "position", "fills", "trades", "decisions"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes()


def test_what_comes_later_changes_no_earlier_threshold() -> None:
    _, _, policy = run(5)
    known = list(policy.known)
    _, _, shorter = run(5, stop=170)
    assert shorter.known == known[:len(shorter.known)]
    assert shorter.known[-1][0] > 150


def test_a_policy_restarted_from_the_journal_knows_the_same_bits() -> None:
    _, journal, policy = run(7)
    restarted = AdaptiveConformal(np.linspace(0.0, 1.0, 101), 0.2, 0.7, 0.05)
    for trade in closed_trades(journal):
        restarted.update(trade.gained)
    assert (restarted.level, restarted.threshold) == (policy.correction.level, policy.correction.threshold)
    part = list(journal)[:len(journal) // 2]  # a crash in the middle: a prefix of the outcomes
    fills = [record for record in part if isinstance(record, Filled)]
    assert closed_trades(part) == closed_trades(journal)[:len(closed_trades(part))]
    assert len(fills) > len(closed_trades(part)) > 5


def test_a_bundles_policy_is_told_its_trades() -> None:
    assert issubclass(BundlePolicy, LearnsFromTrades)
    assert not issubclass(ReplayPolicy, LearnsFromTrades)
