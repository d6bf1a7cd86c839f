"""What a rollout stored is what the module computes again from it; mirrored segments are mirrored tables; the
unit run is the scalar environment played greedily."""

import dataclasses
from pathlib import Path
from typing import Any

import numba as nb
import numpy as np
import pytest
import torch

from algospace.instruments import instrument
from algospace.types import AnyArray
from envs.config import CoreEnvConfig
from envs.core_env import CoreEnv
from tests.training_market import MarketOnDisk, save_market
from training.evaluation.unit_run import unit_run
from training.mappo.core_rollout import Weights, _decide
from training.mappo.core_team import CoreSampler, CoreTeamModule, drawn
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


def lively_sampler(market: MarketOnDisk, kind: str, shard: int = 0, **changes: Any) -> Any:
    """A fresh sampler of a small team."""
    spec = (market.core_spec() if kind == "core" else market.risk_spec()) | SAMPLING | changes
    return (CoreSampler if kind == "core" else RiskSampler)(lively(build_team_module(spec)), spec, shard)


@pytest.mark.parametrize("kind", ["core", "risk"])
def test_sampled_actions_follow_the_stored_probabilities(training_market: MarketOnDisk, kind: str) -> None:
    sampler = lively_sampler(training_market, kind, envs_per_shard=64)
    batch = tensors(sampler.sample(32, 0, 1.0))
    with torch.no_grad():
        p = torch.softmax(sampler.module.evaluate(batch)[0], -1)
    for agent in range(p.shape[2]):
        kept = batch["valid"][..., agent]
        taken = torch.nn.functional.one_hot(batch["actions"][..., agent].long(), p.shape[3])[kept].float()
        expected = p[..., agent, :][kept]
        deviation = (expected * (1.0 - expected)).sum(0).sqrt() / kept.sum()
        assert ((taken.mean(0) - expected.mean(0)).abs() <= 4.5 * deviation + 1e-6).all()


NEARLY_ONE = 1.0 - 2.0**-53


@pytest.mark.parametrize("u", [0.0, 0.5, 1.0 - 2.0**-25, NEARLY_ONE])
def test_no_draw_takes_a_forbidden_action(u: float) -> None:
    """Rounded probabilities may add up to less than 1: what is left is nobody's."""
    logits = torch.randn(5000, 3, generator=torch.Generator().manual_seed(0))
    for forbidden in ([2], [1], [0], [1, 2]):
        masked = logits.clone()
        masked[:, forbidden] = -1e9
        actions, log_p = drawn(masked, torch.full((len(logits),), u, dtype=torch.float64))
        assert not torch.isin(actions, torch.tensor(forbidden)).any()
        assert log_p.min() > -100.0


@nb.njit
def decided(bias: Any, hidden: Any, weights: Any, allowed: Any, u: float, out: Any) -> None:
    second = np.empty_like(hidden)
    for n in range(bias.shape[0]):
        weights.head_bias[0] = bias[n]
        hidden[:] = 0.0
        out[n] = _decide(hidden, second, weights, 0, 0, allowed, u)[0]


def test_no_compiled_draw_takes_a_forbidden_action() -> None:
    bias = np.random.default_rng(0).normal(size=(5000, 3)).astype(np.float32)
    sizes = {"account": (8, 4), "own": (2, 4), "agent": (4, 4), "execution": (12, 2), "execution_bias": (2,),
             "out": (4, 4), "out_bias": (4,), "head": (4, 3, 4), "head_bias": (4, 3), "bank": (1, 4)}
    weights = Weights(**{name: np.zeros(size, np.float32) for name, size in sizes.items()})
    for allowed in ([True, True, False], [True, False, True], [True, False, False]):
        for u in (0.0, 0.5, 1.0 - 2.0**-25, NEARLY_ONE):
            out = np.empty(len(bias), np.int64)
            decided(bias, np.zeros(4, np.float32), weights, np.array(allowed), u, out)
            assert np.array(allowed)[out].all()


@pytest.mark.parametrize("kind", ["core", "risk"])
def test_every_tick_draws_and_masks_anew(training_market: MarketOnDisk, kind: str) -> None:
    first, again, other = (lively_sampler(training_market, kind).sample(STEPS, tick, 1.0) for tick in (0, 0, 1))
    np.testing.assert_array_equal(first["actions"], again["actions"])
    for name in ("actions", "mask_rows"):  # the market and the accounts begin alike: the draws differ
        assert (first[name][:, 0] != other[name][:, 0]).any()


@pytest.mark.parametrize("kind", ["core", "risk"])
def test_a_segment_is_its_actions_played_by_its_own_environments(training_market: MarketOnDisk, kind: str) -> None:
    """At the costs that were asked for, in the direction that it says."""
    batch = lively_sampler(training_market, kind, shard=1).sample(STEPS, 0, 3.0)
    env = lively_sampler(training_market, kind, envs_per_shard=2 * ENVS).env  # both shards' environments
    env.cost_scale = 3.0
    np.testing.assert_array_equal(batch["mirrored"], env.signs[ENVS:] < 0.0)
    rewards, discounts = np.zeros(2 * ENVS, np.float32), np.zeros(2 * ENVS, np.float32)
    actions = np.concatenate((np.ones_like(batch["actions"]), batch["actions"]))
    for t in range(STEPS):
        np.testing.assert_array_equal(batch["rows"][:, t], env.rows[ENVS:])
        now = np.ascontiguousarray(actions[:, t])
        if kind == "core":
            env.vote(np.ascontiguousarray(now[:, :3]))
            env.execute(np.ascontiguousarray(now[:, 3]), rewards, discounts)
        else:
            env.step(now, rewards, discounts)
        np.testing.assert_array_equal(batch["rewards"][:, t], rewards[ENVS:])
        np.testing.assert_array_equal(batch["discounts"][:, t], discounts[ENVS:])


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
