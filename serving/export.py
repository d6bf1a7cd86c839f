"""Networks -> a bundle of ONNX graphs. Dropout masks are graph inputs: ONNX Runtime deletes training-mode Dropout,
and all samples would come out equal.

    vote     strategic (B, Ws, Fs), tactical (B, Wt, Ft), regime (B, R), synergy (B, 3), account (B, 8),
             masks (B, K, 3, H)                      -> logits (B, K, 3, 3), embedded (B, 3, D)
    execute  votes (B, 3, 3) one-hot, proposal (B, 3), regime, synergy, account, allowed (B, 3) float 0/1,
             masks (B, K, 1, H)                                           -> logits (B, K, 1, 3)
    mrms     strategic, tactical, regime, direction (B, 1) in {-1, +1}    -> logits (B, 3, 7)
    rde      window (B, Wr, Fr)                                           -> regime (B, R)

Batch B and samples K are dynamic. Embedders run once per row; only the heads see the K masks. `embedded` is an
output so that `serving.graphs` can cut the graph there: a backtest embeds many rows at once.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from agents.core import CoreNet
from agents.regime import RegimeNet
from agents.risk import RiskNet
from agents.settings import NUM_ACCOUNT, NUM_PROPOSAL, NUM_SYNERGY, VOTERS
from algospace.errors import BundleError, SchemaError
from algospace.features.matrix_schema import MatrixSchema
from algospace.features.oracle import refuse_oracle
from algospace.files import atomic_directory, sha256_file, write_json, write_text
from serving.bundle import (
    MANIFEST,
    MANIFEST_HASH,
    WEIGHTS,
    Bundle,
    BundleSpec,
    Manifest,
    Networks,
    load_bundle,
    network_shapes,
)
from serving.graphs import EXECUTE_INPUTS, REGIME_INPUTS, RISK_INPUTS, VOTE_INPUTS

OPSET = 18


class VoteGraph(nn.Module):
    """The voters as one function of arrays."""

    def __init__(self, core: CoreNet) -> None:
        super().__init__()
        self.core = core

    def forward(self, strategic: torch.Tensor, tactical: torch.Tensor, regime: torch.Tensor,
                synergy: torch.Tensor, account: torch.Tensor, masks: torch.Tensor,
                ) -> tuple[torch.Tensor, torch.Tensor]:
        embedded = self.core.embed_windows(strategic, tactical)
        return self.heads(embedded, regime, synergy, account, masks), embedded

    def heads(self, embedded: torch.Tensor, regime: torch.Tensor, synergy: torch.Tensor, account: torch.Tensor,
              masks: torch.Tensor) -> torch.Tensor:
        """The part after the embedders."""
        shared = self.core.shared_input(torch.cat((regime, synergy, account), -1))
        return self.core.voter_logits(self.core.voter_trunk(embedded, shared).unsqueeze(1), masks)


class ExecuteGraph(nn.Module):
    """The execution agent as one function of arrays."""

    def __init__(self, core: CoreNet) -> None:
        super().__init__()
        self.core = core

    def forward(self, votes: torch.Tensor, proposal: torch.Tensor, regime: torch.Tensor, synergy: torch.Tensor,
                account: torch.Tensor, allowed: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        shared = self.core.shared_input(torch.cat((regime, synergy, account), -1))
        hidden = self.core.execution_trunk(votes, proposal, shared).unsqueeze(1)
        return self.core.execution_logits(hidden, masks, (allowed > 0.5).unsqueeze(1))


class RiskGraph(nn.Module):
    """The M-RMS without dropout."""

    def __init__(self, risk: RiskNet) -> None:
        super().__init__()
        self.risk = risk

    def forward(self, strategic: torch.Tensor, tactical: torch.Tensor, regime: torch.Tensor,
                direction: torch.Tensor) -> torch.Tensor:
        hidden = self.risk.trunk(self.risk.state(strategic, tactical, regime, direction))
        return self.risk.logits(hidden, torch.ones_like(hidden))


class RegimeGraph(nn.Module):
    """The RDE's mean: a regime window -> the regime vector."""

    def __init__(self, regime: Any) -> None:
        super().__init__()
        self.regime = regime

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        encoded: torch.Tensor = self.regime.encode_mean(window)
        return encoded


