"""The batched M-RMS environment: E accounts answer one opportunity after another with brackets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from algospace.errors import ConfigError
from algospace.execution.mechanics import ACCOUNT_DTYPE, FILL_DTYPE, MAX_FILLS_PER_BAR
from algospace.instruments import Instrument
from algospace.instruments import instrument as find_instrument
from algospace.types import AnyArray, BoolArray, Float32Array, FloatArray, Int32Array
from envs.config import SIZE_CHOICES, STOP_CHOICES, TARGET_CHOICES, RiskEnvConfig
from envs.opportunities import last_with_exit, low_volume_nodes, opportunity_columns
from envs.risk_kernels import (
    FIRST_SQUARE,
    HINDSIGHT_BRACKETS,
    RISK_FEATURES,
    RiskBatch,
    RiskMarket,
    RiskRules,
    hindsight_kernel,
    proposal_kernel,
    risk_begin_kernel,
    risk_observe_kernel,
    risk_step_kernel,
)
from envs.vector_core import build_venue, read_only

if TYPE_CHECKING:
    from algospace.features.market_table import MarketTable


def build_risk_market(table: MarketTable, instrument: Instrument, config: RiskEnvConfig, start: int, stop: int,
                      lvn: FloatArray | None) -> tuple[RiskMarket, RiskRules]:
    """The kernel's view of `table`, every bracket of which ends inside rows [start, stop)."""
    first, last = start, min(stop, len(table)) - config.max_bars - 2
    if start < 0 or last < first:
        raise ConfigError(f"rows {start} to {stop} of {table.symbol} (length {len(table)}) are too few for "
                          f"brackets of {config.max_bars} bars; lower max_bars or widen the split")
    last = last_with_exit(table.filled, first, last, config.max_bars, min(stop, len(table)))
    if last < first:
        raise ConfigError(f"rows {start} to {stop} of {table.symbol} end in missing bars: no bracket of "
                          f"{config.max_bars} bars can be closed; lower max_bars or widen the split")
    nodes = low_volume_nodes(table) if lvn is None else np.asarray(lvn, np.float64)
    if nodes.shape != (len(table), 2):
        raise ConfigError(f"lvn has shape {nodes.shape}, expected {(len(table), 2)}")
    sides, following, cumulative = opportunity_columns(table, config, first, last)
    columns = (table.open, table.high, table.low, table.close, table.roll, table.atr, table.day, table.filled,
               nodes, sides, following)
    commission = instrument.commission if config.commission is None else config.commission
    slippage = config.slippage_ticks * instrument.tick_size
    rules = RiskRules(
        first=first, last=last, cumulative=cumulative, max_wait=config.max_wait,
        episode_trades=config.episode_trades, max_bars=config.max_bars, initial_equity=config.initial_equity,
        max_drawdown=config.max_drawdown, eta=config.eta, penalty=config.limit_penalty,
        lvn_margin=config.lvn_margin_atr, lvn_strength=config.lvn_min_strength, tick=instrument.tick_size,
        multiplier=instrument.multiplier, exit_cost=slippage * instrument.multiplier + 2.0 * commission)
    return RiskMarket(*(read_only(column) for column in columns)), rules


def proposal_table(sizes: AnyArray, stops: AnyArray, targets: AnyArray, table: MarketTable,
                   config: RiskEnvConfig, lvn: FloatArray | None = None) -> Float32Array:
    """Choices (n, 2) of the three agents for short [0] and long [1] at every row -> (n, 2, 3) float32:
    contracts, stop and target distance in points, before hard limits."""
    shape = (len(table), 2)
    for name, choices, count in (("sizes", sizes, SIZE_CHOICES), ("stops", stops, STOP_CHOICES),
                                 ("targets", targets, TARGET_CHOICES)):
        if choices.shape != shape:
            raise ValueError(f"{name} has shape {choices.shape}, expected {shape}")
        if choices.size and not (choices.min() >= 0 and choices.max() < count):
            raise ValueError(f"{name} must lie in 0..{count - 1}, got {choices.min()}..{choices.max()}")
    nodes = low_volume_nodes(table) if lvn is None else np.asarray(lvn, np.float64)
    out = np.empty((*shape, 3), np.float32)
    proposal_kernel(sizes.astype(np.int64), stops.astype(np.int64), targets.astype(np.int64),
                    read_only(table.atr), read_only(nodes), find_instrument(table.symbol).tick_size,
                    config.lvn_margin_atr, config.lvn_min_strength, out)
    return out


