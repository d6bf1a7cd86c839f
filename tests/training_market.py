"""A small synthetic market on disk with expert columns, and small teams on it, for the tests of training."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agents.settings import CoreConfig, RiskConfig
from algospace.features import build
from algospace.features.market_table import MarketTable
from algospace.features.matrices import Normaliser, assemble
from algospace.features.matrix_schema import MatrixConfig
from algospace.instruments import instrument
from algospace.marketdata.synthetic import generate, scenario_named
from algospace.types import Float32Array
from envs.config import CoreEnvConfig, RiskEnvConfig
from envs.vector_core import risk_unit_of
from training.mappo.settings import MAPPOSettings, Ramp
from training.mappo.tables import REGIME_DIM, save_experts

BARS = 30_000


@dataclass(frozen=True)
class MarketOnDisk:
    """A saved market table with random expert columns. Decisions are made on rows [start, stop)."""

    table: MarketTable
    market: Path
    experts: Path
    digest: str
    start: int
    stop: int

    def core_spec(self, **changes: Any) -> dict[str, Any]:
        """A small core team; `env` and `net` are changes of the defaults."""
        net = {"embed_dim": 4, "channels": 4, "hidden": 8, "critic_hidden": 8, "pass_bias": 0.0}
        env = {"mechanics": "unit", "episode_bars": 32, **changes.pop("env", {})}
        config, sizes = CoreEnvConfig(**env), CoreConfig(**{**net, **changes.pop("net", {})})
        unit = risk_unit_of(self.table, instrument("SYNTH"), config, self.start, self.stop)
        return {"kind": "core", **self._data(), "net": sizes.model_dump(), "env": config.model_dump(),
                "risk_unit": unit, **changes}

    def risk_spec(self, **changes: Any) -> dict[str, Any]:
        """A small risk team."""
        net = RiskConfig(embed_dim=4, channels=4, hidden=8, critic_hidden=8)
        return {"kind": "risk", **self._data(), "net": net.model_dump(), "env": RiskEnvConfig().model_dump(),
                **changes}

    def _data(self) -> dict[str, Any]:
        return {"market": str(self.market), "experts": str(self.experts), "table_hash": self.digest,
                "instrument": "SYNTH", "start": self.start, "stop": self.stop, "seed": 3, "mask_key": 11}


def small_settings(**changes: Any) -> MAPPOSettings:
    """Two shards of four environments, 16 decisions each."""
    values: dict[str, Any] = {
        "env_steps": 512, "num_shards": 2, "envs_per_shard": 4, "segment": 16, "epochs": 2, "minibatches": 2,
        "learning_rate": Ramp(start=3e-3, end=3e-4), "entropy": Ramp(start=0.02, end=0.0)}
    return MAPPOSettings(**{**values, **changes})


def synthetic_market(folder: Path, seed: int = 1, bars: int = BARS) -> MarketOnDisk:
    """Generate, build, normalise and save a market of scenario `easy`, with random expert columns."""
    made = generate(scenario_named("easy"), seed, bars)
    spec = instrument("SYNTH")
    features = build(made.bars, spec)
    config = MatrixConfig(tactical_extra=("return_1", "volatility_60", "autocorr1_60"))
    schema = Normaliser.fit(features, config, int(features.ts_close[-1]))
    return save_market(folder, assemble(features, schema, spec), seed)


def save_market(folder: Path, table: MarketTable, seed: int = 1) -> MarketOnDisk:
    """Save a table with random regime vectors and proposals."""
    rng = np.random.default_rng(seed)
    table.save(folder / "market")
    vectors = rng.normal(0.0, 1.0, (2, table.strategic.shape[0], REGIME_DIM)).astype(np.float32)
    digest = save_experts(folder / "experts", folder / "market", vectors, random_proposals(rng, table))
    return MarketOnDisk(MarketTable.load(folder / "market"), folder / "market", folder / "experts", digest,
                        table.first_decision, len(table) - 1)


def random_proposals(rng: np.random.Generator, table: MarketTable) -> Float32Array:
    """(n, 2, 3): 1 to 5 contracts, stops of half to three ATR, targets of one to three stops."""
    n = len(table)
    stop = np.nan_to_num(table.atr, nan=1.0)[:, None] * rng.uniform(0.5, 3.0, (n, 2))
    return np.stack((rng.integers(1, 6, (n, 2)), stop, stop * rng.uniform(1.0, 3.0, (n, 2))), 2).astype(np.float32)


def with_next_return(table: MarketTable) -> MarketTable:
    """The oracle: column `return_1` of every tactical row shows the return of the bar after it."""
    place = table.schema.tactical.names.index("return_1")
    tactical = np.array(table.tactical)
    tactical[:-1, place] = tactical[1:, place]
    return dataclasses.replace(table, tactical=tactical)
