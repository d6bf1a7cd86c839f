"""A training run is a function of its seed: whoever samples, whatever is killed, wherever it is continued."""

import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from algospace.errors import BundleError, ConfigError, SchemaError
from tests.training_market import MarketOnDisk, small_settings
from training.mappo.algorithm import MAPPO, MAPPOConfig
from training.mappo.finite import NonFiniteError
from training.mappo.markets import joint_spec
from training.mappo.sampling import ShardSampling
from training.mappo.settings import MAPPOSettings
from training.team_training import load_team, train_team

pytestmark = pytest.mark.usefixtures("ray_cluster")
Weights = dict[str, torch.Tensor]
TIMES = ("sample_seconds", "update_seconds", "env_steps_per_second")


def algorithm(spec: dict[str, Any], settings: MAPPOSettings) -> MAPPO:
    return MAPPOConfig().train_team(spec, settings).build_algo()


def recorded(algo: MAPPO) -> list[dict[str, Any]]:
    """Every batch that `algo` will sample from now on."""
    batches: list[dict[str, Any]] = []
    sample = algo._sampling._sample_all

    def recording(*args: Any) -> Any:
        sampled = sample(*args)
        batches.append(sampled.columns)
        return sampled

    algo._sampling._sample_all = recording  # type: ignore[method-assign]
    return batches


def trained(spec: dict[str, Any], settings: MAPPOSettings, iterations: int = 3) -> tuple[Weights, list[Any]]:
    algo = algorithm(spec, settings)
    try:
        batches = recorded(algo)
        for _ in range(iterations):
            algo.train()
        return algo.team_weights(), batches
    finally:
        algo.stop()


def continued(spec: dict[str, Any], settings: MAPPOSettings, folder: Path) -> Weights:
    """Weights of two iterations, a checkpoint in `folder`, and two more by another algorithm that restored it."""
    first = algorithm(spec, settings)
    for _ in range(2):
        first.train()
    first.save_to_path(str(folder / "checkpoint"))
    first.stop()
    second = algorithm(spec, settings)
    try:
        second.restore_from_path(str(folder / "checkpoint"))
        for _ in range(2):
            second.train()
        return second.team_weights()
    finally:
        second.stop()


def assert_equal_weights(first: Weights, second: Weights) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def assert_equal_batches(first: list[Any], second: list[Any]) -> None:
    assert len(first) == len(second) > 0
    for one, two in zip(first, second, strict=True):
        assert one.keys() == two.keys()
        for name, values in one.items():
            np.testing.assert_array_equal(values, two[name], err_msg=name)


@pytest.fixture(scope="module")
def reference(training_market: MarketOnDisk, ray_cluster: None) -> tuple[Weights, list[Any]]:
    """Weights and batches of four undisturbed iterations on the driver itself."""
    return trained(training_market.core_spec(), small_settings(), 4)


def test_the_same_seed_repeats_bit_for_bit(training_market: MarketOnDisk, reference: Any) -> None:
    weights, batches = trained(training_market.core_spec(), small_settings(), 4)
    assert_equal_weights(reference[0], weights)
    assert_equal_batches(reference[1], batches)


def test_another_seed_is_another_run(training_market: MarketOnDisk, reference: Any) -> None:
    weights, batches = trained(training_market.core_spec(seed=4), small_settings(), 1)
    assert not torch.equal(weights["net.trunk_out.weight"], reference[0]["net.trunk_out.weight"])
    assert (batches[0]["rows"] != reference[1][0]["rows"]).any()


def test_shards_differ_and_move_on(reference: Any) -> None:
    size = small_settings().envs_per_shard
    batches = [{name: values[first: first + size] for name, values in batch.items()}
               for batch in reference[1] for first in (0, size)]
    assert (batches[0]["rows"] != batches[1]["rows"]).any()
    first, second, third = batches[0]["rows"], batches[2]["rows"], batches[4]["rows"]
    np.testing.assert_array_equal(second[:, 0], first[:, -1] + 1)  # the episode goes on
    assert (third[:, 0] != second[:, -1] + 1).any()                # and ends after 32 bars
    assert (batches[0]["mask_rows"] != batches[2]["mask_rows"]).any()


