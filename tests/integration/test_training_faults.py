"""Training goes on when runners and learners are killed, and stops cleanly, resumable, when it must stop."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch

from algospace.errors import InputError, SchemaError
from tests.conftest import REPOSITORY
from tests.training_market import MarketOnDisk, small_settings, synthetic_market
from training import checkpoints, team_training
from training.checkpoints import CheckpointWarning
from training.mappo.algorithm import MAPPO, MAPPOConfig
from training.mappo.finite import NonFiniteError
from training.mappo.recovery import RecoveryWarning
from training.mappo.settings import MAPPOSettings
from training.team_training import train_team

pytestmark = pytest.mark.usefixtures("ray_cluster")
Weights = dict[str, torch.Tensor]
Disturb = Callable[[MAPPO], None]


def run(spec: dict[str, Any], settings: MAPPOSettings, iterations: int = 4,
        disturb: dict[int, Disturb] | None = None) -> Weights:
    """Final weights; `disturb[i]` is called before iteration i."""
    algo = MAPPOConfig().train_team(spec, settings).build_algo()
    try:
        for iteration in range(iterations):
            if disturb and iteration in disturb:
                disturb[iteration](algo)
            algo.train()
        return algo.team_weights()
    finally:
        algo.stop()


def assert_equal(first: Weights, second: Weights) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.fixture(scope="module")
def undisturbed(training_market: MarketOnDisk, ray_cluster: None) -> Weights:
    """Four iterations, everything on the driver."""
    return run(training_market.core_spec(), small_settings())


def process_of(actor: Any) -> int:
    import ray

    return int(ray.get(actor.__ray_call__.remote(lambda self: os.getpid())))


def kill_runner(algo: MAPPO) -> None:
    os.kill(process_of(algo.env_runner_group._worker_manager.actors()[1]), signal.SIGKILL)


def kill_learner(algo: MAPPO, number: int = 0) -> None:
    os.kill(process_of(algo.learner_group._workers[number]), signal.SIGKILL)


@pytest.mark.slow
def test_a_runner_killed_as_the_kernel_kills_changes_nothing(training_market: MarketOnDisk,
                                                            undisturbed: Weights) -> None:
    killed = run(training_market.core_spec(), small_settings(num_env_runners=1), disturb={2: kill_runner})
    assert_equal(killed, undisturbed)


@pytest.mark.slow
def test_without_any_runner_the_driver_samples_and_gives_back(training_market: MarketOnDisk, undisturbed: Weights,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.rllib.env.env_runner_group import EnvRunnerGroup

    from training.mappo import sampling

    healthy = EnvRunnerGroup.healthy_env_runner_ids
    monkeypatch.setattr(sampling, "_ATTEMPTS", 1)

    def lose(algo: MAPPO) -> None:
        monkeypatch.setattr(EnvRunnerGroup, "healthy_env_runner_ids", lambda self: [])

    def come_back(algo: MAPPO) -> None:
        assert algo._sampling._alone
        monkeypatch.setattr(EnvRunnerGroup, "healthy_env_runner_ids", healthy)

    weights = run(training_market.core_spec(), small_settings(num_env_runners=1), disturb={1: lose, 3: come_back})
    assert_equal(weights, undisturbed)


def test_a_killed_learner_loses_nothing(training_market: MarketOnDisk, undisturbed: Weights) -> None:
    seen: list[int] = []

    def kill(algo: MAPPO) -> None:
        kill_learner(algo)
        seen.append(algo.env_steps)

    with pytest.warns(RecoveryWarning, match="a learner was lost.*repeated"):
        killed = run(training_market.core_spec(), small_settings(num_learners=1), disturb={2: kill})
    assert seen == [256]
    assert_equal(killed, undisturbed)


def test_state_given_to_two_learners_of_one_node_is_each_ones_own(training_market: MarketOnDisk) -> None:
    """Read from the object store, Adam's moments would be shared memory, and take the steps of both."""
    def give_back(algo: MAPPO) -> None:
        algo.learner_group.set_state(algo.learner_group.get_state())

    settings = small_settings(num_learners=2)
    whole = run(training_market.core_spec(), settings, iterations=2)
    assert_equal(run(training_market.core_spec(), settings, iterations=2, disturb={1: give_back}), whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_one_of_two_learners_killed_loses_nothing(training_market: MarketOnDisk, number: int) -> None:
    settings = small_settings(num_learners=2)
    whole = run(training_market.core_spec(), settings)
    with pytest.warns(RecoveryWarning):
        killed = run(training_market.core_spec(), settings, disturb={2: lambda algo: kill_learner(algo, number)})
    assert_equal(killed, whole)


@pytest.mark.slow
def test_a_learner_killed_in_the_middle_of_an_update_loses_nothing(training_market: MarketOnDisk) -> None:
    settings = small_settings(num_learners=2, epochs=200)  # about a second
    spec = training_market.core_spec()
    whole = run(spec, settings, 2)
    late: list[float] = []

    def kill_later(algo: MAPPO) -> None:
        process = process_of(algo.learner_group._workers[1])

        def kill() -> None:
            time.sleep(0.7)
            os.kill(process, signal.SIGKILL)
            late.append(time.monotonic())

        threading.Thread(target=kill).start()

    started = time.monotonic()
    with pytest.warns(RecoveryWarning):
        killed = run(spec, settings, 2, {1: kill_later})
    assert late
    assert time.monotonic() - started < 120.0
    assert_equal(killed, whole)


@pytest.mark.slow
def test_without_room_for_learners_the_driver_learns_and_gives_back(training_market: MarketOnDisk,
                                                                    undisturbed: Weights,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    from training.mappo import recovery

    free = {"learners": 0}
    monkeypatch.setattr(recovery, "ROOM_SECONDS", 0.0)
    monkeypatch.setattr(recovery, "_room", lambda config, learners: learners <= free["learners"])
    remote: list[bool] = []

    def look(algo: MAPPO) -> None:
        remote.append(algo.learner_group.is_remote)
        free["learners"] = 1

    with pytest.warns(RecoveryWarning, match="room for 0 of 1 learners"):
        killed = run(training_market.core_spec(), small_settings(num_learners=1),
                     disturb={1: kill_learner, 2: look, 3: look})
    assert remote == [False, True]
    assert_equal(killed, undisturbed)


def test_an_error_of_a_living_learner_is_no_lost_learner(training_market: MarketOnDisk) -> None:
    algo = MAPPOConfig().train_team(training_market.core_spec(), small_settings(num_learners=1)).build_algo()
    try:
        batch = MultiAgentBatch({"default_policy": SampleBatch({"x": np.zeros(4)})}, env_steps=4)
        with pytest.raises(KeyError, match="alive"):
            algo._learners.update(batch=batch, timesteps={"num_env_steps_sampled_lifetime": 1})
        assert algo._learners.rebuilds == 0
        algo.train()  # RLlib had marked it ill; it is asked again
    finally:
        algo.stop()


def test_a_checkpoint_is_whole_though_the_learner_died(training_market: MarketOnDisk, undisturbed: Weights,
                                                       tmp_path: Path) -> None:
    spec = training_market.core_spec()
    algo = MAPPOConfig().train_team(spec, small_settings(num_learners=1)).build_algo()
    algo.train()
    algo.train()
    kill_learner(algo)
    with pytest.warns(RecoveryWarning):
        team_training.save_algorithm(algo, tmp_path / "rllib")
    algo.stop()
    laptop = MAPPOConfig().train_team(spec, small_settings()).build_algo()
    laptop.restore_from_path(str(tmp_path / "rllib"))
    laptop.train()
    laptop.train()
    assert_equal(laptop.team_weights(), undisturbed)
    laptop.stop()


# --- faults of the machine: the run stops or goes on, and can be resumed ---------------------------------------

@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(path: Any, value: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_json", refuse)
        yield


def test_a_full_disk_during_a_checkpoint_spares_the_one_before(training_market: MarketOnDisk,
                                                               undisturbed: Weights, tmp_path: Path,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    spec, settings = training_market.core_spec(), small_settings(checkpoint_every=1)
    contents: list[list[str]] = []
    stack: list[Any] = []

    def log(step: int, figures: Any) -> None:
        contents.append(sorted(p.name for p in (tmp_path / "checkpoint").glob("*")))
        if step == 256:
            stack.append(full_disk(monkeypatch))
            stack[0].__enter__()
        if step == 384:
            stack[0].__exit__(None, None, None)
            raise KeyboardInterrupt

    with pytest.warns(CheckpointWarning, match="No space left on device.*000001 is intact"), \
            pytest.raises(KeyboardInterrupt):
        train_team(spec, settings, tmp_path, log)
    assert contents == [[], ["000001"], ["000001"]]
    steps: list[int] = []
    team = train_team(spec, settings, tmp_path, lambda step, figures: steps.append(step))
    assert steps == [256, 384, 512]
    assert_equal(dict(team.module.state_dict()), undisturbed)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(training_market: MarketOnDisk, undisturbed: Weights,
                                                          tmp_path: Path) -> None:
    spec, settings = training_market.core_spec(), small_settings(checkpoint_every=1)
    with pytest.raises(KeyboardInterrupt):
        train_team(spec, settings, tmp_path, _stop_at(384))
    assert sorted(p.name for p in (tmp_path / "checkpoint").iterdir()) == ["000001", "000002"]
    state = tmp_path / "checkpoint" / "000002" / "rllib" / "algorithm_state.pkl"
    state.write_bytes(state.read_bytes()[:-100])
    steps: list[int] = []
    with pytest.warns(CheckpointWarning, match="algorithm_state.pkl is not what was written"):
        team = train_team(spec, settings, tmp_path, lambda step, figures: steps.append(step))
    assert steps[0] == 256
    assert_equal(dict(team.module.state_dict()), undisturbed)


def _stop_at(last: int) -> Any:
    def log(step: int, figures: Any) -> None:
        if step == last:
            raise KeyboardInterrupt
    return log


def test_an_interrupt_ends_after_the_iteration_with_a_checkpoint(training_market: MarketOnDisk,
                                                                undisturbed: Weights, tmp_path: Path) -> None:
    spec, settings = training_market.core_spec(), small_settings(checkpoint_every=100)
    before = signal.getsignal(signal.SIGINT)

    def log(step: int, figures: Any) -> None:
        if step == 256:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train_team(spec, settings, tmp_path, log)
    assert signal.getsignal(signal.SIGINT) is before
    steps: list[int] = []
    team = train_team(spec, settings, tmp_path, lambda step, figures: steps.append(step))
    assert steps == [384, 512]
    assert_equal(dict(team.module.state_dict()), undisturbed)


DRIVER = """
import json, os, sys
from pathlib import Path
os.environ["RAY_AUTH_MODE"] = "disabled"
import ray
from training.mappo.settings import MAPPOSettings
from training.team_training import train_team
work = Path(sys.argv[1])
job = json.loads((work / "job.json").read_text())
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
def log(step, figures):
    with (work / "steps").open("a") as stream:
        stream.write(f"{step}\\n")
team = train_team(job["spec"], MAPPOSettings(**job["settings"]), work / "run", log)
ray.shutdown()
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_driver_resumes_to_the_same_bits(training_market: MarketOnDisk, tmp_path: Path,
                                                  number: signal.Signals) -> None:
    settings = small_settings(env_steps=128 * 40, checkpoint_every=3, num_env_runners=1)
    (tmp_path / "job.json").write_text(json.dumps({"spec": training_market.core_spec(),
                                                   "settings": settings.model_dump()}))
    command = [sys.executable, "-c", DRIVER, str(tmp_path)]
    first = subprocess.Popen(command, cwd=REPOSITORY)
    steps = tmp_path / "steps"
    deadline = time.monotonic() + 120.0
    while not (steps.is_file() and len(steps.read_text().split()) >= 8):
        assert time.monotonic() < deadline
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(number)
    assert first.wait(60) != 0
    done = len(steps.read_text().split())
    second = subprocess.run(command, cwd=REPOSITORY, check=False, timeout=300)
    assert second.returncode == 0
    repeated = len(steps.read_text().split()) - 40
    assert done < 40
    assert repeated <= 3 if number == signal.SIGKILL else repeated == 0
    resumed = team_training.load_team(tmp_path / "run" / "team")
    assert_equal(dict(resumed.module.state_dict()),
                 run(training_market.core_spec(), small_settings(env_steps=128 * 40), 40))


# --- bad input ------------------------------------------------------------------------------------------------

@pytest.fixture
def own_market(tmp_path: Path) -> MarketOnDisk:
    return synthetic_market(tmp_path / "market", bars=20_000)


@pytest.mark.parametrize("change", ["shrunk", "changed", "experts"])
def test_a_table_that_changed_before_resuming_is_refused(own_market: MarketOnDisk, tmp_path: Path,
                                                        change: str) -> None:
    spec, settings = own_market.core_spec(), small_settings(checkpoint_every=1)
    if change == "shrunk":  # the only run that trains first: the checkpoint must survive the refusal
        with pytest.raises(KeyboardInterrupt):
            train_team(spec, settings, tmp_path / "run", _stop_at(256))
    folder, name = (own_market.experts, "proposals") if change == "experts" else (own_market.market, "tactical")
    values = np.load(folder / f"{name}.npy")
    if change == "shrunk":
        values = values[:-1]
    else:
        values[-1] += 1.0
    np.save(folder / f"{name}.npy", values)
    with pytest.raises(InputError, match=f"{name}.npy: the file does not match"):
        train_team(spec, settings, tmp_path / "run")
    if change == "shrunk":
        assert (tmp_path / "run" / "checkpoint" / "000001" / "history.json").is_file()


def test_nan_in_a_table_is_refused_before_training(own_market: MarketOnDisk, tmp_path: Path) -> None:
    import dataclasses

    from tests.training_market import save_market

    tactical = np.array(own_market.table.tactical)
    tactical[15_000, 3] = np.nan
    broken = save_market(tmp_path / "broken", dataclasses.replace(own_market.table, tactical=tactical))
    column = own_market.table.schema.tactical.names[3]
    with pytest.raises(SchemaError, match=f"column '{column}' of tactical, row 15000 is nan"):
        train_team(broken.core_spec(), small_settings(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_reward_that_is_no_number_stops_with_environment_and_row(training_market: MarketOnDisk, tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    from training.mappo.sampling import ShardSampling

    plain, calls = ShardSampling.sample, []

    def poisoned(self: Any, *args: Any, **kwargs: Any) -> Any:
        sampled = plain(self, *args, **kwargs)
        calls.append(1)
        if len(calls) == 3:
            sampled.columns["rewards"][5, 7] = np.nan
            calls.append(int(sampled.columns["rows"][5, 7]))
        return sampled

    monkeypatch.setattr(ShardSampling, "sample", poisoned)
    with pytest.raises(NonFiniteError, match="environment 5 at table row") as caught:
        train_team(training_market.core_spec(), small_settings(checkpoint_every=1), tmp_path)
    assert f"table row {calls[-1]} " in str(caught.value)
    assert sorted(p.name for p in (tmp_path / "checkpoint").iterdir()) == ["000001", "000002"]
