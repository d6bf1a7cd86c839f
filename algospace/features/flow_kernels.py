"""Order flow of trades in compiled code: what each trade adds to its bar, and what a bar comes to.

Sides by the quote rule of Lee and Ready (Inferring Trade Direction from Intraday Data, Journal of Finance 46,
1991): above the midpoint of the quotes before the trade a buy, below it a sell; at it, or without quotes, the tick
rule: the direction of the last price change.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba as nb
import numpy as np

from algospace.calendars import local_ns
from algospace.features.bars import NEVER
from algospace.features.unowned import unowned
from algospace.types import DAY_NS, AnyArray, FloatArray, IntArray

NO_SIDES, AGGRESSOR, LEE_READY, TICK_RULE = 0, 1, 2, 3  # how a trade's side is found
REFUSED = NEVER  # no bar takes the trade

COLUMNS = (
    "trade_count", "vwap", "trade_size_mean", "trade_size_max", "buy_volume", "sell_volume", "signed_volume",
    "order_imbalance", "session_delta", "spread_mean", "spread_close", "spread_close_ticks", "effective_spread",
)  # fmt: skip

# What the bar that ends at `end` has come to; vwap, spread_mean, spread_close and effective_spread are set once it
# is complete. `delta` is the signed volume of trading day `day` so far.
BAR_FLOW = np.dtype(
    [("end", "i8"), ("day", "i8"), ("count", "i8"), ("sized", "i8"), ("quoted", "i8"), ("size", "f8"),
     ("size_max", "f8"), ("weight", "f8"), ("value", "f8"), ("price", "f8"), ("buy", "f8"), ("sell", "f8"),
     ("delta", "f8"), ("spread", "f8"), ("effective", "f8"), ("last_spread", "f8"), ("vwap", "f8"),
     ("spread_mean", "f8"), ("spread_close", "f8"), ("effective_spread", "f8")],
    align=True,
)  # fmt: skip

# What is remembered from trade to trade; `end` of the last row that was read.
TRADE = np.dtype(
    [("started", "i8"), ("is_open", "i8"), ("end", "i8"), ("last_ts", "i8"), ("contract", "i8"),
     ("direction", "i8"), ("factor", "f8"), ("raw_close", "f8"), ("late", "i8"), ("invalid", "i8")],
    align=True,
)  # fmt: skip


class FlowParams(NamedTuple):
    """Of the compiled step. shift: ns from the start of a trading day to local midnight; sides: as above."""

    width: int
    sides: int
    max_disorder: int
    grace: int
    tick_size: float
    zone_starts: IntArray
    zone_offsets: IntArray
    shift: int


@nb.njit(cache=True)
def day_of(end: int, params: Any) -> int:
    """Days since 1970 of the trading day that holds the last instant of a bar that ends at `end`."""
    return (local_ns(end - 1, params.zone_starts, params.zone_offsets) + params.shift) // DAY_NS


@nb.njit(cache=True)
def begin_bar(bar: Any, done: Any, end: int, day: int) -> None:
    """A bar without trades that continues the session's delta of the bar before."""
    bar.end, bar.day = end, day
    bar.count = bar.sized = bar.quoted = 0
    bar.size = bar.size_max = bar.weight = bar.value = bar.price = bar.buy = bar.sell = 0.0
    bar.spread = bar.effective = 0.0
    bar.last_spread = np.nan
    bar.delta = done.delta if done.day == day else 0.0


@nb.njit(cache=True)
def add_trade(
    trade: Any, bar: Any, sides: int, ts: int, price: float, size: float, bid: float, ask: float, aggressor: int,
    contract: int,
) -> None:  # fmt: skip
    """An accepted trade into its bar; a trade of unknown size weighs 1 in sides and vwap."""
    if trade.started and contract != trade.contract:
        trade.factor *= trade.raw_close / price
    elif trade.started and price != trade.raw_close:
        trade.direction = 1 if price > trade.raw_close else -1
    trade.contract, trade.started, trade.raw_close, trade.last_ts = contract, 1, price, ts
    quoted = bid > 0.0 and bid <= ask and ask < np.inf
    middle = (bid + ask) / 2.0
    known = not np.isnan(size)
    weight = size if known else 1.0
    adjusted = price * trade.factor
    bar.count += 1
    bar.price += adjusted
    bar.weight += weight
    bar.value += adjusted * weight
    if known:
        bar.sized += 1
        bar.size += size
        bar.size_max = max(bar.size_max, size)
    if quoted:
        bar.quoted += 1
        bar.spread += ask - bid
        bar.effective += 2.0 * abs(price - middle)
        bar.last_spread = ask - bid
    side = trade.direction
    if sides == NO_SIDES:
        return
    if sides == AGGRESSOR:
        side = aggressor
    elif sides == LEE_READY and quoted and price != middle:
        side = 1 if price > middle else -1
    if side > 0:
        bar.buy += weight
        bar.delta += weight
    elif side < 0:
        bar.sell += weight
        bar.delta -= weight


@nb.njit(cache=True)
def finish_bar(bar: Any, done: Any) -> None:
    """Complete the means; what the bar cannot say it takes over from the bar before."""
    bar.vwap, bar.spread_mean = done.vwap, done.spread_mean
    bar.spread_close, bar.effective_spread = done.spread_close, done.effective_spread
    if bar.count:
        bar.vwap = bar.value / bar.weight if bar.weight > 0.0 else bar.price / bar.count
    if bar.quoted:
        bar.spread_mean = bar.spread / bar.quoted
        bar.effective_spread = bar.effective / bar.quoted
        bar.spread_close = bar.last_spread


