"""What a run of the trading session leaves behind: curves, fills, trades, decisions, final account."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numba as nb
import numpy as np

from algospace.execution.decision import Reason
from algospace.execution.mechanics import FillCause
from algospace.instruments import Instrument
from algospace.types import AnyArray, FloatArray, IntArray

REASONS = tuple(Reason)
REASON_CODE = {reason: code for code, reason in enumerate(REASONS)}

FILL_LOG_DTYPE = np.dtype([
    ("row", "i8"),
    ("quantity", "f8"),    # contracts, signed; 0 for a roll
    ("price", "f8"),       # raw points
    ("commission", "f8"),  # account currency
    ("cause", "i8"),       # FillCause
])

TRADE_DTYPE = np.dtype([
    ("entry_row", "i8"), ("exit_row", "i8"),
    ("quantity", "f8"),                       # contracts, signed: > 0 long
    ("entry_price", "f8"), ("exit_price", "f8"),
    ("net_pnl", "f8"),                        # account currency, after slippage, commission and roll costs
    ("commission", "f8"),
    ("cause", "i8"),                          # FillCause of the exit
    ("confidence", "f8"),                     # of the decision that opened it; NaN if it named none
])

DECISION_DTYPE = np.dtype([
    ("row", "i8"),
    ("reason", "i8"),      # index into REASONS
    ("direction", "i8"),
    ("confidence", "f8"),
    ("limit", "i8"),       # risk.limits.Limit that changed the order
    ("ordered", "?"),      # an order was sent
])

_ROLL = int(FillCause.ROLL)


@dataclass(frozen=True)
class SessionResult:
    """n base rows, in order. `equity` and `position` are as of each row's close; equity[0] is the start."""

    instrument: Instrument
    venue: AnyArray          # VENUE_DTYPE record: the costs it was run at
    rows: IntArray           # (n,) base rows of the market table
    ts_close: IntArray       # (n,) int64 ns UTC
    day: IntArray            # (n,) trading day
    equity: FloatArray       # (n,) account currency, net of costs
    position: FloatArray     # (n,) contracts, signed
    fills: AnyArray          # FILL_LOG_DTYPE
    trades: AnyArray         # TRADE_DTYPE, closed trades; a position still open is in `account`
    decisions: AnyArray      # DECISION_DTYPE
    account: AnyArray        # (1,) ACCOUNT_DTYPE at the end
    initial_equity: float

    def __len__(self) -> int:
        return int(self.rows.size)

    def reason_counts(self) -> dict[str, int]:
        """How often each reason was given, by name; reasons that never occurred are left out."""
        counts = np.bincount(self.decisions["reason"], minlength=len(REASONS))
        return {reason.value: int(count) for reason, count in zip(REASONS, counts, strict=True) if count}


def final_reason(reason: int, limit: int, ordered: bool) -> int:
    """An EXECUTE that the hard limits left nothing of counts as RISK_LIMIT."""
    refused = limit != 0 and not ordered and reason == REASON_CODE[Reason.EXECUTE]
    return REASON_CODE[Reason.RISK_LIMIT] if refused else reason


def trades_from_fills(fills: AnyArray, venue: AnyArray, rolls: FloatArray, confidence: FloatArray) -> AnyArray:
    """Pair fills into closed trades. rolls: roll factor per fill; confidence: per fill, of its decision."""
    trades = np.zeros(fills.size // 2 + 1, TRADE_DTYPE)
    count = _pair_fills(fills, venue.reshape(1), np.ascontiguousarray(rolls, np.float64),
                        np.ascontiguousarray(confidence, np.float64), trades)
    return trades[:count]


@nb.njit(cache=True)
def _pair_fills(fills: AnyArray, venues: AnyArray, rolls: FloatArray, confidence: FloatArray,
                trades: AnyArray) -> int:
    """A roll moves the basis by the jump between the contracts: that jump is nobody's profit."""
    venue = venues[0]
    count, held, basis, commission = 0, 0.0, 0.0, 0.0
    for i in range(fills.size):
        commission += fills[i].commission
        if fills[i].cause == _ROLL:
            mark = fills[i].price - np.sign(held) * venue.slippage
            basis += mark - mark / rolls[i] + 2.0 * np.sign(held) * venue.slippage
        elif held == 0.0:
            held, basis, commission = fills[i].quantity, fills[i].price, fills[i].commission
            trades[count].entry_row = fills[i].row
            trades[count].quantity = held
            trades[count].entry_price = fills[i].price
            trades[count].confidence = confidence[i]
        else:
            trades[count].exit_row = fills[i].row
            trades[count].exit_price = fills[i].price
            trades[count].net_pnl = held * (fills[i].price - basis) * venue.multiplier - commission
            trades[count].commission = commission
            trades[count].cause = fills[i].cause
            count += 1
            held = 0.0
    return count


def slippage_paid(result: SessionResult) -> float:
    """Account currency lost to slippage: market, stop and roll fills."""
    fills, venue = result.fills, result.venue
    held_before = np.concatenate([[0.0], np.cumsum(fills["quantity"])[:-1]]) if fills.size else np.zeros(0)
    contracts = np.where(fills["cause"] == _ROLL, 2.0 * np.abs(held_before), np.abs(fills["quantity"]))
    contracts[fills["cause"] == int(FillCause.TARGET)] = 0.0
    return float(contracts.sum() * venue["slippage"] * venue["multiplier"])


def decision_log(entries: Sequence[tuple[Any, ...]]) -> AnyArray:
    """DECISION_DTYPE array of tuples in its field order."""
    return np.array(list(entries), DECISION_DTYPE)
