"""A sweep's configuration: every fault is one line that names the key; every point drawn is a valid run."""

import random
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import yaml
from ray.tune.schedulers.pbt import _explore

from algospace.config import parse_config, read_yaml
from algospace.errors import ConfigError
from tests.command_line import Runner, runner
from training.config import RunConfig
from training.sweep.config import METRIC, MUTABLE, TuneConfig, changed, check_space, dotted_keys, load_tune
from training.sweep.trial import Plan
from training.tune import _points, _resources, _scheduler, _tuning, sweep_hash

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
RATE = "core.mappo.learning_rate.start"
LOG = {"kind": "loguniform", "low": 0.001, "high": 0.01}


@pytest.fixture(scope="module")
def base() -> RunConfig:
    return parse_config(RunConfig, read_yaml(QUICKSTART))


def sweep(space: dict[str, Any] | None = None, **changes: Any) -> TuneConfig:
    values = {"name": "s", "base": str(QUICKSTART), "space": {RATE: LOG} if space is None else space, **changes}
    return parse_config(TuneConfig, values)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "tune").glob("*.yaml")), ids=lambda path: path.stem)
def test_packaged_sweeps_are_valid(path: Path) -> None:
    tune, run = load_tune(path)
    assert run.name == f"{tune.name}-best"
    assert len(_points(tune, run)) == tune.trials


