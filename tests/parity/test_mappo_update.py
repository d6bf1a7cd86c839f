"""The learner's update equals a literal one: value norm, means, clipping of gradients and Adam written out."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.env import INPUT_ENV_SPACES
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME

from tests.property.test_mappo_gae import literal_gae
from tests.training_market import MarketOnDisk, small_settings
from training.mappo.algorithm import MAPPOConfig
from training.mappo.core_team import CoreSampler
from training.mappo.learner import MAPPOLearner
from training.mappo.loss import mappo_loss_plain
from training.mappo.module import MODULE_ID, TeamModule, build_team_module
from training.mappo.runner import _SPACES, TeamRunner
from training.mappo.settings import MAPPOSettings

# every bound of the objective binds: several epochs, large steps, small clips
SETTINGS: dict[str, Any] = {"minibatches": 1, "epochs": 3, "learning_rate": 0.01, "clip_param": 0.05,
                            "value_clip": 0.02, "huber_delta": 0.5, "value_coeff": 0.8, "grad_clip": 0.02}
DECAY = 0.99


def made_learner(spec: dict[str, Any], settings: MAPPOSettings) -> tuple[MAPPOLearner, dict[str, Any]]:
    """A learner in this process, and its team's specification."""
    config = MAPPOConfig().train_team(spec, settings)
    learner = config.build_learner(spaces={INPUT_ENV_SPACES: _SPACES, MODULE_ID: _SPACES})
    learner.build()
    return learner, config.team


def sampled(spec: dict[str, Any], settings: MAPPOSettings) -> dict[str, Any]:
    """Columns of one shard; the last third of two segments lies behind an episode's end, in another one nobody is
    asked for a while."""
    runner = TeamRunner(config=MAPPOConfig().train_team(spec, settings))
    columns, _ = runner.sample(shard=0, tick=0)
    cut = columns["alive"].shape[1] * 2 // 3
    columns["alive"][:2, cut:] = False
    columns["valid"][:2, cut:] = False
    for name in ("advantages", "value_targets", "values"):
        columns[name][:2, cut:] = 1e3
    columns["valid"][2, 4:8] = False
    columns["advantages"][2, 4:8] = 3.0
    return columns


def test_a_runners_columns_are_its_sampled_values_and_their_advantages(training_market: MarketOnDisk) -> None:
    spec, settings = training_market.core_spec(), small_settings(gae_lambda=0.2, gamma=0.7)
    runner = TeamRunner(config=MAPPOConfig().train_team(spec, settings))
    other = build_team_module({**runner.spec, "seed": 9})
    other.value_norm.update(torch.tensor(0.7), torch.tensor(3.0))
    columns, state = runner.sample(shard=1, tick=4, cost_scale=2.0, gae_lambda=0.6, weights=other.state_dict())
    alone = CoreSampler(other, runner.spec, 1)
    plain = alone.sample(settings.segment, 4, 2.0)
    values = plain.pop("values_all")
    for name, expected in plain.items():
        np.testing.assert_array_equal(columns[name], expected, err_msg=name)
    np.testing.assert_array_equal(columns["values"], values[:, :-1])
    np.testing.assert_allclose(columns["value_targets"], columns["advantages"] + values[:, :-1], atol=1e-5)
    for b, advantages in enumerate(columns["advantages"]):
        expected = literal_gae(plain["rewards"][b], values[b], plain["discounts"][b], plain["alive"][b], 0.7, 0.6)
        np.testing.assert_allclose(advantages, expected, atol=1e-5)
    fresh = TeamRunner(config=MAPPOConfig().train_team(spec, settings))  # any runner goes on from the state
    later, _ = fresh.sample(shard=1, tick=5, cost_scale=0.5, gae_lambda=0.6, env_state=state,
                            weights=other.state_dict())
    expected = alone.sample(settings.segment, 5, 0.5)
    for name in ("rows", "actions", "rewards", "account"):
        np.testing.assert_array_equal(later[name], expected[name], err_msg=name)


