"""Networks -> ONNX graphs. Dropout masks are graph inputs: ONNX Runtime deletes training-mode Dropout, and all
samples would come out equal.

    vote     strategic (B, Ws, Fs), tactical (B, Wt, Ft), regime (B, R), synergy (B, 3), account (B, 8),
             masks (B, K, 3, H)                      -> logits (B, K, 3, 3), embedded (B, 3, D)
    execute  votes (B, 3, 3) one-hot, proposal (B, 3), regime, synergy, account, allowed (B, 3) float 0/1,
             masks (B, K, 1, H)                                           -> logits (B, K, 1, 3)
    mrms     strategic, tactical, regime, direction (B, 1) in {-1, +1}    -> logits (B, 3, 7)
    rde      window (B, Wr, Fr)                                           -> regime (B, R)

Batch B and samples K are dynamic. Embedders run once per row; only the heads see the K masks. `embedded` is an
output so that `split_vote` can cut the graph there: a backtest embeds many rows at once.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx.utils
import torch
from torch import nn

from agents.core import NUM_ACCOUNT, NUM_PROPOSAL, NUM_SYNERGY, VOTERS, CoreNet
from agents.risk import RiskNet

OPSET = 18
VOTE_INPUTS = ("strategic", "tactical", "regime", "synergy", "account", "masks")
EXECUTE_INPUTS = ("votes", "proposal", "regime", "synergy", "account", "allowed", "masks")
RISK_INPUTS = ("strategic", "tactical", "regime", "direction")
REGIME_INPUTS = ("window",)
EMBED_INPUTS = ("strategic", "tactical")
HEADS_INPUTS = ("embedded", "regime", "synergy", "account", "masks")


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


def split_vote(model: bytes) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """`vote.onnx`, given as its bytes, cut at the embeddings: (embed: EMBED_INPUTS -> embedded, heads:
    HEADS_INPUTS -> logits)."""
    extractor = onnx.utils.Extractor(onnx.load_from_string(model))
    return (extractor.extract_model(list(EMBED_INPUTS), ["embedded"]),
            extractor.extract_model(list(HEADS_INPUTS), ["logits"]))


def graph_model(model: bytes, graph: str) -> bytes:
    """The serialised graph `graph` of the bytes of the file that holds it: embed and heads are cut out of
    `vote.onnx`."""
    if graph not in ("embed", "heads"):
        return model
    embed, heads = split_vote(model)
    part: bytes = (embed if graph == "embed" else heads).SerializeToString(deterministic=True)
    return part


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
