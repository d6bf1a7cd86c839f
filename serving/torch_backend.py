"""The reference backend: PyTorch eager, with the weights of the bundle's plain arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any

import numpy as np
import torch
from torch import nn

from agents.core import CoreNet
from agents.regime import RegimeNet
from agents.risk import RiskNet
from algospace.errors import BundleError
from algospace.types import AnyArray
from serving.backends import absent
from serving.bundle import WEIGHTS, Bundle, network_shapes
from serving.engines import Precision
from serving.export import ExecuteGraph, RegimeGraph, RiskGraph, VoteGraph
from serving.graphs import EMBED_INPUTS, EXECUTE_INPUTS, HEADS_INPUTS, REGIME_INPUTS, RISK_INPUTS, VOTE_INPUTS


class TorchBackend:
    """PyTorch eager, the reference; the weights come from the bundle's plain arrays."""

    name = "torch"
    precision: Precision = "fp32"

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        networks = bundle.manifest.networks
        shapes = network_shapes(bundle.schema, bundle.manifest.regime_size)
        core = CoreNet(shapes, networks.core)
        load_weights(bundle, "core", core)
        vote = VoteGraph(core)
        self._graphs: dict[str, tuple[Callable[..., Any], tuple[str, ...], tuple[str, ...]]] = {
            "vote": (vote, VOTE_INPUTS, ("logits", "embedded")),
            "embed": (core.embed_windows, EMBED_INPUTS, ("embedded",)),
            "heads": (vote.heads, HEADS_INPUTS, ("logits",)),
            "execute": (ExecuteGraph(core), EXECUTE_INPUTS, ("logits",)),
        }
        if networks.risk is not None:
            risk = RiskNet(shapes, networks.risk)
            load_weights(bundle, "risk", risk)
            self._graphs["mrms"] = (RiskGraph(risk), RISK_INPUTS, ("logits",))
        if networks.regime is not None:
            regime = RegimeNet(networks.regime)
            load_weights(bundle, "regime", regime)
            self._graphs["rde"] = (RegimeGraph(regime), REGIME_INPUTS, ("regime",))

    def infer(self, graph: str, inputs: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        """See Backend."""
        if graph not in self._graphs:
            raise absent(self._bundle, graph)
        function, names, outputs = self._graphs[graph]
        with torch.inference_mode():
            results = function(*(torch.from_numpy(inputs[name]) for name in names))
        if not isinstance(results, tuple):
            results = (results,)
        return {name: value.numpy() for name, value in zip(outputs, results, strict=True)}


def load_weights(bundle: Bundle, name: str, network: nn.Module) -> None:
    """Load the arrays of network `name` into `network` and set it to evaluation mode.

    BundleError if they are those of another network, which only a bundle of another version has.
    """
    prefix = f"{name}."
    with np.load(BytesIO(bundle.read(WEIGHTS)), allow_pickle=False) as arrays:
        state = {key.removeprefix(prefix): torch.from_numpy(arrays[key]) for key in arrays.files
                 if key.startswith(prefix)}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise BundleError(f"{bundle.directory}: {name} is a network that this version builds otherwise; train and "
                          f"export it again ({str(error).splitlines()[-1].strip()})") from None
    network.eval()
