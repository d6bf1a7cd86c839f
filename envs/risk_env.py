"""The M-RMS environment for one account, in plain Python: the reference of the batched kernel.

Shared with it are only what one bar does to an account, the hard limits, the random draws and the columns of
opportunities.
"""

from __future__ import annotations

import math
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
from algospace.types import AnyArray, Float32Array, FloatArray
from envs.config import STOP_ATRS, STOP_BEYOND_LVN, TARGET_RS, RiskEnvConfig
from envs.core_kernels import draw
from envs.risk_kernels import (
    FALLBACK_ATR,
    FIRST_LANES,
    FIRST_SQUARE,
    LANES,
    MOMENTUM,
    RANDOM,
    RATIO_CLIP,
    SIDE_DRAW,
    SIGN_LANE,
    SMALLEST_SQUARE,
    SOURCE_DRAW,
    START_LANE,
    SYNERGY,
    WAIT_DRAW,
    WRAP_DRAW,
)
from envs.vector_core import build_venue
from envs.vector_risk import build_risk_market

if TYPE_CHECKING:
    from algospace.features.market_table import MarketTable

RISK_AGENTS = ("size", "stop", "target")


class RiskEnv:
    """One M-RMS environment; arguments as VectorRiskEnv, whose environment `first_env + e` equals
    `RiskEnv(..., env_index=first_env + e)`."""

    def __init__(self, table: MarketTable, instrument: Instrument, config: RiskEnvConfig, start: int, stop: int,
                 seed: int, mirror: bool = True, env_index: int = 0, lvn: FloatArray | None = None) -> None:
        self.table, self.instrument, self.config = table, instrument, config
        self.seed, self.mirror, self.env_index = seed, mirror, env_index
        self._market, self._rules = build_risk_market(table, instrument, config, start, stop, lvn)
        self._limits = config.limits.record()[()]
        self._accounts = np.zeros(1, ACCOUNT_DTYPE)
        self._fills = np.zeros(MAX_FILLS_PER_BAR, FILL_DTYPE)
        self.cost_scale = 1.0
        self.episode = -1
        self.mean, self.square = 0.0, FIRST_SQUARE
        self.begin_episode()

    @property
    def account(self) -> AnyArray:
        """The ACCOUNT_DTYPE record."""
        return self._accounts[0]

    @property
    def at_end(self) -> bool:
        """Whether the episode has had all its opportunities."""
        return self.trades >= self.config.episode_trades

    @property
    def cost_scale(self) -> float:
        """Factor on slippage and commission."""
        return self._cost_scale

    @cost_scale.setter
    def cost_scale(self, value: float) -> None:
        self._cost_scale = float(value)
        config = self.config
        self._venue = build_venue(self.instrument, config.slippage_ticks, config.commission, config.intrabar,
                                  self._cost_scale)[()]

    def begin_episode(self) -> None:
        """A fresh account at the first opportunity after a random row."""
        self.episode += 1
        span = self._rules.last + 1 - self._rules.first
        start = self._rules.first + int(self._draw(START_LANE) * span)
        self.sign = -1.0 if self.mirror and self._draw(SIGN_LANE) < 0.5 else 1.0
        self.alive, self.trades, self.limit_code = True, 0, 0
        open_account(self.account, self.config.initial_equity, float(self.table.close[start]),
                     int(self.table.day[start]))
        self._arrive(start)

    def _draw(self, lane: int) -> float:
        return draw(np.uint64(self.seed), self.env_index, self.episode, lane)

    def _arrive(self, after: int) -> None:
        """Move to the next opportunity at or after `after`; its bar brings the flat account's day up to date."""
        lane = FIRST_LANES + self.trades * LANES
        rules, following = self._rules, self._market.following
        weight = self._draw(lane + SOURCE_DRAW) * rules.cumulative[-1]
        source = next((s for s in (SYNERGY, MOMENTUM) if weight < rules.cumulative[s]), RANDOM)
        row = after + int(self._draw(lane + WAIT_DRAW) * (self.config.max_wait + 1))
        found = int(following[source, row]) if row <= rules.last else -1
        if found < 0:  # the split ends first: go on from a random row of it
            again = rules.first + int(self._draw(lane + WRAP_DRAW) * (rules.last + 1 - rules.first))
            found = int(following[source, again])
        if found < 0:
            found = int(following[source, rules.first])
        if source == RANDOM:
            side = 1.0 if self._draw(lane + SIDE_DRAW) < 0.5 else -1.0
        else:
            side = float(self._market.sides[source, found])
        self.row, self.direction = found, self.sign * side
        self._play_bar(found, False, 0.0, 0.0, 0.0, roll=1.0)

    def _play_bar(self, row: int, has_order: bool, want: float, stop: float, target: float,
                  roll: float | None = None) -> None:
        t = self.table
        advance(self.account, self._venue, has_order, want, stop, target, float(t.open[row]), float(t.high[row]),
                float(t.low[row]), float(t.close[row]), float(t.roll[row]) if roll is None else roll,
                int(t.day[row]), self._fills)

    def observe(self) -> Float32Array:
        """Account features (4,); see VectorRiskEnv.observe."""
        equity, peak = float(self.account["equity"]), float(self.account["peak"])
        daily = (equity / float(self.account["day_start"]) - 1.0) / self.config.limits.daily_loss
        return np.array([(1.0 - equity / peak) / self.config.max_drawdown, min(max(daily, -2.0), 2.0), self.mean,
                         math.sqrt(self.square)], np.float32)

    def bracket(self, stop_choice: int, target_choice: int) -> tuple[float, float]:
        """(stop, target) distances in points of two choices at the present opportunity."""
        atr = max(float(self.table.atr[self.row]), self.instrument.tick_size)
        if stop_choice == STOP_BEYOND_LVN:
            distance, strength = (float(x) for x in self._market.lvn[self.row])
            behind = -self.sign * self.direction * distance
            stop = FALLBACK_ATR * atr
            if 0.0 < behind <= FALLBACK_ATR * atr and strength >= self.config.lvn_min_strength:
                stop = behind + self.config.lvn_margin_atr * atr
        else:
            stop = STOP_ATRS[stop_choice] * atr
        return stop, TARGET_RS[target_choice] * stop

    def step(self, size: int, stop_choice: int, target_choice: int) -> tuple[float, float]:
        """Answer the opportunity and play the bracket out: (reward, discount)."""
        self.limit_code = 0
        if not self.alive or self.at_end:
            return 0.0, 1.0 if self.alive else 0.0
        stop, target = self.bracket(stop_choice, target_choice)
        equity = float(self.account["equity"])
        contracts, self.limit_code = limit_contracts(
            self._limits, float(size), stop * self.instrument.multiplier + self._rules.exit_cost, equity,
            float(self.account["day_start"]), 0)
        row = self.row
        if contracts > 0.0:
            row = self._play_bracket(self.sign * self.direction * contracts, stop, target)
        gain = (float(self.account["equity"]) - equity) / (self.config.limits.risk_per_trade * equity)
        reward = self._differential_sortino(gain)
        if self.limit_code != 0:
            reward -= self.config.limit_penalty
        ruined = float(self.account["equity"]) <= (1.0 - self.config.max_drawdown) * float(self.account["peak"])
        self.alive = not ruined
        self.trades += 1
        if self.alive:
            self._arrive(row + 1)
        return reward, 0.0 if ruined else 1.0

    def _play_bracket(self, want: float, stop: float, target: float) -> int:
        """Bars from the entry to the exit, which is at the first real open after `max_bars` at the latest; its
        row. The entry, too, waits for the first real bar."""
        row = self._pass_filled(self.row + 1)
        self._play_bar(row, True, want, stop, target)
        for _ in range(self.config.max_bars - 1):
            if self.account["position"] == 0.0:
                return row
            row += 1
            if self.table.filled[row]:
                self._pass_bar(row)
            else:
                self._play_bar(row, False, 0.0, stop, target)
        if self.account["position"] != 0.0:
            row = self._pass_filled(row + 1)
            self._play_bar(row, True, 0.0, stop, target)
        return row

    def _pass_filled(self, row: int) -> int:
        """Pass over filled bars from `row` on; the row of the first real one."""
        while self.table.filled[row]:
            self._pass_bar(row)
            row += 1
        return row

    def _pass_bar(self, row: int) -> None:
        t = self.table
        pass_bar(self.account, self._venue, float(t.close[row]), float(t.roll[row]), int(t.day[row]), self._fills)

    def _differential_sortino(self, x: float) -> float:
        """Moody and Saffell 2001 (doi:10.1109/72.935097), clipped; see the kernel on means below 0."""
        mean, square, eta = max(self.mean, 0.0), max(self.square, SMALLEST_SQUARE), self.config.eta
        deviation = math.sqrt(square)
        if x > 0.0:
            ratio = (x - 0.5 * mean) / deviation
        else:
            ratio = (square * (x - 0.5 * mean) - 0.5 * mean * x * x) / (square * deviation)
        down = min(x, 0.0)
        self.mean += eta * (x - self.mean)
        self.square = square + eta * (down * down - square)
        return min(max(ratio, -RATIO_CLIP), RATIO_CLIP)
