"""The core environment for one market and one account, in plain Python: the reference of the batched kernel.

The rules are written here to be read; `envs.core_kernels` must equal them to the last bit. Only what one bar
does to an account (algospace.execution.mechanics), the hard limits (algospace.risk.limits) and the random draws
are shared code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from algospace.execution.mechanics import (
    ACCOUNT_DTYPE,
    FILL_DTYPE,
    MAX_FILLS_PER_BAR,
    advance,
    open_account,
    pass_bar,
)
from algospace.instruments import Instrument
from algospace.risk.limits import limit_contracts
from algospace.types import AnyArray, Float32Array
from envs.config import CoreEnvConfig
from envs.core_kernels import CLOSE, EXECUTE, LONG, PASS, REJECT, SHAPING_CLIP, SHORT, SIGN_LANE, START_LANE, draw
from envs.vector_core import build_market, build_rules, build_venue

if TYPE_CHECKING:
    from algospace.features.market_table import MarketTable

VOTERS = ("strategic", "tactical", "arbitrage")
EXECUTION = "execution"
ALL_PASS = (PASS, PASS, PASS)


class CoreEnv:
    """One core environment; arguments as VectorCoreEnv, whose environment `first_env + e` equals
    `CoreEnv(..., env_index=first_env + e)`.

    Cycle: `begin_episode`, then `observe`, `vote`, `execute` until `execute` returns a discount of 0
    (terminated) or `at_end` is true (truncated).
    """

    def __init__(self, table: MarketTable, instrument: Instrument, config: CoreEnvConfig, proposals: Float32Array,
                 start: int, stop: int, seed: int, risk_unit: float, mirror: bool = True,
                 env_index: int = 0) -> None:
        self.table, self.instrument, self.config = table, instrument, config
        self.seed, self.mirror, self.env_index = seed, mirror, env_index
        self.proposals, self.risk_unit = proposals, float(risk_unit)
        self._rules = build_rules(instrument, config, risk_unit)
        market = build_market(table, config, start, stop)
        self._starts, self._voting_rows = market.starts, market.bars["voting"]
        self._returns = market.bars["bar_return"]
        self._limits = config.limits.record()[()]
        self._accounts = np.zeros(1, ACCOUNT_DTYPE)
        self._fills = np.zeros(MAX_FILLS_PER_BAR, FILL_DTYPE)
        self.cost_scale = 1.0
        self.episode = -1
        self.begin_episode()

    def begin_episode(self) -> None:
        """Open a fresh account at a random row, with a random sign where `mirror` is on."""
        self.episode += 1
        place = draw(np.uint64(self.seed), self.env_index, self.episode, START_LANE)
        flip = self.mirror and draw(np.uint64(self.seed), self.env_index, self.episode, SIGN_LANE) < 0.5
        self.row = int(self._starts[int(place * self._starts.size)])
        self.end = self.row + self.config.episode_bars
        self.sign = -1.0 if flip else 1.0
        self.alive = True
        self.waiting: tuple[float, float, float] | None = None  # for the first real bar: position, brackets
        self.mean, self.square = 0.0, 0.0  # of the differential ratios
        equity = 1.0 if self.is_unit else self.config.initial_equity
        open_account(self._accounts[0], equity, float(self.table.close[self.row]), int(self.table.day[self.row]))
        self._clear_half_step()

    def _clear_half_step(self) -> None:
        self.opportunity, self.asked, self.limit_code = 0, False, 0
        self.action_mask = [False, False, False]
        self.order = (0.0, 0.0, 0.0)
        self.proposal = np.zeros(3, np.float32)

    @property
    def is_unit(self) -> bool:
        """Whether positions are of constant notional, without account rules."""
        return self.config.mechanics == "unit"

    @property
    def account(self) -> AnyArray:
        """The ACCOUNT_DTYPE record of the real market."""
        return self._accounts[0]

    @property
    def voting(self) -> bool:
        """Whether the voters are asked at the present row."""
        return self.alive and bool(self._voting_rows[self.row])

    @property
    def at_end(self) -> bool:
        """Whether the episode's last row is reached."""
        return self.row >= self.end

    @property
    def cost_scale(self) -> float:
        """Factor on slippage and commission."""
        return self._cost_scale

    @cost_scale.setter
    def cost_scale(self, value: float) -> None:
        config = self.config
        self._cost_scale = float(value)
        self._venue = build_venue(self.instrument, config.slippage_ticks, config.commission, config.intrabar,
                                  self._cost_scale)[()]

    def atr(self) -> float:
        """ATR of the present row in points, at least one tick."""
        atr = float(self.table.atr[self.row])
        return atr if atr > self.instrument.tick_size else self.instrument.tick_size

    def observe(self) -> Float32Array:
        """Account features (8,); see VectorCoreEnv.observe."""
        account, close, atr = self.account, float(self.table.close[self.row]), self.atr()
        position = float(account["position"])
        side = float(np.sign(position))
        scale = 1.0 if self.is_unit else float(self.config.limits.max_position)
        stop = side * (close - float(account["stop"])) / atr
        target = side * (float(account["target"]) - close) / atr
        daily = (float(account["equity"]) - float(account["day_start"])) / self.risk_unit
        held = side != 0.0
        hour_sin, hour_cos = self.table.clock[self.row]
        return np.array([
            self.sign * position / scale,
            _clip(side * (close - float(account["entry"])) / atr, 10.0) if held else 0.0,
            math.log1p(int(account["bars_in_trade"])) / 5.0 if held else 0.0,
            0.0 if math.isnan(stop) else _clip(stop, 10.0),
            0.0 if math.isnan(target) else _clip(target, 10.0),
            _clip(daily, 10.0) / 10.0, hour_sin, hour_cos], np.float32)

    def vote(self, votes: Sequence[int]) -> None:
        """First half-step: three votes, 0 short, 1 pass, 2 long; taken as passes where nobody votes."""
        self._clear_half_step()
        if self.voting:
            longs, shorts = sum(v == LONG for v in votes), sum(v == SHORT for v in votes)
            self.opportunity = 1 if longs >= 2 else -1 if shorts >= 2 else 0
        held = bool(self.account["position"] != 0.0)
        self.asked = self.voting and (self.opportunity != 0 or held)
        self.action_mask = [True, False, self.voting and held]
        if self.opportunity != 0:
            self._propose()

    def _propose(self) -> None:
        """The Proposer's answer for the opportunity's real direction, after hard limits."""
        side = 1 if self.opportunity * self.sign > 0.0 else 0
        contracts, stop, target = (float(x) for x in self.proposals[self.row, side])
        if not self.is_unit:
            risk = stop * self.instrument.multiplier + self._rules.exit_cost if stop > 0.0 else 0.0
            contracts, self.limit_code = limit_contracts(
                self._limits, contracts, risk, float(self.account["equity"]), float(self.account["day_start"]), 0)
        self.order = (contracts, stop, target)
        self.action_mask[EXECUTE] = self.is_unit or contracts > 0.0
        self.proposal = np.array([contracts / 5.0, stop / self.atr() / 4.0,
                                  target / stop / 4.0 if stop > 0.0 else 0.0], np.float32)

    def _wanted(self, action: int) -> tuple[bool, float]:
        """(is there an order, signed position wanted in the real market)."""
        held = float(self.account["position"])
        if action == REJECT or not self.asked or not self.action_mask[action]:
            return False, held
        if action == CLOSE:
            return True, 0.0
        side = self.sign * self.opportunity
        if held * side > 0.0:
            return False, held  # already in that direction
        if held != 0.0 and not self.config.reverse:
            return True, 0.0
        return True, side * (1.0 if self.is_unit else self.order[0])

    def execute(self, action: int) -> tuple[float, float]:
        """Second half-step: (reward, discount). Plays one bar, or on to the next synergy (or the end)."""
        if not self.alive or self.at_end:
            if self.config.decision_points == "bar" and not self.at_end:
                self.row += 1
                return 0.0, 0.0
            return 0.0, 1.0 if self.at_end else 0.0
        has_order, want = self._wanted(action)
        if has_order:
            self.waiting = (want, self.order[1], self.order[2])
        equity = float(self.account["equity"])
        drawdown = float(self.account["peak"]) - equity
        while True:
            self.row += 1
            if self.is_unit:
                self._play_unit_bar()
            else:
                self._play_bar()
            terminated = self._ruined()
            if terminated or self.at_end or self.config.decision_points == "bar" or self._voting_rows[self.row]:
                break
        reward = (float(self.account["equity"]) - equity) / self.risk_unit
        if self.config.shaping != "none":
            growth = float(self.account["peak"]) - float(self.account["equity"]) - drawdown
            holding = self.config.shaping == "holding"
            term = -float(self.account["position"] != 0.0) if holding else self._shaped(reward, growth)
            reward += self.config.shaping_weight * term
        truncated = self.config.decision_points == "synergy" and self.at_end
        self.alive = not (terminated or truncated)
        return reward, 0.0 if terminated else 1.0

    def _due(self) -> tuple[float, float, float] | None:
        """The waiting order if the present bar is real; a filled bar repeats the close that was observed."""
        if self.table.filled[self.row]:
            return None
        order, self.waiting = self.waiting, None
        return order

    def _play_bar(self) -> None:
        t, row, order = self.table, self.row, self._due()
        close, roll, day = float(t.close[row]), float(t.roll[row]), int(t.day[row])
        if t.filled[row]:
            pass_bar(self.account, self._venue, close, roll, day, self._fills)
            return
        advance(self.account, self._venue, order is not None, *(order or (0.0, 0.0, 0.0)), float(t.open[row]),
                float(t.high[row]), float(t.low[row]), close, roll, day, self._fills)

    def _play_unit_bar(self) -> None:
        """Constant notional, held from the last close to this one; costs are paid per side."""
        account, table, row = self.account, self.table, self.row
        if int(table.day[row]) != account["day"]:
            account["day"], account["day_start"] = int(table.day[row]), account["equity"]
        held, order = float(account["position"]), self._due()
        want = held if order is None else order[0]
        traded = abs(want - held)
        if traded != 0.0:
            account["trades"] += held != 0.0
            account["entry"], account["bars_in_trade"] = table.close[row - 1], 0
        account["entry"] *= table.roll[row]
        account["position"], account["mark"] = want, table.close[row]
        config = self.config
        cost = config.unit_cost_ticks * config.unit_tick_bp * 1e-4 * self.cost_scale * traded
        gross = want * float(self._returns[row])
        account["costs"] += cost
        account["realised"] += gross
        account["equity"] += gross - cost
        account["bars_in_trade"] += want != 0.0
        account["peak"] = max(account["peak"], account["equity"])

    def _ruined(self) -> bool:
        if self.is_unit:
            return False
        equity, day_start = float(self.account["equity"]), float(self.account["day_start"])
        ruin = equity <= (1.0 - self.config.max_drawdown) * float(self.account["peak"])
        return ruin or equity - day_start <= -self.config.limits.daily_loss * day_start

    def _shaped(self, x: float, drawdown_growth: float) -> float:
        """Differential Sharpe or Sortino ratio (Moody and Saffell 2001), or the growth of the drawdown."""
        if self.config.shaping == "drawdown":
            return -max(drawdown_growth, 0.0) / self.risk_unit
        mean, square, eta = self.mean, self.square, self.config.shaping_eta
        shaped = 0.0
        if self.config.shaping == "differential_sharpe":
            second = x * x
            variance = square - mean * mean
            if variance > 1e-12:
                shaped = (square * (x - mean) - 0.5 * mean * (second - square)) / (variance * math.sqrt(variance))
        else:
            second = min(x, 0.0) * min(x, 0.0)
            if square > 1e-12:
                deviation = math.sqrt(square)
                if x > 0.0:
                    shaped = (x - 0.5 * mean) / deviation
                else:
                    shaped = (square * (x - 0.5 * mean) - 0.5 * mean * x * x) / (square * deviation)
        self.mean, self.square = mean + eta * (x - mean), square + eta * (second - square)
        return _clip(shaped, SHAPING_CLIP)


def _clip(x: float, bound: float) -> float:
    return min(max(x, -bound), bound)
