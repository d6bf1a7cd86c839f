"""Why a decision is what it is: votes and their spread over masks, which limit bound, what the deciding voter saw.

Attributions are integrated gradients (Sundararajan, Taly and Yan 2017, arXiv 1703.01365) of a difference of two of
the voter's logits, averaged over the decision's dropout masks, from matrices of zeros (every normalised column at
its usual value) to the matrices given; account, regime and synergy stay as they are. They sum to the difference at
the matrices minus that at the zeros (completeness): what is missing is reported as `residual`.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from agents.core import CoreNet
from agents.gate import PASS, Votes, count_votes
from agents.settings import VOTERS
from algospace.types import Float32Array, FloatArray
from serving.bundle import Bundle, network_shapes
from serving.decider import Decider, DecisionInputs
from serving.torch_backend import TorchBackend, load_weights

TOLERANCE = 1e-4
"""Largest residual, as a share of the difference (or of _SMALL, if that is larger)."""
_SMALL = 0.01
_NODES = (32, 64, 128, 256, 512)
_TOP = 10


class Abandoned(Exception):
    """Nobody waits for this explanation any more."""


@dataclass(frozen=True)
class Attribution:
    """Integrated gradients (W, F) of one voter's logit difference. `value`, `baseline`: the difference at the
    matrices and at zeros; `residual`: value - baseline - sum; `nodes`: points of the quadrature."""

    strategic: FloatArray
    tactical: FloatArray
    value: float
    baseline: float
    residual: float
    nodes: int


class Explainer:
    """Explains the decisions of one bundle, on the torch backend. Not for use by several threads at once."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.decider = Decider(bundle, TorchBackend(bundle))
        networks = bundle.manifest.networks
        core = CoreNet(network_shapes(bundle.schema, bundle.manifest.regime_size), networks.core)
        load_weights(bundle, "core", core)
        self._core = core.double().requires_grad_(False)

    def explain(self, inputs: DecisionInputs, stop: threading.Event | None = None) -> dict[str, Any]:
        """The document of an explanation; SchemaError if a shape does not fit, Abandoned once `stop` is set."""
        decider = self.decider
        decision = decider.decide(inputs)
        context = self._context(inputs)
        embedded = decider.backend.infer("embed", {"strategic": inputs.strategic[None],
                                                   "tactical": inputs.tactical[None]})["embedded"]
        starts = decider.heads.starts(np.array([inputs.seed], np.uint64))
        votes = count_votes(decider.heads.votes(embedded, context, starts)[0])
        voter, target, against = deciding(votes)
        found = self.attribute(inputs, context, voter, target, against, stop)
        threshold = decider.threshold(inputs)
        return {
            "verdict": decision.verdict, "reason": decision.reason.value, "direction": decision.direction,
            "confidence": decision.confidence, "threshold": threshold,
            "margin": decision.confidence - threshold, "uncertainty": decision.uncertainty,
            "votes": {name: _spread(votes.probabilities[:, place], int(votes.chosen[place]))
                      for place, name in enumerate(VOTERS)},
            "limit": {"bound": decision.proposal.limit, "contracts": decision.proposal.contracts,
                      "stop_distance": decision.proposal.stop_distance,
                      "target_distance": decision.proposal.target_distance},
            "attribution": _document(found, voter, target, against, self.bundle),
            "model": self.bundle.id, "backend": decider.backend.name}

    def _context(self, inputs: DecisionInputs) -> Float32Array:
        market, decider = inputs.market, self.decider
        observed = decider._desk.observe(market.close, market.atr, market.clock, inputs.account)
        regime = decider.regime_vector(inputs.regime)
        return np.concatenate((regime[None], market.synergy[None], observed), 1)

    def attribute(self, inputs: DecisionInputs, context: Float32Array, voter: int, target: int, against: int,
                  stop: threading.Event | None = None) -> Attribution:
        """Integrated gradients of logit[target] - logit[against] of `voter`; Gauss-Legendre quadrature, refined
        until the residual is within TOLERANCE or there are no more nodes."""
        mask = torch.from_numpy(self.decider.masks(inputs.seed)[:, :3].mean(0)).double()
        ends = (torch.from_numpy(inputs.strategic).double(), torch.from_numpy(inputs.tactical).double())
        shared = self._core.shared_input(torch.from_numpy(context[0]).double())

        def difference(strategic: torch.Tensor, tactical: torch.Tensor) -> torch.Tensor:
            embedded = self._core.embed_windows(strategic, tactical)
            hidden = self._core.voter_trunk(embedded, shared.expand(len(embedded), -1))
            logits = self._core.voter_logits(hidden, mask)[:, voter]
            return logits[:, target] - logits[:, against]

        with torch.no_grad():  # dropout masks are linear in the logits: their mean gives the mean logits
            value, baseline = (float(difference(*(scale * end[None] for end in ends))[0]) for scale in (1.0, 0.0))
        for nodes in _NODES:
            if stop is not None and stop.is_set():
                raise Abandoned
            parts = _path_gradients(difference, ends, nodes)
            residual = value - baseline - sum(float(part.sum()) for part in parts)
            if abs(residual) <= TOLERANCE * max(_SMALL, abs(value - baseline)):
                break
        return Attribution(parts[0], parts[1], value, baseline, residual, nodes)


