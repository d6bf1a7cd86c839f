"""A joint run over several markets: rows of its long table are the markets' own, what a sampler stores is what the
learner computes again, and a specialised core is the joint one on its market."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from algospace.errors import ConfigError, SchemaError
from algospace.instruments import instrument
from algospace.types import AnyArray
from envs.config import CoreEnvConfig
from envs.vector_core import risk_unit_of
from tests.training_market import MarketOnDisk, save_market, small_settings, synthetic_market
from training.mappo.core_team import CoreSampler, CoreTeamModule
from training.mappo.markets import (
    PLACE,
    JointCoreModule,
    JointCoreSampler,
    JointTable,
    joint_spec,
    specialised,
)
from training.mappo.module import build_team_module
from training.mappo.tables import open_training_table
from training.team_training import load_team, train_team

STEPS, ENVS = 16, 6
SAMPLING = {"envs_per_shard": ENVS, "mirror": True}
SYMBOLS = ("SYNTH", "ES")
Markets = tuple[MarketOnDisk, MarketOnDisk]


@pytest.fixture(scope="module")
def markets(training_market: MarketOnDisk, tmp_path_factory: pytest.TempPathFactory) -> Markets:
    """Two synthetic markets of different lengths; the second is traded as ES."""
    return training_market, synthetic_market(tmp_path_factory.mktemp("second"), 2, 21_000)


def single_spec(markets: Markets, k: int, **changes: Any) -> dict[str, Any]:
    """The team of one market alone, with its own instrument."""
    spec = markets[k].core_spec(**changes) | SAMPLING | {"instrument": SYMBOLS[k]}
    config = CoreEnvConfig(**spec["env"])
    unit = risk_unit_of(markets[k].table, instrument(SYMBOLS[k]), config, markets[k].start, markets[k].stop)
    return spec | {"risk_unit": unit}


def joint(markets: Markets, **changes: Any) -> dict[str, Any]:
    singles = [single_spec(markets, k, **changes) for k in range(2)]
    shared = {name: value for name, value in singles[0].items() if name not in PLACE}
    return joint_spec(shared, singles, 2)


@torch.no_grad()
def lively(spec: dict[str, Any]) -> JointCoreModule:
    """A joint module far from its initial values."""
    module, generator = build_team_module(spec), torch.Generator().manual_seed(5)
    assert isinstance(module, JointCoreModule)
    for name, p in module.named_parameters():
        if name.startswith(("net.head", "net.critic")):
            p.copy_(torch.randn(p.shape, generator=generator) * 0.5)
    module.value_norm.update(torch.tensor(0.7), torch.tensor(3.0))
    return module


def alone(module: JointCoreModule, spec: dict[str, Any], k: int) -> tuple[CoreTeamModule, dict[str, Any]]:
    """The specialised core of market k over its own table."""
    weights, own = specialised(module.state_dict(), spec, k)
    core = build_team_module(own)
    assert type(core) is CoreTeamModule
    core.load_state_dict(weights)
    return core, own


def tensors(batch: dict[str, AnyArray]) -> dict[str, torch.Tensor]:
    return {name: torch.as_tensor(values) for name, values in batch.items()}


@pytest.mark.parametrize("k", [0, 1])
def test_joint_rows_are_the_markets_rows(markets: Markets, k: int) -> None:
    """Embeddings and context of any stretch, the first decisions and mirror images included, bit for bit."""
    spec = joint(markets)
    module = lively(spec)
    core, _ = alone(module, spec, k)
    first, last = markets[k].start, len(markets[k].table) - STEPS
    starts = torch.tensor([first, first + 1, first + 5, (first + last) // 2, last - 1, last])
    rows = starts[:, None] + torch.arange(STEPS)
    for flag in (False, True):
        mirrored = torch.full((len(starts),), flag)
        at = rows + module.joint.offsets[k]
        with torch.no_grad():
            assert torch.equal(module.embed(at, mirrored), core.embed(rows, mirrored))
            assert torch.equal(module.view(k).embed(rows, mirrored), core.embed(rows, mirrored))
            context, own = module.market_context(at, mirrored), core.market_context(rows, mirrored)
        assert torch.equal(torch.cat((context[..., :8], context[..., 10:]), -1), own)
        assert torch.equal(context[..., 8:10], torch.eye(2)[k].expand(*rows.shape, 2))


@pytest.mark.parametrize("mechanics", ["unit", "full"])
@pytest.mark.parametrize("points", ["bar", "synergy"])
@torch.no_grad()
def test_a_shard_plays_its_market_by_its_instrument(markets: Markets, mechanics: str, points: str,
                                                    tmp_path: Path) -> None:
    """Segments of shard k are those of the specialised core alone on market k; joint rows are shifted ones."""
    if points == "synergy":
        markets = (eventful(markets[0], tmp_path / "a"), eventful(markets[1], tmp_path / "b"))
    spec = joint(markets, env={"mechanics": mechanics, "decision_points": points})
    module = lively(spec)
    rewards = []
    for k in range(2):
        core, own = alone(module, spec, k)
        ours, theirs = JointCoreSampler(module, spec, k), CoreSampler(core, own, k)
        for tick in range(2):
            batch, expected = ours.sample(STEPS, tick, 1.0), theirs.sample(STEPS, tick, 1.0)
            assert batch["rows"].dtype == expected["rows"].dtype
            assert np.array_equal(batch["rows"] - module.joint.offsets[k], expected["rows"])
            for name in ("actions", "rewards", "account", "proposal", "valid", "mirrored"):
                assert np.array_equal(batch[name], expected[name]), name
            for name in ("log_p", "values_all"):
                np.testing.assert_allclose(batch[name], expected[name], atol=2e-5, rtol=1e-5)
            logits, values = module.evaluate(tensors(batch))
            chosen = torch.as_tensor(batch["actions"]).long().unsqueeze(-1)
            log_p = torch.log_softmax(logits, -1).gather(-1, chosen).squeeze(-1).numpy()
            np.testing.assert_allclose(log_p[batch["valid"]], batch["log_p"][batch["valid"]], atol=1e-5)
            again = module.value_norm.denormalise(values).numpy()
            np.testing.assert_allclose(again[batch["alive"]], batch["values_all"][:, :-1][batch["alive"]],
                                       atol=1e-5, rtol=1e-5)
        rewards.append(batch["rewards"])
    assert not np.array_equal(*rewards)


def eventful(market: MarketOnDisk, folder: Path) -> MarketOnDisk:
    """The same market with a synergy on every tenth row or so."""
    table, rng = market.table, np.random.default_rng(0)
    event = rng.random(len(table)) < 0.1
    side = rng.choice([-1.0, 1.0], len(table)) * event
    synergy = np.stack((event * 0.25, side, event * 0.3), 1).astype(np.float32)
    return save_market(folder, dataclasses.replace(table, synergy_event=event, synergy=synergy))


def test_instruments_differ_only_by_their_embedding(markets: Markets) -> None:
    """The same state is judged differently in two markets, and equally where the embeddings are equal."""
    spec = joint(markets)
    module = lively(spec)
    context = torch.randn(5, 8 + 2 + 3 + 8)
    one, two = context.clone(), context.clone()
    one[:, 8:10], two[:, 8:10] = torch.eye(2)[0], torch.eye(2)[1]
    with torch.no_grad():
        assert not torch.allclose(module.net.shared_input(one), module.net.shared_input(two))
        dim = module.net.config.embed_dim
        module.net.trunk_in.weight[:, dim + 8] = module.net.trunk_in.weight[:, dim + 9]
        torch.testing.assert_close(module.net.shared_input(one), module.net.shared_input(two))


def test_a_joint_team_trains_and_comes_apart(markets: Markets, ray_cluster: None, tmp_path: Path) -> None:
    """Both embeddings learn; what is saved opens again; each market's core agrees with the joint one."""
    settings = small_settings(env_steps=256)
    spec = {name: value for name, value in joint(markets).items() if name not in SAMPLING}
    before = build_team_module(spec | SAMPLING).state_dict()["net.trunk_in.weight"].clone()
    team = train_team(spec, settings, tmp_path)
    after = team.module.state_dict()["net.trunk_in.weight"]
    columns = slice(team.module.net.config.embed_dim + 8, team.module.net.config.embed_dim + 10)
    assert (before[:, columns] != after[:, columns]).any(0).all()
    opened = load_team(tmp_path / "team")
    assert opened.spec["markets"] == spec["markets"]
    assert isinstance(opened.module, JointCoreModule)
    core, own = alone(opened.module, opened.spec, 1)
    assert own["instrument"] == "ES"
    batch = CoreSampler(core, own, 1).sample(STEPS, 0, 1.0)
    shifted = batch | {"rows": batch["rows"] + opened.module.joint.offsets[1]}
    with torch.no_grad():
        for ours, theirs in zip(opened.module.evaluate(tensors(shifted)), core.evaluate(tensors(batch)),
                                strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_shards_are_dealt_evenly(markets: Markets) -> None:
    singles = [single_spec(markets, k) for k in range(2)]
    with pytest.raises(ConfigError, match=r"num_shards \(3\) must be a multiple of the number of markets \(2\)"):
        joint_spec({}, singles, 3)


def test_tables_of_other_columns_are_refused(markets: Markets) -> None:
    first, second = (open_training_table(market.market, market.experts) for market in markets)
    schema = second.market.schema
    shorter = dataclasses.replace(schema, tactical=dataclasses.replace(schema.tactical, window=7))
    changed = dataclasses.replace(second, market=dataclasses.replace(second.market, schema=shorter))
    with pytest.raises(SchemaError, match="other columns or windows"):
        JointTable((first, changed))


@given(k=st.integers(0, 1), place=st.integers(0, 40), at_start=st.booleans(), mirrored=st.booleans(),
       seed=st.integers(0, 2**31))
@example(k=1, place=0, at_start=True, mirrored=False, seed=0)
@example(k=1, place=30, at_start=True, mirrored=True, seed=0)
@example(k=0, place=0, at_start=False, mirrored=False, seed=0)
@settings(max_examples=20, deadline=None)
def test_no_window_holds_rows_of_another_market(markets: Markets, k: int, place: int, at_start: bool,
                                                mirrored: bool, seed: int) -> None:
    """Whatever stands in the other instrument's rows, embeddings at the seam are the same: in segments and window
    by window, by joint rows and by the market's own. Rows of the warm-up, which nothing decides on, included."""
    module = lively(joint(markets))
    size = len(markets[k].table)
    first = place if at_start else size - STEPS - place
    rows, flag = torch.arange(first, first + STEPS)[None], torch.tensor([mirrored])

    def embedded() -> list[torch.Tensor]:
        found = []
        for view, at in ((module, rows + module.joint.offsets[k]), (module.view(k), rows)):
            found += [view.embed(at, flag), view._embed_scattered(at, flag)]
        return found

    with torch.no_grad():
        before = embedded()
        assert all(torch.isfinite(x).all() for x in before)
        noisy = copy.copy(module.tensors)
        generator = torch.Generator().manual_seed(seed)
        for name, offsets, total in (("tactical", module.joint.offsets, noisy.rows),
                                     ("strategic", module.joint.offsets_30m, noisy.rows_30m)):
            values = getattr(noisy, name).clone()
            for image in (0, total):
                part = values[image + offsets[1 - k]: image + offsets[2 - k]]
                part.copy_(torch.randn(part.shape, generator=generator))
            setattr(noisy, name, values)
        module.tensors = noisy
        for old, new in zip(before, embedded(), strict=True):
            assert torch.equal(old, new)
