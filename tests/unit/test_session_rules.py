"""The rules of the trading session, one by one: which decision becomes which order, and what is written down."""

import numpy as np
import pytest

from algospace.clock import ReplayClock
from algospace.errors import InternalError
from algospace.execution.decision import Decision, Reason, RiskProposal
from algospace.execution.journal import (
    Decided,
    FileJournal,
    Filled,
    Marked,
    MemoryJournal,
    Ordered,
    ResumingJournal,
)
from algospace.execution.mechanics import (
    ACCOUNT_DTYPE,
    FILL_DTYPE,
    MAX_FILLS_PER_BAR,
    FillCause,
    advance,
    open_account,
    pass_bar,
    venue_record,
)
from algospace.execution.session import Session, TableFeed
from algospace.execution.venue import SimulatedVenue
from algospace.instruments import instrument
from algospace.risk.limits import LimitsConfig
from tests.session_market import ReplayPolicy, random_orders, random_table

ES = instrument("ES")


class Script:
    """Decisions by row; everything else is NO_OPPORTUNITY."""

    def __init__(self, **by_row):
        self.by_row = {int(row[1:]): decision for row, decision in by_row.items()}
        self.asked = []

    def decide(self, row, account):
        self.asked.append((row, float(account["position"])))
        return self.by_row.get(row, Decision(Reason.NO_OPPORTUNITY, 0, 0.0, RiskProposal(0, 0, 0), {}, {}))


def execute(direction, contracts=1.0, stop=0.0, target=0.0):
    return Decision(Reason.EXECUTE, direction, 0.8, RiskProposal(contracts, stop, target), {}, {})


CLOSE = Decision(Reason.CLOSE, 0, 0.5, RiskProposal(0, 0, 0), {}, {})


def flat_table(n=12):
    table = random_table(0, n=n)
    for name in ("open", "high", "low", "close"):
        getattr(table, name)[:] = 4000.0
    table.decision[:] = True
    return table


def run(script, table=None, limits=None, journal=None, **kwargs):
    table = flat_table() if table is None else table
    journal = MemoryJournal() if journal is None else journal
    session = Session(ReplayClock(), TableFeed(table), SimulatedVenue(ES), script, limits, journal, **kwargs)
    return session.run(), journal


def test_an_order_fills_at_the_next_open_never_at_the_close_it_saw():
    table = flat_table()
    table.open[3] = table.high[3] = 4005.0
    result, _ = run(Script(r2=execute(1)), table)
    assert result.fills.tolist() == [(3, 1.0, 4005.25, 2.25, FillCause.ORDER)]
    assert result.position.tolist() == [0.0] * 3 + [1.0] * 9


def test_the_side_already_held_changes_nothing():
    result, journal = run(Script(r2=execute(1), r4=execute(1, 3.0)))
    assert result.fills.size == 1
    assert sum(isinstance(record, Ordered) for record in journal) == 1
    assert result.reason_counts() == {"EXECUTE": 2, "NO_OPPORTUNITY": 10}
    assert result.decisions["ordered"].sum() == 1


@pytest.mark.parametrize(("reverse", "position"), [(True, -2.0), (False, 0.0)])
def test_the_other_side_closes_and_with_reverse_opens(reverse, position):
    result, _ = run(Script(r2=execute(1), r4=execute(-1, 2.0)), reverse=reverse)
    assert result.position[5] == position
    assert result.trades["cause"].tolist() == [FillCause.ORDER]


def test_close_flattens_and_does_nothing_when_flat():
    result, _ = run(Script(r2=execute(1), r4=CLOSE, r6=CLOSE))
    assert result.position.tolist() == [0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    assert result.decisions["ordered"].sum() == 2
    assert result.trades["confidence"].tolist() == [0.8]


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason not in (Reason.EXECUTE, Reason.CLOSE)])
def test_every_other_reason_is_no_order(reason):
    decision = Decision(reason, 1, 0.9, RiskProposal(2, 5, 5), {}, {})
    result, journal = run(Script(r2=decision))
    assert not result.fills.size
    assert result.reason_counts()[reason.value] >= 1
    assert [record.reason for record in journal if isinstance(record, Decided)][2] == reason.value


def test_hard_limits_cut_the_order_and_say_so():
    result, journal = run(Script(r2=execute(1, 9.0, stop=1.0)), limits=LimitsConfig())
    assert result.position[3] == 5.0
    decided = [record for record in journal if isinstance(record, Decided)][2]
    assert (decided.limit, decided.contracts) == ("MAX_POSITION", 9.0)
    refused, _ = run(Script(r2=execute(1, 1.0, stop=0.0)), limits=LimitsConfig())
    assert not refused.fills.size
    assert refused.reason_counts() == {"RISK_LIMIT": 1, "NO_OPPORTUNITY": 11}


def test_the_policy_is_asked_at_decision_rows_only_and_sees_the_account():
    table = flat_table()
    table.decision[5] = False
    script = Script(r2=execute(1))
    run(script, table)
    assert [row for row, _ in script.asked] == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    assert dict(script.asked)[2] == 0.0
    assert dict(script.asked)[3] == 1.0