class LiteralLearner:
    """The same update in plain steps over the whole batch."""

    def __init__(self, module: TeamModule, settings: MAPPOSettings) -> None:
        self.module, self.settings, self.steps = module, settings, 0
        self.mean = self.square = self.weight = 0.0
        self.moments = {name: [torch.zeros_like(p), torch.zeros_like(p)] for name, p in module.named_parameters()}

    def statistics(self) -> tuple[float, float]:
        """Of the value targets so far."""
        if self.weight == 0.0:
            return 0.0, 1.0
        mean = self.mean / self.weight
        return mean, math.sqrt(max(self.square / self.weight - mean ** 2, 1e-4))

    def update(self, columns: dict[str, Any], env_steps: int) -> None:
        settings, data = self.settings, {name: torch.as_tensor(values) for name, values in columns.items()}
        mean, deviation = self.statistics()
        old = (data["values"] - mean) / deviation  # what the critic said, in the units that it said it in
        targets, alive = data["value_targets"], data["alive"]
        if settings.value_norm:
            self.mean = DECAY * self.mean + (1.0 - DECAY) * float(targets[alive].mean())
            self.square = DECAY * self.square + (1.0 - DECAY) * float((targets[alive] ** 2).mean())
            self.weight = DECAY * self.weight + (1.0 - DECAY)
        mean, deviation = self.statistics()
        targets = (targets - mean) / deviation
        asked, votes = data["valid"], data["actions"][..., :3]
        learnt = asked.clone()
        if settings.pivotal_votes:
            for voter in range(3):
                others = [other for other in range(3) if other != voter]
                learnt[..., voter] &= votes[..., others[0]] != votes[..., others[1]]
        counted = learnt if settings.death_masking else learnt | (alive.unsqueeze(-1) & ~asked)
        rows = counted.any(-1)
        advantages = data["advantages"]
        advantages = torch.where(rows, (advantages - advantages[rows].mean()) / advantages[rows].std(), 0.0)
        entropy = settings.entropy.at(env_steps / settings.env_steps)
        counts = torch.stack((counted.sum(), alive.sum())).float()
        for _ in range(settings.epochs):
            self.module.zero_grad()
            logits, values = self.module.evaluate(data)
            mappo_loss_plain(
                logits, values, data["actions"].long(), data["log_p"], learnt, advantages, targets, old, alive,
                settings.clip_param, settings.value_clip, settings.huber_delta, entropy, settings.value_coeff,
                counts).total.backward()
            self.step(settings.learning_rate.at(env_steps / settings.env_steps))

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Adam, on gradients whose norm is bounded for the critic and for the rest apart."""
        self.steps += 1
        for critic in (True, False):
            named = [(n, p) for n, p in self.module.named_parameters() if n.startswith("net.critic") == critic]
            norm = math.sqrt(sum(float((p.grad.double() ** 2).sum()) for _, p in named))
            assert norm > self.settings.grad_clip
            for name, p in named:
                gradient = p.grad * (self.settings.grad_clip / norm)
                first, second = self.moments[name]
                first.mul_(0.9).add_(0.1 * gradient)
                second.mul_(0.999).add_(0.001 * gradient ** 2)
                scale = (second / (1.0 - 0.999 ** self.steps)).sqrt() + self.settings.adam_epsilon
                p -= rate * first / (1.0 - 0.9 ** self.steps) / scale


@pytest.mark.parametrize("changes", [
    {}, {"pivotal_votes": False}, {"death_masking": False}, {"value_norm": False, "value_clip": None},
    {"threads": 2}], ids=lambda changes: "-".join(changes) or "defaults")
def test_the_update_is_the_literal_one(training_market: MarketOnDisk, changes: dict[str, Any]) -> None:
    settings = small_settings(**{**SETTINGS, **changes})
    learner, spec = made_learner(training_market.core_spec(), settings)
    module = build_team_module(spec)
    literal = LiteralLearner(module, settings)
    columns = sampled(training_market.core_spec(), settings)
    for env_steps in (128, 256):
        batch = SampleBatch({name: np.array(values) for name, values in columns.items()})
        learner.update(batch=MultiAgentBatch({MODULE_ID: batch}, env_steps=4),
                       timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: env_steps})
        literal.update(columns, env_steps)
        for (name, found), expected in zip(learner.team_module().named_parameters(), module.parameters(),
                                           strict=True):
            torch.testing.assert_close(found.detach(), expected.detach(), atol=2e-4, rtol=0.0, msg=name)
        found_mean, found_deviation = learner.team_module().value_norm.statistics()
        assert (float(found_mean), float(found_deviation)) == pytest.approx(literal.statistics(), rel=1e-5)


def test_minibatches_share_out_every_epoch_anew(training_market: MarketOnDisk) -> None:
    learner, _ = made_learner(training_market.core_spec(), small_settings(epochs=3, minibatches=4))
    orders = [learner._order(32, steps) for steps in (128, 256)]
    flat = []
    for order in orders:
        assert [len(part) for part in order] == [8] * 12
        epochs = [torch.cat(order[first: first + 4]).tolist() for first in (0, 4, 8)]
        assert all(sorted(epoch) == list(range(32)) for epoch in epochs)
        flat += epochs
    assert len({tuple(epoch) for epoch in flat}) == 6
    assert all(torch.equal(one, two) for one, two in zip(orders[0], learner._order(32, 128), strict=True))
