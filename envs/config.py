"""Configuration of the environments. Values are fixed for a run; only `cost_scale` (an attribute of the
environments, for the cost curriculum) may change between rollout segments."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from algospace.config import FrozenConfig
from algospace.risk.limits import LimitsConfig

STOP_ATRS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
STOP_BEYOND_LVN = 6
STOP_CHOICES = len(STOP_ATRS) + 1
TARGET_RS = (1.0, 1.5, 2.0, 3.0, 4.0)
TARGET_CHOICES = len(TARGET_RS)
SIZE_CHOICES = 6
"""Choices of the three M-RMS agents: contracts 0..5, the stop in ATR (the last index: beyond the nearest strong
low volume node) and the target in multiples R of the stop distance."""


class CoreEnvConfig(FrozenConfig):
    """The main core environment.

    `unit` mechanics: a position in {-1, 0, +1} of constant notional, no brackets, sizing or limits, never
    terminates; it is what a policy is scored with against the Bayes limit. `full` mechanics: the account of
    `algospace.execution.mechanics` with brackets, costs and hard limits.
    """

    mechanics: Literal["unit", "full"] = "full"
    decision_points: Literal["bar", "synergy"] = "bar"
    episode_bars: int = Field(default=512, ge=1)
    initial_equity: float = Field(default=100_000.0, gt=0)
    reverse: bool = True
    slippage_ticks: float = Field(default=1.0, ge=0)
    intrabar: Literal["pessimistic", "infer"] = "pessimistic"
    unit_cost_ticks: float = Field(default=1.18, ge=0)
    """Cost of unit mechanics per side, in ticks of `unit_tick_bp`."""
    unit_tick_bp: float = Field(default=0.5, gt=0)
    """One tick of unit mechanics, in basis points of the price, at every price."""
    max_drawdown: float = Field(default=0.25, gt=0, le=1)
    """Ruin: a fall of equity by this fraction from its peak terminates the episode."""
    limits: LimitsConfig = LimitsConfig()
    commission: float | None = Field(default=None, ge=0)
    """Per contract and side in account currency; None takes the instrument's."""
    base_size: float = Field(default=1.0, gt=0)
    """Contracts in the risk unit (mean ATR x multiplier x base size) of full mechanics."""
    shaping: Literal["none", "differential_sharpe", "differential_sortino", "drawdown", "holding"] = "none"
    """`holding` takes `shaping_weight` risk units for every step that ends with a position: a price for bearing
    risk. Without one, a position without an edge costs nothing to keep, and a team has no reason to leave it."""
    shaping_weight: float = Field(default=0.0, ge=0)
    shaping_eta: float = Field(default=0.01, gt=0, lt=1)
    """Adaptation rate of the moving moments behind the differential ratios."""


class RiskEnvConfig(FrozenConfig):
    """The M-RMS environment: opportunities from the data, brackets chosen by size, stop and target agents.

    `synergy`, `momentum` and `random` are the weights with which an opportunity's source is drawn; a source
    without rows in the split is left out. Synergies are rare (some 300 in a million bars): with a fifth of the
    weight each is met hundreds of times, and learnt by heart instead of the market.
    """

    synergy: float = Field(default=0.02, ge=0)
    momentum: float = Field(default=0.48, ge=0)
    random: float = Field(default=0.5, ge=0)
    momentum_bars: int = Field(default=24, ge=1)
    """A momentum entry is where the return over this many bars changes its sign."""
    max_wait: int = Field(default=96, ge=0)
    """The next opportunity lies at most this many bars after the exit (drawn uniformly)."""
    episode_trades: int = Field(default=64, ge=1)
    max_bars: int = Field(default=100, ge=1)
    initial_equity: float = Field(default=100_000.0, gt=0)
    slippage_ticks: float = Field(default=1.0, ge=0)
    intrabar: Literal["pessimistic", "infer"] = "pessimistic"
    commission: float | None = Field(default=None, ge=0)
    limits: LimitsConfig = LimitsConfig()
    max_drawdown: float = Field(default=0.25, gt=0, le=1)
    eta: float = Field(default=0.002, gt=0, lt=1)
    """Adaptation rate of the differential Sortino ratio, whose moments live on from one account to the next."""
    limit_penalty: float = Field(default=0.1, ge=0)
    """Taken from the reward whenever a hard limit reduces the proposed size."""
    lvn_margin_atr: float = Field(default=0.1, ge=0)
    """How far beyond the low volume node the stop lies, in ATR."""
    lvn_min_strength: float = Field(default=20.0, ge=0, le=100)
    """A node of less strength (0..100) is not strong enough to hide a stop behind."""

    @model_validator(mode="after")
    def _some_source(self) -> Self:
        if self.synergy + self.momentum + self.random <= 0.0:
            raise ValueError("one of synergy, momentum and random must be positive")
        return self
