"""What a rollout stored is what the module computes again from it; mirrored segments are mirrored tables; the
unit run is the scalar environment played greedily."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from algospace.instruments import instrument
from algospace.types import AnyArray
from envs.config import CoreEnvConfig
from envs.core_env import CoreEnv
from tests.training_market import MarketOnDisk, save_market
from training.evaluation.unit_run import unit_run
from training.mappo.core_team import CoreSampler, CoreTeamModule
from training.mappo.module import TeamModule, build_team_module
from training.mappo.risk_team import RiskSampler, RiskTeamModule
from training.mappo.tables import mirrored

STEPS, ENVS = 16, 6
SAMPLING = {"envs_per_shard": ENVS, "mirror": True}


@pytest.fixture(scope="module")
def eventful(training_market: MarketOnDisk, tmp_path_factory: pytest.TempPathFactory) -> MarketOnDisk:
    """The same market with a synergy on every tenth row or so."""
    table, rng = training_market.table, np.random.default_rng(0)
    event = rng.random(len(table)) < 0.1
    side = rng.choice([-1.0, 1.0], len(table)) * event
    synergy = np.stack((event * 0.25, side, event * 0.3), 1).astype(np.float32)
    changed = dataclasses.replace(table, synergy_event=event, synergy=synergy)
    return save_market(tmp_path_factory.mktemp("eventful"), changed)


@torch.no_grad()
def lively(module: TeamModule, seed: int = 5) -> Any:
    """The module with heads and critic far from their small initial values, and a value norm that is in use."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
        if name.startswith(("net.head", "net.critic")):
            p.copy_(torch.randn(p.shape, generator=generator) * (0.0 if name == "net.head_bias" else 0.5))
    module.value_norm.update(torch.tensor(0.7), torch.tensor(3.0))
    return module


def tensors(batch: dict[str, AnyArray]) -> dict[str, torch.Tensor]:
    """A stored batch as the learner sees it."""
    return {name: torch.as_tensor(values) for name, values in batch.items()}


