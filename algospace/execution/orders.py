"""From a decision to an order, and from an order to what a bar does with it: the compiled step that the
trading session and the precomputed backtest share, so that they are equal by construction.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np

from algospace.execution.mechanics import FillCause, advance, pass_bar
from algospace.risk.limits import limit_contracts
from algospace.types import AnyArray, FloatArray

_STOP, _TARGET = int(FillCause.STOP), int(FillCause.TARGET)
AS_CONFIGURED, STOP_FIRST, HIGH_FIRST_IF_DOWN = 0, 1, 2  # rows of a venue triple, see `venue_triple`


def venue_triple(venue: AnyArray) -> AnyArray:
    """(3,) VENUE_DTYPE: as configured, with `pessimistic`, with `infer`; finer bars choose among them."""
    triple = np.empty(3, venue.dtype)
    triple[:] = venue
    triple["infer"][STOP_FIRST] = 0
    triple["infer"][HIGH_FIRST_IF_DOWN] = 1
    return triple


@nb.njit(cache=True)
def plan_order(account: Any, venue: Any, limits: Any, limited: bool, reverse: bool, want: float,
               stop_distance: float) -> tuple[bool, float, int]:
    """(is there an order, signed contracts wanted, Limit code) for a decision to hold `want` contracts.

    `want` 0 flattens. The side already held: no order. The other side: an order that closes and, with
    `reverse`, opens. The hard limits are applied to the contracts wanted; where they leave nothing, there is no
    order and the code says why. `stop_distance` is in points; the risk of a contract is the distance, the
    slippage of the stop and both commissions. These are the rules of the core environment.
    """
    held = account.position
    if want == 0.0:
        return held != 0.0, 0.0, 0
    if held * want > 0.0:
        return False, 0.0, 0
    contracts, code = abs(want), 0
    if limited:
        exit_cost = venue.slippage * venue.multiplier + 2.0 * venue.commission
        risk = stop_distance * venue.multiplier + exit_cost if stop_distance > 0.0 else 0.0
        contracts, code = limit_contracts(limits, contracts, risk, account.equity, account.day_start, 0)
        if contracts == 0.0:
            return False, 0.0, code
    if held != 0.0 and not reverse:
        return True, 0.0, code
    return True, np.sign(want) * contracts, code


@nb.njit(cache=True)
def _finer_exit(trial: Any, venue: Any, has_order: bool, want: float, stop_distance: float,
                target_distance: float, roll: float, day: int, finer: FloatArray, first: int, last: int,
                fills: AnyArray) -> int:
    """Which level finer bars [first, last) reach first: _STOP, _TARGET, or -1. `finer` is (4, n): o, h, l, c."""
    for bar in range(first, last):
        opening = bar == first
        count = advance(trial, venue, has_order and opening, want, stop_distance, target_distance,
                        finer[0, bar], finer[1, bar], finer[2, bar], finer[3, bar],
                        roll if opening else 1.0, day, fills)
        if count > 0 and trial.position == 0.0:
            return fills[count - 1].cause
    return -1


@nb.njit(cache=True)
def play(accounts: AnyArray, spare: AnyArray, venues: AnyArray, has_order: bool, want: float,
         stop_distance: float, target_distance: float, open_: float, high: float, low: float, close: float,
         roll: float, day: int, filled: bool, finer: FloatArray, first: int, last: int, fills: AnyArray) -> int:
    """`advance` accounts[0] over one base bar; where one bar reaches both levels, finer bars decide.

    Finer bars are columns [first, last) of `finer` (4, n); none means the venue's intrabar rule. They decide
    which level came first, the base bar's mechanics carry it out. `spare` is (2,) scratch accounts. A filled bar
    is passed over: its caller keeps the order for the first real bar.
    Returns the number of records written to `fills`.
    """
    if filled:
        return pass_bar(accounts[0], venues[AS_CONFIGURED], close, roll, day, fills)
    if last <= first:
        return advance(accounts[0], venues[AS_CONFIGURED], has_order, want, stop_distance, target_distance,
                       open_, high, low, close, roll, day, fills)
    spare[0] = accounts[0]
    count = advance(accounts[0], venues[AS_CONFIGURED], has_order, want, stop_distance, target_distance,
                    open_, high, low, close, roll, day, fills)
    if count == 0 or accounts[0].position != 0.0:
        return count
    cause = fills[count - 1].cause
    if cause != _STOP and cause != _TARGET:
        return count
    side = -np.sign(fills[count - 1].quantity)
    spare[1] = spare[0]
    decided = _finer_exit(spare[1], venues[AS_CONFIGURED], has_order, want, stop_distance, target_distance,
                          roll, day, finer, first, last, fills)
    rule, ordered_close = AS_CONFIGURED, close
    if cause == _TARGET and decided == _STOP:
        rule = STOP_FIRST
    elif cause == _STOP and decided == _TARGET:
        # `infer` takes the high first in a falling bar: the target of a long, of a short in a rising one
        rule, ordered_close = HIGH_FIRST_IF_DOWN, open_ - side
    accounts[0] = spare[0]
    count = advance(accounts[0], venues[rule], has_order, want, stop_distance, target_distance, open_, high, low,
                    ordered_close, roll, day, fills)
    accounts[0].mark = close
    return count


@nb.njit(cache=True)
def play_into(source: AnyArray, result: AnyArray, spare: AnyArray, venues: AnyArray, has_order: bool, want: float,
              stop_distance: float, target_distance: float, open_: float, high: float, low: float, close: float,
              roll: float, day: int, filled: bool, finer: FloatArray, first: int, last: int,
              fills: AnyArray) -> int:
    """`play` on a copy: result[0] is the account after the bar, source[0] stays as it was."""
    result[0] = source[0]
    return play(result, spare, venues, has_order, want, stop_distance, target_distance, open_, high, low, close,
                roll, day, filled, finer, first, last, fills)


@nb.njit(cache=True)
def plan_for(accounts: AnyArray, venues: AnyArray, limits: AnyArray, limited: bool, reverse: bool, want: float,
             stop_distance: float) -> tuple[bool, float, int]:
    """`plan_order` for callers in Python: arrays are unpacked several times faster than records."""
    return plan_order(accounts[0], venues[AS_CONFIGURED], limits[0], limited, reverse, want, stop_distance)
