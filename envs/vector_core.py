"""The batched core environment: E independent markets and accounts, two compiled half-steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from algospace.errors import ConfigError
from algospace.execution.mechanics import ACCOUNT_DTYPE, FILL_DTYPE, MAX_FILLS_PER_BAR, venue_record
from algospace.instruments import Instrument
from algospace.types import AnyArray, BoolArray, Float32Array, FloatArray, Int32Array
from envs.config import CoreEnvConfig
from envs.core_kernels import (
    ACCOUNT_FEATURES,
    BAR_DTYPE,
    SHAPING_CODES,
    Batch,
    Market,
    Rules,
    begin_kernel,
    execute_kernel,
    observe_kernel,
    vote_kernel,
)

if TYPE_CHECKING:
    from algospace.features.market_table import MarketTable


def risk_unit_of(table: MarketTable, instrument: Instrument, config: CoreEnvConfig, start: int,
                 stop: int) -> float:
    """The reward's unit over rows [start, stop) (the training split).

    Full mechanics: mean ATR x multiplier x base size, account currency. Unit mechanics: standard deviation of
    the bars' log returns.
    """
    if config.mechanics == "unit":
        unit = float(np.std(bar_returns(table)[max(start, 1):stop]))
    else:
        unit = float(np.nanmean(table.atr[start:stop])) * instrument.multiplier * config.base_size
    if not unit > 0.0:
        raise ConfigError(f"rows {start} to {stop} of {table.symbol} have no price movement: no risk unit")
    return unit


def bar_returns(table: MarketTable) -> FloatArray:
    """Log return of each row over the row before, futures rolls removed; 0 on the first row."""
    returns = np.zeros(len(table))
    returns[1:] = np.log(table.close[1:] / (table.close[:-1] * table.roll[1:]))
    return returns


def decision_rows(table: MarketTable, config: CoreEnvConfig) -> BoolArray:
    """Where voters are asked: every decision row, or only those with a synergy."""
    if config.decision_points == "synergy":
        return table.decision & table.synergy_event
    return np.array(table.decision, np.bool_)


def read_only(values: AnyArray) -> AnyArray:
    """A plain read-only view, so that kernels compile once for mapped and ordinary arrays alike."""
    view = np.ascontiguousarray(values).view(np.ndarray).view()
    view.flags.writeable = False
    return view


def build_market(table: MarketTable, config: CoreEnvConfig, start: int, stop: int) -> Market:
    """The kernel's view of `table` with episodes that stay inside rows [start, stop)."""
    voting = decision_rows(table, config)
    last = min(stop, len(table)) - config.episode_bars
    if start < 0 or last <= start:
        raise ConfigError(f"rows {start} to {stop} of {table.symbol} (length {len(table)}) are too few for "
                          f"episodes of {config.episode_bars} bars; lower episode_bars or widen the split")
    starts = np.arange(start, last, dtype=np.int32)
    if config.decision_points == "synergy":
        starts = starts[voting[start:last]]
        if starts.size == 0:
            raise ConfigError(f"rows {start} to {stop} of {table.symbol} hold no synergy to start from; "
                              f"use decision_points: bar or lower the signal thresholds")
    return Market(pack_bars(table, voting), read_only(np.asarray(table.clock, np.float32)), read_only(starts))


def pack_bars(table: MarketTable, voting: BoolArray) -> AnyArray:
    """The table's price columns as BAR_DTYPE records, aligned to cache lines."""
    size = BAR_DTYPE.itemsize
    raw = np.empty((len(table) + 1) * size, np.uint8)
    shift = -raw.ctypes.data % size
    bars = raw[shift:shift + len(table) * size].view(BAR_DTYPE)
    for name in ("open", "high", "low", "close", "roll", "atr", "day"):
        bars[name] = getattr(table, name)
    bars["bar_return"] = bar_returns(table)
    bars["voting"] = voting
    bars["filled"] = table.filled
    return read_only(bars)


def build_rules(instrument: Instrument, config: CoreEnvConfig, risk_unit: float) -> Rules:
    """The constants of a run."""
    if not risk_unit > 0.0:
        raise ConfigError(f"risk_unit must be positive, got {risk_unit}")
    unit = config.mechanics == "unit"
    commission = instrument.commission if config.commission is None else config.commission
    slippage = config.slippage_ticks * instrument.tick_size
    return Rules(
        unit=unit, run_on=config.decision_points == "synergy", reverse=config.reverse,
        episode_bars=config.episode_bars, initial_equity=1.0 if unit else config.initial_equity,
        max_drawdown=config.max_drawdown, risk_unit=float(risk_unit), tick=instrument.tick_size,
        multiplier=instrument.multiplier, exit_cost=slippage * instrument.multiplier + 2.0 * commission,
        shaping=SHAPING_CODES[config.shaping], shaping_weight=config.shaping_weight,
        shaping_eta=config.shaping_eta)