def _path_gradients(difference: Any, ends: tuple[torch.Tensor, torch.Tensor], nodes: int) -> list[FloatArray]:
    """End times the mean gradient along the straight path from zero, per matrix."""
    points, weights = np.polynomial.legendre.leggauss(nodes)
    at, weight = torch.from_numpy((points + 1.0) / 2.0), torch.from_numpy(weights / 2.0)
    path = [(at[:, None, None] * end).requires_grad_() for end in ends]
    gradients = torch.autograd.grad(difference(*path).sum(), path)
    return [(end * torch.einsum("n,nwf->wf", weight, gradient)).numpy()
            for end, gradient in zip(ends, gradients, strict=True)]


def deciding(votes: Votes) -> tuple[int, int, int]:
    """(voter, its vote, the vote that it is compared with): of those that speak for the direction the surest one,
    against passing; without a direction the surest of all, against its second choice."""
    if votes.direction:
        share = np.where(votes.agreeing, votes.mean[:, votes.direction + 1], -1.0)
        return int(share.argmax()), votes.direction + 1, PASS
    voter = int(votes.mean.max(-1).argmax())
    order = np.argsort(-votes.mean[voter], kind="stable")
    return voter, int(order[0]), int(order[1])


def _spread(probabilities: FloatArray, chosen: int) -> dict[str, Any]:
    """One voter over masks (K, 3)."""
    low, high = np.quantile(probabilities, (0.05, 0.95), axis=0)
    return {"chosen": _VOTE[chosen], "mean": probabilities.mean(0).tolist(), "std": probabilities.std(0).tolist(),
            "low": low.tolist(), "high": high.tolist(),
            "share": [float((probabilities.argmax(-1) == vote).mean()) for vote in range(3)]}


_VOTE = ("short", "pass", "long")


def _document(found: Attribution, voter: int, target: int, against: int, bundle: Bundle) -> dict[str, Any]:
    schema = bundle.schema
    names = {"strategic": schema.strategic.names, "tactical": schema.tactical.names}
    cells = [(float(values[row, column]), matrix, row - len(values), names[matrix][column])
             for matrix, values in (("strategic", found.strategic), ("tactical", found.tactical))
             for row in range(values.shape[0]) for column in range(values.shape[1])]
    cells.sort(key=lambda cell: -abs(cell[0]))
    return {"voter": VOTERS[voter], "of": f"logit({_VOTE[target]}) - logit({_VOTE[against]})",
            "value": found.value, "baseline": found.baseline, "residual": found.residual, "nodes": found.nodes,
            "columns": {matrix: list(columns) for matrix, columns in names.items()},
            "cells": {"strategic": found.strategic.tolist(), "tactical": found.tactical.tolist()},
            "top": [{"matrix": matrix, "row": row, "column": column, "attribution": value}
                    for value, matrix, row, column in cells[:_TOP]]}


