"""Market mechanics: what one bar does to one account. The only such code; environments, backtest and the
simulated venue all call it.

A decision at the close of bar t is carried out in bar t+1, or in the first real bar after it if bars are missing
(filled bars, see `pass_bar`): the market order fills at the open +- slippage; brackets rest from the fill on. A
gap through a level fills at the open; a stop inside the bar fills at its trigger plus slippage; a target only if
the bar trades at least one tick through it. If one bar touches both, `intrabar` decides: pessimistic (stop first)
or infer (a bar that closes below its open saw its high first).
Prices are raw points; at a futures roll every level is rescaled and the position pays a close and an open.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numba as nb
import numpy as np

from algospace.types import AnyArray

ACCOUNT_DTYPE = np.dtype([
    ("position", "f8"),       # contracts, signed
    ("entry", "f8"),          # average entry price, points
    ("stop", "f8"),           # resting levels, points; NaN when there is none
    ("target", "f8"),
    ("mark", "f8"),           # price at which equity was last settled
    ("equity", "f8"),         # account currency, net of all costs
    ("peak", "f8"),
    ("day_start", "f8"),      # equity at the start of the trading day
    ("realised", "f8"),       # gross profit of closed contracts
    ("costs", "f8"),          # commissions paid
    ("trade_start", "f8"),    # equity before the fill that opened the present position
    ("last_trade", "f8"),     # net profit of the trade that closed last
    ("day", "i8"),
    ("bars_in_trade", "i8"),
    ("trades", "i8"),         # closed trades
])

VENUE_DTYPE = np.dtype([
    ("tick", "f8"), ("multiplier", "f8"), ("commission", "f8"), ("slippage", "f8"), ("infer", "i8"),
])

FILL_DTYPE = np.dtype([("quantity", "f8"), ("price", "f8"), ("commission", "f8"), ("cause", "i8")])
MAX_FILLS_PER_BAR = 6


class FillCause(IntEnum):
    """Why a fill happened."""

    ORDER = 0
    STOP = 1
    TARGET = 2
    ROLL = 3


_ORDER, _STOP, _TARGET, _ROLL = (int(cause) for cause in FillCause)


def venue_record(tick_size: float, multiplier: float, commission: float, slippage_ticks: float,
                 intrabar: str) -> AnyArray:
    """A VENUE_DTYPE record; slippage is given in ticks and stored in points."""
    if intrabar not in ("pessimistic", "infer"):
        raise ValueError(f"intrabar must be 'pessimistic' or 'infer', got '{intrabar}'")
    return np.array((tick_size, multiplier, commission, slippage_ticks * tick_size, intrabar == "infer"),
                    VENUE_DTYPE)


@nb.njit(cache=True)
def open_account(account: Any, equity: float, price: float, day: int) -> None:
    """Reset one account record to flat with `equity` at mark `price`."""
    account.position = 0.0
    account.entry = 0.0
    account.stop = np.nan
    account.target = np.nan
    account.mark = price
    account.equity = equity
    account.peak = equity
    account.day_start = equity
    account.realised = 0.0
    account.costs = 0.0
    account.trade_start = equity
    account.last_trade = 0.0
    account.day = day
    account.bars_in_trade = 0
    account.trades = 0


@nb.njit(inline="always", cache=True)
def _settle(account: Any, multiplier: float, price: float) -> None:
    account.equity += account.position * (price - account.mark) * multiplier
    account.mark = price


@nb.njit(cache=True)
def fill(account: Any, venue: Any, quantity: float, price: float, cause: int, fills: AnyArray, count: int) -> int:
    """Trade `quantity` (signed) at `price`; never crosses zero. Returns the new number of fills."""
    _settle(account, venue.multiplier, price)
    commission = abs(quantity) * venue.commission
    before = account.position
    if before == 0.0:
        account.trade_start = account.equity
        account.bars_in_trade = 0
    after = before + quantity
    if before * quantity < 0.0:
        account.realised += -quantity * (price - account.entry) * venue.multiplier
    else:
        account.entry = (before * account.entry + quantity * price) / after
    account.equity -= commission
    account.costs += commission
    account.position = after
    if after == 0.0:
        account.stop = np.nan
        account.target = np.nan
        account.last_trade = account.equity - account.trade_start
        account.trades += 1
    fills[count].quantity = quantity
    fills[count].price = price
    fills[count].commission = commission
    fills[count].cause = cause
    return count + 1


@nb.njit(cache=True)
def _roll_position(account: Any, venue: Any, roll: float, fills: AnyArray, count: int) -> int:
    """Carry the position into the new contract: levels rescaled, both sides paid in commission and slippage.

    Rescaling the entry changes the unrealised profit; the difference has been earned in the old contract.
    """
    account.realised += account.position * (account.mark - account.entry) * venue.multiplier * (1.0 - roll)
    account.mark *= roll
    account.entry *= roll
    account.stop *= roll
    account.target *= roll
    if account.position == 0.0:
        return count
    side = np.sign(account.position)
    commission = 2.0 * abs(account.position) * venue.commission
    slip = 2.0 * abs(account.position) * venue.slippage * venue.multiplier
    account.equity -= commission + slip
    account.realised -= slip
    account.costs += commission
    fills[count].quantity = 0.0
    fills[count].price = account.mark + side * venue.slippage
    fills[count].commission = commission
    fills[count].cause = _ROLL
    return count + 1


@nb.njit(cache=True)
def _exit_at_open(account: Any, venue: Any, open_: float, fills: AnyArray, count: int) -> int:
    """Resting levels that the open has gapped through."""
    position = account.position
    if position == 0.0:
        return count
    side = np.sign(position)
    if side * (open_ - account.stop) <= 0.0:
        return fill(account, venue, -position, open_ - side * venue.slippage, _STOP, fills, count)
    if side * (open_ - account.target) >= venue.tick:
        return fill(account, venue, -position, open_, _TARGET, fills, count)
    return count


@nb.njit(cache=True)
def _exit_inside(account: Any, venue: Any, open_: float, high: float, low: float, close: float,
                 fills: AnyArray, count: int) -> int:
    """Resting levels that the bar's range reaches."""
    position = account.position
    if position == 0.0:
        return count
    side = np.sign(position)
    best = high if side > 0.0 else low
    worst = low if side > 0.0 else high
    stopped = side * (worst - account.stop) <= 0.0
    reached = side * (best - account.target) >= venue.tick * (1.0 - 1e-9)
    if stopped and reached:
        high_first = close < open_
        stopped = not (venue.infer != 0 and high_first == (side > 0.0))
    if stopped:
        return fill(account, venue, -position, account.stop - side * venue.slippage, _STOP, fills, count)
    if reached:
        return fill(account, venue, -position, account.target, _TARGET, fills, count)
    return count