def test_an_interrupted_run_continues_bit_for_bit(training_market: MarketOnDisk, reference: Any,
                                                  tmp_path: Path) -> None:
    first = algorithm(training_market.core_spec(), small_settings())
    first.train()
    first.train()
    first.save_to_path(str(tmp_path / "checkpoint"))
    before = first.learner_group.get_state()
    first.stop()
    second = algorithm(training_market.core_spec(), small_settings())
    second.train()  # a used algorithm, not a fresh one
    second.restore_from_path(str(tmp_path / "checkpoint"))
    assert second.env_steps == 256
    with pytest.raises(ConfigError, match="belongs to another run: stop, seed differ"):
        second._require_same_run({"run": second._run() | {"seed": 1, "stop": 2}})
    with pytest.raises(ConfigError, match="earlier version"):
        second._require_same_run({})
    assert _flat(second.learner_group.get_state()) == _flat(before)
    batches = recorded(second)
    second.train()
    second.train()
    assert_equal_batches(batches, reference[1][2:])
    assert_equal_weights(second.team_weights(), reference[0])
    second.stop()


def _flat(state: Any) -> Any:
    """A nested state as comparable values, without RLlib's counters of metrics."""
    if isinstance(state, dict):
        return {str(k): _flat(v) for k, v in state.items() if k not in ("metrics_logger", "timesteps")}
    if isinstance(state, list | tuple):
        return [_flat(v) for v in state]
    return np.asarray(state).tolist() if isinstance(state, torch.Tensor | np.ndarray) else str(state)


def test_a_killed_runner_changes_nothing(training_market: MarketOnDisk, reference: Any) -> None:
    algo = algorithm(training_market.core_spec(), small_settings(num_env_runners=1))
    try:
        batches = recorded(algo)
        algo.train()
        algo.train()
        group = algo.env_runner_group
        assert group.num_remote_worker_restarts() == 0  # RLlib's own calls have not broken it
        ray.kill(group._worker_manager.actors()[1], no_restart=False)
        algo.train()
        algo.train()
        assert_equal_batches(batches, reference[1])
        assert_equal_weights(algo.team_weights(), reference[0])
    finally:
        algo.stop()


def test_a_joint_run_does_not_go_on_with_another_second_market(training_market: MarketOnDisk,
                                                              tmp_path: Path) -> None:
    spec = training_market.core_spec()
    shared = {name: spec[name] for name in ("seed", "mask_key", "net", "env")}

    def joint(**second: Any) -> MAPPO:
        return algorithm(joint_spec(shared, [spec, {**spec, **second}], 2), small_settings())

    first = joint()
    first.train()
    first.save_to_path(str(tmp_path / "checkpoint"))
    first.stop()
    another = "belongs to another run: markets differs"
    for second, said in ((joint(), None), (joint(stop=spec["stop"] - 64), another)):
        with pytest.raises(ConfigError, match=said) if said else nullcontext():
            second.restore_from_path(str(tmp_path / "checkpoint"))
        second.stop()


@pytest.mark.slow
def test_two_runners_sample_the_same_batches(training_market: MarketOnDisk, reference: Any) -> None:
    weights, batches = trained(training_market.core_spec(), small_settings(num_env_runners=2), 4)
    assert_equal_batches(batches, reference[1])
    assert_equal_weights(weights, reference[0])


@pytest.mark.slow
def test_two_learners_agree_with_one(training_market: MarketOnDisk) -> None:
    one, _ = trained(training_market.core_spec(), small_settings(minibatches=1), 3)
    two, _ = trained(training_market.core_spec(), small_settings(minibatches=1, num_learners=2), 3)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=1e-5, msg=name)


def test_the_risk_team_trains_and_repeats(training_market: MarketOnDisk) -> None:
    settings = small_settings(segment=8)
    first, batches = trained(training_market.risk_spec(), settings, 2)
    second, again = trained(training_market.risk_spec(), settings, 2)
    assert_equal_batches(batches, again)
    assert_equal_weights(first, second)


def test_schedules_follow_the_step_count(training_market: MarketOnDisk) -> None:
    algo = algorithm(training_market.core_spec(), small_settings())
    try:
        rates = []
        for _ in range(4):
            algo.train()
            learner = algo.learner_group._learner
            (optimizer,) = learner._named_optimizers.values()
            rates.append(optimizer.param_groups[0]["lr"])
        steps = [128, 256, 384, 512]
        assert rates == pytest.approx([3e-3 + (3e-4 - 3e-3) * n / 512 for n in steps])
    finally:
        algo.stop()


