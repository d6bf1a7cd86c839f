"""Closed trades as they happen, for policies that learn from them while they trade.

A trade is known in the bar that closed it, before the decision at that bar's close. The same fold runs over a
session's fills and over a journal's, so that a policy restarted from a journal knows the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from algospace.errors import InternalError
from algospace.execution.journal import Filled, Opened, Record
from algospace.execution.mechanics import VENUE_DTYPE, FillCause
from algospace.execution.result import FILL_LOG_DTYPE, trades_from_fills
from algospace.types import AnyArray


class ClosedTrade(NamedTuple):
    """One trade from the row of its first fill to that of its last; `net_pnl` in account currency after all
    costs."""

    entry_row: int
    exit_row: int
    quantity: float
    net_pnl: float

    @property
    def gained(self) -> bool:
        """Whether it ended with a net gain."""
        return self.net_pnl > 0.0


@runtime_checkable
class LearnsFromTrades(Protocol):
    """A policy that a session tells about its trades. What it decides may depend on nothing else that it was not
    given: `began`, the trades in order, and the call itself."""

    def began(self) -> None:
        """A session starts flat: nothing has been traded."""
        ...

    def closed(self, trade: ClosedTrade) -> None:
        """A trade was closed; decisions from the close of row `trade.exit_row` on may use it."""
        ...


class TradeFold:
    """Fills one by one -> closed trades. `venue`: VENUE_DTYPE record of the session's costs."""

    def __init__(self, venue: AnyArray) -> None:
        self._venue = venue
        self._held = 0.0
        self._fills: list[tuple[int, float, float, float, int]] = []
        self._rolls: list[float] = []

    def fill(self, row: int, quantity: float, price: float, commission: float, cause: int,
             roll: float) -> ClosedTrade | None:
        """Account for a fill (fields as in FILL_LOG_DTYPE, `roll` its roll factor); the trade that it closed."""
        self._fills.append((row, quantity, price, commission, cause))
        self._rolls.append(roll)
        self._held += quantity
        if self._held != 0.0:
            return None
        fills = np.array(self._fills, FILL_LOG_DTYPE)
        trades = trades_from_fills(fills, self._venue, np.array(self._rolls), np.full(fills.size, np.nan))
        self._fills, self._rolls = [], []
        if trades.size != 1:
            raise InternalError(f"{fills.size} fills up to row {row} make {trades.size} trades, not one")
        trade = trades[0]
        return ClosedTrade(int(trade["entry_row"]), int(trade["exit_row"]), float(trade["quantity"]),
                           float(trade["net_pnl"]))


def closed_trades(journal: Iterable[Record]) -> list[ClosedTrade]:
    """The trades that a journal's session has closed, in order; InternalError if it does not start one."""
    fold: TradeFold | None = None
    found = []
    for record in journal:
        if isinstance(record, Opened):
            fold = TradeFold(np.array((record.tick, record.multiplier, record.commission, record.slippage,
                                       record.infer), VENUE_DTYPE).reshape(1))
        elif isinstance(record, Filled):
            if fold is None:
                raise InternalError("journal: the first record must open a session")
            trade = fold.fill(record.row, record.quantity, record.price, record.commission,
                              FillCause[record.cause].value, record.roll)
            if trade is not None:
                found.append(trade)
    return found
