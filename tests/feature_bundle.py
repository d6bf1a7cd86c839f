"""A bundle of random weights whose features are its configuration's own, so that the service can build them."""

from __future__ import annotations

from pathlib import Path

import torch

from agents.core import CoreConfig, CoreNet
from agents.gate import GateConfig
from agents.regime import RegimeConfig, RegimeNet
from algospace.features import FeatureConfig, build
from algospace.features.matrices import MatrixConfig, Normaliser
from algospace.instruments import INSTRUMENTS
from algospace.types import Bars
from envs.config import CoreEnvConfig, RiskEnvConfig
from serving.bundle import Bundle, BundleSpec, network_shapes
from serving.export import write_bundle


def bars_bundle(bars: Bars, folder: Path, seed: int = 1) -> Bundle:
    """A bundle for SYNTH, normalised over `bars`, with an RDE and without an M-RMS."""
    table = build(bars, INSTRUMENTS["SYNTH"], FeatureConfig())
    schema = Normaliser.fit(table, MatrixConfig(), int(table.ts_close[-1]))
    torch.manual_seed(seed)
    core = CoreNet(network_shapes(schema, 8), CoreConfig(embedder="tcn"))
    regime = RegimeNet(RegimeConfig(size="tiny", latent=8))
    spec = BundleSpec(instrument="SYNTH", mask_key=7, gate=GateConfig(confidence_threshold=0.25), calibration=None,
                      env=CoreEnvConfig(), risk_env=RiskEnvConfig(), risk_unit=2500.0, config_hash="c" * 64,
                      data_hash="d" * 64, git_commit="0" * 40)
    return write_bundle(folder, spec, schema, core, None, regime)
