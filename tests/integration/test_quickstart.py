"""The main job end to end, in small: one command, every stage, a summary, no process left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from serving.bundle import load_bundle

TINY = [
    "market.synthetic.train_bars=40000", "market.synthetic.validation_bars=12000",
    "market.synthetic.test_bars=12000",
    "rde.size=tiny", "rde.epochs=1", "rde.windows_per_epoch=512", "mrms.mappo.env_steps=4096",
    "core.mappo.env_steps=30000", "core.mappo.envs_per_shard=64", "backtest.full_run_bars=1500",
    "backtest.calibration_bars=1500", "backtest.supervised_rows=4000",
    # columns of the general library go all the way: features, matrices, bundle, service
    "features.library=[rsi_14,adx_14,sma_20]",
    "matrices.tactical_extra=[return_1,volatility_60,autocorr1_60,rsi_14,adx_14,sma_20]",
]


def run_command(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "algospace.cli", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=500, env=environment)


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("quickstart")
    return folder, run_command(["quickstart", *TINY], folder)


def test_one_command_runs_every_stage_and_writes_the_summary(
        quickstart: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = quickstart
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((folder / "runs/quickstart/summary.json").read_text())
    assert set(summary) == {"phases", "backtest", "gate", "bundle", "decision", "seconds"}
    assert set(summary["phases"]) == {"rde", "mrms", "core"}
    assert summary["phases"]["core"]["env_steps"] >= 30_000
    backtest = summary["backtest"]
    assert {"buy_and_hold", "momentum", "ma_cross", "random", "clairvoyant"} <= set(backtest["baselines"])
    assert backtest["fraction_of_limit"] == pytest.approx(
        backtest["policy"]["score"] / backtest["bayes_limit"]["score"])
    assert {"score", "sharpe", "net_pnl", "trades", "exposure"} <= set(backtest["policy"])
    assert summary["decision"]["verdict"] in ("EXECUTE", "CLOSE", "REJECT")
    assert 0.0 <= summary["decision"]["confidence"] <= 1.0


def test_the_decision_names_the_bundle_and_the_report_is_self_contained(
        quickstart: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = quickstart
    run = folder / "runs/quickstart"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["decision"]["model"] == (run / "bundle/manifest.sha256").read_text().strip()
    names = [column.name for column in load_bundle(run / "bundle").schema.tactical.columns]
    assert names[-3:] == ["rsi_14", "adx_14", "sma_20"]
    page = (run / "report/report.html").read_text()
    assert "src=\"http" not in page
    assert "href=\"http" not in page


def test_no_process_is_left_behind(quickstart: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = quickstart
    marker = str(folder)
    left = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            where = os.readlink(process / "cwd")
        except OSError:
            continue
        if marker in text or where.startswith(marker):
            left.append(text)
    assert not left


def test_a_second_run_reuses_the_finished_phases(
        quickstart: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = quickstart
    again = run_command(["train", "--config", str(folder / "runs/quickstart/config.yaml"), "--phases",
                         "rde,mrms,core", "--run-dir", "runs/quickstart", "--json"], folder)
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stderr.count("reusing the finished phase") == 3
    assert json.loads(again.stdout)["bundle"]
