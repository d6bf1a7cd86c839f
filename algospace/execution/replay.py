"""The fast path of the trading session: precomputed decisions, the same compiled step, one compiled loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numba as nb
import numpy as np

from algospace.execution.decision import Reason
from algospace.execution.mechanics import ACCOUNT_DTYPE, FILL_DTYPE, MAX_FILLS_PER_BAR, open_account
from algospace.execution.orders import AS_CONFIGURED, plan_order, play
from algospace.execution.result import (
    DECISION_DTYPE,
    FILL_LOG_DTYPE,
    REASON_CODE,
    SessionResult,
    trades_from_fills,
)
from algospace.execution.session import INITIAL_EQUITY, check_range
from algospace.execution.venue import SimulatedVenue
from algospace.risk.limits import LimitsConfig
from algospace.types import AnyArray, BoolArray, FloatArray, IntArray

if TYPE_CHECKING:
    from algospace.features.market_table import MarketTable

_EXECUTE, _CLOSE = REASON_CODE[Reason.EXECUTE], REASON_CODE[Reason.CLOSE]
_NO_OPPORTUNITY, _RISK_LIMIT = REASON_CODE[Reason.NO_OPPORTUNITY], REASON_CODE[Reason.RISK_LIMIT]


@dataclass(frozen=True)
class OrderArrays:
    """Decisions at the n rows of a range; element k belongs to row start + k.

    want: signed contracts to hold (0 closes); distances in points (0: no such level); has_order: this row's
    decision is EXECUTE (want != 0) or CLOSE. confidence and reason (codes of execution.result.REASONS, used
    where has_order is False) are for the report only; empty arrays: NaN and NO_OPPORTUNITY.
    """

    want: FloatArray
    stop_distance: FloatArray
    target_distance: FloatArray
    has_order: BoolArray
    confidence: FloatArray
    reason: IntArray

    @staticmethod
    def build(want: AnyArray, has_order: AnyArray, stop_distance: AnyArray | float = 0.0,
              target_distance: AnyArray | float = 0.0, confidence: AnyArray | float = np.nan,
              reason: AnyArray | int = _NO_OPPORTUNITY) -> OrderArrays:
        """Broadcast scalars and fix the types; ValueError if lengths differ."""
        n = np.asarray(want).shape

        def column(value: AnyArray | float, dtype: Any) -> AnyArray:
            return np.broadcast_to(np.asarray(value, dtype), n).copy()

        return OrderArrays(column(want, np.float64), column(stop_distance, np.float64),
                           column(target_distance, np.float64), column(has_order, np.bool_),
                           column(confidence, np.float64), column(reason, np.int64))


def run_precomputed(table: MarketTable, start: int, stop: int, orders: OrderArrays, venue: SimulatedVenue,
                    limits: LimitsConfig | None = None, *, reverse: bool = True,
                    initial_equity: float = INITIAL_EQUITY) -> SessionResult:
    """Session over rows [start, stop) with precomputed decisions; equal to it bit for bit.

    ValueError if the arrays do not fit the range or order where `table.decision` is False.
    """
    check_range(len(table), start, stop)
    n = stop - start
    decision = np.ascontiguousarray(table.decision[start:stop])
    if orders.want.size != n:
        raise ValueError(f"order arrays hold {orders.want.size} rows, the range [{start}, {stop}) has {n}")
    stray = np.flatnonzero(orders.has_order & ~decision)
    if stray.size:
        raise ValueError(f"order at row {start + int(stray[0])}, which is not a decision point")
    ts_close = np.ascontiguousarray(table.ts_close[start:stop], np.int64)
    day = np.ascontiguousarray(table.day[start:stop], np.int64)
    filled = np.ascontiguousarray(table.filled[start:stop], np.bool_)
    roll = np.ascontiguousarray(table.roll[start:stop], np.float64)
    open_, high, low, close = (np.ascontiguousarray(p[start:stop], np.float64)
                               for p in (table.open, table.high, table.low, table.close))
    first, last = venue.finer_ranges(ts_close)
    capacity = 3 * (int(orders.has_order.sum()) + 1) + int(np.count_nonzero(roll != 1.0)) + MAX_FILLS_PER_BAR
    log = np.zeros(capacity, FILL_LOG_DTYPE)
    account = np.zeros(1, ACCOUNT_DTYPE)
    equity, position = np.empty(n), np.empty(n)
    sent, limit = np.zeros(n, np.bool_), np.zeros(n, np.int64)
    open_account(account[0], initial_equity, close[0], int(day[0]))
    count = _run(account, venue.venues, (limits or LimitsConfig()).record().reshape(1), limits is not None,
                 reverse, orders.want, orders.stop_distance, orders.target_distance, orders.has_order, open_,
                 high, low, close, roll, day, filled, venue.finer, first, last, equity, position, sent, limit, log)
    fills = log[:count].copy()
    fills["row"] += start
    confidence = _opening_confidence(fills, start, sent, orders.confidence)
    trades = trades_from_fills(fills, venue.venues[:1], roll[fills["row"] - start], confidence)
    rows = np.arange(start, stop, dtype=np.int64)
    return SessionResult(venue.instrument, venue.venues[0].copy(), rows, ts_close, day, equity, position, fills,
                         trades, _decisions(rows, decision, orders, sent, limit), account,
                         initial_equity)


@nb.njit(cache=True)
def _run(account: AnyArray, venues: AnyArray, limits: AnyArray, limited: bool, reverse: bool, want: FloatArray,
         stop_distance: FloatArray, target_distance: FloatArray, has_order: BoolArray, open_: FloatArray,
         high: FloatArray, low: FloatArray, close: FloatArray, roll: FloatArray, day: IntArray, filled: BoolArray,
         finer: FloatArray, first: IntArray, last: IntArray, equity: FloatArray, position: FloatArray,
         sent: BoolArray, limit: IntArray, log: AnyArray) -> int:
    """Fill the output arrays; the number of fills logged (rows count from 0)."""
    fills = np.empty(MAX_FILLS_PER_BAR, FILL_DTYPE)
    spare = np.empty(2, ACCOUNT_DTYPE)
    logged = 0
    pending, holding, stop, target = False, 0.0, 0.0, 0.0
    for k in range(open_.size):
        if k > 0:
            count = play(account, spare, venues, pending, holding, stop, target, open_[k], high[k], low[k],
                         close[k], roll[k], day[k], filled[k], finer, first[k], last[k], fills)
            pending = pending and filled[k]
            for i in range(count):
                log[logged].row = k
                log[logged].quantity = fills[i].quantity
                log[logged].price = fills[i].price
                log[logged].commission = fills[i].commission
                log[logged].cause = fills[i].cause
                logged += 1
        equity[k] = account[0].equity
        position[k] = account[0].position
        if has_order[k]:
            sent[k], wanted, limit[k] = plan_order(account[0], venues[AS_CONFIGURED], limits[0], limited, reverse,
                                                   want[k], stop_distance[k])
            if sent[k]:
                pending, holding, stop, target = True, wanted, stop_distance[k], target_distance[k]
    return logged


def _opening_confidence(fills: AnyArray, start: int, sent: BoolArray, confidence: FloatArray) -> FloatArray:
    """Per fill: the confidence of the last decision that sent an order before its row, which is what opened it."""
    decided = np.maximum.accumulate(np.where(sent, np.arange(sent.size), 0))
    return confidence[decided[np.maximum(fills["row"] - start - 1, 0)]]


def _decisions(rows: IntArray, decision: BoolArray, orders: OrderArrays, sent: BoolArray,
               limit: IntArray) -> AnyArray:
    reason = np.where(orders.has_order, np.where(orders.want != 0.0, _EXECUTE, _CLOSE), orders.reason)
    refused = orders.has_order & (limit != 0) & ~sent & (reason == _EXECUTE)
    log = np.zeros(int(decision.sum()), DECISION_DTYPE)
    log["row"] = rows[decision]
    log["reason"] = np.where(refused, _RISK_LIMIT, reason)[decision]
    log["direction"] = np.sign(orders.want).astype(np.int64)[decision]
    log["confidence"] = orders.confidence[decision]
    log["limit"] = limit[decision]
    log["ordered"] = sent[decision]
    return log
