"""Where orders go: the venue protocol and the simulated venue over the compiled market mechanics."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from algospace.execution.mechanics import ACCOUNT_DTYPE, FILL_DTYPE, MAX_FILLS_PER_BAR, venue_record
from algospace.execution.orders import play_into, venue_triple
from algospace.instruments import Instrument
from algospace.types import BASE_BAR_NS, AnyArray, Bars, IntArray

if TYPE_CHECKING:
    from algospace.execution.session import MarketBar


class Order(NamedTuple):
    """A market order for the signed position `want`, with brackets in points from the fill (0: none)."""

    order_id: str
    want: float
    stop_distance: float
    target_distance: float


NO_ORDER = Order("", 0.0, 0.0, 0.0)


class Venue(Protocol):
    """Anything that can say what a bar and an order do to an account."""

    instrument: Instrument
    venues: AnyArray  # (3,) VENUE_DTYPE, see orders.venue_triple
    fills: AnyArray   # FILL_DTYPE records of the last bar

    def play(self, account: AnyArray, after: AnyArray, order: Order | None, bar: MarketBar) -> int:
        """Write the account after `bar` into after[0], leave account[0] alone; the number of fills.

        A filled bar comes without an order: the session keeps it for the first real bar.
        """
        ...


class SimulatedVenue:
    """Fills from bars by `algospace.execution.mechanics`.

    slippage_ticks: paid by market and stop orders; commission: per contract and side (None: the instrument's);
    intrabar: `pessimistic` or `infer`, used where one bar reaches stop and target and no finer bars say which
    came first. `finer`: raw-price bars narrower than the base bar, in time order.
    """

    def __init__(self, instrument: Instrument, slippage_ticks: float = 1.0, commission: float | None = None,
                 intrabar: str = "pessimistic", finer: Bars | None = None, base_ns: int = BASE_BAR_NS) -> None:
        self.instrument = instrument
        self.slippage_ticks = slippage_ticks
        self.intrabar = intrabar
        self.commission = instrument.commission if commission is None else commission
        self.venues = venue_triple(venue_record(instrument.tick_size, instrument.multiplier, self.commission,
                                                slippage_ticks, intrabar))
        self.fills = np.zeros(MAX_FILLS_PER_BAR, FILL_DTYPE)
        self._spare = np.zeros(2, ACCOUNT_DTYPE)
        self._base_ns = base_ns
        self._finer_ts = np.zeros(0, np.int64) if finer is None else finer.ts_open
        self.finer = np.zeros((4, 0)) if finer is None else np.ascontiguousarray(
            np.stack([finer.open, finer.high, finer.low, finer.close]).astype(np.float64))

    def finer_ranges(self, ts_close: IntArray) -> tuple[IntArray, IntArray]:
        """(first, last) finer columns inside each base bar that closes at `ts_close`."""
        first = np.searchsorted(self._finer_ts, ts_close - self._base_ns, side="left")
        last = np.searchsorted(self._finer_ts, ts_close, side="left")
        return first.astype(np.int64), last.astype(np.int64)

    def play(self, account: AnyArray, after: AnyArray, order: Order | None, bar: MarketBar) -> int:
        """See `Venue.play`."""
        first = last = 0
        if self._finer_ts.size:
            first = int(np.searchsorted(self._finer_ts, bar.ts_close - self._base_ns, side="left"))
            last = int(np.searchsorted(self._finer_ts, bar.ts_close, side="left"))
        placed = NO_ORDER if order is None else order
        return int(play_into(account, after, self._spare, self.venues, order is not None, placed.want,
                             placed.stop_distance, placed.target_distance, bar.open, bar.high, bar.low,
                             bar.close, bar.roll, bar.day, bar.filled, self.finer, first, last, self.fills))
