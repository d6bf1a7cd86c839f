"""The trading session: the only code that turns decisions into orders. Backtest, paper and live plug in
different feeds, venues and journals.

For each bar: the venue plays it with the order of the bar before; what it did is journalled, then becomes the
account; then, at a decision row, the policy is asked and its order journalled, to be carried out in the next bar.
An order waits while bars are filled (missing): they repeat the close that was observed, where nobody traded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import starmap
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from algospace.clock import Clock, ReplayClock
from algospace.errors import InternalError
from algospace.execution.decision import Decision, Policy, Reason
from algospace.execution.journal import Decided, Filled, Journal, Marked, Opened, Ordered
from algospace.execution.mechanics import ACCOUNT_DTYPE, FillCause, open_account
from algospace.execution.orders import plan_for
from algospace.execution.outcomes import LearnsFromTrades, TradeFold
from algospace.execution.preconditions import Conditions, PreconditionsConfig, overruled
from algospace.execution.result import (
    FILL_LOG_DTYPE,
    REASON_CODE,
    SessionResult,
    decision_log,
    final_reason,
    trades_from_fills,
)
from algospace.execution.venue import Order, Venue
from algospace.risk.limits import Limit, LimitsConfig
from algospace.types import AnyArray

if TYPE_CHECKING:
    from algospace.features.market_table import MarketTable

INITIAL_EQUITY = 100_000.0
_CAUSES = tuple(cause.name for cause in FillCause)
_LIMITS = tuple(limit.name for limit in Limit)
_CHUNK = 4096


class MarketBar(NamedTuple):
    """One base bar in raw points; `roll` is 1 except on the first bar of a new contract."""

    row: int
    ts_close: int  # int64 ns UTC
    open: float
    high: float
    low: float
    close: float
    roll: float
    day: int       # trading day
    filled: bool   # no trade happened: the close before, repeated
    decision: bool  # the policy may act at this bar's close


class Feed(Protocol):
    """Base bars in time order."""

    def __iter__(self) -> Iterator[MarketBar]: ...


class TableFeed:
    """Rows [start, stop) of a market table."""

    def __init__(self, table: MarketTable, start: int = 0, stop: int | None = None) -> None:
        self._table, self._start, self._stop = table, start, len(table) if stop is None else stop
        check_range(len(table), self._start, self._stop)

    def __len__(self) -> int:
        return self._stop - self._start

    def __iter__(self) -> Iterator[MarketBar]:
        table = self._table
        columns = (table.ts_close, table.open, table.high, table.low, table.close, table.roll, table.day,
                   table.filled, table.decision)
        for first in range(self._start, self._stop, _CHUNK):
            last = min(first + _CHUNK, self._stop)
            chunk = [column[first:last].tolist() for column in columns]
            yield from starmap(MarketBar, zip(range(first, last), *chunk, strict=True))


def check_range(size: int, start: int, stop: int) -> None:
    """ValueError unless [start, stop) is a non-empty range of rows."""
    if not 0 <= start < stop <= size:
        raise ValueError(f"rows [{start}, {stop}) do not lie in a market table of {size} rows")


Watch = Callable[[MarketBar, int], Conditions]
"""(bar, the clock's ns) -> the conditions of a decision at its close."""


class Session:
    """Drive `policy` over `feed` at `venue`; every decision, order and fill is in `journal` first.

    limits: hard limits applied to every order (None: none, for baselines without stops). reverse: an EXECUTE
    against the position opens the other side after closing. name: part of the client order ids, which are the
    same whenever the same session runs over the same bars. watch: what must hold before the policy's answer counts
    (algospace.execution.preconditions), within the bounds of `preconditions`.

    A policy that learns from its trades (algospace.execution.outcomes) is told each one in the bar that closed it.
    """

    def __init__(self, clock: Clock, feed: Feed, venue: Venue, policy: Policy, limits: LimitsConfig | None,
                 journal: Journal, *, reverse: bool = True, initial_equity: float = INITIAL_EQUITY,
                 name: str = "backtest", watch: Watch | None = None,
                 preconditions: PreconditionsConfig | None = None) -> None:
        self.clock, self.feed, self.venue, self.policy, self.journal = clock, feed, venue, policy, journal
        self.reverse, self.initial_equity, self.name = reverse, initial_equity, name
        self._learner = policy if isinstance(policy, LearnsFromTrades) else None
        self._outcomes = TradeFold(venue.venues[:1])
        self._watch, self._preconditions = watch, preconditions or PreconditionsConfig()
        self._limited = limits is not None
        self._limits = (limits or LimitsConfig()).record().reshape(1)
        self._account = np.zeros(1, ACCOUNT_DTYPE)
        self._after = np.zeros(1, ACCOUNT_DTYPE)
        self._order: Order | None = None
        self._opening_id = ""  # the order behind the position held
        self._confidence = math.nan
        self._rows: list[tuple[int, int, int, float, float]] = []
        self._fills: list[tuple[int, float, float, float, int]] = []
        self._fill_context: list[tuple[float, float]] = []  # (roll factor, confidence) per fill
        self._decisions: list[tuple[int, int, int, float, int, bool]] = []

    @property
    def account(self) -> AnyArray:
        """(1,) ACCOUNT_DTYPE as of the last bar."""
        return self._account

    def run(self) -> SessionResult:
        """Run the feed to its end; InternalError if it has no bar."""
        move_clock = self.clock.set if isinstance(self.clock, ReplayClock) else None
        for bar in self.feed:
            if move_clock is not None:
                move_clock(bar.ts_close)
            self.on_bar(bar)
        return self.result()

    def on_bar(self, bar: MarketBar) -> None:
        """Play one bar and decide at its close. The first bar only opens the account."""
        if self._rows:
            self._play(bar)
        else:
            self._open(bar)
        account = self._account
        self._rows.append((bar.row, bar.ts_close, bar.day, account["equity"].item(), account["position"].item()))
        if bar.decision:
            self._decide(bar)

    def _open(self, bar: MarketBar) -> None:
        venue = self.venue.venues[0]
        self.journal.append(Opened(self.name, self.venue.instrument.symbol, bar.row, bar.ts_close,
                                   self.initial_equity, bar.close, bar.day, *venue.item()))
        open_account(self._account[0], self.initial_equity, bar.close, bar.day)
        if self._learner is not None:
            self._learner.began()

    def _play(self, bar: MarketBar) -> None:
        if bar.day != self._account["day"].item():
            self.journal.append(Marked(bar.row, bar.ts_close, bar.day, self._account["mark"].item(),
                                       self._account["peak"].item()))
        order = None
        if not bar.filled:
            order, self._order = self._order, None
        count = self.venue.play(self._account, self._after, order, bar)
        if count:
            self._record_fills(bar, order, self.venue.fills[:count])
        self._account, self._after = self._after, self._account

    def _record_fills(self, bar: MarketBar, order: Order | None, fills: AnyArray) -> None:
        held = self._account["position"].item()
        records = []
        for quantity, price, commission, cause in fills.tolist():
            ordered = cause == FillCause.ORDER and order is not None
            order_id = order.order_id if ordered and order is not None else self._opening_id
            records.append(Filled(bar.row, bar.ts_close, order_id, quantity, price, commission, _CAUSES[cause],
                                  bar.roll if cause == FillCause.ROLL else 1.0))
            opens = held == 0.0
            held += quantity
            if opens:
                self._opening_id = order_id
            self._fills.append((bar.row, quantity, price, commission, cause))
            self._fill_context.append((bar.roll, self._confidence if opens else math.nan))
        self.journal.append(*records)
        if self._learner is not None:
            for record in records:
                trade = self._outcomes.fill(record.row, record.quantity, record.price, record.commission,
                                            FillCause[record.cause].value, record.roll)
                if trade is not None:
                    self._learner.closed(trade)

    def _decide(self, bar: MarketBar) -> None:
        decision = self.policy.decide(bar.row, self._account[0])
        if self._watch is not None:
            conditions = self._watch(bar, self.clock.now_ns())
            decision = replace(decision, reason=overruled(
                decision.reason, conditions, self._preconditions, self._account["position"].item(),
                decision.direction))
        reason, proposal = decision.reason, decision.proposal
        has_order, want, limit = False, 0.0, 0
        if reason is Reason.EXECUTE or reason is Reason.CLOSE:
            has_order, want, limit = plan_for(self._account, self.venue.venues, self._limits, self._limited,
                                              self.reverse, wanted(decision), float(proposal.stop_distance))
        confidence = decision.confidence
        decided = Decided(bar.row, self.clock.now_ns(), reason.value, decision.direction,
                          confidence if math.isfinite(confidence) else None, proposal.contracts,
                          proposal.stop_distance, proposal.target_distance, _LIMITS[limit], decision.votes,
                          decision.uncertainty)
        if has_order:
            order = Order(f"{self.name}-{self.venue.instrument.symbol}-{bar.ts_close}", want,
                          float(proposal.stop_distance), float(proposal.target_distance))
            self.journal.append(decided, Ordered(bar.row, bar.ts_close, *order))
            self._order, self._confidence = order, confidence
        else:
            self.journal.append(decided)
        self._decisions.append((bar.row, final_reason(REASON_CODE[reason], limit, has_order), decision.direction,
                                confidence, limit, has_order))

    def result(self) -> SessionResult:
        """Everything up to the last bar."""
        if not self._rows:
            raise InternalError("the feed gave no bar")
        rows, ts_close, day, equity, position = zip(*self._rows, strict=True)
        fills = np.array(self._fills, FILL_LOG_DTYPE)
        context = np.array(self._fill_context, np.float64).reshape(-1, 2)
        venue = self.venue.venues[0].copy()
        return SessionResult(
            self.venue.instrument, venue, np.array(rows, np.int64), np.array(ts_close, np.int64),
            np.array(day, np.int64), np.array(equity), np.array(position), fills,
            trades_from_fills(fills, self.venue.venues[:1], context[:, 0], context[:, 1]),
            decision_log(self._decisions), self._account.copy(), self.initial_equity)


def wanted(decision: Decision) -> float:
    """Signed contracts that an EXECUTE wants; 0 for CLOSE. InternalError on an EXECUTE of nothing."""
    if decision.reason is Reason.CLOSE:
        return 0.0
    want = decision.direction * decision.proposal.contracts
    if want == 0.0:
        raise InternalError(f"EXECUTE needs a direction and contracts > 0, got direction {decision.direction}, "
                            f"contracts {decision.proposal.contracts}; a policy that wants nothing must say why")
    return float(want)
