"""Schedules, settings and the running statistics of value targets."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from algospace.config import load_config
from tests.conftest import REPOSITORY
from training.config import RunConfig
from training.mappo.module import ValueNorm
from training.mappo.settings import MAPPOSettings, Ramp


def test_a_ramp_is_constant_outside_and_linear_inside() -> None:
    ramp = Ramp(start=0.0, end=1.0, since=0.25, until=0.55)
    assert [ramp.at(x) for x in (0.0, 0.25, 0.40, 0.55, 1.0)] == pytest.approx([0.0, 0.0, 0.5, 1.0, 1.0])


def test_a_ramp_without_length_is_a_step() -> None:
    ramp = Ramp(start=1.0, end=2.0, since=0.5, until=0.5)
    assert (ramp.at(0.5), ramp.at(0.51)) == (1.0, 2.0)


def test_minibatches_must_divide_the_segments() -> None:
    with pytest.raises(ValidationError, match="must divide the number of segments"):
        MAPPOSettings(num_shards=1, envs_per_shard=10, minibatches=4)


def test_every_learner_has_a_segment_for_every_minibatch() -> None:
    with pytest.raises(ValidationError, match=r"leaves 2 to one of them, fewer than its minibatches \(4\)"):
        MAPPOSettings(num_shards=1, envs_per_shard=4, minibatches=4, num_learners=2)
    with pytest.raises(ValidationError, match="leaves 0 to one of them"):
        MAPPOSettings(num_shards=1, envs_per_shard=5, minibatches=1, num_learners=4)
    assert MAPPOSettings(num_shards=1, envs_per_shard=8, minibatches=4, num_learners=2).num_learners == 2


@pytest.mark.parametrize(("name", "value"), [
    ("cost_scale", -1.0), ("learning_rate", {"start": 1e-3, "end": -1e-3}), ("entropy", -0.01),
    ("clip_param", 0.0), ("value_coeff", -0.5), ("grad_clip", 0.0), ("adam_epsilon", 0.0)])
def test_what_would_train_backwards_or_not_at_all_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=name):
        MAPPOSettings(**{name: value})


def test_sizes_follow_from_the_settings() -> None:
    settings = MAPPOSettings(env_steps=1000, num_shards=2, envs_per_shard=4, segment=16, minibatches=2)
    assert (settings.segments, settings.steps_per_iteration, settings.iterations) == (8, 128, 8)


def test_value_norm_before_its_first_batch_is_the_identity() -> None:
    norm, x = ValueNorm(), torch.tensor([-2.0, 5.0])
    assert torch.equal(norm.normalise(x), x)
    assert torch.equal(norm.denormalise(x), x)


def test_value_norm_is_a_debiased_moving_average() -> None:
    rng = np.random.default_rng(0)
    norm, decay = ValueNorm(0.9), 0.9
    batches = [rng.normal(4.0, 3.0, 50) for _ in range(7)]
    for batch in batches:
        norm.update(torch.tensor(batch.mean()), torch.tensor((batch**2).mean()))
    weights = np.array([(1 - decay) * decay ** (len(batches) - 1 - i) for i in range(len(batches))])
    weights /= weights.sum()
    mean = (weights * [b.mean() for b in batches]).sum()
    square = (weights * [(b**2).mean() for b in batches]).sum()
    got_mean, got_deviation = norm.statistics()
    assert float(got_mean) == pytest.approx(mean, rel=1e-5)
    assert float(got_deviation) == pytest.approx(np.sqrt(square - mean**2), rel=1e-5)
    x = torch.tensor([1.0, -7.0])
    torch.testing.assert_close(norm.denormalise(norm.normalise(x)), x)


def test_one_batch_is_its_own_statistic() -> None:
    norm = ValueNorm()
    norm.update(torch.tensor(2.0), torch.tensor(8.0))
    assert [float(x) for x in norm.statistics()] == pytest.approx([2.0, 2.0], rel=1e-5)


def test_value_norm_travels_in_the_state_dict() -> None:
    norm, other = ValueNorm(), ValueNorm()
    norm.update(torch.tensor(2.0), torch.tensor(8.0))
    other.load_state_dict(norm.state_dict())
    assert other.statistics() == norm.statistics()


def test_bf16_without_a_gpu_is_refused() -> None:
    with pytest.raises(ValueError, match="bf16 needs a GPU"):
        MAPPOSettings(precision="bf16")
    assert MAPPOSettings(precision="bf16", gpus_per_learner=0.5).precision == "bf16"


def test_threads_belong_to_the_drivers_own_learner() -> None:
    with pytest.raises(ValidationError, match=r"threads \(2\) share the driver's own learner"):
        MAPPOSettings(threads=2, num_learners=2)


@pytest.mark.parametrize(("overrides", "actors"), [
    ([], (2, 0.0)),
    (["rde.num_learners=4"], (4, 0.0)),
    (["core.mappo.num_env_runners=3", "core.mappo.num_learners=2", "mrms.mappo.num_env_runners=1"], (5, 0.0)),
    (["core.mappo.gpus_per_learner=1"], (2, 1.0)),
    (["rde.num_learners=2", "rde.gpus_per_learner=0.5", "core.mappo.gpus_per_learner=0.5"], (2, 1.0)),
])
def test_a_run_asks_for_what_its_most_demanding_phase_takes(overrides: list[str],
                                                            actors: tuple[int, float]) -> None:
    config = load_config(RunConfig, REPOSITORY / "configs" / "quickstart.yaml", overrides)
    assert config.actors == actors
