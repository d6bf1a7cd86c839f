"""The pipeline: phases run, are reused, rerun when their inputs change, and resume where they stopped."""

import dataclasses
import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from rich.console import Console

import training.pipeline as pipeline
import training.team_training as team_training
from algospace.config import load_config
from algospace.errors import ConfigError, InputError
from algospace.marketdata.synthetic import generate, scenario_named
from training.config import RunConfig
from training.dataset import nanoseconds, prepare_dataset
from training.evaluation.risk import TEAM, evaluate_risk
from training.pipeline import PipelineResult, run_pipeline, stale_phase
from training.team_training import load_team

pytestmark = pytest.mark.usefixtures("ray_cluster")
QUICKSTART = Path(__file__).resolve().parents[2] / "configs" / "quickstart.yaml"
TINY = [
    "market.synthetic.train_bars=30000", "market.synthetic.validation_bars=12000",
    "market.synthetic.test_seeds=[9001]", "market.synthetic.test_bars=12000", "rde.size=tiny", "rde.epochs=1",
    "rde.windows_per_epoch=512", "mrms.mappo.env_steps=4096", "core.mappo.env_steps=16384",
    "core.mappo.num_shards=1", "core.mappo.envs_per_shard=32", "core.mappo.minibatches=4",
    "core.mappo.checkpoint_every=1", "backtest.full_run_bars=1000", "backtest.calibration_bars=1000",
]


def tiny(*changes: str) -> RunConfig:
    return load_config(RunConfig, QUICKSTART, [*TINY, *changes])


def run(config: RunConfig, folder: Path, **options: Any) -> tuple[PipelineResult, str]:
    """The result and what was said."""
    said = io.StringIO()
    result = run_pipeline(config, folder, console=Console(file=said, width=200), **options)
    return result, said.getvalue()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> PipelineResult:
    """All three phases of the tiny run."""
    return run(tiny(), tmp_path_factory.mktemp("run"))[0]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_team(folder / "core" / "team").module.state_dict())


def test_all_phases_leave_their_results(finished: PipelineResult) -> None:
    assert list(finished.phases) == ["rde", "mrms", "core"]
    for name, model in (("rde", "model"), ("mrms", "team"), ("core", "team")):
        state = json.loads((finished.run_dir / name / "phase.json").read_text())
        assert state["status"] == "finished"
        assert (finished.run_dir / name / model).is_dir()
        assert all(np.isfinite(v) for v in state["metrics"].values())
    assert finished.phases["core"]["metrics"]["env_steps"] == 16384.0


def test_a_second_run_reuses_every_phase_and_says_so(finished: PipelineResult) -> None:
    before = weights(finished.run_dir)
    again, said = run(tiny(), finished.run_dir)
    assert all(phase["reused"] for phase in again.phases.values())
    assert "data: reusing" in said
    assert [f"{name}: reusing the finished phase" in said for name in again.phases] == [True] * 3
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(finished.run_dir).items())


def test_teams_of_other_experts_are_stale(finished: PipelineResult, tmp_path: Path) -> None:
    """After `--phases rde` with other settings no bundle may join the new RDE and the old teams."""
    def stale(*changes: str) -> str | None:
        return stale_phase(tiny(*changes), finished.dataset, tmp_path)

    for name in ("rde", "mrms", "core"):
        shutil.copytree(finished.run_dir / name, tmp_path / name)
    assert stale() is None
    assert stale("core.mappo.gamma=0.9") == "core"
    assert stale("rde.epochs=2") == "rde"
    state = json.loads((tmp_path / "rde" / "phase.json").read_text())
    retrained = pipeline.phase_hash("rde", tiny("rde.epochs=2"), finished.dataset, tmp_path)
    (tmp_path / "rde" / "phase.json").write_text(json.dumps({**state, "hash": retrained}))
    assert stale("rde.epochs=2") == "mrms"
    (tmp_path / "core" / "phase.json").unlink()
    (tmp_path / "rde" / "phase.json").write_text(json.dumps(state))
    assert stale() == "core"


