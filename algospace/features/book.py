"""Columns of the order book beside base bars, from updates of the best bid and ask; batch and update by update.

A row knows the updates received by its close (receive time where the data has it, else the exchange's), and reads
the last of them; over the bar it reads those that became known in (ts_close - width, ts_close]. Before the first
update everything is NaN but the counts.

    book_mid, book_spread, book_spread_ticks       midpoint and ask - bid in points and in ticks (raw prices)
    book_age_s         seconds since the last update became known
    book_spread_mean   spread over the bar, weighted by time in force; without an update the one in force
    book_updates       accepted updates in the bar
    book_bid_depth, book_ask_depth                 sizes at the best prices
    book_imbalance     (bid depth - ask depth) / (bid depth + ask depth), 0 without depth
    book_microprice_offset   (bid · ask depth + ask · bid depth) / (bid depth + ask depth) - mid: the
                       size-weighted midpoint, from which Stoikov (The Micro-Price, Quantitative Finance 18,
                       2018) starts; his correction by a fitted transition matrix is not applied
    book_ofi           order-flow imbalance of Cont, Kukanov and Stoikov (2014), summed over the bar's updates
An unknown size stands for the last known one. The last five columns exist only where sizes do.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from algospace.errors import ConfigError, InputError
from algospace.features import book_kernels as kernels
from algospace.features.tick_bars import plain
from algospace.instruments import Instrument
from algospace.snapshots import pack_arrays, unpack_arrays
from algospace.types import AnyArray, FloatArray, IntArray, Quotes

BOOK_VERSION = "1"  # changes whenever the columns' values do
_OF_DEPTH = ("book_bid_depth", "book_ask_depth", "book_imbalance", "book_microprice_offset", "book_ofi")


class BookState:
    """Book columns update by update: `push` every update, `close(ts_close)` for every base row, in order, at or
    after its time; a row may be read while later updates have come already, up to 128 bars back.

    depth: whether the data has sizes. instrument: its tick size; without one there is no book_spread_ticks.
    """

    def __init__(self, width_ns: int, instrument: Instrument | None = None, *, depth: bool = True) -> None:
        if width_ns <= 0:
            raise ConfigError(f"width_ns {width_ns}: use a positive width")
        absent = set() if depth else set(_OF_DEPTH)
        absent |= set() if instrument else {"book_spread_ticks"}
        self.columns = tuple(name for name in kernels.COLUMNS if name not in absent)
        self._places = [kernels.COLUMNS.index(name) for name in self.columns]
        self._width, self._symbol = width_ns, instrument.symbol if instrument else None
        self._tick_size = instrument.tick_size if instrument else 1.0
        self._stream, self._now, self._ring = kernels.new_state()
        self._row = np.empty(len(kernels.COLUMNS))

    @property
    def late(self) -> int:
        """Updates dropped because they were older than the last one or known before a row that was read."""
        return int(self._stream["late"][0])

    @property
    def invalid(self) -> int:
        """Updates dropped because a side was missing, crossed or not positive, or a size impossible."""
        return int(self._stream["invalid"][0])

    def push(
        self, ts: int, bid: float, ask: float, bid_size: float = float("nan"), ask_size: float = float("nan"),
        ts_recv: int | None = None,
    ) -> bool:  # fmt: skip
        """Take one update; whether it was accepted."""
        known = ts if ts_recv is None else ts_recv
        return bool(kernels.push_one(self._stream, self._now, self._ring, self._width, ts, known, float(bid),
                                     float(ask), float(bid_size), float(ask_size)))  # fmt: skip

    def close(self, ts_close: int) -> dict[str, float]:
        """The columns of the base row at `ts_close`; InputError if it comes out of order or too late."""
        self._require_grid(np.array([ts_close]))
        kept = kernels.close_one(self._stream, self._now, self._ring, self._width, self._tick_size, ts_close,
                                 self._row)  # fmt: skip
        if not kept:
            raise self._forgotten(ts_close)
        return dict(zip(self.columns, self._row[self._places].tolist(), strict=True))

    def extend(self, quotes: Quotes, ts_close: IntArray) -> dict[str, FloatArray]:
        """A block of updates and rows (n,) in compiled code; column -> (n,)."""
        closes = plain(ts_close, np.int64)
        self._require_grid(closes)
        out = np.empty((closes.size, len(kernels.COLUMNS)))
        known = quotes.ts if quotes.ts_recv is None else quotes.ts_recv
        bad = kernels.run(
            self._stream, self._now, self._ring, self._width, self._tick_size, plain(quotes.ts, np.int64),
            plain(known, np.int64), plain(quotes.bid, np.float64), plain(quotes.ask, np.float64),
            plain(quotes.bid_size, np.float64), plain(quotes.ask_size, np.float64), closes, out,
        )  # fmt: skip
        if bad >= 0:
            raise self._forgotten(int(closes[bad]))
        return {name: out[:, place].copy() for name, place in zip(self.columns, self._places, strict=True)}

    def _forgotten(self, ts_close: int) -> InputError:
        return InputError("base rows", f"row {ts_close} is read more than {kernels.RING} bars of quotes too late",
                          "give rows with the block of quotes that covers them")  # fmt: skip

    def _require_grid(self, ts_close: AnyArray) -> None:
        before = np.concatenate([self._stream["read_to"], ts_close[:-1]])
        off = (ts_close % self._width != 0) | (ts_close <= before)
        if off.any():
            row = int(np.argmax(off))
            rule = f"ts_close {ts_close[row]} is off the grid of {self._width} ns or not later than before"
            raise InputError("base rows", rule, "give the base rows of the same width", row=row)

    def snapshot(self) -> bytes:
        """The whole state; a state of the same settings that restores it continues to the bit."""
        return pack_arrays(self._identity(), self._parts())

    def restore(self, snapshot: bytes) -> None:
        """Continue from `snapshot`; SchemaError if it belongs to other settings."""
        arrays = unpack_arrays(self._identity(), snapshot, "book state", self._parts())
        for name, part in self._parts().items():
            part[:] = arrays[name]

    def _parts(self) -> dict[str, AnyArray]:
        return {"stream": self._stream, "now": self._now, "ring": self._ring}

    def _identity(self) -> dict[str, Any]:
        return {"book": BOOK_VERSION, "symbol": self._symbol, "columns": list(self.columns),
                "width_ns": self._width}  # fmt: skip


def book_columns(
    quotes: Quotes, ts_close: IntArray, width_ns: int, instrument: Instrument | None = None
) -> dict[str, FloatArray]:
    """The columns (n,) that these quotes allow, at base rows that close at ts_close (n,); see above.

    A warning counts late and invalid updates, which are dropped.
    """
    depth = bool((quotes.bid_size == quotes.bid_size).any() and (quotes.ask_size == quotes.ask_size).any())
    state = BookState(width_ns, instrument, depth=depth)
    columns = state.extend(quotes, ts_close)
    if state.late or state.invalid:
        warnings.warn(f"order book: {state.late} late and {state.invalid} invalid quotes dropped", stacklevel=2)
    return columns