class VectorRiskEnv:
    """E M-RMS environments in step over rows [start, stop) of one market table.

    Cycle: `begin_segment`, then T times `observe`, `step`. At every step each environment stands, flat, at an
    opportunity: row and direction. The three choices become a bracket, which is played out (closed at the open
    after `max_bars`); the environment moves on to its next opportunity. The reward is the differential Sortino
    ratio of the step's return (in units of the risk per trade), less a penalty if a hard limit cut the size.
    An environment dies of ruin; after `episode_trades` opportunities it waits for `begin_segment` (truncation).
    All randomness is a hash of (seed, first_env + e, episode, opportunity).
    """

    def __init__(self, table: MarketTable, instrument: Instrument, config: RiskEnvConfig, start: int, stop: int,
                 num_envs: int, seed: int, mirror: bool = True, first_env: int = 0,
                 lvn: FloatArray | None = None) -> None:
        """`lvn` (n, 2): signed distance from the close to the nearest low volume node in points (NaN: none) and
        its strength 0..100; None reads them from the strategic matrix."""
        self.table, self.instrument, self.config = table, instrument, config
        self.num_envs, self.seed, self.mirror, self.first_env = num_envs, seed, mirror, first_env
        self._market, self._rules = build_risk_market(table, instrument, config, start, stop, lvn)
        self._limits = config.limits.record()[()]
        self._fills, self._spare = np.zeros(MAX_FILLS_PER_BAR, FILL_DTYPE), np.zeros(1, ACCOUNT_DTYPE)
        self._batch = RiskBatch(
            accounts=np.zeros(num_envs, ACCOUNT_DTYPE), rows=np.zeros(num_envs, np.int32),
            directions=np.ones(num_envs, np.float32), signs=np.ones(num_envs, np.float32),
            alive=np.zeros(num_envs, np.bool_), episodes=np.full(num_envs, -1, np.int64),
            trades=np.zeros(num_envs, np.int64), moments=np.tile([0.0, FIRST_SQUARE], (num_envs, 1)))
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
        self._cost_scale = float(value)
        config = self.config
        self._venue = build_venue(self.instrument, config.slippage_ticks, config.commission, config.intrabar,
                                  self._cost_scale)[()]

    @property
    def rows(self) -> Int32Array:
        """(E,) row of the present opportunity."""
        return self._batch.rows

    @property
    def directions(self) -> Float32Array:
        """(E,) direction of the present opportunity, +1 or -1, in the mirrored frame."""
        return self._batch.directions

    @property
    def signs(self) -> Float32Array:
        """(E,) -1 where the market is mirrored."""
        return self._batch.signs

    @property
    def alive(self) -> BoolArray:
        """(E,) False from termination to the next `begin_segment`."""
        return self._batch.alive

    @property
    def accounts(self) -> AnyArray:
        """(E,) ACCOUNT_DTYPE records, as they stand."""
        return self._batch.accounts

    def begin_segment(self) -> None:
        """Start a new episode in every environment whose episode has ended."""
        risk_begin_kernel(self._batch, self._market, self._rules, self._venue, self._fills, np.uint64(self.seed),
                          self.first_env, self.mirror)

    def observe(self, out: Float32Array) -> None:
        """Fill `out` (E, 4), for the critic: drawdown over its limit, daily P&L over the daily loss limit
        (clipped +-2), mean and downside deviation of the returns (in units of the risk per trade)."""
        if out.shape != (self.num_envs, RISK_FEATURES):
            raise ValueError(f"expected an array of shape {(self.num_envs, RISK_FEATURES)}, got {out.shape}")
        risk_observe_kernel(self._batch, self._limits, self.config.max_drawdown, out)

    def hindsight(self, out: Float32Array) -> None:
        """Fill `out` (E, 6), for the critic in training and for nobody else: what six reference brackets of one
        contract will have made of the present opportunity, net, in units of the loss at the stop (clipped +-5).

        It looks ahead. Bars do not depend on the actions, so a baseline that knows them leaves the policy's
        gradient unbiased and takes the market's luck out of it (Mao et al. 2019, arXiv 1807.02264).
        """
        if out.shape != (self.num_envs, len(HINDSIGHT_BRACKETS)):
            raise ValueError(f"expected an array of shape {(self.num_envs, len(HINDSIGHT_BRACKETS))}, "
                             f"got {out.shape}")
        hindsight_kernel(self._batch, self._market, self._rules, self._venue, self._fills, self._spare, out)

    def step(self, actions: AnyArray, rewards: Float32Array, discounts: Float32Array) -> None:
        """`actions` (E, 3) int8: size 0..5, stop 0..6, target 0..4. Fills `rewards` and `discounts` (E,): 0 on
        termination, else 1; and `limit_codes` (algospace.risk.limits.Limit)."""
        bounds = (SIZE_CHOICES, STOP_CHOICES, TARGET_CHOICES)
        if actions.shape != (self.num_envs, 3) or (actions < 0).any() or (actions >= bounds).any():
            raise ValueError(f"actions must be of shape {(self.num_envs, 3)} and lie below {bounds}")
        risk_step_kernel(self._batch, self._market, self._rules, self._limits, self._venue, self._fills,
                         np.uint64(self.seed), self.first_env, actions, rewards, discounts, self.limit_codes)

    def get_state(self) -> dict[str, AnyArray]:
        """Copies of everything that changes."""
        return {name: array.copy() for name, array in self._batch._asdict().items()}

    def set_state(self, state: dict[str, AnyArray]) -> None:
        """Continue from a `get_state` of an environment of the same size; arrays are overwritten in place."""
        own = self._batch._asdict()
        if state.keys() != own.keys():
            raise ValueError(f"state has keys {sorted(state)}, expected {sorted(own)}")
        for name, array in own.items():
            if state[name].shape != array.shape:
                raise ValueError(f"state of {state[name].shape[0]} environments, this one has {self.num_envs}")
            array[...] = state[name]
