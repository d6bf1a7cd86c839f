"""Ticks to bars of any frames in compiled code: one exact step per tick, and a fast path over clean blocks.

`push` is the definition: one frame takes one tick, by the acceptance and roll rules of `bars.push_tick`. `run`
gives the same bars from arrays: it looks at a small block of ticks (valid, in order, no roll?) in loops that the
compiler vectorises, and reduces the stretches between two bar boundaries, found by search; the ticks of a block
that is not clean go through `push`.

Positive finite floats sort like their bits read as integers, so minima, maxima and validity are integer loops:
the compiler may vectorise those, while it must not reorder comparisons of floats because of NaN. Sizes are summed
in the order of the ticks, or, where that cannot change the sum because all are whole numbers, in any order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba as nb
import numpy as np

from algospace.features.bars import add_volume
from algospace.types import AnyArray, FloatArray, IntArray

CLOCK, TICK, VOLUME, DOLLAR = 0, 1, 2, 3  # kinds of frames

# State of one frame. `width` ns of a clock frame; `threshold` and `multiplier` of the others; `value` what counts
# towards the threshold; `newest` the largest time in the open bar; `end` of the last closed bar.
FRAME = np.dtype(
    [("kind", "i8"), ("width", "i8"), ("threshold", "f8"), ("multiplier", "f8"), ("is_open", "i8"),
     ("start", "i8"), ("end", "i8"), ("last_ts", "i8"), ("newest", "i8"), ("started", "i8"),
     ("contract", "i8"), ("count", "i8"),
     ("open", "f8"), ("high", "f8"), ("low", "f8"), ("close", "f8"), ("volume", "f8"), ("value", "f8"),
     ("factor", "f8"), ("raw_close", "f8"), ("first_row", "i8"), ("last_row", "i8"), ("late", "i8"),
     ("invalid", "i8")],
    align=True,
)  # fmt: skip

# A closed bar; first_row and last_row: the first and the last accepted tick in it, counted from the first ever.
TICK_BAR = np.dtype(
    [("ts_open", "i8"), ("ts_close", "i8"), ("open", "f8"), ("high", "f8"), ("low", "f8"), ("close", "f8"),
     ("volume", "f8"), ("count", "i8"), ("factor", "f8"), ("contract", "i8"), ("first_row", "i8"),
     ("last_row", "i8")],
    align=True,
)  # fmt: skip

BLOCK = 512  # ticks looked at together
_INFINITY = np.int64(0x7FF0000000000000)  # bits of +inf; above it are NaNs
_WHOLE = 2.0**52  # x + 2^52 - 2^52 rounds 0 <= x < 2^52 to a whole number
_SMALL_BITS = np.float64(2.0**36).view(np.int64)  # a block of whole sizes below it sums to less than 2^49
_DIRTY, _KNOWN, _WHOLE_SIZES, _UNKNOWN = 0, 1, 2, 3  # sizes known, all whole, or all NaN


class Seen(NamedTuple):
    """A block of ticks: what its sizes are, bits of its lowest and highest price, sum of its sizes if whole."""

    sizes: int
    low: int
    high: int
    whole: int


@nb.njit(cache=True)
def push(
    f: Any, bar: Any, max_disorder: int, adjust: bool, row: int, ts: int, price: float, size: float, contract: int
) -> bool:
    """One frame takes one tick (size NaN where unknown); whether it closed a bar, then written to `bar`.

    Late is a tick of a closed bar, or older than the last accepted one by more than `max_disorder`.
    """
    if not (price > 0.0 and price < np.inf) or size < 0.0 or size == np.inf:
        f.invalid += 1
        return False
    start = ts - ts % f.width if f.kind == CLOCK else ts
    past = start < f.end or (f.kind == CLOCK and f.is_open and start < f.start)
    if past or (f.started and ts + max_disorder < f.last_ts):
        f.late += 1
        return False
    closed = False
    if f.kind == CLOCK and f.is_open and start > f.start:
        _close(f, bar, f.start + f.width)
        closed = True
    if adjust and f.started and contract != f.contract:
        f.factor *= f.raw_close / price
    f.contract = contract
    f.started = 1
    adjusted = price * f.factor
    if not f.is_open:
        _open(f, start, row, adjusted)
    f.high = max(f.high, adjusted)
    f.low = min(f.low, adjusted)
    f.volume = add_volume(f.volume, size)
    f.count += 1
    f.newest = max(f.newest, ts)
    _leave(f, row, ts, price)
    return _count_towards(f, bar, price, size) or closed


@nb.njit(cache=True)
def advance(f: Any, bar: Any, now: int) -> bool:
    """Close the open bar of a clock frame if its end is not after `now`; whether it was."""
    if f.kind == CLOCK and f.is_open and now >= f.start + f.width:
        _close(f, bar, f.start + f.width)
        return True
    return False


@nb.njit(cache=True)
def _open(f: Any, start: int, row: int, adjusted: float) -> None:
    f.is_open = 1
    f.start = start
    f.first_row = row
    f.open = f.high = f.low = adjusted
    f.volume = np.nan
    f.value = 0.0
    f.count = 0
    f.newest = start


@nb.njit(cache=True)
def _leave(f: Any, row: int, ts: int, price: float) -> None:
    """What the last tick of a stretch leaves behind."""
    f.close = price * f.factor
    f.raw_close = price
    f.last_ts = ts
    f.last_row = row


@nb.njit(cache=True)
def _count_towards(f: Any, bar: Any, price: float, size: float) -> bool:
    if f.kind == CLOCK:
        return False
    if f.kind == TICK:
        f.value += 1.0
    elif not np.isnan(size):
        f.value += size if f.kind == VOLUME else price * size * f.multiplier
    if f.value >= f.threshold:
        _close(f, bar, f.newest)
        return True
    return False


@nb.njit(cache=True)
def _close(f: Any, bar: Any, ts_close: int) -> None:
    bar.ts_open, bar.ts_close = f.start, ts_close
    bar.open, bar.high, bar.low, bar.close, bar.volume = f.open, f.high, f.low, f.close, f.volume
    bar.count, bar.factor, bar.contract = f.count, f.factor, f.contract
    bar.first_row, bar.last_row = f.first_row, f.last_row
    f.is_open = 0
    f.end = ts_close


@nb.njit(cache=True)
def push_all(
    frames: Any, out: Any, closed: Any, max_disorder: int, adjust: bool, row: int, ts: int, price: float,
    size: float, contract: int,
) -> int:  # fmt: skip
    """Every frame (F,) takes one tick; bars closed by it go to out (F,), their frames to closed (F,); how many."""
    n = 0
    for k in range(frames.size):
        if push(frames[k], out[n], max_disorder, adjust, row, ts, price, size, contract):
            closed[n] = k
            n += 1
    return n


@nb.njit(cache=True)
def advance_all(frames: Any, out: Any, closed: Any, now: int) -> int:
    """`advance` of every frame, reported as by `push_all`."""
    n = 0
    for k in range(frames.size):
        if advance(frames[k], out[n], now):
            closed[n] = k
            n += 1
    return n


@nb.njit(cache=True)
def run(
    frames: Any, out: Any, sizes: Any, max_disorder: int, adjust: bool, first_row: int, begin: int, ts: IntArray,
    price: FloatArray, price_bits: IntArray, size: FloatArray, size_bits: IntArray, contract: AnyArray,
) -> int:  # fmt: skip
    """All frames (F,) over ticks from `begin` on, until the end or until `out` (F, room) has no room for a block.

    sizes (F,) bars are in `out`; contract () where there is one only; returns where to continue.
    """
    a = begin
    while a < ts.size and sizes.max() + BLOCK < out.shape[1]:
        b = min(a + (BLOCK if frames[0].started else 1), ts.size)
        clean = _check(frames, ts[a:b], contract[a:b])
        seen = _look(ts[a:b], price_bits[a:b], size[a:b], size_bits[a:b])
        for k in range(frames.size):
            f = frames[k]
            if not clean or seen.sizes == _DIRTY:
                for i in range(a, b):
                    code = contract[i] if contract.size else 0
                    bar = out[k, sizes[k]]
                    if push(f, bar, max_disorder, adjust, first_row + i, ts[i], price[i], size[i], code):
                        sizes[k] += 1
            elif f.kind == CLOCK or f.kind == TICK:
                _stretches(f, out[k], sizes, k, first_row, ts, price, price_bits, size, a, b, seen)
            else:
                _towards(f, out[k], sizes, k, first_row, ts, price, size, a, b)
        a = b
    return a


@nb.njit(cache=True)
def _check(frames: Any, ts: IntArray, contract: AnyArray) -> bool:
    """Whether no frame finds the first tick late, and none has to roll."""
    for k in range(frames.size):
        f = frames[k]
        if not f.started or ts[0] < f.last_ts or ts[0] < f.end:
            return False
        for i in range(contract.size):
            if contract[i] != f.contract:
                return False
    return True


@nb.njit(cache=True)
def _look(ts: IntArray, price_bits: IntArray, size: FloatArray, size_bits: IntArray) -> Seen:
    """One vectorised pass over a block: are the ticks valid and in order, and what do they come to?"""
    low = high = price_bits[0]
    least = most = size_bits[0]
    backwards = fractions = whole = known = 0
    before = ts[:-1]
    for i in range(before.size):
        backwards += ts[i + 1] < before[i]
    for i in range(ts.size):
        low = min(low, price_bits[i])
        high = max(high, price_bits[i])
    for i in range(ts.size):
        least = min(least, size_bits[i])
        most = max(most, size_bits[i])
        fractions += (size[i] + _WHOLE) - _WHOLE != size[i]
        whole += int(size[i])
        known += size[i] == size[i]
    sizes = _KNOWN if fractions or most > _SMALL_BITS else _WHOLE_SIZES
    if known == 0:
        sizes = _UNKNOWN
    elif least < 0 or most >= _INFINITY:
        sizes = _DIRTY
    if backwards or low <= 0 or high >= _INFINITY:
        sizes = _DIRTY
    return Seen(sizes, low, high, whole)


@nb.njit(cache=True)
def _stretches(
    f: Any, out: Any, sizes: Any, k: int, first_row: int, ts: IntArray, price: FloatArray, price_bits: IntArray,
    size: FloatArray, a: int, b: int, seen: Seen,
) -> None:  # fmt: skip
    """Clean ticks [a, b) into a clock or tick frame, one stretch between two boundaries after another."""
    i = a
    while i < b:
        if f.kind == CLOCK and f.is_open and ts[i] >= f.start + f.width:
            _close(f, out[sizes[k]], f.start + f.width)
            sizes[k] += 1
        if not f.is_open:
            _open(f, ts[i] - ts[i] % f.width if f.kind == CLOCK else ts[i], first_row + i, price[i] * f.factor)
        if f.kind == CLOCK:
            stop = _first_at(ts, f.start + f.width, i, b)
        else:
            stop = min(b, i + max(1, int(np.ceil(f.threshold - f.value))))
            f.value += stop - i
        low, high = (seen.low, seen.high) if stop - i == b - a else _extremes(price_bits[i:stop])
        f.high = max(f.high, np.int64(high).view(np.float64) * f.factor)
        f.low = min(f.low, np.int64(low).view(np.float64) * f.factor)
        if seen.sizes != _UNKNOWN:
            total = 0.0 if np.isnan(f.volume) else f.volume
            if seen.sizes == _KNOWN or total >= _WHOLE / 2 or total != np.floor(total):
                f.volume = _sum(size[i:stop], total)
            else:
                f.volume = total + (seen.whole if stop - i == b - a else _whole_sum(size[i:stop]))
        f.count += stop - i
        f.newest = max(f.newest, ts[stop - 1])
        _leave(f, first_row + stop - 1, ts[stop - 1], price[stop - 1])
        if f.kind == TICK and f.value >= f.threshold:
            _close(f, out[sizes[k]], f.newest)
            sizes[k] += 1
        i = stop


@nb.njit(cache=True)
def _extremes(values: IntArray) -> tuple[int, int]:
    low = high = values[0]
    for i in range(values.size):
        low = min(low, values[i])
        high = max(high, values[i])
    return low, high


@nb.njit(cache=True)
def _sum(size: FloatArray, total: float) -> float:
    for i in range(size.size):
        total += size[i]
    return total


@nb.njit(cache=True)
def _whole_sum(size: FloatArray) -> int:
    total = 0
    for i in range(size.size):
        total += int(size[i])
    return total


@nb.njit(cache=True)
def _first_at(ts: IntArray, boundary: int, a: int, b: int) -> int:
    """The first row in (a, b] not before `boundary`, b if none; rows are in order and ts[a] is before it."""
    if ts[b - 1] < boundary:
        return b
    step = 1
    while a + step < b and ts[a + step] < boundary:
        a += step
        step *= 2
    above = min(a + step, b - 1)
    while a + 1 < above:
        middle = (a + above) // 2
        if ts[middle] < boundary:
            a = middle
        else:
            above = middle
    return above


@nb.njit(cache=True)
def _towards(
    f: Any, out: Any, sizes: Any, k: int, first_row: int, ts: IntArray, price: FloatArray, size: FloatArray,
    a: int, b: int,
) -> None:  # fmt: skip
    """Clean ticks [a, b) into a volume or dollar frame."""
    factor, threshold = f.factor, f.threshold
    i = a
    while i < b:
        if not f.is_open:
            _open(f, ts[i], first_row + i, price[i] * factor)
        first = i
        high, low, value = f.high, f.low, f.value
        volume = f.volume
        while i < b:
            adjusted = price[i] * factor
            high = max(high, adjusted)
            low = min(low, adjusted)
            volume = add_volume(volume, size[i])
            if not np.isnan(size[i]):
                value += size[i] if f.kind == VOLUME else price[i] * size[i] * f.multiplier
            i += 1
            if value >= threshold:
                break
        f.high, f.low, f.value, f.volume = high, low, value, volume
        f.count += i - first
        f.newest = max(f.newest, ts[i - 1])
        _leave(f, first_row + i - 1, ts[i - 1], price[i - 1])
        if value >= threshold:
            _close(f, out[sizes[k]], f.newest)
            sizes[k] += 1
