"""What the policy must beat: simple rules through the same mechanics at the same costs.

A baseline is a target position per row, in units of one fixed size, known at that row's close; it trades one
contract without brackets or limits, in the next bar, like everyone else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from algospace.analysis.unit_baselines import buy_and_hold, ma_cross, momentum
from algospace.execution.replay import OrderArrays, run_precomputed
from algospace.execution.result import SessionResult
from algospace.execution.session import INITIAL_EQUITY, check_range
from algospace.execution.venue import SimulatedVenue
from algospace.instruments import Instrument
from algospace.seeding import stream_key, uniforms
from algospace.types import AnyArray, Bars, FloatArray

if TYPE_CHECKING:
    from algospace.features.market_table import MarketTable


def adjusted_close(table: MarketTable) -> FloatArray:
    """(n,) closes without roll gaps, on the scale of the first contract; uses no future."""
    prices: FloatArray = table.close / np.cumprod(table.roll)
    return prices


def random_positions(n: int, turnover: float, seed: int, exposure: float = 2.0 / 3.0) -> FloatArray:
    """Positions in {-1, 0, 1}, in the market a share `exposure` of the time, drawn anew so often that the
    expected |change| per row is `turnover` (or as near as redrawing every row comes).

    A fresh draw, independent of the old one, moves by exposure·(2 - exposure) on average.
    """
    lanes = np.empty((n, 2))
    uniforms(np.uint64(stream_key("baseline", "random", seed)), 0, lanes)
    per_draw = exposure * (2.0 - exposure)
    redraw = lanes[:, 0] < (min(1.0, turnover / per_draw) if per_draw > 0.0 else 0.0)
    redraw[:1] = True
    side = lanes[:, 1]
    drawn: FloatArray = np.where(side < exposure / 2.0, -1.0, np.where(side < exposure, 1.0, 0.0))
    held: FloatArray = drawn[np.maximum.accumulate(np.where(redraw, np.arange(n), 0))]
    return held


def orders_from_positions(table: MarketTable, start: int, stop: int, position: AnyArray,
                          contracts: float = 1.0) -> OrderArrays:
    """Orders for rows [start, stop) that follow `position` (n,) in {-1, 0, 1}, acting at decision rows only.

    An order is placed where the position wanted differs from that of the decision row before (0 at first).
    """
    check_range(len(table), start, stop)
    if position.shape != (stop - start,):
        raise ValueError(f"positions of shape {position.shape} do not fit rows [{start}, {stop})")
    if not np.isin(position, (-1.0, 0.0, 1.0)).all():
        raise ValueError("positions must be -1, 0 or 1; scale them by `contracts`")
    acting = np.flatnonzero(table.decision[start:stop])
    has_order = np.zeros(stop - start, np.bool_)
    has_order[acting] = np.diff(position[acting], prepend=0.0) != 0.0
    return OrderArrays.build(np.asarray(position, np.float64) * contracts, has_order)


def run_positions(table: MarketTable, start: int, stop: int, position: AnyArray, venue: SimulatedVenue,
                  initial_equity: float = INITIAL_EQUITY, contracts: float = 1.0) -> SessionResult:
    """A rule given as positions, through the full mechanics."""
    orders = orders_from_positions(table, start, stop, position, contracts)
    return run_precomputed(table, start, stop, orders, venue, initial_equity=initial_equity)


def run_baselines(table: MarketTable, start: int, stop: int, instrument: Instrument, *, turnover: float,
                  slippage_ticks: float = 1.0, commission: float | None = None, intrabar: str = "pessimistic",
                  finer: Bars | None = None, initial_equity: float = INITIAL_EQUITY, contracts: float = 1.0,
                  seed: int = 0, exposure: float = 2.0 / 3.0,
                  supervised: AnyArray | None = None) -> dict[str, SessionResult]:
    """Every baseline over rows [start, stop), at the policy's costs.

    turnover, exposure: mean |change of side| per row and share of rows in the market that `random` imitates
    (see `turnover_of`). Momentum is over 24 bars, the moving averages over 20 and 100. supervised: positions
    (stop - start,) in {-1, 0, 1} of a classifier fitted elsewhere.
    """
    check_range(len(table), start, stop)
    venue = SimulatedVenue(instrument, slippage_ticks, commission, intrabar, finer)
    close, n = adjusted_close(table)[:stop], stop - start
    positions: dict[str, AnyArray] = {
        "buy_and_hold": buy_and_hold(close)[start:],
        "momentum": momentum(close)[start:],
        "ma_cross": ma_cross(close)[start:],
        "random": random_positions(n, turnover, seed, exposure),
    }
    if supervised is not None:
        positions["supervised"] = supervised
    return {name: run_positions(table, start, stop, position, venue, initial_equity, contracts)
            for name, position in positions.items()}


def turnover_of(result: SessionResult) -> float:
    """Mean |change of side| per row of a run: what `random` needs to trade as often as it did."""
    return float(np.abs(np.diff(np.sign(result.position), prepend=0.0)).sum() / len(result))