@nb.njit(cache=True)
def write_row(done: Any, traded: bool, day: int, tick_size: float, out: FloatArray) -> None:
    """The columns of a row: `done` is its own bar if it `traded`, else the last one that did."""
    out[0] = done.count if traded else 0.0
    out[1] = done.vwap
    out[2] = done.size / done.sized if traded and done.sized else 0.0
    out[3] = done.size_max if traded else 0.0
    out[4] = done.buy if traded else 0.0
    out[5] = done.sell if traded else 0.0
    out[6] = out[4] - out[5]
    out[7] = out[6] / (out[4] + out[5]) if out[4] + out[5] > 0.0 else 0.0
    out[8] = done.delta if done.day == day else 0.0
    out[9] = done.spread_mean
    out[10] = done.spread_close
    out[11] = done.spread_close / tick_size
    out[12] = done.effective_spread


# Inlined, because every call would copy the parameters with their arrays (half of the time).
@nb.njit(cache=True, inline="always")
def accept(trade: Any, bars: Any, params: Any, ts: int, price: float, size: float, received: int) -> int:
    """Start of the bar that takes this trade, or REFUSED, by the rules of `bars.push_tick`.

    bars[0] is the open bar, bars[1] the last complete one. Besides, a trade received later than `grace` after the
    end of its bar is late.
    """
    if not (price > 0.0 and price < np.inf) or size < 0.0 or size == np.inf:
        trade.invalid += 1
        return REFUSED
    width = params.width
    start = bars[0].end - width if trade.is_open else ts
    if not trade.is_open or ts < start or ts >= bars[0].end:
        start = ts - ts % width
    past = start < trade.end or (trade.is_open and start + width < bars[0].end)
    past = past or (trade.started and ts + params.max_disorder < trade.last_ts)
    if past or received - start > width + params.grace:
        trade.late += 1
        return REFUSED
    return start


@nb.njit(cache=True, inline="always")
def push(
    trade: Any, bars: Any, params: Any, start: int, ts: int, price: float, size: float, bid: float, ask: float,
    aggressor: int, contract: int,
) -> None:  # fmt: skip
    """An accepted trade into the bar that begins at `start`."""
    if trade.is_open and start + params.width > bars[0].end:
        complete(trade, bars)
    if not trade.is_open:
        end = start + params.width
        begin_bar(bars[0], bars[1], end, day_of(end, params))
        trade.is_open = 1
    add_trade(trade, bars[0], params.sides, ts, price, size, bid, ask, aggressor, contract)


@nb.njit(cache=True)
def complete(trade: Any, bars: Any) -> None:
    """The open bar becomes the last complete one."""
    finish_bar(bars[0], bars[1])
    bars[1] = bars[0]
    trade.is_open = 0


@nb.njit(cache=True)
def close(trade: Any, bars: Any, params: Any, ts_close: int, out: FloatArray) -> bool:
    """The row of the bar that ends at `ts_close`; False if a later bar has been completed before."""
    if trade.is_open and bars[0].end <= ts_close:
        complete(trade, bars)
    if bars[1].end > ts_close:
        return False
    write_row(bars[1], bars[1].end == ts_close, day_of(ts_close, params), params.tick_size, out)
    trade.end = ts_close
    return True


@nb.njit(cache=True)
def push_one(
    state: Any, bars: Any, params: Any, ts: int, price: float, size: float, bid: float, ask: float, aggressor: int,
    received: int, contract: int,
) -> bool:  # fmt: skip
    """`accept` and `push` of one trade, state (1,); whether it was accepted."""
    trade = state[0]
    start = accept(trade, bars, params, ts, price, size, received)
    if start != REFUSED:
        push(trade, bars, params, start, ts, price, size, bid, ask, aggressor, contract)
    return start != REFUSED


@nb.njit(cache=True)
def close_one(state: Any, bars: Any, params: Any, ts_close: int, out: FloatArray) -> bool:
    """`close` of one row, state (1,)."""
    return close(state[0], bars, params, ts_close, out)


@nb.njit(cache=True)
def run(
    state: Any, bars: Any, params: Any, ts: IntArray, price: FloatArray, size: FloatArray, bid: FloatArray,
    ask: FloatArray, aggressor: AnyArray, received: IntArray, contract: AnyArray, ts_close: IntArray,
    out: FloatArray,
) -> int:  # fmt: skip
    """All trades and rows (n,) into out (n, columns); absent inputs are empty; the first bad row, -1 if none.

    state (1,). A row is read before the first accepted trade at or after its end, as by a bar that it closes.
    """
    state, bars, params = unowned(state), unowned(bars), unowned(params)
    trade = state[0]
    j = 0
    for i in range(ts.size):
        start = accept(trade, bars, params, ts[i], price[i], size[i], received[i] if received.size else ts[i])
        if start == REFUSED:
            continue
        while j < ts_close.size and ts_close[j] <= start:
            if not close(trade, bars, params, ts_close[j], out[j]):
                return j
            j += 1
        push(trade, bars, params, start, ts[i], price[i], size[i], bid[i] if bid.size else np.nan,
             ask[i] if ask.size else np.nan, aggressor[i] if aggressor.size else 0,
             contract[i] if contract.size else 0)  # fmt: skip
    while j < ts_close.size:
        if not close(trade, bars, params, ts_close[j], out[j]):
            return j
        j += 1
    return -1