@nb.njit(cache=True)
def carry_order(account: Any, venue: Any, want: float, stop_distance: float, target_distance: float,
                open_: float, fills: AnyArray, count: int) -> int:
    """Fill a market order for the signed position `want` at the open. A change of side closes first.

    Distances are in points from the fill price; 0 means no such level. An order for the side already held
    changes nothing.
    """
    held = account.position
    if held * want > 0.0:
        return count
    if held != 0.0:
        count = fill(account, venue, -held, open_ - np.sign(held) * venue.slippage, _ORDER, fills, count)
    if want != 0.0:
        side = np.sign(want)
        price = open_ + side * venue.slippage
        count = fill(account, venue, want, price, _ORDER, fills, count)
        if stop_distance > 0.0:
            account.stop = price - side * stop_distance
        if target_distance > 0.0:
            account.target = price + side * target_distance
    return count


@nb.njit(cache=True)
def pass_bar(account: Any, venue: Any, close: float, roll: float, day: int, fills: AnyArray) -> int:
    """A filled bar: nobody traded, so nothing fills. Trading day, roll and mark are brought up to date.

    Its price is the close that was observed before it: an order waits for the open of the first real bar.
    Returns the number of records written to `fills` (a roll's).
    """
    count = 0
    if day != account.day:
        account.day = day
        account.day_start = account.equity
    if roll != 1.0:
        count = _roll_position(account, venue, roll, fills, count)
    _settle(account, venue.multiplier, close)
    if account.position != 0.0:
        account.bars_in_trade += 1
    if account.equity > account.peak:
        account.peak = account.equity
    return count


@nb.njit(cache=True)
def advance(account: Any, venue: Any, has_order: bool, want: float, stop_distance: float, target_distance: float,
            open_: float, high: float, low: float, close: float, roll: float, day: int, fills: AnyArray) -> int:
    """Play one bar: trading day, roll, gaps, the order, levels inside the bar, mark to the close.

    Returns the number of records written to `fills` (at most MAX_FILLS_PER_BAR).
    """
    count = 0
    if day != account.day:
        account.day = day
        account.day_start = account.equity
    if roll != 1.0:
        count = _roll_position(account, venue, roll, fills, count)
    count = _exit_at_open(account, venue, open_, fills, count)
    if has_order:
        count = carry_order(account, venue, want, stop_distance, target_distance, open_, fills, count)
    count = _exit_inside(account, venue, open_, high, low, close, fills, count)
    _settle(account, venue.multiplier, close)
    if account.position != 0.0:
        account.bars_in_trade += 1
    if account.equity > account.peak:
        account.peak = account.equity
    return count
