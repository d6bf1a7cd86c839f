"""Frozen experts as columns: what the RDE and the M-RMS say about every row of a market table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from agents.embedders import Embedder
from agents.regime import RegimeNet
from agents.risk import RiskNet
from algospace.features.market_table import MarketTable
from algospace.types import AnyArray, Float32Array
from envs.config import RiskEnvConfig
from envs.vector_risk import proposal_table
from training.mappo.tables import save_experts
from training.rde import load_rde, regime_vectors
from training.team_training import TrainedTeam, load_team

_EMBED_ROWS = 8192
_HEAD_ROWS = 65_536


def load_regime(run_dir: Path) -> RegimeNet:
    """The frozen RDE of a run."""
    return load_rde(run_dir / "rde" / "model")[0]


def regime_columns(net: RegimeNet, table: MarketTable, mirror: bool = True) -> Float32Array:
    """(2, m, 8): the RDE on every 30-minute row of the market and of its mirror image (zeros without `mirror`)."""
    window, rows = table.schema.regime.window, np.asarray(table.regime)
    real = regime_vectors(net, rows, window)
    image = regime_vectors(net, rows, window, table.schema.regime.sign) if mirror else np.zeros_like(real)
    return np.stack((real, image))


@torch.no_grad()
def embed_table(embedder: Embedder, rows: AnyArray) -> torch.Tensor:
    """Every row's window of a matrix (n, F) embedded: (n, D); the first rows see zeros before the table."""
    before = torch.zeros(embedder.context, rows.shape[1])
    padded = torch.cat((before, torch.from_numpy(np.array(rows, np.float32))))
    parts = [embedder.embed_rows(padded[None, first: first + _EMBED_ROWS + embedder.context])[0]
             for first in range(0, len(rows), _EMBED_ROWS)]
    return torch.cat(parts)


@torch.no_grad()
def propose(team: TrainedTeam, table: MarketTable, regime: Float32Array) -> Float32Array:
    """The frozen M-RMS on every base row and side: (n, 2, 3) contracts, stop and target distance in points.

    regime (m, 8). Each agent takes its most probable choice, dropout off; rows without a decision stay 0.
    """
    net = team.module.net
    assert isinstance(net, RiskNet)
    fast, slow = embed_table(net.tactical, table.tactical), embed_table(net.strategic, table.strategic)
    decided = np.asarray(table.decision)
    rows = np.flatnonzero(decided)
    choices = np.zeros((3, len(table), 2), np.int8)
    keep = torch.ones(())
    vectors = torch.from_numpy(np.array(regime, np.float32))
    for first in range(0, rows.size, _HEAD_ROWS):
        part = rows[first: first + _HEAD_ROWS]
        row = torch.from_numpy(part)
        row_30m = torch.from_numpy(np.asarray(table.row_30m)[part].astype(np.int64))
        for side, direction in enumerate((-1.0, 1.0)):
            state = torch.cat((slow[row_30m], fast[row], vectors[row_30m],
                               torch.full((row.shape[0], 1), direction)), -1)
            choices[:, part, side] = net.logits(net.trunk(state), keep).argmax(-1).T.numpy()
    proposals = proposal_table(choices[0], choices[1], choices[2], table, RiskEnvConfig(**team.spec["env"]))
    proposals[~decided] = 0.0
    return proposals


def expert_columns(run_dir: Path, table: MarketTable, market: Path, folder: Path) -> str:
    """Both experts' columns for a table outside training, saved in `folder`; returns their hash."""
    vectors = regime_columns(load_regime(run_dir), table, mirror=False)
    proposals = propose(load_team(run_dir / "mrms" / "team"), table, vectors[0])
    return save_experts(folder, market, vectors, proposals)