@pytest.mark.parametrize(("key", "said"), [
    ("core.mappo.learning_rat.start", "nearest known key is 'core.mappo.learning_rate.start'"),
    ("core.mappo.lambda", "unknown key 'core.mappo.lambda'"),
    ("rde.epochs", r"write phases: \[rde, mrms, core\]"),
    ("mrms.mappo.gamma", r"write phases: \[mrms, core\]"),
    ("features.source", r"write phases: \[rde, mrms, core\]"),
    ("seed", r"write phases: \[rde, mrms, core\]"),
    ("gate.kappa", "does not change what the validation score measures"),
    ("name", "does not change what the validation score measures"),
    ("market.synthetic.validation_seed", "decides what trials are scored on"),
    ("market.synthetic.test_seeds", "decides what trials are scored on"),
    ("market", "decides what trials are scored on"),
    ("embargo_bars", "decides what trials are scored on"),
])
def test_a_key_that_cannot_be_searched_is_named(base: RunConfig, key: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        check_space(sweep({RATE: LOG, key: {"kind": "choice", "values": [1]}}), base)
    assert f"'{key}'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_later_phase_may_be_searched_with_those_behind_it(base: RunConfig) -> None:
    check_space(sweep({"rde.epochs": {"kind": "randint", "low": 1, "high": 3}}, phases=["rde", "mrms", "core"]),
                base)


def test_every_section_and_value_is_a_key() -> None:
    keys = set(dotted_keys(RunConfig))
    assert {"core", "core.mappo.gae_lambda", "core.mappo.gae_lambda.end", "market.synthetic.train_bars"} <= keys
    assert {key.rpartition(".")[0] for key in keys if "." in key} <= keys
    assert all(any(key == name or key.startswith(f"{name}.") for key in keys) for name in MUTABLE)


@pytest.mark.parametrize(("parameter", "said"), [
    ({"kind": "choice", "values": [4, 7]}, "core.mappo.minibatches=7"),
    ({"kind": "randint", "low": 0, "high": 8}, "core.mappo.minibatches=0"),
])
def test_a_bound_that_makes_no_valid_run_is_named(base: RunConfig, parameter: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_space(sweep({"core.mappo.minibatches": parameter}), base)


@pytest.mark.parametrize(("changes", "said"), [
    ({"space": {RATE: {"kind": "uniform", "low": 1.0, "high": 0.1}}}, "must be below high"),
    ({"space": {RATE: {"kind": "loguniform", "low": 0.0, "high": 0.1}}}, "must be positive"),
    ({"space": {RATE: {"kind": "normal"}}}, "normal"),
    ({"space": {RATE: {"kind": "quantised", "low": 0.05, "high": 0.4, "step": 0.1}}}, "low .* multiple of step"),
    ({"space": {RATE: {"kind": "quantised", "low": 0.1, "high": 0.45, "step": 0.1}}}, "high .* multiple of step"),
    ({"space": {}}, "space"),
    ({"rung": 3}, "unknown key 'rung'"),
    ({"phases": ["rde", "core"]}, r"one of \[core\]"),
    ({"metric": "test_score"}, "metric"),
    ({"asha": {"grace": 5}, "rungs": 4}, "asha.grace"),
    ({"scheduler": "pbt", "search": "optuna"}, "search: random"),
    ({"scheduler": "pbt", "space": {"core.net.hidden": {"kind": "choice", "values": [8]}}},
     "'core.net.hidden' cannot change while a team trains"),
    ({"scheduler": "pbt", "space": {"core.mappo.gamma": {"kind": "choice", "values": [0.9]}}},
     "'core.mappo.gamma' cannot change while a team trains"),
    ({"scheduler": "pbt", "trials": 1}, "at least 2 trials"),
])
def test_a_sweep_that_makes_no_sense_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        sweep(**changes)


def test_a_key_within_another_is_refused(base: RunConfig) -> None:
    both = {"core.mappo.learning_rate": {"kind": "choice", "values": [0.001]}, RATE: LOG}
    with pytest.raises(ConfigError, match="lies within"):
        check_space(sweep(both), base)


def test_points_are_drawn_from_the_seed_differ_and_keep_their_kinds(base: RunConfig) -> None:
    space = {
        RATE: LOG, "core.mappo.epochs": {"kind": "randint", "low": 1, "high": 3},
        "core.net.hidden": {"kind": "quantised", "low": 16, "high": 64, "step": 16},
        "core.mappo.clip_param": {"kind": "quantised", "low": 0.1, "high": 0.3, "step": 0.05},
        "core.mappo.gae_lambda": {"kind": "uniform", "low": 0.1, "high": 0.9},
        "core.mappo.entropy": {"kind": "choice", "values": [0.01, {"start": 0.02, "end": 0.0}]}}
    points = _points(sweep(space, trials=40, seed=5), base)
    assert points == _points(sweep(space, trials=40, seed=5), base)
    assert points != _points(sweep(space, trials=40, seed=6), base)
    assert len({yaml.safe_dump(point) for point in points}) == 40
    assert {point["core.mappo.epochs"] for point in points} == {1, 2, 3}
    assert {point["core.net.hidden"] for point in points} == {16, 32, 48, 64}
    for point in points:
        run = changed(base, point)
        assert run.core.mappo.gae_lambda.start == run.core.mappo.gae_lambda.end == point["core.mappo.gae_lambda"]
        assert 0.001 <= run.core.mappo.learning_rate.start <= 0.01
        assert (point["core.mappo.clip_param"] / 0.05) % 1.0 == pytest.approx(0.0, abs=1e-6) or (
            point["core.mappo.clip_param"] / 0.05) % 1.0 == pytest.approx(1.0, abs=1e-6)


def test_a_population_explores_within_the_space_whatever_its_kinds(base: RunConfig) -> None:
    space = {
        "core.mappo.epochs": {"kind": "quantised", "low": 2, "high": 10, "step": 2},
        "core.mappo.clip_param": {"kind": "quantised", "low": 0.1, "high": 0.4, "step": 0.1},
        "core.mappo.gae_lambda": {"kind": "uniform", "low": 0.5, "high": 0.95},
        "core.mappo.value_clip": {"kind": "choice", "values": [None, 0.2, 0.4]},
        "core.mappo.entropy": {"kind": "choice", "values": [0.01, {"start": 0.02, "end": 0.0}]}}
    tune = sweep(space, scheduler="pbt", trials=4, rungs=3, seed=2)
    scheduler = _scheduler(tune)
    seen: dict[str, list[Any]] = {key: [] for key in space}
    for point in _points(tune, base):
        for resample in (0.0, 1.0) * 20:
            explored, _ = _explore(point, scheduler._hyperparam_mutations, resample, (1.2, 0.8),
                                   scheduler._custom_explore_fn)
            changed(base, explored)
            for key, value in explored.items():
                seen[key].append(value)
    assert set(seen["core.mappo.epochs"]) == {2, 4, 6, 8, 10}
    assert all(isinstance(value, int) for value in seen["core.mappo.epochs"])
    assert {round(value, 9) for value in seen["core.mappo.clip_param"]} == {0.1, 0.2, 0.3, 0.4}
    assert 0.5 <= min(seen["core.mappo.gae_lambda"]) < max(seen["core.mappo.gae_lambda"]) <= 0.95
    assert {str(value) for value in seen["core.mappo.value_clip"]} == {"None", "0.2", "0.4"}
    assert len({str(value) for value in seen["core.mappo.entropy"]}) == 2


def test_a_space_smaller_than_its_trials_is_refused(base: RunConfig) -> None:
    with pytest.raises(ConfigError, match="only 2 different configurations"):
        _points(sweep({"core.mappo.epochs": {"kind": "choice", "values": [1, 2]}}, trials=3), base)


def test_a_sweep_on_the_best_of_another_counts_the_trials_of_both(base: RunConfig) -> None:
    first = _tuning(Plan(Path(), sweep(), base), "a", 12, (0.1, 0.2))
    assert (first.trials, first.sharpes) == (12, (0.1, 0.2))
    second = _tuning(Plan(Path(), sweep(), base.model_copy(update={"tuning": first})), "b", 5, (0.3,))
    assert (second.config_hash, second.trials, second.sharpes) == ("b", 17, (0.1, 0.2, 0.3))


def test_a_sweep_is_another_where_its_trials_or_their_score_are(base: RunConfig) -> None:
    same = sweep_hash(sweep(max_concurrent=1), base)
    assert sweep_hash(sweep(max_concurrent=2, cpus_per_trial=0.5), base) == same
    assert sweep_hash(sweep(seed=1), base) != same
    assert sweep_hash(sweep(), changed(base, {"core.mappo.gamma": 0.98})) != same


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Runner:
    from training.commands import register

    return runner(monkeypatch, capsys, register)


def test_an_unknown_key_is_one_line_and_exit_code_2(command: Runner, tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({"name": "s", "base": str(QUICKSTART),
                                    "space": {"core.mappo.entropi.start": LOG}}))
    code, out, err = command("tune", "--config", path, "--run-dir", tmp_path / "run")
    assert (code, out) == (2, "")
    assert err.strip() == ("error: search space: unknown key 'core.mappo.entropi.start'; the nearest known key is "
                           "'core.mappo.entropy.start'")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("changes", "bundles", "resources"), [
    ({}, [{"CPU": 0.5}], (1, 0.0)),
    ({"core.mappo.num_env_runners": 2, "core.mappo.num_learners": 1}, [{"CPU": 0.5}, *[{"CPU": 1.0}] * 3],
     (7, 0.0)),
    ({"mrms.mappo.num_env_runners": 1}, [{"CPU": 0.5}, {"CPU": 1.0}], (3, 0.0)),
    ({"core.mappo.gpus_per_learner": 0.5}, [{"CPU": 0.5, "GPU": 0.5}], (1, 1.0)),
    ({"rde.num_learners": 2, "rde.gpus_per_learner": 1.0}, [{"CPU": 0.5}, *[{"CPU": 1.0, "GPU": 1.0}] * 2],
     (5, 4.0))])
def test_a_sweep_has_room_for_all_processes_of_the_trials_that_run_at_once(
        base: RunConfig, changes: dict[str, Any], bundles: list[dict[str, float]],
        resources: tuple[int, float]) -> None:
    plan = Plan(Path("unused"), sweep(max_concurrent=2, cpus_per_trial=0.5), changed(base, changes))
    assert plan.bundles == bundles
    assert _resources(plan) == resources


def handed_on(tune: TuneConfig, disturbance: int) -> list[tuple[int, int, Any]]:
    """(member, whose team it takes, its new value) of two meetings of six members, among other draws."""
    population, members, found = _scheduler(tune), [MagicMock(status="PAUSED") for _ in range(6)], []
    population.set_search_properties(METRIC, "max")
    controller = MagicMock()
    controller.get_trials.return_value = members
    population._exploit = lambda _, trial, leader: found.append(
        (members.index(trial), members.index(leader), population._get_new_config(trial, leader)[0][RATE]))
    random.seed(disturbance)
    np.random.seed(disturbance)
    for number, member in enumerate(members):
        member.config = {RATE: 0.001 * (number + 1)}
        member.run_metadata.checkpoint_manager.checkpoint_config.num_to_keep = None
        population.on_trial_add(controller, member)
    for rung in (1, 2):
        for state in population._trial_state.values():
            state.last_train_time = rung
        for member in (*members[3:], *members[:3]):
            random.random()
            population._checkpoint_or_exploit(member, controller, members[3:], members[:3])
    assert random.random() == _after(disturbance, 12)  # the caller's own draws go on as if nothing had been
    return found


def _after(seed: int, draws: int) -> float:
    generator = random.Random(seed)
    return [generator.random() for _ in range(draws + 1)][-1]


@pytest.mark.parametrize("resample", [0.0, 0.5, 1.0])
def test_a_population_draws_from_its_seed_alone(resample: float) -> None:
    def tune(seed: int) -> TuneConfig:
        return sweep(scheduler="pbt", trials=6, seed=seed, pbt={"quantile": 0.5, "resample": resample})

    first = handed_on(tune(3), 1)
    assert first == handed_on(tune(3), 2)
    assert first != handed_on(tune(4), 1)
    assert len({leader for _, leader, _ in first}) > 1
    assert len({value for *_, value in first}) > 2
