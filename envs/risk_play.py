"""Proposals of any rule played on the same opportunities, by the mechanics, costs and hard limits of the M-RMS
environment.

An opportunity's successor lies behind the last bar on which its bracket could still be open, so that every rule
answers every opportunity, however early it leaves. Accounts are fresh after `episode_trades` opportunities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numba as nb
import numpy as np

from algospace.execution.mechanics import ACCOUNT_DTYPE, FILL_DTYPE, MAX_FILLS_PER_BAR, advance, open_account
from algospace.instruments import Instrument
from algospace.risk.limits import limit_contracts
from algospace.types import AnyArray, BoolArray, Float32Array, FloatArray, Int32Array
from envs.config import STOP_CHOICES, TARGET_CHOICES, RiskEnvConfig
from envs.risk_kernels import bracket, find_opportunity, play_bracket
from envs.vector_core import build_venue
from envs.vector_risk import build_risk_market

if TYPE_CHECKING:
    from algospace.features.market_table import MarketTable


@dataclass(frozen=True)
class Opportunities:
    """K opportunities in the order in which they are answered.

    rows int32; sides float64 +1 or -1; firsts bool: a fresh account answers this one and those that follow;
    brackets (K, 7, 5, 2): stop and target distance in points of every choice; tours int64: which walk through the
    market it belongs to.
    """

    rows: Int32Array
    sides: FloatArray
    firsts: BoolArray
    brackets: FloatArray
    tours: AnyArray

    def __len__(self) -> int:
        return int(self.rows.size)


@dataclass(frozen=True)
class Play:
    """What a rule made of K opportunities.

    profits: account currency, net; returns: profits over the equity before; contracts: after the hard limits;
    limits int8: the limit that changed the proposal (algospace.risk.limits.Limit); exits int32: row of the exit;
    equity: after the trade.
    """

    profits: FloatArray
    returns: FloatArray
    contracts: FloatArray
    limits: AnyArray
    exits: Int32Array
    equity: FloatArray


class RiskField:
    """The opportunities of rows [start, stop) of one market."""

    def __init__(self, table: MarketTable, instrument: Instrument, config: RiskEnvConfig, start: int, stop: int,
                 seed: int, tours: int = 1) -> None:
        """`tours` walks through the rows, each with sources and waits of its own (hash of the seed)."""
        self.table, self.instrument, self.config = table, instrument, config
        self._market, self._rules = build_risk_market(table, instrument, config, start, stop, None)
        self._limits = config.limits.record()[()]
        self._venue = build_venue(instrument, config.slippage_ticks, config.commission, config.intrabar, 1.0)[()]
        self._fills = np.zeros(MAX_FILLS_PER_BAR, FILL_DTYPE)
        self.opportunities = self._schedule(seed, tours)

    def _schedule(self, seed: int, tours: int) -> Opportunities:
        capacity = (self._rules.last + 1 - self._rules.first) // self.config.max_bars + 1
        rows, sides = np.empty(capacity, np.int32), np.empty(capacity)
        parts = []
        for tour in range(tours):
            count = schedule_kernel(self._market, self._rules, np.uint64(seed), tour, rows, sides)
            parts.append((rows[:count].copy(), sides[:count].copy()))
        all_rows = np.concatenate([part[0] for part in parts])
        all_sides = np.concatenate([part[1] for part in parts])
        firsts = np.concatenate([np.arange(part[0].size) % self.config.episode_trades == 0 for part in parts])
        brackets = np.empty((all_rows.size, STOP_CHOICES, TARGET_CHOICES, 2))
        brackets_kernel(self._market, self._rules, all_rows, all_sides, brackets)
        tour_of = np.repeat(np.arange(tours), [part[0].size for part in parts])
        return Opportunities(all_rows, all_sides, firsts, brackets, tour_of)

    def play(self, contracts: FloatArray, fractions: FloatArray, stops: FloatArray, targets: FloatArray) -> Play:
        """Proposals (K,) -> what became of them. Where `fractions` > 0 the size is that share of equity over the
        loss at the stop, rounded down, instead of `contracts`. Distances in points."""
        spots, k = self.opportunities, len(self.opportunities)
        for name, values in (("contracts", contracts), ("fractions", fractions), ("stops", stops),
                             ("targets", targets)):
            if values.shape != (k,):
                raise ValueError(f"{name} has shape {values.shape}, expected {(k,)}")
        out = Play(np.zeros(k), np.zeros(k), np.zeros(k), np.zeros(k, np.int8), np.zeros(k, np.int32), np.zeros(k))
        play_kernel(np.zeros(1, ACCOUNT_DTYPE), self._market, self._rules, self._limits, self._venue, self._fills,
                    spots.rows, spots.sides, spots.firsts, contracts, fractions, stops, targets, out.profits,
                    out.returns, out.contracts, out.limits, out.exits, out.equity)
        return out

    def outcomes(self) -> Float32Array:
        """(K, 7, 5): net profit of one contract with every stop and target, without limits."""
        spots = self.opportunities
        out = np.empty((len(spots), STOP_CHOICES, TARGET_CHOICES), np.float32)
        outcomes_kernel(np.zeros(1, ACCOUNT_DTYPE), self._market, self._rules, self._venue, self._fills,
                        spots.rows, spots.sides, spots.brackets, out)
        return out


@nb.njit(cache=True)
def _latest_exit(market: Any, row: int, max_bars: int) -> int:
    """The row at whose open a bracket of an opportunity on `row` is closed if no level is reached."""
    row += 1
    while market.filled[row]:
        row += 1
    row += max_bars
    while market.filled[row]:
        row += 1
    return row


@nb.njit(cache=True)
def schedule_kernel(market: Any, rules: Any, seed: Any, tour: int, rows: Int32Array, sides: FloatArray) -> int:
    """Fill rows and sides with one walk from the first row to the last; returns how many opportunities it has."""
    count, after = 0, rules.first
    while after <= rules.last and count < rows.size:
        row, side = find_opportunity(market, rules, seed, tour, 0, count, after)
        if row < after:  # behind the split's end the search goes on elsewhere: the walk is over
            break
        rows[count] = row
        sides[count] = side
        count += 1
        after = _latest_exit(market, row, rules.max_bars) + 1
    return count


@nb.njit(cache=True)
def brackets_kernel(market: Any, rules: Any, rows: Int32Array, sides: FloatArray, out: FloatArray) -> None:
    """Stop and target distance of every choice: (K, 7, 5, 2)."""
    for k in range(rows.size):
        row = rows[k]
        atr = market.atr[row] if market.atr[row] > rules.tick else rules.tick
        for s in range(out.shape[1]):
            for t in range(out.shape[2]):
                stop, target = bracket(atr, market.lvn[row, 0], market.lvn[row, 1], sides[k], s, t,
                                       rules.lvn_margin, rules.lvn_strength)
                out[k, s, t, 0] = stop
                out[k, s, t, 1] = target


@nb.njit(cache=True)
def _arrive(account: Any, market: Any, venue: Any, fills: AnyArray, row: int) -> None:
    """A flat account's bar of the opportunity: it brings trading day and mark up to date."""
    advance(account, venue, False, 0.0, 0.0, 0.0, market.open[row], market.high[row], market.low[row],
            market.close[row], 1.0, market.day[row], fills)


