"""A recurrent embedder is trained along segments, and judged, proposed with and served window by window."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from agents.embedders import make_embedder
from tests.training_market import MarketOnDisk, small_settings
from training.evaluation.unit_run import unit_run
from training.experts import embed_table
from training.mappo.core_team import CoreTeamModule
from training.mappo.module import build_team_module
from training.team_training import train_team

START, LENGTH, CHUNKS = 4000, 300, 8


def team(market: MarketOnDisk, embedder: str, weights: dict[str, Any]) -> tuple[CoreTeamModule, dict[str, Any]]:
    spec = market.core_spec(net={"embedder": embedder}) | {"envs_per_shard": 4, "mirror": True}
    module = build_team_module(spec)
    module.load_state_dict(weights)
    assert isinstance(module, CoreTeamModule)
    return module, spec


@torch.no_grad()
def with_long_memory(market: MarketOnDisk) -> dict[str, Any]:
    """Weights whose LSTMs forget little and whose heads make much of it."""
    spec = market.core_spec(net={"embedder": "lstm_recurrent"}) | {"envs_per_shard": 4, "mirror": True}
    torch.manual_seed(2)
    module = build_team_module(spec)
    generator = torch.Generator().manual_seed(5)
    for name, p in module.named_parameters():
        if name.endswith("bias_hh_l0"):
            p[p.shape[0] // 4: p.shape[0] // 2] = 6.0  # the forget gates
        if name == "net.head":
            p.copy_(torch.randn(p.shape, generator=generator))
    return dict(module.state_dict())


def run(module: CoreTeamModule, spec: dict[str, Any], served: bool = True) -> Any:
    return unit_run(module, spec, START, START + CHUNKS * LENGTH, CHUNKS, served)[0]


def test_it_is_judged_as_it_is_served(training_market: MarketOnDisk) -> None:
    """`lstm` has the same weights and is served, trained and judged window by window."""
    weights = with_long_memory(training_market)
    windows = run(*team(training_market, "lstm", weights))
    recurrent = team(training_market, "lstm_recurrent", weights)
    np.testing.assert_array_equal(run(*recurrent), windows)
    along = run(*recurrent, served=False)
    assert (along != windows).mean() > 0.0  # with a long memory training's function is another one


@torch.no_grad()
def test_columns_are_made_window_by_window() -> None:
    torch.manual_seed(0)
    recurrent, windows = (make_embedder(kind, 5, 12, 6) for kind in ("lstm_recurrent", "lstm"))
    windows.load_state_dict(recurrent.state_dict())
    rows = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    assert torch.equal(embed_table(recurrent, rows), embed_table(windows, rows))


@pytest.mark.usefixtures("ray_cluster")
def test_it_trains_and_the_difference_is_small_after_a_short_training(training_market: MarketOnDisk,
                                                                     tmp_path: Any) -> None:
    spec = training_market.core_spec(net={"embedder": "lstm_recurrent"})
    trained = train_team(spec, small_settings(env_steps=128 * 60), tmp_path)
    module = trained.module
    assert isinstance(module, CoreTeamModule)
    rows, straight = START + torch.arange(128)[None], torch.zeros(1, dtype=torch.bool)
    with torch.no_grad():
        along, served = module.embed(rows, straight), module.embed(rows, straight, served=True)
    assert torch.equal(along[:, 0], served[:, 0])  # a segment's first row has seen its window only
    assert 0.0 < (along - served).abs().amax().item() < 0.01
