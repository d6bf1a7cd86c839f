"""A walk-forward as a whole: windows are reused, an interrupted one goes on, joined figures are the windows'."""

import io
import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

import training.walk_forward.runner as runner
from algospace.cli import build_app
from algospace.errors import ConfigError
from tests.walk_forward_market import recorded_bars, walk_config, write_csv
from training.walk_forward import WalkForwardRun
from training.walk_forward.report import trials_of

NAMES = ("policy", "ungated", "momentum")


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Any:
    bars = recorded_bars()
    return bars, write_csv(bars, tmp_path_factory.mktemp("walk") / "bars.csv")


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import nullcontext
    monkeypatch.setattr(runner, "ray_session", lambda *actors: nullcontext())


class Training:
    """Stands for the training of a window: figures drawn from its number; may break down at one."""

    def __init__(self, breaks_at: int = 0) -> None:
        self.trained: list[int] = []
        self.breaks_at = breaks_at

    def __call__(self, run: WalkForwardRun, window: Any, dataset: Any, folder: Path, console: Console) -> Any:
        if window.number == self.breaks_at:
            raise InterruptedError
        self.trained.append(window.number)
        rng = np.random.default_rng(window.number)
        (test,) = dataset.test
        day = np.unique(test.market().day[test.start: test.stop]).astype(np.int64)
        profit = {name: np.round(rng.normal(20.0, 400.0, day.size)) for name in NAMES}
        figures = {name: {"net_pnl": float(values.sum()), "trades": 4, "win_rate": 0.25, "exposure": 0.5,
                          "bars": 100, "contracts_traded": 8.0, "days": int(day.size), "costs": 40.0}
                   for name, values in profit.items()}
        document = {"number": window.number, "dates": window.dates(), "contenders": figures,
                    "rows": {"train": 1, "validation": 1, "test": test.stop - test.start},
                    "scales": {"policy": 2.0, "ungated": 2.0, "momentum": 0.5}, "gate": {"threshold": 1.01},
                    "seconds": {"training": 1.0}}
        draws = rng.normal(-10.0, 400.0, (5, day.size))
        return document, {"day": day, **{f"draws/{team}/random": draws for team in ("policy", "ungated")},
                          **{f"profit/{name}": values for name, values in profit.items()}}


def walk(run: WalkForwardRun, out: Path, training: Training, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, str]:
    monkeypatch.setattr(runner, "evaluate_window", training)
    said = io.StringIO()
    return runner.walk_forward(run, out, Console(file=said, width=200)), said.getvalue()