@nb.njit(cache=True)
def play_kernel(accounts: AnyArray, market: Any, rules: Any, limits: Any, venue: Any, fills: AnyArray,
                rows: Int32Array, sides: FloatArray, firsts: BoolArray, contracts: FloatArray,
                fractions: FloatArray, stops: FloatArray, targets: FloatArray, profits: FloatArray,
                returns: FloatArray, taken: FloatArray, codes: AnyArray, exits: Int32Array,
                equities: FloatArray) -> None:
    """One rule over all opportunities; see RiskField.play."""
    account = accounts[0]
    for k in range(rows.size):
        row = rows[k]
        if firsts[k]:
            open_account(account, rules.initial_equity, market.close[row], market.day[row])
        _arrive(account, market, venue, fills, row)
        equity = account.equity
        loss = stops[k] * rules.multiplier + rules.exit_cost
        want = contracts[k]
        if fractions[k] > 0.0:
            want = np.floor(fractions[k] * equity / loss + 1e-9)
        allowed, codes[k] = limit_contracts(limits, want, loss, equity, account.day_start, 0)
        exits[k] = row
        if allowed > 0.0:
            exits[k] = play_bracket(account, market, venue, fills, row, sides[k] * allowed, stops[k], targets[k],
                                    rules.max_bars)
        taken[k] = allowed
        profits[k] = account.equity - equity
        returns[k] = profits[k] / equity
        equities[k] = account.equity


@nb.njit(cache=True)
def outcomes_kernel(accounts: AnyArray, market: Any, rules: Any, venue: Any, fills: AnyArray, rows: Int32Array,
                    sides: FloatArray, brackets: FloatArray, out: Float32Array) -> None:
    """Net profit of one contract with every bracket; see RiskField.outcomes."""
    account = accounts[0]
    for k in range(rows.size):
        row = rows[k]
        for s in range(out.shape[1]):
            for t in range(out.shape[2]):
                open_account(account, rules.initial_equity, market.close[row], market.day[row])
                play_bracket(account, market, venue, fills, row, sides[k], brackets[k, s, t, 0],
                             brackets[k, s, t, 1], rules.max_bars)
                out[k, s, t] = account.equity - rules.initial_equity
