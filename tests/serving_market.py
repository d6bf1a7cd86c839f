"""Random markets and randomly initialised bundles for the tests of serving."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.calibration import Calibration
from agents.core import CoreNet
from agents.gate import GateConfig
from agents.regime import RegimeNet
from agents.risk import RiskNet
from agents.settings import CoreConfig, EmbedderKind, RegimeConfig, RiskConfig
from algospace.features.market_table import MarketTable
from algospace.features.matrix_schema import COLUMN_RULES, MatrixConfig, MatrixSchema, MatrixSpec, column_specs
from envs.config import CoreEnvConfig, RiskEnvConfig
from serving.bundle import Bundle, BundleSpec, network_shapes
from serving.decider import account_record
from serving.export import write_bundle
from tests.env_market import random_table

FIRST_DECISION = 600
REGIME_SIZE = 8


def full_schema() -> MatrixSchema:
    """The default columns and windows with statistics as if fitted."""
    config = MatrixConfig()

    def spec(names: tuple[str, ...], window: int) -> MatrixSpec:
        statistics = {name: (0.1 * place, 1.0 + place) for place, name in enumerate(names)
                      if COLUMN_RULES[name][0] == "robust"}
        return MatrixSpec(window, column_specs(names, statistics))

    return MatrixSchema(spec(config.strategic, config.strategic_window),
                        spec(config.tactical, config.tactical_window),
                        spec(config.regime, config.regime_window), config.clip, config.atr_clip)


def serving_table(seed: int = 0, n: int = 900) -> MarketTable:
    """A random market table of the full schema; rows before FIRST_DECISION are warm-up."""
    table, schema = random_table(seed, n), full_schema()
    rng = np.random.default_rng(seed + 100)
    slow = n // 6 + 1

    def matrix(rows: int, spec: MatrixSpec) -> Any:
        return rng.normal(0.0, 1.0, (rows, spec.width)).astype(np.float32)

    return dataclasses.replace(
        table, schema=schema, decision=table.decision & (np.arange(n) >= FIRST_DECISION),
        tactical=matrix(n, schema.tactical), strategic=matrix(slow, schema.strategic),
        regime=matrix(slow, schema.regime))


def random_networks(seed: int = 0, embedder: EmbedderKind = "tcn",
                    gain: float = 40.0) -> tuple[CoreNet, RiskNet, RegimeNet]:
    """Small nets with random weights; heads are scaled up by `gain` so that votes differ from row to row."""
    torch.manual_seed(seed)
    shapes = network_shapes(full_schema(), REGIME_SIZE)
    core = CoreNet(shapes, CoreConfig(embedder=embedder, pass_bias=0.0))
    risk = RiskNet(shapes, RiskConfig(embedder=embedder))
    regime = RegimeNet(RegimeConfig(size="tiny", latent=REGIME_SIZE))
    with torch.no_grad():
        core.head.mul_(gain)
        core.head_bias[3] = torch.tensor([0.0, 1.0, -1.0])
        risk.head.mul_(gain)
        risk.head_bias[0, 1:6] = 1.0
    return core, risk, regime


def random_bundle(directory: Path, *, seed: int = 0, embedder: EmbedderKind = "tcn", experts: bool = True,
                  gate: GateConfig | None = None, env: CoreEnvConfig | None = None,
                  calibration: Calibration | None = None,
                  networks: tuple[CoreNet, RiskNet, RegimeNet] | None = None) -> Bundle:
    """A bundle of random networks; its gate passes most proposals unless told otherwise."""
    core, risk, regime = networks or random_networks(seed, embedder)
    spec = BundleSpec(
        instrument="SYNTH", mask_key=7, gate=gate or GateConfig(confidence_threshold=0.25),
        calibration=calibration, env=env or CoreEnvConfig(), risk_env=RiskEnvConfig(), risk_unit=2500.0,
        config_hash="c" * 64, data_hash="d" * 64, git_commit="0" * 40, metrics={"score": 0.1})
    return write_bundle(directory, spec, full_schema(), core, risk if experts else None,
                        regime if experts else None)


def accounts(table: MarketTable, row: int) -> list[Any]:
    """Flat, long with a bracket, short, and broke."""
    close, day = float(table.close[row]), float(table.day[row])
    money: dict[str, float] = {"equity": 100_000.0, "day_start": 99_000.0, "peak": 101_000.0, "day": day}
    return [account_record(**money),
            account_record(**money, position=2.0, entry=close - 5, stop=close - 20, target=close + 30,
                           bars_in_trade=7),
            account_record(**money, position=-1.0, entry=close - 5, bars_in_trade=1),
            account_record(equity=300.0, day_start=300.0, peak=300.0, day=day)]


def rows(table: MarketTable, count: int = 40) -> list[int]:
    return [int(r) for r in np.flatnonzero(table.decision)[:count]]