def build_venue(instrument: Instrument, slippage_ticks: float, commission: float | None, intrabar: str,
                cost_scale: float) -> AnyArray:
    """The venue record with all costs multiplied by `cost_scale`."""
    fee = instrument.commission if commission is None else commission
    return venue_record(instrument.tick_size, instrument.multiplier, fee * cost_scale,
                        slippage_ticks * cost_scale, intrabar)


def empty_batch(num_envs: int, market: Market, rules: Rules) -> Batch:
    """E environments before their first episode."""
    return Batch(
        accounts=np.zeros(num_envs, ACCOUNT_DTYPE), rows=np.zeros(num_envs, np.int32),
        ends=np.zeros(num_envs, np.int32), signs=np.ones(num_envs, np.float32),
        alive=np.zeros(num_envs, np.bool_), voting=np.zeros(num_envs, np.bool_),
        episodes=np.full(num_envs, -1, np.int64), moments=np.zeros((num_envs, 2)),
        opportunity=np.zeros(num_envs, np.int8), asked=np.zeros(num_envs, np.bool_),
        action_mask=np.zeros((num_envs, 3), np.bool_), order=np.zeros((num_envs, 3)),
        pending=np.zeros(num_envs, np.bool_), waiting=np.zeros((num_envs, 3)))


class Game(NamedTuple):
    """An environment as compiled loops take it: the arguments of both half-steps."""

    batch: Batch
    market: Market
    rules: Rules
    limits: Any
    venue: Any
    side_cost: float
    fills: AnyArray
    proposals: Float32Array
    proposal: Float32Array
    limit_codes: AnyArray


