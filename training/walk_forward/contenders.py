"""Every contender on one stretch of one window, through the same mechanics at the same costs.

    policy, ungated            the team with its gate, and with the gate open
    one_contract               the ungated team's orders with its stops and targets, one contract each
    buy_and_hold, momentum,    one contract, no brackets
    ma_cross, ema_cross,
    supervised
    momentum_mrms              the momentum rule's entries with the window's M-RMS: its size, stop and target
    momentum_atr               the same entries, one contract, a stop of some ATR and a target of some R
    random, random_mrms        many seeds each, drawn to trade as often as the team: one contract, or the M-RMS's

Results are days: the account's daily change in money, so that windows can be joined and contenders resampled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from algospace.analysis.baselines import adjusted_close, random_positions, run_positions, turnover_of
from algospace.analysis.unit_baselines import buy_and_hold, ema_cross, ma_cross, momentum
from algospace.execution.decision import Reason
from algospace.execution.replay import OrderArrays, run_precomputed
from algospace.execution.result import REASON_CODE, SessionResult
from algospace.execution.venue import SimulatedVenue
from algospace.features.market_table import MarketTable
from algospace.instruments import Instrument
from algospace.types import AnyArray, Float32Array, FloatArray, IntArray
from envs.config import CoreEnvConfig

POLICY, UNGATED, ONE_CONTRACT = "policy", "ungated", "one_contract"
TEAM = (POLICY, UNGATED)
RANDOM = ("random", "random_mrms")


@dataclass(frozen=True)
class Stretch:
    """Rows [start, stop) of a market with what the rules need: proposals (n, 2, 3) of the M-RMS, positions
    (stop - start,) of the supervised classifier (None: left out)."""

    table: MarketTable
    start: int
    stop: int
    instrument: Instrument
    env: CoreEnvConfig
    proposals: Float32Array
    supervised: AnyArray | None

    @property
    def venue(self) -> SimulatedVenue:
        """The venue at the team's costs."""
        return SimulatedVenue(self.instrument, self.env.slippage_ticks, self.env.commission, self.env.intrabar)


def run_rules(stretch: Stretch, stop_atr: float, target_r: float) -> dict[str, SessionResult]:
    """Every contender that is a rule, except the random ones."""
    table, start, stop = stretch.table, stretch.start, stretch.stop
    close = adjusted_close(table)[:stop]
    entries = momentum(close)[start:]
    sides: dict[str, AnyArray] = {"buy_and_hold": buy_and_hold(close)[start:], "momentum": entries,
                                  "ma_cross": ma_cross(close)[start:], "ema_cross": ema_cross(close)[start:]}
    if stretch.supervised is not None:
        sides["supervised"] = stretch.supervised
    runs = {name: run_positions(table, start, stop, side, stretch.venue, stretch.env.initial_equity)
            for name, side in sides.items()}
    runs["momentum_mrms"] = run_bracketed(stretch, entries, *_proposed(stretch, entries))
    distance = stop_atr * np.nan_to_num(np.asarray(table.atr[start:stop], np.float64))
    runs["momentum_atr"] = run_bracketed(stretch, entries, np.ones(stop - start), distance, target_r * distance)
    return runs


def run_nothing(stretch: Stretch) -> SessionResult:
    """The account of a team whose gate is shut: no confidence is enough."""
    nothing = np.zeros(stretch.stop - stretch.start)
    orders = OrderArrays.build(nothing, nothing, reason=REASON_CODE[Reason.LOW_CONFIDENCE])
    return run_precomputed(stretch.table, stretch.start, stretch.stop, orders, stretch.venue, stretch.env.limits,
                           initial_equity=stretch.env.initial_equity)


