"""From source bars to environments, in one call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack

import numpy as np

from algospace.errors import ConfigError
from algospace.instruments import Instrument
from algospace.instruments import instrument as find_instrument
from algospace.types import Bars, Float32Array
from envs.config import CoreEnvConfig, RiskEnvConfig
from envs.core_env import CoreEnv
from envs.vector_core import risk_unit_of
from envs.vector_risk import proposal_table

if TYPE_CHECKING:
    from algospace.features import FeatureConfig
    from algospace.features.market_table import MarketTable
    from algospace.features.matrix_schema import MatrixConfig

Part = Literal["train", "test"]
_ONE_CONTRACT, _TWO_ATR, _TWO_R = 1, 3, 2


class MarketOptions(TypedDict, total=False):
    """How `market_from_bars` makes a market of source bars; what is left out keeps that function's default."""

    features: FeatureConfig | None
    matrices: MatrixConfig | None
    train_fraction: float
    part: Part


class CoreOptions(MarketOptions, total=False):
    """And how `core_from_bars` makes a core environment of that market."""

    seed: int
    mirror: bool
    proposals: Float32Array | None


@dataclass(frozen=True)
class MarketSplit:
    """A market table and the rows [start, stop) to play on; reward units come from [train_start, train_stop)."""

    table: MarketTable
    instrument: Instrument
    start: int
    stop: int
    train_start: int
    train_stop: int


def market_from_bars(bars: Bars, instrument: Instrument | str, features: FeatureConfig | None = None,
                     matrices: MatrixConfig | None = None, train_fraction: float = 0.7,
                     part: Part = "train") -> MarketSplit:
    """Features of `bars`, normalised with the first `train_fraction` of the rows, and one part of them.

    The test part begins after an embargo of the longest window. ConfigError if a part holds no decision row.
    """
    from algospace.features import FeatureConfig, build
    from algospace.features.matrices import MatrixConfig, Normaliser, assemble

    if not 0.0 < train_fraction < 1.0:
        raise ConfigError(f"train_fraction must lie between 0 and 1, got {train_fraction}")
    spec = find_instrument(instrument) if isinstance(instrument, str) else instrument
    raw = build(bars, spec, features or FeatureConfig())
    if len(raw) < 2:
        raise ConfigError(f"{len(bars)} source bars give {len(raw)} base bars; give more history")
    split = int(len(raw) * train_fraction)
    chosen = matrices or MatrixConfig.model_validate({})
    schema = Normaliser.fit(raw, chosen, int(raw.ts_close[split - 1]))
    table = assemble(raw, schema, spec)
    first = table.first_decision
    if first >= split:
        raise ConfigError(f"the first row with complete windows ({first}) lies behind the training part ({split} "
                          f"rows); give more history or a larger train_fraction")
    if part == "train":
        return MarketSplit(table, spec, first, split, first, split)
    slow_rows = max(schema.strategic.window, schema.regime.window)
    first_slow = int(table.row_30m[split]) + slow_rows
    embargo = int(np.searchsorted(table.row_30m, first_slow))
    return MarketSplit(table, spec, max(embargo, split + schema.tactical.window), len(table), first, split)


def core_from_bars(bars: Bars, instrument: Instrument | str, config: CoreEnvConfig | None = None, *, seed: int = 0,
                   mirror: bool = False, proposals: Float32Array | None = None,
                   **market: Unpack[MarketOptions]) -> CoreEnv:
    """The core environment on source bars; without `proposals` a fixed rule sizes (1 contract, 2 ATR, 2 R).

    ConfigError as `market_from_bars`.
    """
    made = market_from_bars(bars, instrument, **market)
    chosen = config or CoreEnvConfig()
    unit = risk_unit_of(made.table, made.instrument, chosen, made.train_start, made.train_stop)
    answers = fixed_proposals(made.table) if proposals is None else proposals
    return CoreEnv(made.table, made.instrument, chosen, answers, made.start, made.stop, seed, unit, mirror)


def fixed_proposals(table: MarketTable, contracts: int = _ONE_CONTRACT, stop: int = _TWO_ATR,
                    target: int = _TWO_R) -> Float32Array:
    """(n, 2, 3) proposals of a fixed rule: choices of the M-RMS agents, by default 1 contract, 2 ATR and 2 R."""
    shape = (len(table), 2)
    return proposal_table(np.full(shape, contracts), np.full(shape, stop), np.full(shape, target), table,
                          RiskEnvConfig())
