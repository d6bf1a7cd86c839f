"""Columns of order flow beside base bars, where the ticks have what they need; batch and tick by tick.

A row reads the trades of its own bar, [ts_close - width, ts_close), accepted by the rules of the bars themselves
(`bars.push_tick`); where the receive time is known, a trade received later than `grace_ns` after its bar's end is
late, as in live trading. Rows without trades (filled bars) have counts, sizes, volumes and imbalance 0; levels
(vwap, spreads) hold the last known value and are NaN before the first one.

    trade_count, trade_size_mean, trade_size_max   of known sizes, contracts
    vwap               volume-weighted mean price, roll-adjusted like the bars
    buy_volume, sell_volume, signed_volume         contracts that crossed the spread upwards, downwards, difference
    order_imbalance    (buy - sell) / (buy + sell), 0 without either
    session_delta      signed volume since the start of the trading day (the one that holds the bar's last instant)
    spread_mean        ask - bid just before a trade, mean over the bar's trades (points; not weighted by time, for
                       which see `book`)
    spread_close, spread_close_ticks               the same before the last trade, in points and in ticks
    effective_spread   2 · |price - midpoint| (points), mean over the bar's trades
A trade of unknown size weighs 1 in vwap and sides. Quotes that are crossed or not positive count as unknown.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np

from algospace.calendars import utc_offsets
from algospace.errors import ConfigError, InputError
from algospace.features import flow_kernels as kernels
from algospace.features.tick_bars import plain
from algospace.instruments import Instrument
from algospace.snapshots import pack_arrays, unpack_arrays
from algospace.types import HOUR_NS, AnyArray, FloatArray, IntArray, Ticks

Sides = Literal["aggressor", "lee_ready", "tick_rule"]

FLOW_VERSION = "1"  # changes whenever the columns' values do
GRACE_NS = 250_000_000
_SIDES: dict[Sides | None, int] = {
    None: kernels.NO_SIDES, "aggressor": kernels.AGGRESSOR, "lee_ready": kernels.LEE_READY,
    "tick_rule": kernels.TICK_RULE,
}  # fmt: skip
_OF_SIDES = ("buy_volume", "sell_volume", "signed_volume", "order_imbalance", "session_delta")
_OF_QUOTES = ("spread_mean", "spread_close", "spread_close_ticks", "effective_spread")
_NEVER = int(kernels.REFUSED)


def sides_of(ticks: Ticks, wanted: Sides | Literal["auto"] | None = "auto") -> Sides | None:
    """How the sides of these ticks are found: `auto` takes the aggressor, else the quote rule of Lee and Ready.

    Ticks without either have no sides unless `tick_rule` is asked for. ConfigError if the data lacks the columns.
    """
    quoted = ticks.bid is not None and ticks.ask is not None
    if wanted == "auto":
        return "aggressor" if ticks.aggressor is not None else "lee_ready" if quoted else None
    if (wanted == "aggressor" and ticks.aggressor is None) or (wanted == "lee_ready" and not quoted):
        raise ConfigError(f"sides '{wanted}' need a column that the ticks do not have; use auto or tick_rule")
    return wanted


class FlowState:
    """Flow columns tick by tick: `close(ts_close)` for every base row as it is emitted, then `push` of the tick
    that closed it (or of the next tick, where the clock closed it).

    sides, quotes: what the ticks have (see `sides_of`); they decide the `columns`. instrument: its tick size and
    trading day; without one spreads are in points only and days are those of UTC. `params`, `trade`
    and `bars` are what the compiled steps work on.
    """

    def __init__(
        self, width_ns: int, sides: Sides | None = None, quotes: bool = False,
        instrument: Instrument | None = None, *, grace_ns: int = GRACE_NS, max_disorder_ns: int = 0,
    ) -> None:  # fmt: skip
        if width_ns <= 0 or grace_ns < 0 or max_disorder_ns < 0:
            raise ConfigError("width_ns must be positive, grace_ns and max_disorder_ns not negative")
        zone = instrument.session.zone if instrument else "UTC"
        start_hour = instrument.session.day_start_hour if instrument else 0
        starts, offsets = utc_offsets(zone)
        self.params = kernels.FlowParams(
            width_ns, _SIDES[sides], max_disorder_ns, grace_ns, instrument.tick_size if instrument else 1.0,
            starts, offsets, (24 - start_hour) % 24 * HOUR_NS,
        )  # fmt: skip
        self._symbol = instrument.symbol if instrument else None
        absent = set() if sides else set(_OF_SIDES)
        absent |= set() if quotes else set(_OF_QUOTES)
        absent |= set() if instrument else {"spread_close_ticks"}
        self.columns = tuple(name for name in kernels.COLUMNS if name not in absent)
        self._places = [kernels.COLUMNS.index(name) for name in self.columns]
        self.trade, self.bars = _new_state()
        self._row = np.empty(len(kernels.COLUMNS))

    @property
    def late(self) -> int:
        """Trades dropped because their bar had closed, they were out of order or received too late."""
        return int(self.trade["late"][0])

    @property
    def invalid(self) -> int:
        """Trades dropped because a price or size broke a rule."""
        return int(self.trade["invalid"][0])

    def push(
        self, ts: int, price: float, size: float = float("nan"), bid: float = float("nan"),
        ask: float = float("nan"), aggressor: int = 0, ts_recv: int | None = None, contract: int = 0,
    ) -> bool:  # fmt: skip
        """Take one trade; whether it was accepted."""
        return bool(
            kernels.push_one(self.trade, self.bars, self.params, ts, float(price), float(size), float(bid),
                             float(ask), aggressor, ts if ts_recv is None else ts_recv, contract)
        )  # fmt: skip

    def close(self, ts_close: int) -> dict[str, float]:
        """The columns of the base row at `ts_close`; ValueError if trades of a later bar were pushed before."""
        self._require_grid(np.array([ts_close]))
        if not kernels.close_one(self.trade, self.bars, self.params, ts_close, self._row):
            raise ValueError(f"row {ts_close} was closed after trades of a later bar; close rows first, then push")
        return self.values(self._row)

    def values(self, row: FloatArray) -> dict[str, float]:
        """The columns by name, of a row in the order of `flow_kernels.COLUMNS`."""
        return dict(zip(self.columns, row[self._places].tolist(), strict=True))

    def extend(self, ticks: Ticks, ts_close: IntArray) -> dict[str, FloatArray]:
        """A block of trades and the rows (n,) that they close, in compiled code; column -> (n,)."""
        closes = plain(ts_close, np.int64)
        self._require_grid(closes)
        out = np.empty((closes.size, len(kernels.COLUMNS)))
        absent = np.zeros(0)
        bad = kernels.run(
            self.trade, self.bars, self.params, plain(ticks.ts, np.int64), plain(ticks.price, np.float64),
            plain(ticks.size, np.float64), plain(absent if ticks.bid is None else ticks.bid, np.float64),
            plain(absent if ticks.ask is None else ticks.ask, np.float64),
            plain(absent if ticks.aggressor is None else ticks.aggressor, np.int8),
            plain(absent if ticks.ts_recv is None else ticks.ts_recv, np.int64),
            plain(absent if ticks.contract is None else ticks.contract, np.int32), closes, out,
        )  # fmt: skip
        if bad >= 0:
            raise InputError("base rows", f"ts_close {closes[bad]} comes after trades of a later bar",
                             "give every row once, in order, with the block that closes it", row=bad)  # fmt: skip
        return {name: out[:, place].copy() for name, place in zip(self.columns, self._places, strict=True)}

    def _require_grid(self, ts_close: AnyArray) -> None:
        before = np.concatenate([self.trade["end"], ts_close[:-1]])
        off = (ts_close % self.params.width != 0) | (ts_close <= before)
        if ts_close.size and off.any():
            row = int(np.argmax(off))
            rule = f"ts_close {ts_close[row]} is off the grid of {self.params.width} ns or not later than before"
            raise InputError("base rows", rule, "give the base rows of the same width", row=row)

    def snapshot(self) -> bytes:
        """The whole state; a state of the same settings that restores it continues to the bit."""
        return pack_arrays(self._identity(), self._parts())

    def restore(self, snapshot: bytes) -> None:
        """Continue from `snapshot`; SchemaError if it belongs to other settings."""
        arrays = unpack_arrays(self._identity(), snapshot, "flow state", self._parts())
        self.trade[:], self.bars[:] = arrays["trade"], arrays["bars"]

    def _parts(self) -> dict[str, AnyArray]:
        return {"trade": self.trade, "bars": self.bars}

    def _identity(self) -> dict[str, Any]:
        p = self.params
        return {"flow": FLOW_VERSION, "symbol": self._symbol, "columns": list(self.columns), "sides": p.sides,
                "width_ns": p.width, "grace_ns": p.grace, "max_disorder_ns": p.max_disorder}  # fmt: skip


def flow_columns(
    ticks: Ticks, ts_close: IntArray, width_ns: int, instrument: Instrument | None = None, *,
    sides: Sides | Literal["auto"] | None = "auto", grace_ns: int = GRACE_NS, max_disorder_ns: int = 0,
) -> dict[str, FloatArray]:  # fmt: skip
    """The columns (n,) that these ticks allow, at base rows that close at ts_close (n,); see the module's head.

    A warning counts late and invalid trades, which are dropped.
    """
    state = state_for(ticks, width_ns, instrument, sides=sides, grace_ns=grace_ns, max_disorder_ns=max_disorder_ns)
    columns = state.extend(ticks, ts_close)
    if state.late or state.invalid:
        warnings.warn(f"order flow: {state.late} late and {state.invalid} invalid trades dropped", stacklevel=2)
    return columns


def state_for(
    ticks: Ticks, width_ns: int, instrument: Instrument | None = None, *,
    sides: Sides | Literal["auto"] | None = "auto", grace_ns: int = GRACE_NS, max_disorder_ns: int = 0,
) -> FlowState:  # fmt: skip
    """The state before the first trade of ticks with these columns."""
    quotes = ticks.bid is not None and ticks.ask is not None
    return FlowState(width_ns, sides_of(ticks, sides), quotes, instrument, grace_ns=grace_ns,
                     max_disorder_ns=max_disorder_ns)  # fmt: skip


def _new_state() -> tuple[AnyArray, AnyArray]:
    trade, bars = np.zeros(1, kernels.TRADE), np.zeros(2, kernels.BAR_FLOW)
    trade["end"] = trade["last_ts"] = bars["end"] = bars["day"] = _NEVER
    trade["factor"] = 1.0
    for name in ("vwap", "spread_mean", "spread_close", "effective_spread"):
        bars[name] = np.nan
    return trade, bars
