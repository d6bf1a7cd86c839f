"""Positions and cash as a fold over the journal, by the same bookkeeping as the market mechanics."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from algospace.errors import InternalError
from algospace.execution.journal import Decided, Filled, Marked, Opened, Ordered, Record
from algospace.execution.mechanics import (
    ACCOUNT_DTYPE,
    FILL_DTYPE,
    VENUE_DTYPE,
    FillCause,
    _roll_position,
    _settle,
    fill,
    open_account,
)
from algospace.types import AnyArray


def fold(journal: Iterable[Record], price: float | None = None) -> AnyArray:
    """(1,) ACCOUNT_DTYPE: the account that the journal's records leave behind.

    Position, entry, levels, realised profit, commissions and trades are those of the session; `equity` is as of
    the last fill or day change, or of `price` if one is given (then equal to the session's up to rounding).
    `peak` is known up to the last day change; `bars_in_trade` is not in the journal and stays 0.
    InternalError if the journal does not start a session.
    """
    ledger = _Ledger()
    for record in journal:
        if isinstance(record, Opened):
            ledger.open(record)
        elif isinstance(record, Ordered):
            ledger.order(record)
        elif isinstance(record, Filled):
            ledger.fill(record)
        elif isinstance(record, Marked):
            ledger.mark(record)
    if price is not None:
        ledger.settle(price)
    return ledger.accounts


def open_orders(journal: Iterable[Record]) -> list[Ordered]:
    """Orders that were recorded and that no later row has played: they may or may not have been sent.

    A later fill or decision shows that they were played; a new trading day or a roll does not, because an order
    waits through filled bars, where both may happen.
    """
    pending: list[Ordered] = []
    for record in journal:
        if isinstance(record, Ordered):
            pending.append(record)
        elif isinstance(record, Decided) or (isinstance(record, Filled) and record.cause != FillCause.ROLL.name):
            pending = [order for order in pending if record.row <= order.row]
    return pending


class _Ledger:
    """The fold's state: one account, its venue and the brackets of the last order."""

    def __init__(self) -> None:
        self.accounts = np.zeros(1, ACCOUNT_DTYPE)
        self._venue: AnyArray | None = None
        self._order: Ordered | None = None
        self._fills = np.zeros(1, FILL_DTYPE)

    def open(self, record: Opened) -> None:
        self._venue = np.array((record.tick, record.multiplier, record.commission, record.slippage, record.infer),
                               VENUE_DTYPE).reshape(1)
        open_account(self.accounts[0], record.equity, record.price, record.day)

    def order(self, record: Ordered) -> None:
        self._order = record

    def settle(self, price: float) -> None:
        account = self.accounts[0]
        _settle(account, float(self._venue_record()["multiplier"]), price)
        account["peak"] = max(account["peak"], account["equity"])

    def mark(self, record: Marked) -> None:
        account = self.accounts[0]
        self.settle(record.price)
        account["day"], account["day_start"], account["peak"] = record.day, account["equity"], record.peak

    def fill(self, record: Filled) -> None:
        account, venue = self.accounts[0], self._venue_record()
        if record.cause == FillCause.ROLL.name:
            slip = float(np.sign(account["position"]) * venue["slippage"])
            _settle(account, float(venue["multiplier"]), (record.price - slip) / record.roll)
            _roll_position(account, venue, record.roll, self._fills, 0)
            return
        opens = account["position"] == 0.0
        fill(account, venue, record.quantity, record.price, FillCause[record.cause].value, self._fills, 0)
        if opens:
            self._set_brackets(record)

    def _set_brackets(self, record: Filled) -> None:
        account, order = self.accounts[0], self._order
        if order is None or order.order_id != record.order_id:
            raise InternalError(f"journal: the fill in row {record.row} opens a position without its order "
                                f"'{record.order_id}'")
        side = np.sign(record.quantity)
        if order.stop_distance > 0.0:
            account["stop"] = record.price - side * order.stop_distance
        if order.target_distance > 0.0:
            account["target"] = record.price + side * order.target_distance

    def _venue_record(self) -> AnyArray:
        if self._venue is None:
            raise InternalError("journal: the first record must open a session")
        record: AnyArray = self._venue[0]
        return record
