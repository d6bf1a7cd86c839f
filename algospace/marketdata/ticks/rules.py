"""Which ticks or quotes break a rule. A row is quarantined with the first rule that it is found to break."""

from __future__ import annotations

from collections.abc import Sequence

import numba as nb
import numpy as np
import pandas as pd

from algospace.marketdata.timestamps import NO_TIME
from algospace.types import AnyArray, BoolArray, FloatArray, IntArray

RULES = ("ok", "malformed_line", "missing_symbol", "unreadable_time", "nonexistent_local_time",
         "swapped_day_month", "non_finite", "non_positive_price", "negative_size", "crossed", "from_the_future",
         "duplicate", "disorder")
MEANING = {
    "malformed_line": "another number of fields than the header",
    "missing_symbol": "the row names no symbol, while others do",
    "unreadable_time": "a time is missing or cannot be read",
    "nonexistent_local_time": "this local time was skipped by a clock change",
    "swapped_day_month": "day and month look exchanged",
    "non_finite": "a number is missing or not finite",
    "non_positive_price": "a price is zero or negative",
    "negative_size": "a size is negative",
    "crossed": "the bid is above the ask",
    "from_the_future": "the time is later than possible: after its receipt, after now, or a step ahead that comes "
                       "back",
    "duplicate": "this trade came before (same identity)",
    "disorder": "the time goes back",
}
FIX = {
    "nonexistent_local_time": "check --zone",
    "swapped_day_month": "write all dates in one order, or say --dates day-first or month-first",
    "from_the_future": "correct the clock of the source",
    "duplicate": "keep each trade once",
    "disorder": "sort the rows by time, or allow some with --max-disorder-ns",
}
CODE = {rule: np.uint8(i) for i, rule in enumerate(RULES)}
_FUTURE, _DISORDER = int(CODE["from_the_future"]), int(CODE["disorder"])
_LOOK_AHEAD = 2000  # good rows within which a mistaken step ahead must come back
_WINDOW = 16  # good rows that decide whether the step ahead or the row that comes back is the mistake


def mark(codes: AnyArray, rule: str, broken: BoolArray) -> None:
    """Give the rule to the rows that break it and broke none before."""
    codes[broken & (codes == 0)] = CODE[rule]


def judge_order(ts: IntArray, codes: AnyArray, max_disorder_ns: int, future_jump_ns: int) -> int:
    """Mark rows from the future and out of order among the good ones (code 0); return how many good rows are older
    than the row before, but by no more than allowed.

    The reference is the last accepted row, as in live bars. A step ahead of more than `future_jump_ns` is the
    mistake, not the rows after it, if most of the rows that follow the first one that comes back lie before it.
    """
    good = np.flatnonzero(codes == 0)
    if good.size == 0:
        return 0
    stamps = ts[good]
    later_minimum = np.minimum.accumulate(stamps[::-1])[::-1]  # smallest time from each row on
    verdict = np.zeros(good.size, np.uint8)
    late = int(_judge_order(stamps, later_minimum, max_disorder_ns, future_jump_ns, verdict))
    codes[good] = verdict
    return late


@nb.njit(cache=True)
def _judge_order(ts: IntArray, later_minimum: IntArray, max_disorder: int, jump: int, verdict: AnyArray) -> int:
    last, late = NO_TIME, 0
    for i in range(ts.size):
        if last != NO_TIME and ts[i] < last - max_disorder:
            verdict[i] = _DISORDER
            continue
        ahead = last == NO_TIME or ts[i] - last > jump
        if ahead and i + 1 < ts.size and later_minimum[i + 1] < ts[i] - max_disorder and _comes_back(
                ts, i, last, max_disorder):
            verdict[i] = _FUTURE
            continue
        if ts[i] < last:
            late += 1
        last = ts[i]
    return late


@nb.njit(cache=True)
def _comes_back(ts: IntArray, i: int, last: int, max_disorder: int) -> bool:
    """Whether time returns to before row i, but not before the last accepted row, and stays there."""
    floor = NO_TIME if last == NO_TIME else last - max_disorder
    for k in range(i + 1, min(i + 1 + _LOOK_AHEAD, ts.size)):
        if floor <= ts[k] < ts[i]:
            before, seen = 0, 0
            for j in range(k, min(k + _WINDOW, ts.size)):
                seen += 1
                if floor <= ts[j] < ts[i]:
                    before += 1
            return 2 * before > seen
    return False


def repeated_ids(symbol: IntArray, trade_id: IntArray) -> BoolArray:
    """Rows whose (symbol, trade id) came before. Negative ids are unknown ones."""
    if trade_id.size > 1 and bool((np.diff(trade_id) > 0).all()) and trade_id[0] >= 0:
        return np.zeros(trade_id.size, np.bool_)
    frame = pd.DataFrame({"symbol": symbol, "id": trade_id})
    return np.asarray(frame.duplicated(), np.bool_) & (trade_id >= 0)


def repeated_messages(symbol: IntArray, sequence: IntArray, ts: IntArray,
                      values: Sequence[FloatArray]) -> BoolArray:
    """Rows of a message that was sent again: equal in symbol, sequence, time and values to one of an earlier run.

    Exchanges number messages, not trades: the prints of one message share its sequence number and may be equal, so
    only a row that comes back after the sequence went on is a repetition.
    """
    n = sequence.size
    repeated = np.zeros(n, np.bool_)
    if n < 2 or (bool((np.diff(sequence) >= 0).all()) and not symbol.any()):
        return repeated
    order = np.argsort(symbol, kind="stable")
    new_run = np.r_[True, (np.diff(sequence[order]) != 0) | (np.diff(symbol[order]) != 0)]
    run = np.empty(n, np.int64)
    run[order] = np.cumsum(new_run)
    frame = pd.DataFrame({"symbol": symbol, "sequence": sequence, "ts": ts, "run": run,
                          **{f"value{k}": column for k, column in enumerate(values)}})
    frame = frame[frame["sequence"] >= 0]
    keys = [name for name in frame.columns if name != "run"]
    doubtful = frame[frame.duplicated(keys, keep=False)]
    first_run = doubtful.groupby(keys, sort=False, dropna=False)["run"].transform("min")
    repeated[doubtful.index.to_numpy()] = (doubtful["run"] > first_run).to_numpy()
    return repeated