def test_the_joined_series_is_the_sum_of_the_windows(market: Any, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    document, _ = walk(walk_config(*market), tmp_path, Training(), monkeypatch)
    assert len(document["windows"]) == 3
    for name in NAMES:
        joined = document["joined"][name]
        nets = [window["contenders"][name]["net_pnl"] for window in document["windows"]]
        assert joined["net"] == pytest.approx(sum(nets), abs=1e-6)
        assert joined["windows"] == nets
        assert joined["trades"] == 12
        assert joined["win_rate"] == pytest.approx(0.25)
        factor = document["windows"][0]["scales"][name]
        assert joined["matched"]["net"] == pytest.approx(factor * sum(nets), abs=1e-6)
    assert document == json.loads((tmp_path / "walk_forward.json").read_text())
    page = (tmp_path / "walk_forward.md").read_text()
    for part in ("## All tests joined", "## At equal risk", "## Against random traders", "## Window by window"):
        assert part in page
    assert all(line in page for line in document["verdict"])


def test_each_window_is_tracked_with_its_gate(market: Any, tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    walk(walk_config(*market, walk_forward={"windows": 1}, tracking={}), tmp_path, Training(), monkeypatch)
    window = json.loads((tmp_path / "window-1" / "window.json").read_text())
    kept = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").get_run(window["mlflow_run_id"]).data.metrics
    assert kept["gate/threshold"] == 1.01
    assert kept["policy/net_pnl"] == window["contenders"]["policy"]["net_pnl"]


def test_finished_windows_are_reused_and_an_interrupted_walk_goes_on(market: Any, tmp_path: Path,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    run = walk_config(*market)
    broken = Training(breaks_at=2)
    with pytest.raises(InterruptedError):
        walk(run, tmp_path, broken, monkeypatch)
    assert broken.trained == [1]
    assert not (tmp_path / "walk_forward.json").exists()
    second = Training()
    document, said = walk(run, tmp_path, second, monkeypatch)
    assert second.trained == [2, 3]
    assert "window-1: reusing the finished window" in said
    uninterrupted, _ = walk(run, tmp_path / "other", Training(), monkeypatch)
    assert document == uninterrupted

    third = Training()
    again, _ = walk(run, tmp_path, third, monkeypatch)
    assert third.trained == []
    assert again == document


def test_a_window_is_made_again_where_what_it_depends_on_changes(market: Any, tmp_path: Path,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    walk(walk_config(*market), tmp_path, Training(), monkeypatch)
    judged = Training()
    walk(walk_config(*market, walk_forward={"bootstrap_samples": 300, "trials": 9}), tmp_path, judged, monkeypatch)
    assert judged.trained == []  # only the judgement changes
    other = Training()
    walk(walk_config(*market, seed=6), tmp_path, other, monkeypatch)
    assert other.trained == [1, 2, 3]
    fewer = Training()
    document, _ = walk(walk_config(*market, seed=6, walk_forward={"windows": 2}), tmp_path, fewer, monkeypatch)
    assert fewer.trained == []
    assert len(document["windows"]) == 2


def test_the_number_of_trials_may_come_from_a_sweep(market: Any, tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    run = walk_config(*market, walk_forward={"sweep": str(path), "trials": 3})
    with pytest.raises(ConfigError, match="not a sweep's summary"):
        trials_of(run)
    for value, expected in ((17, 17), ([{}, {}], 2)):
        path.write_text(json.dumps({"trials": value}))
        assert trials_of(run) == expected
    path.write_text(json.dumps({"trials": {"a": {}, "b": {}}, "tried": 5}))  # a population's members tried five
    assert trials_of(run) == 5
    path.write_text(json.dumps({"trials": "many"}))
    with pytest.raises(ConfigError, match="'trials' is 'many'"):
        trials_of(run)
    assert trials_of(walk_config(*market, walk_forward={"trials": 3})) == 3
    tuned = {"tuning": {"sweep": "s", "config_hash": "h", "trials": 9}}  # what the configuration itself tells
    assert trials_of(walk_config(*market, **tuned)) == 9


def test_the_command_refuses_a_plain_run_s_configuration(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("name: x\nmarket: {instrument: SYNTH, synthetic: {}}\n")
    words = ["walk-forward", "--config", str(config), "--out", str(tmp_path / "o")]
    result = CliRunner().invoke(build_app(), words)
    assert isinstance(result.exception, ConfigError)
    assert "needs recorded bars" in str(result.exception)
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_two_real_windows_are_trained_tested_and_reported(market: Any, tmp_path: Path) -> None:
    """Everything with tiny teams, and the same figures when it is run again."""
    tiny = {"num_shards": 1, "envs_per_shard": 32, "segment": 32, "minibatches": 4}
    run = walk_config(
        *market, walk_forward={"windows": 2}, tracking={"enabled": True}, backtest={"supervised": True},
        rde={"size": "tiny", "epochs": 1, "windows_per_epoch": 256},
        mrms={"mappo": {**tiny, "env_steps": 2048}},
        core={"net": {"pass_bias": 0.0}, "env": {"episode_bars": 128}, "mappo": {**tiny, "env_steps": 8192}})
    document = runner.walk_forward(run, tmp_path, Console(file=io.StringIO()))
    assert document["joined"]["momentum"]["trades"] > 0
    assert document["joined"]["buy_and_hold"]["exposure"] > 0.9
    for number in (1, 2):
        folder = tmp_path / f"window-{number}"
        assert (folder / "bundle" / "manifest.json").is_file()
        assert (folder / "report" / "report.html").is_file()
    for name, figures in document["joined"].items():
        assert figures["net"] == pytest.approx(sum(figures["windows"]), abs=1e-6), name
    assert runner.walk_forward(run, tmp_path, Console(file=io.StringIO())) == document
