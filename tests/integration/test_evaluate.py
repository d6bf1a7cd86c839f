"""`algospace evaluate` end to end on a tiny run: judged, reused, recorded; what must fail, exits with code 1."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest

import training.evaluation.markets as markets
from algospace.analysis.unit_score import Segments, next_returns
from algospace.config import load_config
from tests.command_line import Runner, runner
from tests.conftest import REPOSITORY
from training.config import RunConfig
from training.evaluation.harness import evaluate_config, evaluate_run, run_control
from training.evaluation.trainings import Seeds, seeded, trained_run
from training.mappo.core_team import CoreTeamModule

pytestmark = pytest.mark.usefixtures("ray_cluster")
QUICKSTART = REPOSITORY / "configs" / "quickstart.yaml"
TINY = [
    "market.synthetic.train_bars=20000", "market.synthetic.validation_bars=8000",
    "market.synthetic.test_bars=8000", "rde.size=tiny", "rde.epochs=1", "rde.windows_per_epoch=256",
    "mrms.mappo.env_steps=2048", "core.mappo.env_steps=8192", "core.mappo.envs_per_shard=32",
    "core.mappo.minibatches=4", "core.mappo.segment=32",
]
SEEDS, BARS = (701, 702), 10_000


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return load_config(RunConfig, QUICKSTART, TINY)


@pytest.fixture(scope="module")
def out(config: RunConfig, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """An evaluation's folder in which the first training has finished."""
    from rich.console import Console

    folder = tmp_path_factory.mktemp("evaluation")
    trained_run(seeded(config, Seeds(1, 1)), folder / "seed-1", Console(quiet=True))
    return folder


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Runner:
    from training.commands import register

    return runner(monkeypatch, capsys, register)


def oracle_run(module: CoreTeamModule, spec: dict[str, Any], start: int, stop: int) -> tuple[Any, Segments]:
    """Stands for a team that sees the next return."""
    close = np.asarray(module.table.market.close)
    return np.nan_to_num(np.sign(next_returns(close))), [(start, stop)]


def flat_run(module: CoreTeamModule, spec: dict[str, Any], start: int, stop: int) -> tuple[Any, Segments]:
    """Stands for a team that never trades."""
    return np.zeros(len(module.table.market)), [(start, stop)]


def test_a_finished_run_is_judged_and_its_figures_add_up(out: Path) -> None:
    document = evaluate_run(out / "seed-1", SEEDS, BARS)
    assert [market["seed"] for market in document["markets"]] == [701, 702]
    fractions = [market["fraction_of_limit"] for market in document["markets"]]
    fraction = document["fraction_of_limit"]
    assert fraction["estimate"] == pytest.approx(np.mean(fractions))
    assert min(fractions) <= fraction["low"] <= fraction["high"] <= max(fractions)
    assert {"policy", "bayes_limit", "trend_bayes", "clairvoyant", "random", "momentum", "ma_cross", "ema_cross",
            "buy_and_hold"} == set(document["policies"])
    assert document["regimes"]["all"]["bars"] == sum(market["bars"] for market in document["markets"])
    assert (document["alarms"], document["failures"]) == ([], [])
    assert not list((out / "seed-1" / "evaluation").glob("easy-*")), "judging markets are removed"
    assert json.loads(json.dumps(document)) == document
    again = evaluate_run(out / "seed-1", SEEDS, BARS)
    assert again == document


