"""Sweeps: shared experts, children in MLflow, best by validation only, stopped and started again."""

import errno
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import training.sweep.tables as tune_data
from algospace.config import load_config
from algospace.errors import ConfigError
from tests.tune_sweep import RATE, run_tiny, tiny_base, tiny_tune
from training import checkpoints
from training.checkpoints import CheckpointWarning
from training.config import RunConfig
from training.sweep.ledger import Ledger
from training.sweep.trial import FOLDER_KEY, Plan, TeamTrial, TrialRun, forget_weights
from training.tune import SweepResult, SweepStopped, _refuse_other_data, trials_of

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def generated() -> list[int]:
    """Seeds of the markets that sweeps of this module have generated."""
    return []


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None, generated: list[int]
             ) -> Iterator[SweepResult]:
    """Three random trials to their end. The regime network's comparison with other models is left out."""
    patch = pytest.MonkeyPatch()
    patch.setattr("training.phases.rde_report", lambda *_, **__: {})
    real = tune_data.generate

    def recorded(scenario: Any, seed: int, bars: int) -> Any:
        generated.append(seed)
        return real(scenario, seed, bars)

    patch.setattr(tune_data, "generate", recorded)
    torch.set_num_threads(1)
    yield run_tiny(tmp_path_factory.mktemp("sweep") / "run", None, tiny_tune(), tiny_base())[0]
    patch.undo()


@pytest.fixture
def shared(finished: SweepResult) -> Path:
    """Experts trained once for this module."""
    return finished.folder / "shared"


def sweep_json(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "sweep.json").read_text()))


def test_every_trial_is_scored_at_every_rung(finished: SweepResult) -> None:
    assert [trial["state"] for trial in finished.trials] == ["finished"] * 3
    for trial in finished.trials:
        assert [rung["rung"] for rung in trial["rungs"]] == [1, 2]
        assert [rung["env_steps"] for rung in trial["rungs"]] == [1024, 2048]
        assert all(np.isfinite(rung["validation_score"]) for rung in trial["rungs"])
    assert len({trial["changes"][RATE] for trial in finished.trials}) == 3


def test_best_is_the_best_last_validation_score(finished: SweepResult) -> None:
    scores = {trial["changes"][RATE]: trial["rungs"][-1]["validation_score"] for trial in finished.trials}
    best = load_config(RunConfig, finished.best_config)
    assert scores[best.core.mappo.learning_rate.start] == max(scores.values()) == finished.best_score
    assert best.market.synthetic == tiny_base().market.synthetic  # test seeds included: `train` needs them


def test_no_trial_sees_the_test_split(finished: SweepResult, generated: list[int]) -> None:
    market = tiny_base().market.synthetic
    assert market is not None
    assert generated == [market.train_seed, market.validation_seed]
    tables = {path.name for path in (finished.folder / "shared" / "tables").iterdir()}
    assert tables == {"search.json", "train", "train.truth.npz", "validation", "validation.truth.npz"}


def test_the_number_of_trials_is_kept_for_the_deflated_sharpe_ratio(finished: SweepResult, tmp_path: Path) -> None:
    of_sweep = trials_of(finished.folder)
    assert of_sweep.trials == finished.tried == 3
    assert of_sweep.sharpes == tuple(trial["rungs"][-1]["sharpe_per_bar"] for trial in finished.trials)
    (tmp_path / "config.yaml").write_text(finished.best_config.read_text())  # what `algospace train` writes
    assert trials_of(tmp_path) == of_sweep
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tiny_base().model_dump(mode="json")))
    assert trials_of(tmp_path).trials == 1
    with pytest.raises(ConfigError, match="neither a run's folder"):
        trials_of(tmp_path / "nowhere")


