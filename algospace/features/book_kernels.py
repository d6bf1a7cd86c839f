"""The best bid and ask in compiled code: what is known at a bar's close, and what happened over the bar.

A bar reads the updates that became known in (end - width, end]. Every finished bar is kept in a ring, because a
base row can be emitted much later than it closed: a gap is filled only when the next trade comes, and quotes go on
meanwhile.

Order-flow imbalance: Cont, Kukanov and Stoikov, The Price Impact of Order Book Events, Journal of Financial
Econometrics 12 (2014). An update n contributes
    e_n = [b_n >= b_n-1] B_n - [b_n <= b_n-1] B_n-1 - [a_n <= a_n-1] A_n + [a_n >= a_n-1] A_n-1
with bid b, ask a and their sizes B, A.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np

from algospace.features.bars import NEVER
from algospace.types import FloatArray, IntArray

RING = 128  # finished bars that are kept: more than an event can close (60 one-minute bars)
SECOND = 1e9

COLUMNS = (
    "book_mid", "book_spread", "book_spread_ticks", "book_age_s", "book_spread_mean", "book_updates",
    "book_bid_depth", "book_ask_depth", "book_imbalance", "book_microprice_offset", "book_ofi",
)  # fmt: skip

# The quote in force (known from `known` on, at the exchange at `ts`) and the bar ending at `end` so far;
# `spread_time` is the integral of the spread over `time` ns.
BOOK = np.dtype(
    [("end", "i8"), ("known", "i8"), ("ts", "i8"), ("updates", "i8"), ("bid", "f8"), ("ask", "f8"),
     ("bid_size", "f8"), ("ask_size", "f8"), ("ofi", "f8"), ("spread_time", "f8"), ("time", "f8")],
    align=True,
)  # fmt: skip

# `finished`: bars put into the ring so far; `read_to`: end of the last row that was read; `seen`: when the newest
# valid update became known, accepted or late.
BOOK_STREAM = np.dtype(
    [("started", "i8"), ("is_open", "i8"), ("finished", "i8"), ("read_to", "i8"), ("seen", "i8"), ("late", "i8"),
     ("invalid", "i8")],
    align=True,
)  # fmt: skip


@nb.njit(cache=True)
def push(
    stream: Any, now: Any, ring: Any, width: int, ts: int, known: int, bid: float, ask: float, bid_size: float,
    ask_size: float,
) -> bool:  # fmt: skip
    """One update, known from `known` on (sizes NaN where unknown); whether it was accepted.

    Invalid: a side missing, not positive, or crossed, or a negative or infinite size. Late: older than the last
    one, at the exchange or in receipt; or of a bar that was over, or a row that was read, before it came.
    """
    if not is_valid(bid, ask, bid_size, ask_size):
        stream.invalid += 1
        return False
    over = stream.seen - 1 - (stream.seen - 1) % width  # end of the last bar that a valid update lies behind
    stream.seen = max(stream.seen, known)
    behind = known <= stream.read_to or (stream.started and known <= over)
    if behind or (stream.started and (ts < now.ts or known < now.known)):
        stream.late += 1
        return False
    if stream.is_open and known > now.end:
        _finish(stream, now, ring, width)
    if not stream.is_open:
        now.end = known + (-known) % width
        now.updates = 0
        now.ofi = now.spread_time = now.time = 0.0
        stream.is_open = 1
    if np.isnan(bid_size):
        bid_size = now.bid_size
    if np.isnan(ask_size):
        ask_size = now.ask_size
    if stream.started:
        _pass_time(now, known, width)
        event = _order_flow(now, bid, ask, bid_size, ask_size)
        now.ofi += 0.0 if np.isnan(event) else event
    now.bid, now.ask, now.bid_size, now.ask_size = bid, ask, bid_size, ask_size
    now.ts, now.known = ts, known
    now.updates += 1
    stream.started = 1
    return True


@nb.njit(cache=True)
def is_valid(bid: float, ask: float, bid_size: float, ask_size: float) -> bool:
    """Whether both sides are there and not crossed, and sizes are possible or unknown."""
    priced = bid > 0.0 and bid <= ask and ask < np.inf
    return priced and not (bid_size < 0.0 or ask_size < 0.0 or bid_size == np.inf or ask_size == np.inf)


@nb.njit(cache=True)
def _order_flow(last: Any, bid: float, ask: float, bid_size: float, ask_size: float) -> float:
    event = 0.0
    if bid >= last.bid:
        event += bid_size
    if bid <= last.bid:
        event -= last.bid_size
    if ask <= last.ask:
        event -= ask_size
    if ask >= last.ask:
        event += last.ask_size
    return event


@nb.njit(cache=True)
def _pass_time(now: Any, until: int, width: int) -> None:
    """The quote in force has lasted until `until`, within the open bar."""
    passed = float(until - max(now.known, now.end - width))
    now.spread_time += (now.ask - now.bid) * passed
    now.time += passed


@nb.njit(cache=True)
def _finish(stream: Any, now: Any, ring: Any, width: int) -> None:
    """Put the open bar into the ring."""
    _pass_time(now, now.end, width)
    ring[stream.finished % RING] = now
    stream.finished += 1
    stream.is_open = 0


@nb.njit(cache=True)
def close(
    stream: Any, now: Any, ring: Any, width: int, tick_size: float, ts_close: int, out: FloatArray
) -> bool:
    """The row of the bar that ends at `ts_close`; False if it is no longer in the ring."""
    if stream.is_open and now.end <= ts_close:
        _finish(stream, now, ring, width)
    stream.read_to = ts_close
    place = stream.finished - 1
    kept = max(stream.finished - RING, 0)
    while place >= kept and ring[place % RING].end > ts_close:
        place -= 1
    if place < kept:
        _write_unknown(out)
        return kept == 0
    _write(ring[place % RING], tick_size, ts_close, out)
    return True


@nb.njit(cache=True)
def _write_unknown(out: FloatArray) -> None:
    out[:] = np.nan
    out[5] = out[10] = 0.0


@nb.njit(cache=True)
def _write(bar: Any, tick_size: float, ts_close: int, out: FloatArray) -> None:
    quoted = bar.end == ts_close  # else the bar saw no update and the quote of an earlier one is in force
    mid = (bar.bid + bar.ask) / 2.0
    spread = bar.ask - bar.bid
    depth = bar.bid_size + bar.ask_size
    out[0] = mid
    out[1] = spread
    out[2] = spread / tick_size
    out[3] = (ts_close - bar.known) / SECOND
    out[4] = bar.spread_time / bar.time if quoted and bar.time > 0.0 else spread
    out[5] = bar.updates if quoted else 0.0
    out[6] = bar.bid_size
    out[7] = bar.ask_size
    out[8] = (bar.bid_size - bar.ask_size) / depth if depth != 0.0 else 0.0
    out[9] = (bar.bid * bar.ask_size + bar.ask * bar.bid_size) / depth - mid if depth != 0.0 else 0.0
    out[10] = bar.ofi if quoted else 0.0


@nb.njit(cache=True)
def push_one(
    stream: Any, now: Any, ring: Any, width: int, ts: int, known: int, bid: float, ask: float, bid_size: float,
    ask_size: float,
) -> bool:  # fmt: skip
    """`push`, states (1,)."""
    return push(stream[0], now[0], ring, width, ts, known, bid, ask, bid_size, ask_size)


@nb.njit(cache=True)
def run(
    streams: Any, nows: Any, ring: Any, width: int, tick_size: float, ts: IntArray, known: IntArray,
    bid: FloatArray, ask: FloatArray, bid_size: FloatArray, ask_size: FloatArray, ts_close: IntArray,
    out: FloatArray,
) -> int:  # fmt: skip
    """All updates and rows (n,) into out (n, columns); a row reads what is known at its close. The first row that
    the ring no longer holds, -1 if none."""
    stream, now = streams[0], nows[0]
    i = 0
    for j in range(ts_close.size):
        # an invalid update says nothing, not even that its time has come
        while i < ts.size and (known[i] <= ts_close[j] or not is_valid(bid[i], ask[i], bid_size[i], ask_size[i])):
            push(stream, now, ring, width, ts[i], known[i], bid[i], ask[i], bid_size[i], ask_size[i])
            i += 1
        if not close(stream, now, ring, width, tick_size, ts_close[j], out[j]):
            return j
    while i < ts.size:
        push(stream, now, ring, width, ts[i], known[i], bid[i], ask[i], bid_size[i], ask_size[i])
        i += 1
    return -1


@nb.njit(cache=True)
def close_one(
    streams: Any, nows: Any, ring: Any, width: int, tick_size: float, ts_close: int, out: FloatArray
) -> bool:
    """`close`, states (1,)."""
    return close(streams[0], nows[0], ring, width, tick_size, ts_close, out)


def new_state() -> tuple[Any, Any, Any]:
    """(stream (1,), quote in force (1,), ring of finished bars) before the first update."""
    stream, now = np.zeros(1, BOOK_STREAM), np.zeros(1, BOOK)
    stream["read_to"] = now["end"] = now["known"] = now["ts"] = NEVER
    for name in ("bid", "ask", "bid_size", "ask_size"):
        now[name] = np.nan
    return stream, now, np.zeros(RING, BOOK)