def test_a_run_that_sees_the_future_ends_with_exit_code_1(out: Path, command: Runner,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("evaluate", "--run", out / "seed-1", "--seeds", "701", "--bars", str(BARS), "--json")
    code, printed, _ = command(*arguments)
    assert (code, json.loads(printed)["failures"]) == (0, [])
    monkeypatch.setattr(markets, "unit_run", oracle_run)
    code, printed, _ = command(*arguments)
    assert code == 1
    assert "the leak alarm rings on market 701" in json.loads(printed)["failures"][0]
    folder = out / "seed-1" / "evaluation"
    assert json.loads((folder / "report.json").read_text()) == json.loads(printed)
    assert "**Failed**" in (folder / "report.md").read_text()


def test_it_is_recorded_under_the_runs_own_history(out: Path, command: Runner) -> None:
    run = out / "seed-1"
    assert command("evaluate", "--run", run, "--seeds", "702", "--bars", str(BARS))[0] == 0
    client = mlflow.MlflowClient(f"sqlite:///{run / 'mlflow.db'}")
    parent = json.loads((run / "run.json").read_text())["mlflow_run_id"]
    experiment = client.get_run(parent).info.experiment_id
    found = client.search_runs([experiment], f"tags.phase = 'evaluate' and tags.mlflow.parentRunId = '{parent}'")
    assert found
    assert "fraction_of_limit_estimate" in found[0].data.metrics
    assert {"report.json", "report.md"} <= {item.path for item in client.list_artifacts(found[0].info.run_id)}


def test_several_seeds_share_experts_and_finished_ones_are_reused(config: RunConfig, out: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    first = evaluate_config(config, (1, 2), SEEDS[:1], out=out, bars=BARS)
    assert list(first["runs"]) == ["seed-1", "seed-2"]
    means = [run["fraction_of_limit"]["estimate"] for run in first["runs"].values()]
    assert means[0] != means[1]
    assert first["fraction_of_limit"]["estimate"] == pytest.approx(np.mean(means))
    assert first["fraction_of_limit"]["over"] == "training seeds"
    assert not (out / "core-seed-2" / "rde").exists()

    def no_training(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished training ran again")

    monkeypatch.setattr("training.evaluation.trainings.train_team", no_training)
    monkeypatch.setattr("training.phases.train_team", no_training)
    assert evaluate_config(config, (1, 2), SEEDS[:1], out=out, bars=BARS) == first


def test_a_learner_that_cannot_use_the_oracle_fails_the_control(config: RunConfig, out: Path,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    """One that stays flat with the answer before it fails; one that uses it passes."""
    options: dict[str, Any] = {"out": out, "eval_seeds": SEEDS[:1], "bars": BARS, "train_seed": 1}
    monkeypatch.setattr(markets, "unit_run", flat_run)
    weak = run_control(config, "oracle", **options)
    assert "the learner is broken" in weak["failures"][0]
    assert "stays silent on market 701" in weak["failures"][1]
    monkeypatch.setattr(markets, "unit_run", oracle_run)
    strong = run_control(config, "oracle", **options)
    assert strong["failures"] == []
    assert strong["multiple_of_limit"] > 5.0


def test_nothing_can_be_exported_from_an_oracle_training(out: Path, command: Runner, tmp_path: Path) -> None:
    assert (out / "core-oracle" / "team").is_dir()
    code, _, error = command("export", "--checkpoint", out / "core-oracle", "--out", tmp_path / "bundle")
    assert code == 2
    assert "not a run's folder" in error
    assert not (tmp_path / "bundle").exists()


def test_a_team_that_trades_a_martingale_fails_the_control(config: RunConfig, out: Path, command: Runner,
                                                           tmp_path: Path) -> None:
    """Hardly trained, it still trades now and then."""
    found = run_control(config, "martingale", out=out, eval_seeds=SEEDS[:1], bars=BARS, train_seed=1)
    exposure = found["policies"]["policy"]["exposure"]
    assert found["scenario"] == "martingale"
    assert found["fraction_of_limit"] is None
    assert bool(found["failures"]) == (exposure > 0.02)


@pytest.mark.parametrize(("arguments", "message"), [
    (("--run", "absent"), "not a run's folder"),
    ((), "exactly one of --config and --run"),
    (("--config", str(QUICKSTART), "--control", "placebo"), "known controls are martingale, oracle"),
    (("--config", str(QUICKSTART), "--seeds", "1"), "judging seed 1 is a training or validation market"),
    (("--config", str(QUICKSTART), "--seeds", "9001,9001"), "judging seeds must differ"),
    (("--config", str(QUICKSTART), "--scenario", "session"), "no solved limit"),
])
def test_bad_usage_is_one_line_and_exit_code_2(arguments: tuple[str, ...], message: str, command: Runner,
                                               tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, error = command("evaluate", *arguments)
    assert code == 2
    assert message in error
    assert not list(tmp_path.iterdir())


def test_an_unfinished_run_is_refused(out: Path, command: Runner, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(out / "seed-1", tmp_path / "copy", ignore=shutil.ignore_patterns("mlflow*")))
    (copy / "core" / "phase.json").unlink()
    code, _, error = command("evaluate", "--run", copy)
    assert code == 2
    assert "phase 'core' has not finished" in error


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_two_minute_form_passes(command: Runner, tmp_path: Path) -> None:
    code, printed, _ = command("evaluate", "--config", REPOSITORY / "configs" / "evaluate" / "ci.yaml", "--out",
                               tmp_path, "--json")
    document = json.loads(printed)
    assert (code, document["failures"]) == (0, [])
    assert document["controls"]["martingale"]["policies"]["policy"]["exposure"] <= 0.02
    assert document["controls"]["oracle"]["multiple_of_limit"] > 3.0