def test_each_trial_is_a_child_run(finished: SweepResult) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{finished.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("algospace")
    assert experiment is not None
    children = client.search_runs([experiment.experiment_id],
                                  f"tags.mlflow.parentRunId = '{finished.mlflow_run_id}'")
    assert {run.info.run_id for run in children} == {trial["mlflow_run_id"] for trial in finished.trials}
    for trial in finished.trials:
        run = client.get_run(trial["mlflow_run_id"])
        assert run.info.status == "FINISHED"
        assert float(run.data.params[RATE]) == trial["changes"][RATE]
        history = client.get_metric_history(run.info.run_id, "validation_score")
        assert [point.value for point in history] == [rung["validation_score"] for rung in trial["rungs"]]
    artifacts = {item.path for item in client.list_artifacts(finished.mlflow_run_id)}
    assert {"best.yaml", "sweep.json"} <= artifacts


def test_a_finished_sweep_started_again_trains_nothing(finished: SweepResult) -> None:
    before = sweep_json(finished.folder)
    torch.set_num_threads(2)
    again, said = run_tiny(finished.folder, None, tiny_tune(), tiny_base())
    assert torch.get_num_threads() == 1  # of the configuration, not of the machine: shared experts depend on it
    assert sweep_json(finished.folder) == before
    assert (again.best_id, again.best_score, again.tried) == (finished.best_id, finished.best_score, 3)
    assert "rung" not in said


def test_another_sweep_in_the_same_folder_is_refused(finished: SweepResult) -> None:
    before = sweep_json(finished.folder)
    for tune, base in ((tiny_tune(seed=4), tiny_base()), (tiny_tune(), tiny_base("core.mappo.gamma=0.9"))):
        with pytest.raises(ConfigError, match="holds a sweep with another configuration"):
            run_tiny(finished.folder, None, tune, base)
    assert sweep_json(finished.folder) == before


def test_a_sweep_does_not_go_on_with_other_bars(shared: Path, tmp_path: Path) -> None:
    """Scores on other rows are no scores of the same sweep, though nothing in its configuration has changed."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "shared").symlink_to(shared, target_is_directory=True)
    _refuse_other_data(folder, "new")  # nothing has begun
    ledger = Ledger(Plan(folder, tiny_tune(), tiny_base("tracking.enabled=false")), "hash", lambda _: None)
    _refuse_other_data(folder, ledger.document["data_hash"])
    with pytest.raises(ConfigError, match="the bars have changed since this sweep was started"):
        _refuse_other_data(folder, "new")


def test_a_stopped_sweep_goes_on(finished: SweepResult, shared: Path, tmp_path: Path,
                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C when the second trial has reported once: the first is not run again, the second goes on from its
    rung, and every figure equals that of the sweep that was not stopped."""
    import training.sweep.ledger as tune_ledger

    real = tune_ledger.Ledger.report

    def interrupted(self: Any, key: str, rung: dict[str, Any]) -> None:
        real(self, key, rung)
        if self.document["trials"][key]["number"] == 2:
            signal.raise_signal(signal.SIGINT)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(tune_ledger.Ledger, "report", interrupted)
        with pytest.raises(SweepStopped):
            run_tiny(folder, shared, tiny_tune(), tiny_base())
    stopped = sweep_json(folder)["trials"]
    states = {trial["number"]: (trial["state"], len(trial["rungs"])) for trial in stopped.values()}
    assert states == {1: ("finished", 2), 2: ("running", 1)}
    result, said = run_tiny(folder, None, tiny_tune(), tiny_base())
    assert [line.split(",")[0] for line in said.splitlines() if line.startswith("trial")] == [
        "trial 2/3: rung 2/2", "trial 3/3: rung 1/2", "trial 3/3: rung 2/2"]
    without_runs = [[{k: v for k, v in trial.items() if k != "mlflow_run_id"} for trial in sweep.trials]
                    for sweep in (result, finished)]
    assert without_runs[0] == without_runs[1]
    assert {key: trial["mlflow_run_id"] for key, trial in stopped.items()}.items() <= {
        key: trial["mlflow_run_id"] for key, trial in sweep_json(folder)["trials"].items()}.items()


def test_a_trial_restored_under_other_schedules_follows_them(shared: Path, tmp_path: Path) -> None:
    """What PBT does: another member's team, this member's learning rate."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "shared").symlink_to(shared, target_is_directory=True)
    plan = Plan(folder, tiny_tune(), tiny_base("core.mappo.learning_rate={start: 0.01, end: 0.01, until: 2.0}"))
    donor = TrialRun(plan, {RATE: 0.01}, folder / "donor")
    donor.advance()
    donor.save(tmp_path / "saved")
    weights = donor.algorithm.team_weights()
    donor.close()
    taker = TrialRun(plan, {RATE: 0.002}, folder / "taker")
    taker.load(tmp_path / "saved")
    assert taker.algorithm.env_steps == 1024
    assert all(torch.equal(value, weights[name]) for name, value in taker.algorithm.team_weights().items())
    rung = taker.advance()
    assert (rung["rung"], rung["env_steps"], rung["changes"]) == (2, 2048, {RATE: 0.002})
    (rate,) = {group["lr"] for optimizer in taker.algorithm.learner_group._learner._named_optimizers.values()
               for group in optimizer.param_groups}
    assert rate == pytest.approx(0.006)  # half-way on its own ramp from 0.002 to 0.01, not the donor's 0.01
    taker.close()


def rungs_of(trial: TeamTrial, count: int) -> list[dict[str, Any]]:
    kept = ("rung", "validation_score", "repeated")
    return [{name: value for name, value in trial.train().items() if name in kept} for _ in range(count)]


@pytest.mark.filterwarnings("ignore::training.checkpoints.CheckpointWarning")
def test_a_trial_whose_newest_checkpoint_is_damaged_goes_on_from_the_rung_before(shared: Path,
                                                                                 tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "shared").symlink_to(shared, target_is_directory=True)
    Plan(folder, tiny_tune(rungs=3), tiny_base()).save()
    config = {FOLDER_KEY: str(folder), RATE: 0.01}
    first = TeamTrial(config)
    with pytest.MonkeyPatch.context() as patch:  # the disk is full at the first rung
        patch.setattr(checkpoints, "write_json", full_disk)
        with pytest.warns(CheckpointWarning, match="No space left on device"):
            whole = rungs_of(first, 1)
    whole += rungs_of(first, 2)
    first.stop()
    (trial,) = (folder / "trials").iterdir()
    assert sorted(path.name for path in (trial / "checkpoint").iterdir()) == ["000002", "000003"]
    state = trial / "checkpoint" / "000003" / "rllib" / "algorithm_state.pkl"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.warns(CheckpointWarning, match="algorithm_state.pkl is not what was written"):
        second = TeamTrial(config)
    again = rungs_of(second, 3)
    second.stop()
    assert [rung.pop("repeated") for rung in again] == [True, True, False]
    assert again == [{name: rung[name] for name in ("rung", "validation_score")} for rung in whole]
    forget_weights(trial)
    assert sorted(path.name for path in trial.iterdir()) == ["lock", "rungs.json"]
    third = TeamTrial(config)
    assert [rung["repeated"] for rung in rungs_of(third, 3)] == [True, True, True]
    third.stop()


def full_disk(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_asha_stops_trials_and_optuna_proposes_them(shared: Path, tmp_path: Path) -> None:
    tune = tiny_tune(search="optuna", scheduler="asha", trials=4, rungs=2)
    result, _ = run_tiny(tmp_path / "run", shared, tune, tiny_base())
    states = [trial["state"] for trial in result.trials]
    assert set(states) <= {"finished", "pruned"}
    assert "finished" in states
    assert result.tried == 4  # pruned ones count: they were looked at
    assert all(len(trial["rungs"]) == (2 if trial["state"] == "finished" else 1) for trial in result.trials)


@pytest.mark.slow
def test_pbt_hands_teams_on_and_goes_on_after_a_stop(shared: Path, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    import training.sweep.ledger as tune_ledger

    real = tune_ledger.Ledger.report
    reports: list[int] = []

    def interrupted(self: Any, key: str, rung: dict[str, Any]) -> None:
        real(self, key, rung)
        reports.append(rung["rung"])
        if len(reports) == 7:
            signal.raise_signal(signal.SIGINT)

    tune = tiny_tune(scheduler="pbt", trials=3, rungs=4, pbt={"quantile": 0.4, "resample": 0.0})
    folder = tmp_path / "run"
    base = tiny_base("core.mappo.env_steps=4096")
    with monkeypatch.context() as patch:
        patch.setattr(tune_ledger.Ledger, "report", interrupted)
        with pytest.raises(SweepStopped):
            run_tiny(folder, shared, tune, base)
    result, _ = run_tiny(folder, None, tune, base)
    assert [trial["state"] for trial in result.trials] == ["finished"] * 3
    assert all([rung["rung"] for rung in trial["rungs"]] == [1, 2, 3, 4] for trial in result.trials)
    assert all(0.001 <= rung["changes"][RATE] <= 0.01 for trial in result.trials for rung in trial["rungs"])
    assert result.tried > 3  # each configuration a member has left behind was looked at, too


@pytest.mark.slow
def test_a_population_repeats_from_its_seed(shared: Path, tmp_path: Path) -> None:
    tune = tiny_tune(scheduler="pbt", trials=3, rungs=3, pbt={"quantile": 0.4, "resample": 0.5})
    base = tiny_base("core.mappo.env_steps=3072")
    first, second = ([[rung["changes"] for rung in trial["rungs"]]
                      for trial in run_tiny(tmp_path / name, shared, tune, base)[0].trials]
                     for name in ("first", "second"))
    assert first == second
    assert any(rungs[0] != rungs[-1] for rungs in first)  # somebody took over another's team and changed it


@pytest.mark.slow
def test_earlier_phases_can_be_searched(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each trial trains its own M-RMS on the shared regime network."""
    space = {"mrms.mappo.learning_rate.start": {"kind": "choice", "values": [0.001, 0.002]}}
    result, _ = run_tiny(tmp_path / "run", shared, tiny_tune(space=space, phases=["mrms", "core"], trials=2),
                         tiny_base())
    assert [trial["state"] for trial in result.trials] == ["finished"] * 2
    for folder in (result.folder / "trials").iterdir():
        assert (folder / "rde").is_symlink()
        assert (folder / "mrms" / "team").is_dir()