def test_a_moved_run_opens(finished: PipelineResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run from a cluster opens on a laptop: its teams read the tables beside them."""
    opened: list[Path] = []
    plain = team_training.build_team_module

    def build(spec: dict[str, Any]) -> Any:
        opened.extend(Path(spec[name]) for name in ("market", "experts"))
        return plain(spec)

    monkeypatch.setattr(team_training, "build_team_module", build)
    moved = Path(shutil.copytree(finished.run_dir, tmp_path / "moved", ignore=shutil.ignore_patterns("mlflow*")))
    team = load_team(moved / "core" / "team")
    assert opened == [moved / "tables" / "train-1", moved / "core" / "experts"]
    assert all(torch.equal(tensor, weights(finished.run_dir)[name]) for name, tensor in
               team.module.state_dict().items())


def test_another_configuration_is_another_run_in_the_history(finished: PipelineResult) -> None:
    assert pipeline._known_parent(finished.run_dir, tiny().digest()) == finished.mlflow_run_id
    assert pipeline._known_parent(finished.run_dir, tiny("core.mappo.gamma=0.9").digest()) is None


def test_an_interrupted_core_resumes_bit_for_bit_and_alone(
        finished: PipelineResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished.run_dir, folder, ignore=shutil.ignore_patterns("mlflow*", "artifacts", "run.json"))
    shutil.rmtree(folder / "core")
    steps: list[int] = []
    plain = pipeline._Reporter.metrics

    def metrics(self: Any, step: int, values: Mapping[str, float]) -> None:
        plain(self, step, values)
        steps.append(step)
        if len(steps) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(pipeline._Reporter, "metrics", metrics)
    with pytest.raises(KeyboardInterrupt):
        run(tiny(), folder)
    left = json.loads((folder / "core" / "phase.json").read_text())
    assert left["status"] == "running"
    kept = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    runs = [left["mlflow_run_id"], json.loads((folder / "run.json").read_text())["mlflow_run_id"]]
    assert [kept.get_run(name).info.status for name in runs] == ["KILLED", "KILLED"]
    result, said = run(tiny(), folder)
    assert [kept.get_run(name).info.status for name in runs] == ["FINISHED", "FINISHED"]
    assert "core: resuming" in said
    assert result.phases["rde"]["reused"]
    assert steps == [4096, 8192, 12288, 12288, 16384]
    expected = weights(finished.run_dir)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(folder).items())
    monkeypatch.undo()
    changed, _ = run(tiny("core.mappo.gamma=0.9"), folder)
    assert [bool(phase.get("reused")) for phase in changed.phases.values()] == [True, True, False]
    assert any(not torch.equal(tensor, expected[name]) for name, tensor in weights(folder).items())


def test_an_unknown_phase_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown phase 'corr'; known: rde, mrms, core"):
        run(tiny(), tmp_path / "run", phases=("corr",))
    assert not (tmp_path / "run").exists()


def test_a_phase_without_the_phases_before_it_is_refused(finished: PipelineResult, tmp_path: Path) -> None:
    shutil.copytree(finished.run_dir / "tables", tmp_path / "tables")
    with pytest.raises(ConfigError, match="'mrms' needs 'rde', which has not finished"):
        run(tiny(), tmp_path, phases=("mrms",))


@pytest.fixture(scope="module")
def recorded_bars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated market as a CSV of 5-minute bars, stamped by their open in UTC."""
    bars = generate(scenario_named("easy"), 3, 20_000).bars
    path = tmp_path_factory.mktemp("file") / "bars.csv"
    stamps = pd.to_datetime(bars.ts_open, utc=True).strftime("%Y-%m-%dT%H:%M:%SZ")
    pd.DataFrame({"timestamp": stamps, "open": bars.open, "high": bars.high, "low": bars.low,
                  "close": bars.close, "volume": bars.volume}).to_csv(path, index=False)
    return path


def test_splits_of_recorded_bars_keep_their_distance(recorded_bars: Path, tmp_path: Path) -> None:
    times = pd.to_datetime(pd.read_csv(recorded_bars)["timestamp"], utc=True)
    first, second = (times.iloc[i].strftime("%Y-%m-%d") for i in (10_000, 15_000))
    market = {"instrument": "SYNTH", "file": {"path": str(recorded_bars), "train_until": first,
                                              "validation_until": second}}
    config = RunConfig(name="file", market=market, embargo_bars=500)  # type: ignore[arg-type]
    dataset = prepare_dataset(config, tmp_path, lambda line: None)
    table = dataset.train.market()
    (test,) = dataset.test
    assert table.ts_close[dataset.train.stop - 1] < nanoseconds(first) <= table.ts_close[dataset.train.stop]
    assert dataset.validation.start == dataset.train.stop + 500
    assert table.ts_close[dataset.validation.stop - 1] < nanoseconds(second)
    assert test.start == dataset.validation.stop + 500
    assert test.stop <= len(table) - 1
    assert dataset.train.start == table.first_decision

    late = dataclasses.replace(dataset)
    frame = pd.read_csv(recorded_bars)
    later = times >= pd.Timestamp(first, tz="UTC")
    frame.loc[later, ["open", "high", "low", "close"]] *= 1.5
    frame.to_csv(tmp_path / "changed.csv", index=False)
    market["file"]["path"] = str(tmp_path / "changed.csv")  # type: ignore[index]
    other = prepare_dataset(RunConfig(name="file", market=market, embargo_bars=500),  # type: ignore[arg-type]
                            tmp_path / "other", lambda line: None)
    assert other.data_hash != late.data_hash
    changed = other.train.market()
    assert changed.schema.to_dict() == table.schema.to_dict()  # statistics know the training rows only
    for name in ("tactical", "close", "decision", "atr"):
        np.testing.assert_array_equal(getattr(changed, name)[: dataset.train.stop],
                                      getattr(table, name)[: dataset.train.stop])


@pytest.mark.parametrize("harm", ["changed", "shrunk"])
def test_a_finished_table_that_was_harmed_is_not_used_again(recorded_bars: Path, tmp_path: Path,
                                                            harm: str) -> None:
    times = pd.to_datetime(pd.read_csv(recorded_bars)["timestamp"], utc=True)
    first, second = (times.iloc[i].strftime("%Y-%m-%d") for i in (10_000, 15_000))
    config = RunConfig.model_validate({"name": "file", "embargo_bars": 500, "market": {
        "instrument": "SYNTH", "file": {"path": str(recorded_bars), "train_until": first,
                                        "validation_until": second}}})
    dataset = prepare_dataset(config, tmp_path, lambda line: None)
    column = dataset.train.table / "close.npy"
    whole = column.read_bytes()
    column.write_bytes(whole[:-8] if harm == "shrunk" else whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match=r"close\.npy: the file does not match the manifest's checksum"):
        prepare_dataset(config, tmp_path, lambda line: None)
    column.write_bytes(whole)
    assert prepare_dataset(config, tmp_path, lambda line: None) == dataset


def test_dates_that_leave_a_split_empty_are_refused(recorded_bars: Path, tmp_path: Path) -> None:
    market = {"instrument": "SYNTH", "file": {"path": str(recorded_bars), "train_until": "2090-01-01",
                                              "validation_until": "2091-01-01"}}
    with pytest.raises(ConfigError, match="the validation split of SYNTH has 0 rows"):
        prepare_dataset(RunConfig(name="file", market=market), tmp_path, lambda line: None)  # type: ignore[arg-type]


def test_a_run_is_played_against_every_fixed_rule(finished: PipelineResult) -> None:
    report = evaluate_risk(finished.run_dir, finished.dataset, finished.dataset.test, tours=2, samples=50)
    rules = report["rules"]
    assert {TEAM, "no trade", "random", "1 contract, 2 ATR, 2R", "1 %, best pair of training"} <= set(rules)
    assert report["opportunities"] > 50
    assert rules[TEAM]["traded"] > 0.9  # the smallest size is one contract
    assert rules["1 contract, 2 ATR, 2R"]["low"] <= rules["1 contract, 2 ATR, 2R"]["difference"]
    assert report == evaluate_risk(finished.run_dir, finished.dataset, finished.dataset.test, tours=2, samples=50)