class VectorCoreEnv:
    """E core environments in step, each a random episode of rows [start, stop) of one market table.

    Cycle: `begin_segment`, then T times `observe`, `vote`, `execute`. The reward is the change of equity, net
    of costs, over the step in units of `risk_unit`. An order waits while bars are filled (missing) and executes at
    the first real open. All randomness is a hash of (seed, first_env + e, episode).

    An environment that terminates (ruin, daily loss limit) stays dead, with reward and discount 0, until
    `begin_segment`; where decisions are made on every bar its row keeps advancing, so that the row of step t
    is always the segment's first row + t. At the episode's end (truncation, discount 1) it waits at its last
    row for `begin_segment`. With `decision_points: synergy` a step runs to the next synergy row, in a position
    or out of it (brackets manage the position between), and an environment may reach its episode's end inside
    a segment: it is then not alive, with reward 0 and discount 1.
    """

    def __init__(self, table: MarketTable, instrument: Instrument, config: CoreEnvConfig, proposals: Float32Array,
                 start: int, stop: int, num_envs: int, seed: int, risk_unit: float, mirror: bool = True,
                 first_env: int = 0) -> None:
        """`proposals` (n, 2, 3): contracts, stop and target distance in points for short [0] and long [1]."""
        if proposals.shape != (len(table), 2, 3):
            raise ConfigError(f"proposals have shape {proposals.shape}, expected {(len(table), 2, 3)}")
        self.table, self.instrument, self.config = table, instrument, config
        self.num_envs, self.seed, self.mirror, self.first_env = num_envs, seed, mirror, first_env
        self._proposals = read_only(np.asarray(proposals, np.float32))
        self._market = build_market(table, config, start, stop)
        self._rules = build_rules(instrument, config, risk_unit)
        self._limits = config.limits.record()[()]
        self._batch = empty_batch(num_envs, self._market, self._rules)
        self._fills = np.zeros(MAX_FILLS_PER_BAR, FILL_DTYPE)
        self.proposal: Float32Array = np.zeros((num_envs, 3), np.float32)
        self.limit_codes: AnyArray = np.zeros(num_envs, np.int8)
        self.cost_scale = 1.0
        self.begin_segment()

    @property
    def cost_scale(self) -> float:
        """Factor on slippage and commission; set it between segments (it is not part of the state)."""
        return self._cost_scale

    @cost_scale.setter
    def cost_scale(self, value: float) -> None:
        if not value >= 0.0:
            raise ValueError(f"cost_scale must be at least 0, got {value}")
        config = self.config
        self._cost_scale = float(value)
        self._venue = build_venue(self.instrument, config.slippage_ticks, config.commission, config.intrabar,
                                  self._cost_scale)[()]
        self._side_cost = config.unit_cost_ticks * config.unit_tick_bp * 1e-4 * self._cost_scale

    @property
    def rows(self) -> Int32Array:
        """(E,) row of the present decision."""
        return self._batch.rows

    @property
    def signs(self) -> Float32Array:
        """(E,) -1 where the market is mirrored: long there is short in the real one."""
        return self._batch.signs

    @property
    def alive(self) -> BoolArray:
        """(E,) False from termination to the next `begin_segment`."""
        return self._batch.alive

    @property
    def voting(self) -> BoolArray:
        """(E,) whether the voters are asked at the present row."""
        return self._batch.voting

    @property
    def opportunity(self) -> AnyArray:
        """(E,) int8, -1, 0 or +1 in the mirrored frame; set by `vote`."""
        return self._batch.opportunity

    @property
    def asked(self) -> BoolArray:
        """(E,) whether execution is asked; set by `vote`."""
        return self._batch.asked

    @property
    def action_mask(self) -> BoolArray:
        """(E, 3) allowed execution actions reject, execute, close; set by `vote`."""
        return self._batch.action_mask

    @property
    def accounts(self) -> AnyArray:
        """(E,) ACCOUNT_DTYPE records of the real market, as they stand."""
        return self._batch.accounts

    def begin_segment(self) -> None:
        """Start a new episode in every environment whose episode has ended."""
        begin_kernel(self._batch, self._market, self._rules, np.uint64(self.seed), self.first_env, self.mirror)

    def observe(self, out: Float32Array) -> None:
        """Fill `out` (E, 8): signed position / max_position (unit: position), unrealised P&L in ATR per contract
        (clipped +-10), log1p(bars in trade)/5, distances to stop and target in ATR (clipped +-10, 0 without),
        daily P&L in risk units (clipped +-10, over 10), hour_sin, hour_cos; in the mirrored frame."""
        self._check(out, ACCOUNT_FEATURES)
        observe_kernel(self._batch, self._market, self._rules, self._limits, out)

    def vote(self, votes: AnyArray) -> None:
        """First half-step. `votes` (E, 3) int8: 0 short, 1 pass, 2 long; taken as pass where nobody votes.

        Fills `opportunity`, `asked`, `action_mask`, `limit_codes` (algospace.risk.limits.Limit) and `proposal`
        (E, 3): contracts / 5, stop in ATR / 4, target in R / 4 after hard limits, zeros without opportunity.
        """
        self._check(votes, 3)
        vote_kernel(self._batch, self._market, self._rules, self._limits, self._proposals, votes, self.proposal,
                    self.limit_codes)

    def execute(self, actions: AnyArray, rewards: Float32Array, discounts: Float32Array) -> None:
        """Second half-step. `actions` (E,) int8: 0 reject, 1 execute, 2 close; a masked action, or one that was
        not asked for, is a reject. Fills `rewards` (E,) and `discounts` (E,): 0 on termination, else 1."""
        execute_kernel(self._batch, self._market, self._rules, self._limits, self._venue, self._side_cost,
                       self._fills, actions, rewards, discounts)

    def game(self) -> Game:
        """For a compiled loop that plays whole segments; its arrays are this environment's own."""
        return Game(self._batch, self._market, self._rules, self._limits, self._venue, self._side_cost,
                    self._fills, self._proposals, self.proposal, self.limit_codes)

    def get_state(self) -> dict[str, AnyArray]:
        """Copies of everything that changes."""
        state = {name: array.copy() for name, array in self._batch._asdict().items()}
        state["proposal"] = self.proposal.copy()
        state["limit_codes"] = self.limit_codes.copy()
        return state

    def set_state(self, state: dict[str, AnyArray]) -> None:
        """Continue from a `get_state` of an environment of the same size; arrays are overwritten in place."""
        own = self._batch._asdict() | {"proposal": self.proposal, "limit_codes": self.limit_codes}
        if state.keys() != own.keys():
            raise ValueError(f"state has keys {sorted(state)}, expected {sorted(own)}")
        for name, array in own.items():
            if state[name].shape != array.shape:
                raise ValueError(f"state of {state[name].shape[0]} environments, this one has {self.num_envs}")
            array[...] = state[name]

    def _check(self, array: AnyArray, width: int) -> None:
        if array.shape != (self.num_envs, width):
            raise ValueError(f"expected an array of shape {(self.num_envs, width)}, got {array.shape}")