def test_a_gradient_that_is_not_a_number_stops_the_run_and_spares_the_checkpoint(
        training_market: MarketOnDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, calls = ShardSampling.sample, []

    def poisoned(self: ShardSampling, *args: Any) -> Any:
        sampled = plain(self, *args)
        calls.append(1)
        if len(calls) == 3:
            sampled.columns["advantages"][:4] = np.nan
        return sampled

    monkeypatch.setattr(ShardSampling, "sample", poisoned)
    contents: list[dict[str, bytes]] = []

    def log(step: int, figures: Any) -> None:
        contents.append(_files(tmp_path / "checkpoint"))

    with pytest.raises(NonFiniteError, match=r"the gradient of net\.\S+ is not finite"):
        train_team(training_market.core_spec(), small_settings(checkpoint_every=1), tmp_path, log)
    assert len(contents) == 2
    assert (tmp_path / "checkpoint" / "000002" / "history.json").is_file()
    assert not (tmp_path / "team").exists()
    monkeypatch.undo()
    resumed = train_team(training_market.core_spec(), small_settings(checkpoint_every=1), tmp_path)
    assert all(torch.isfinite(p).all() for p in resumed.module.state_dict().values())


def test_a_gradient_too_large_for_its_norm_is_refused_in_words(training_market: MarketOnDisk,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    algo = algorithm(training_market.core_spec(), small_settings())
    try:
        learner = algo.learner_group._learner
        loss = learner._loss
        monkeypatch.setattr(learner, "_loss", lambda *a: (p := loss(*a))._replace(total=p.total * 1e30))
        with pytest.raises(NonFiniteError, match="the norm of the gradient, too large for float32, is not finite"):
            algo.train()
    finally:
        algo.stop()


def test_several_learners_standardise_advantages_as_one_does(training_market: MarketOnDisk,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the rows on this learner, as if the other three held the same."""
    algo = algorithm(training_market.core_spec(), small_settings())
    try:
        learner = algo.learner_group._learner
        whole = recorded(algo)
        algo.train()
        columns = {name: torch.as_tensor(values) for name, values in whole[0].items()}
        part = {name: values[:2] for name, values in columns.items()}
        four = {name: values.repeat(4, *[1] * (values.ndim - 1)) for name, values in part.items()}
        learner._normalise(four)
        with monkeypatch.context() as patch:
            patch.setattr(type(learner), "distributed", True)
            patch.setattr(torch.distributed, "all_reduce", lambda x: x.mul_(4.0))
            learner._normalise(part)
        torch.testing.assert_close(part["advantages"], four["advantages"][:2], atol=1e-6, rtol=1e-5)
    finally:
        algo.stop()


def _files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class Interruption(Exception):
    """Stands for a lost machine."""


def test_team_training_resumes_from_its_checkpoint(training_market: MarketOnDisk, reference: Any,
                                                   tmp_path: Path) -> None:
    steps: list[int] = []

    def log(step: int, figures: Any) -> None:
        steps.append(step)
        if steps == [128, 256, 384]:
            raise Interruption

    spec, settings = training_market.core_spec(), small_settings(checkpoint_every=1)
    with pytest.raises(Interruption):
        train_team(spec, settings, tmp_path, log)
    team = train_team(spec, settings, tmp_path, log)
    assert steps == [128, 256, 384, 384, 512]
    assert_equal_weights(dict(team.module.state_dict()), reference[0])
    assert team.metrics["env_steps"] == 512.0
    assert not (tmp_path / "checkpoint").exists()
    assert_equal_weights(dict(load_team(tmp_path / "team").module.state_dict()), reference[0])
    weights, document = tmp_path / "team" / "weights.pt", tmp_path / "team" / "team.json"
    text = document.read_text()
    document.write_text(re.sub(r'"hidden": \d+', '"hidden": 7', text))
    with pytest.raises(BundleError, match="builds otherwise"):
        load_team(tmp_path / "team")
    document.write_text(text)
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match="not the content that was saved"):
        load_team(tmp_path / "team")


def test_a_table_other_than_the_runs_is_refused(training_market: MarketOnDisk, tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="differ from those the run was started with"):
        train_team(training_market.core_spec(table_hash="0" * 64), small_settings(), tmp_path)