def write_bundle(directory: Path | str, spec: BundleSpec, schema: MatrixSchema, core: CoreNet,
                 risk: RiskNet | None, regime: RegimeNet | None) -> Bundle:
    """Export the networks and write the bundle in one step, whole or not at all.

    SchemaError if the networks were not built for the schema's matrices, or were fed with the oracle column of an
    evaluation's control; BundleError if `directory` holds anything but a bundle, which is replaced.
    """
    directory = Path(directory)
    if directory.exists() and not (directory / MANIFEST).is_file() and (
            not directory.is_dir() or any(directory.iterdir())):
        raise BundleError(f"{directory}: holds something other than a bundle, which would be lost; name a "
                          f"new folder")
    refuse_oracle(schema, str(directory))
    _check_shapes(schema, core, risk, regime)
    networks = Networks(core=core.config, risk=None if risk is None else risk.config,
                        regime=None if regime is None else regime.config)
    manifest = Manifest(**{name: getattr(spec, name) for name in BundleSpec.model_fields},
                        matrices=schema.to_dict(), schema_hash=schema.digest(), regime_size=core.shapes.regime,
                        networks=networks)
    with atomic_directory(directory) as part:
        export_core(core, part)
        if risk is not None:
            export_risk(risk, part)
        if regime is not None:
            export_regime(regime, schema.regime.window, schema.regime.width, part)
        save_weights(part / WEIGHTS, {"core": core, "risk": risk, "regime": regime})
        files = {path.name: sha256_file(path) for path in sorted(part.iterdir())}
        write_json(part / MANIFEST, manifest.model_copy(update={"files": files}).model_dump(mode="json"))
        write_text(part / MANIFEST_HASH, sha256_file(part / MANIFEST) + "\n")
    return load_bundle(directory)


def _check_shapes(schema: MatrixSchema, core: CoreNet, risk: RiskNet | None, regime: RegimeNet | None) -> None:
    expected = network_shapes(schema, core.shapes.regime)
    for name, shapes in (("core", core.shapes), ("M-RMS", expected if risk is None else risk.shapes)):
        if shapes != expected:
            raise SchemaError(f"the {name} was built for {shapes}, the schema needs {expected}")
    if regime is not None:
        found = (regime.config.window, regime.config.features, regime.config.latent)
        needed = (schema.regime.window, schema.regime.width, core.shapes.regime)
        if found != needed:
            raise SchemaError(f"the RDE was built for (window, features, latent) {found}, not {needed}")


def save_weights(path: Path, networks: Mapping[str, nn.Module | None]) -> None:
    """Write the state of all networks as plain arrays named `network.parameter`."""
    arrays = {f"{name}.{key}": value.detach().cpu().numpy()
              for name, network in networks.items() if network is not None
              for key, value in network.state_dict().items()}
    np.savez(path, **arrays)


def export_core(core: CoreNet, directory: Path) -> None:
    """Write `vote.onnx` and `execute.onnx`."""
    shapes, hidden = core.shapes, core.config.hidden
    b, k = 2, 3
    context = (torch.zeros(b, shapes.regime), torch.zeros(b, NUM_SYNERGY), torch.zeros(b, NUM_ACCOUNT))
    windows = (torch.zeros(b, shapes.strategic_window, shapes.strategic),
               torch.zeros(b, shapes.tactical_window, shapes.tactical))
    _export(VoteGraph(core), (*windows, *context, torch.ones(b, k, len(VOTERS), hidden)),
            VOTE_INPUTS, ("logits", "embedded"), directory / "vote.onnx")
    _export(ExecuteGraph(core),
            (torch.zeros(b, 3, 3), torch.zeros(b, NUM_PROPOSAL), *context, torch.ones(b, 3),
             torch.ones(b, k, 1, hidden)),
            EXECUTE_INPUTS, ("logits",), directory / "execute.onnx")


def export_risk(risk: RiskNet, directory: Path) -> None:
    """Write `mrms.onnx`."""
    shapes, b = risk.shapes, 2
    example = (torch.zeros(b, shapes.strategic_window, shapes.strategic),
               torch.zeros(b, shapes.tactical_window, shapes.tactical), torch.zeros(b, shapes.regime),
               torch.ones(b, 1))
    _export(RiskGraph(risk), example, RISK_INPUTS, ("logits",), directory / "mrms.onnx")


def export_regime(regime: nn.Module, window: int, features: int, directory: Path) -> None:
    """Write `rde.onnx`; `regime` has `encode_mean(window (B, W, F)) -> (B, R)`."""
    _export(RegimeGraph(regime), (torch.zeros(2, window, features),), REGIME_INPUTS, ("regime",),
            directory / "rde.onnx")


def _export(module: nn.Module, example: tuple[torch.Tensor, ...], inputs: Sequence[str],
            outputs: Sequence[str], path: Path) -> None:
    """Trace `module` with dynamic batch (and samples), check the graph, write one self-contained file."""
    axes = {name: {0: "batch"} | ({1: "samples"} if name == "masks" else {}) for name in inputs}
    axes |= {name: {0: "batch"} | ({1: "samples"} if name == "logits" and "masks" in inputs else {})
             for name in outputs}
    was_training = module.training
    module.eval()
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    exporter_log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(module, example, str(path), input_names=list(inputs), output_names=list(outputs),
                              dynamic_axes=axes, opset_version=OPSET, dynamo=False)
    finally:
        exporter_log.setLevel(level)
        module.train(was_training)
    onnx.checker.check_model(str(path), full_check=True)