def run_one_contract(stretch: Stretch, team: SessionResult) -> SessionResult:
    """The orders that `team` sent, again, at one contract: sizing taken out, everything else kept."""
    sent = team.decisions[team.decisions["ordered"]]
    n = stretch.stop - stretch.start
    at = sent["row"] - stretch.start
    side = np.where(sent["reason"] == REASON_CODE[Reason.EXECUTE], sent["direction"], 0)
    want, has_order = np.zeros(n), np.zeros(n, np.bool_)
    want[at], has_order[at] = side, True
    _, stop_distance, target_distance = _proposed(stretch, want)
    orders = OrderArrays.build(want, has_order, stop_distance, target_distance)
    return run_precomputed(stretch.table, stretch.start, stretch.stop, orders, stretch.venue,
                           reverse=stretch.env.reverse, initial_equity=stretch.env.initial_equity)


def run_bracketed(stretch: Stretch, side: AnyArray, contracts: AnyArray, stop_distance: AnyArray,
                  target_distance: AnyArray) -> SessionResult:
    """A rule's sides (n,) with brackets and the team's hard limits.

    It orders at decision rows where the side differs from that of the decision row before; a bracket that has
    closed stays closed until the side changes.
    """
    table, start, stop = stretch.table, stretch.start, stretch.stop
    acting = np.flatnonzero(table.decision[start:stop])
    has_order = np.zeros(stop - start, np.bool_)
    has_order[acting] = np.diff(np.asarray(side, np.float64)[acting], prepend=0.0) != 0.0
    orders = OrderArrays.build(side * contracts, has_order, stop_distance, target_distance)
    return run_precomputed(table, start, stop, orders, stretch.venue, stretch.env.limits,
                           reverse=stretch.env.reverse, initial_equity=stretch.env.initial_equity)


def _proposed(stretch: Stretch, side: AnyArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(contracts, stop, target) of the M-RMS for each row's side; 0 contracts close."""
    rows = np.arange(stretch.start, stretch.stop)
    chosen = np.asarray(stretch.proposals)[rows, (np.asarray(side) > 0).astype(np.int64)].astype(np.float64)
    return chosen[:, 0], chosen[:, 1], chosen[:, 2]


def run_random(stretch: Stretch, like: SessionResult, seeds: IntArray) -> dict[str, FloatArray]:
    """Daily profits (seeds, days) of random entries with the turnover and the exposure of `like`."""
    n, turnover = stretch.stop - stretch.start, turnover_of(like)
    exposure = float(np.mean(like.position != 0.0))
    if exposure == 0.0:  # who imitates an idle team does nothing
        return {name: np.zeros((seeds.size, np.unique(like.day).size)) for name in RANDOM}
    found: dict[str, list[FloatArray]] = {name: [] for name in RANDOM}
    for seed in seeds:
        side = random_positions(n, turnover, int(seed), exposure)
        plain = run_positions(stretch.table, stretch.start, stretch.stop, side, stretch.venue,
                              stretch.env.initial_equity)
        found["random"].append(daily_profit(plain)[1])
        found["random_mrms"].append(daily_profit(run_bracketed(stretch, side, *_proposed(stretch, side)))[1])
    return {name: np.stack(rows) for name, rows in found.items()}


def daily_profit(result: SessionResult) -> tuple[IntArray, FloatArray]:
    """(trading days, change of equity on each in money), the first from the initial equity on; net of costs."""
    last = np.flatnonzero(np.diff(result.day, append=result.day[-1] + 1))
    profit: FloatArray = np.diff(result.equity[last], prepend=result.initial_equity)
    return result.day[last].astype(np.int64), profit


def daily_risk(profit: FloatArray) -> float:
    """Standard deviation of a day's profit; 0 for fewer than two days."""
    return float(profit.std(ddof=1)) if profit.size > 1 else 0.0


def scales(validation_risk: Mapping[str, float], target: float, largest: float) -> dict[str, float]:
    """Factor per contender that brings its risk on the validation part to `target`, at most `largest`.

    The gated policy takes the ungated team's: the gate may have let too little through there to tell its risk. A
    contender without risk on validation keeps 1.
    """
    risk: dict[str, Any] = dict(validation_risk)
    if UNGATED in risk:
        risk[POLICY] = risk[UNGATED]
    return {name: min(target / value, largest) if value > 0.0 else 1.0 for name, value in risk.items()}