@torch.no_grad()
def assert_on_policy(module: TeamModule, batch: dict[str, AnyArray]) -> None:
    data = tensors(batch)
    logits, values = module.evaluate(data)
    chosen = data["actions"].long().unsqueeze(-1)
    log_p = torch.log_softmax(logits, -1).gather(-1, chosen).squeeze(-1)
    valid = data["valid"]
    assert valid.any()
    torch.testing.assert_close(log_p[valid], data["log_p"][valid], atol=1e-5, rtol=0.0)
    stored = data["values_all"][:, :-1]
    again = module.value_norm.denormalise(values)
    torch.testing.assert_close(again[data["alive"]], stored[data["alive"]], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mechanics", ["unit", "full"])
def test_the_compiled_segment_is_the_stepwise_one(training_market: MarketOnDisk, mechanics: str,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    spec = training_market.core_spec(env={"mechanics": mechanics}) | SAMPLING
    module = lively(build_team_module(spec))
    assert isinstance(module, CoreTeamModule)
    batches = []
    for play in (CoreSampler.play_compiled, CoreSampler.play_stepwise):
        monkeypatch.setattr(CoreSampler, "play_compiled", play)
        sampler = CoreSampler(module, spec, 0)
        batches.append([sampler.sample(STEPS, tick, 0.5) for tick in range(3)])
    for compiled, stepwise in zip(*batches, strict=True):
        assert compiled.keys() == stepwise.keys()
        for name in ("rows", "actions", "valid", "alive", "allowed", "mask_rows", "mirrored"):
            np.testing.assert_array_equal(compiled[name], stepwise[name], err_msg=name)
        for name in ("account", "proposal", "rewards", "discounts", "values_all"):
            np.testing.assert_allclose(compiled[name], stepwise[name], atol=1e-5, err_msg=name)
        valid = compiled["valid"]
        np.testing.assert_allclose(compiled["log_p"][valid], stepwise["log_p"][valid], atol=1e-5)
    assert len(np.unique(compiled["actions"][..., 3])) == 3


@pytest.mark.parametrize("embedder", ["tcn", "lstm", "lstm_recurrent"])
@pytest.mark.parametrize("mechanics", ["unit", "full"])
def test_core_rollouts_on_bars_are_on_policy(training_market: MarketOnDisk, mechanics: str, embedder: str) -> None:
    spec = training_market.core_spec(env={"mechanics": mechanics}, net={"embedder": embedder}) | SAMPLING
    module = lively(build_team_module(spec))
    assert isinstance(module, CoreTeamModule)
    sampler = CoreSampler(module, spec, 0)
    for tick in range(3):
        batch = sampler.sample(STEPS, tick, 1.0)
        assert_on_policy(module, batch)
    assert batch["mirrored"].any()
    assert not batch["mirrored"].all()


def test_core_rollouts_on_synergies_are_on_policy(eventful: MarketOnDisk) -> None:
    env = {"mechanics": "full", "decision_points": "synergy", "episode_bars": 64}
    spec = eventful.core_spec(env=env) | SAMPLING
    module = lively(build_team_module(spec))
    assert isinstance(module, CoreTeamModule)
    sampler = CoreSampler(module, spec, 0)
    for tick in range(3):
        batch = sampler.sample(STEPS, tick, 1.0)
        assert_on_policy(module, batch)
    assert not batch["alive"].all()  # episodes end inside segments
    assert (np.diff(batch["rows"], axis=1)[batch["alive"][:, 1:]] > 1).any()


def test_risk_rollouts_are_on_policy(training_market: MarketOnDisk) -> None:
    spec = training_market.risk_spec() | SAMPLING
    module = lively(build_team_module(spec))
    assert isinstance(module, RiskTeamModule)
    sampler = RiskSampler(module, spec, 0)
    for tick in range(2):
        assert_on_policy(module, sampler.sample(STEPS, tick, 1.0))


def test_sampled_actions_follow_the_stored_probabilities(training_market: MarketOnDisk) -> None:
    spec = training_market.core_spec() | SAMPLING | {"envs_per_shard": 64}
    module = lively(build_team_module(spec))
    batch = tensors(CoreSampler(module, spec, 0).sample(32, 0, 1.0))
    with torch.no_grad():
        p = torch.softmax(module.evaluate(batch)[0], -1)
    for agent in range(4):
        kept = batch["valid"][..., agent]
        taken = torch.nn.functional.one_hot(batch["actions"][..., agent].long(), 3)[kept].float()
        expected = p[..., agent, :][kept]
        deviation = (expected * (1.0 - expected)).sum(0).sqrt() / kept.sum()
        assert ((taken.mean(0) - expected.mean(0)).abs() <= 4.5 * deviation + 1e-6).all()


@torch.no_grad()
def test_the_mirrored_market_is_a_table_with_mirrored_rows(training_market: MarketOnDisk,
                                                           tmp_path: Path) -> None:
    table = training_market.table
    image = dataclasses.replace(
        table, tactical=mirrored(table.tactical, table.schema.tactical),
        strategic=mirrored(table.strategic, table.schema.strategic),
        synergy=table.synergy * np.array([1, -1, 1], np.float32))
    other = save_market(tmp_path, image)
    ours = build_team_module(training_market.core_spec() | SAMPLING)
    theirs = build_team_module(other.core_spec() | SAMPLING)
    assert isinstance(ours, CoreTeamModule)
    assert isinstance(theirs, CoreTeamModule)
    rows = torch.tensor([[3000], [3100], [20_000]]) + torch.arange(20)
    yes, no = torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)
    torch.testing.assert_close(ours.embed(rows, yes), theirs.embed(rows, no))
    torch.testing.assert_close(theirs.embed(rows, yes), ours.embed(rows, no))
    assert (ours.embed(rows, yes) - ours.embed(rows, no)).abs().max() > 1e-3
    torch.testing.assert_close(ours.market_context(rows, yes)[..., 8:], theirs.market_context(rows, no)[..., 8:])
    assert ours.market_context(rows, yes)[..., :8].equal(
        ours.tensors.regime[ours.tensors.row_30m[rows] + ours.tensors.rows_30m])


def test_contiguous_and_scattered_embeddings_agree(training_market: MarketOnDisk) -> None:
    module = build_team_module(training_market.core_spec() | SAMPLING)
    assert isinstance(module, CoreTeamModule)
    rows = torch.tensor([[2500], [9000]]) + torch.arange(40)
    flags = torch.tensor([True, False])
    with torch.no_grad():
        together = module.embed(rows, flags)
        module.contiguous = False
        torch.testing.assert_close(module.embed(rows, flags), together, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_unit_run_is_the_scalar_environment_played_greedily(training_market: MarketOnDisk) -> None:
    spec = training_market.core_spec() | SAMPLING
    module = lively(build_team_module(spec))
    assert isinstance(module, CoreTeamModule)
    start, chunks, length = 4000, 3, 150
    positions, segments = unit_run(module, spec, start, start + chunks * length, chunks)
    assert segments == [(start + i * length, start + (i + 1) * length) for i in range(chunks)]
    assert not positions[:start].any()
    assert not positions[start + chunks * length:].any()
    assert len(np.unique(positions)) > 1
    assert (np.diff(positions) != 0.0).sum() > 10
    for first, stop in segments:
        np.testing.assert_array_equal(positions[first:stop], _greedy(module, spec, first, length))


def test_the_unit_run_holds_a_position_from_synergy_to_synergy(eventful: MarketOnDisk) -> None:
    spec = eventful.core_spec(env={"decision_points": "synergy"}) | SAMPLING
    module = lively(build_team_module(spec))
    assert isinstance(module, CoreTeamModule)
    event = np.asarray(eventful.table.decision & eventful.table.synergy_event)
    start, chunks, length = int(np.flatnonzero(event[4000:])[0]) + 4000, 3, 150
    positions, segments = unit_run(module, spec, start, start + chunks * length, chunks)
    inside = np.zeros(len(event), np.bool_)
    for first, stop in segments:
        inside[first + 1:stop] = True
    moved = np.flatnonzero(np.diff(positions, prepend=0.0) != 0.0)
    moved = moved[inside[moved]]
    assert moved.size > 3
    assert event[moved].all()
    np.testing.assert_array_equal(positions[start:start + length], _greedy(module, spec, start, length))


def _greedy(module: CoreTeamModule, spec: dict[str, Any], first: int, length: int) -> AnyArray:
    """Positions of one scalar environment that starts at row `first`, window by window."""
    market, net = module.table.market, module.net
    config = CoreEnvConfig(**{**spec["env"], "episode_bars": length})
    env = CoreEnv(market, instrument("SYNTH"), config, np.asarray(module.table.proposals), first,
                  first + length + 1, 0, spec["risk_unit"], mirror=False)
    assert env.row == first
    keep, straight = torch.ones(()), torch.zeros(1, dtype=torch.bool)
    positions = np.zeros(length)
    while env.row < first + length:
        before = env.row - first
        row = torch.tensor([[env.row]])
        context = torch.cat((module.market_context(row, straight)[0, 0], torch.from_numpy(env.observe())))
        shared = net.shared_input(context)
        embedded = module._embed_scattered(row, straight)[0, 0]
        votes = net.voter_logits(net.voter_trunk(embedded, shared), keep).argmax(-1)
        env.vote(votes.tolist())
        one_hot = torch.nn.functional.one_hot(votes, 3).float()
        hidden = net.execution_trunk(one_hot, torch.from_numpy(env.proposal), shared)
        logits = net.execution_logits(hidden, keep, torch.tensor(env.action_mask))
        env.execute(int(logits.argmax(-1)[0]))
        positions[before:env.row - first] = env.account["position"]
    return positions