def test_an_execute_of_nothing_is_an_error_of_the_policy():
    with pytest.raises(InternalError, match="a policy that wants nothing must say why"):
        run(Script(r2=execute(1, 0.0)))


def test_an_empty_feed_and_a_bad_range_are_refused():
    session = Session(ReplayClock(), iter(()), SimulatedVenue(ES), Script(), None, MemoryJournal())
    with pytest.raises(InternalError, match="no bar"):
        session.run()
    with pytest.raises(ValueError, match=r"rows \[5, 99\)"):
        TableFeed(flat_table(), 5, 99)


def test_time_is_the_bars_own():
    table = flat_table()
    clock = ReplayClock()
    journal = MemoryJournal()
    Session(clock, TableFeed(table, 2, 8), SimulatedVenue(ES), Script(r3=execute(1)), None, journal).run()
    assert clock.now_ns() == table.ts_close[7]
    assert all(record.ts == table.ts_close[record.row] for record in journal)


def test_a_new_trading_day_is_marked_before_its_first_fill():
    table = random_table(2, n=60, bars_per_day=20)
    table.decision[:] = True
    _, journal = run(Script(r19=execute(1)), table)
    records = [record for record in journal if record.row == 20]
    assert [type(record) for record in records] == [Marked, Filled, Decided]
    assert records[0].price == table.close[19]


def test_results_do_not_depend_on_the_journal(tmp_path):
    table = random_table(8, n=200)
    orders = random_orders(8, table, 0, 200)
    results = []
    for journal in (MemoryJournal(), FileJournal(tmp_path / "a"), ResumingJournal(FileJournal(tmp_path / "b"))):
        result, journal = run(ReplayPolicy(orders, 0), table, LimitsConfig(), journal)
        results.append((result.equity.tobytes(), result.trades.tobytes(), list(journal), len(journal)))
    assert results[0] == results[1] == results[2]
    reopened = ResumingJournal(FileJournal(tmp_path / "c"))
    assert len(reopened) == 0
    np.testing.assert_equal(list(reopened), [])


@pytest.mark.parametrize("side", [1.0, -1.0])
@pytest.mark.parametrize(("opens", "reaches", "fills_at"), [
    (1, 1, 1), (2, 2, 2), (0, 1, 0), (-4, 1, 0), (0, 0, None), (-4, 0, None)])
def test_a_target_fills_one_tick_through_it_and_a_gap_through_it_at_the_open(side: float, opens: int, reaches: int,
                                                                            fills_at: int | None) -> None:
    """All in ticks beyond the target, the bar's open and the farthest that it trades."""
    tick, target = 0.25, 5000.0 + side * 10.0
    venue = venue_record(tick, 50.0, 0.0, 1.0, "pessimistic")
    account, fills = np.zeros(1, ACCOUNT_DTYPE), np.zeros(MAX_FILLS_PER_BAR, FILL_DTYPE)
    open_account(account[0], 100_000.0, 5000.0, 1)
    account["position"], account["entry"] = side, 5000.0
    account["stop"], account["target"] = 5000.0 - side * 10.0, target
    opened, far, near = (target + side * tick * ticks for ticks in (opens, reaches, min(opens, 0) - 1))
    count = advance(account[0], venue[()], False, 0.0, 0.0, 0.0, opened, max(far, near), min(far, near), near, 1.0,
                    1, fills)
    assert count == (fills_at is not None)
    if fills_at is not None:
        assert fills[0]["price"] == target + side * tick * fills_at
        assert fills[0]["cause"] == FillCause.TARGET


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_a_stop_that_a_gap_jumps_fills_at_the_open_and_pays_its_slippage(side: float) -> None:
    account, fills = np.zeros(1, ACCOUNT_DTYPE), np.zeros(MAX_FILLS_PER_BAR, FILL_DTYPE)
    open_account(account[0], 100_000.0, 5000.0, 1)
    account["position"], account["entry"], account["stop"] = side, 5000.0, 5000.0 - side * 10.0
    opened = 5000.0 - side * 15.0
    venue = venue_record(0.25, 50.0, 0.0, 2.0, "pessimistic")[()]
    assert advance(account[0], venue, False, 0.0, 0.0, 0.0, opened, opened, opened, opened, 1.0, 1, fills) == 1
    assert fills[0]["price"] == opened - side * 0.5
    assert account["equity"][0] == 100_000.0 - 15.5 * 50.0


def test_a_trading_day_that_begins_with_a_missing_bar_begins_there() -> None:
    account, fills = np.zeros(1, ACCOUNT_DTYPE), np.zeros(MAX_FILLS_PER_BAR, FILL_DTYPE)
    open_account(account[0], 100_000.0, 5000.0, 1)
    account["equity"] = 101_000.0
    pass_bar(account[0], venue_record(0.25, 50.0, 0.0, 1.0, "pessimistic")[()], 5000.0, 1.0, 2, fills)
    assert (account["day"][0], account["day_start"][0]) == (2, 101_000.0)
