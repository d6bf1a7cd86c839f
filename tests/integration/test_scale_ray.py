"""The engine `ray` on two processors: local results to the bit, progress, killed workers, faults."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from algospace.features import FeatureConfig, Indicator, build
from algospace.features.block_table import read_blocks
from algospace.features.blocks import Block, FeatureJob
from algospace.features.engines import failures, plan_jobs, run_jobs, run_local
from algospace.features.own import load_indicator
from tests.conftest import REPOSITORY
from tests.scale_market import SYNTH, assert_same, content, rolling_bars, write_catalog
from training import ray_features

LEAN = FeatureConfig(regime=False)
SEEDS = (1, 2, 3)


@pytest.fixture(scope="module")
def markets(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("scale")
    return [write_catalog(root / f"market-{seed}", rolling_bars(seed)) for seed in SEEDS]


def _jobs(markets: list[Path], out: Path) -> list[FeatureJob]:
    return [FeatureJob(source.name, SYNTH, source, out / source.name, LEAN) for source in markets]


def _builder(folder: Path) -> int:
    return int((folder / ".lock").read_text())


@pytest.mark.usefixtures("ray_cluster")
def test_ray_gives_the_files_of_the_local_engine(markets: list[Path], tmp_path: Path) -> None:
    told: list[tuple[float, Block]] = []
    jobs = _jobs(markets, tmp_path / "ray")
    reports = ray_features.run(jobs, lambda block: told.append((time.monotonic(), block)))
    done = time.monotonic()
    local = run_local(_jobs(markets, tmp_path / "local"), lambda block: None)
    for here, there, seed in zip(local, reports, SEEDS, strict=True):
        assert (there.name, there.error, there.blocks, there.rows) == (here.name, None, here.blocks, here.rows)
        assert content(Path(there.folder)) == content(Path(here.folder))
        assert_same(read_blocks(there.folder), build(rolling_bars(seed), SYNTH, LEAN))
    assert len({_builder(job.out) for job in jobs}) == 2  # two instruments at a time
    assert _builder(jobs[0].out) != os.getpid()
    for job, report in zip(jobs, reports, strict=True):
        numbers = [block.number for _, block in told if block.name == job.name]
        assert numbers == list(range(1, report.blocks + 1))
    assert done - told[0][0] > 0.05  # the first block was told of while others were still being built


@pytest.mark.usefixtures("ray_cluster")
def test_a_killed_worker_loses_no_finished_block(markets: list[Path], tmp_path: Path) -> None:
    jobs = _jobs(markets[:2], tmp_path)
    victim = jobs[0].out
    survived: dict[Path, int] = {}
    told: Counter[tuple[str, int]] = Counter()

    def kill_after_the_second_block(block: Block) -> None:
        told[block.name, block.number] += 1
        if block.name == jobs[0].name and block.number == 2 and not survived:
            survived.update({path: path.stat().st_ino for path in victim.glob(f"{_first_month(victim)}.*")})
            os.kill(_builder(victim), signal.SIGKILL)

    reports = ray_features.run(jobs, kill_after_the_second_block)
    assert not failures(reports)
    assert survived
    assert {path: path.stat().st_ino for path in survived} == survived  # a rewritten file is a new one
    assert set(told.values()) == {1}
    for report, seed in zip(reports, SEEDS, strict=False):
        assert_same(read_blocks(report.folder), build(rolling_bars(seed), SYNTH, LEAN))


def _first_month(folder: Path) -> str:
    return min(path.name for path in folder.glob("*.parquet")).split(".")[0]


@pytest.mark.usefixtures("ray_cluster")
def test_a_bad_instrument_fails_alone(markets: list[Path], tmp_path: Path) -> None:
    broken = write_catalog(tmp_path / "broken", rolling_bars(2))
    month = sorted((broken / "SYNTH").glob("2000-*.parquet"))[2]
    month.write_bytes(month.read_bytes()[:-200])
    good, bad = _jobs([markets[0], broken], tmp_path / "out")
    odd = replace(good, name="odd", out=tmp_path / "file" / "out")
    (tmp_path / "file").write_text("in the way")
    lost = replace(good, name="lost", source=tmp_path / "nowhere", out=tmp_path / "out" / "lost")
    for engine in (ray_features.run, run_local):
        reports = engine([bad, odd, good, lost], lambda block: None)
        lines = failures(reports)
        assert len(lines) == 3
        assert lines[0].startswith("broken: ")
        assert month.name in lines[0]
        assert "NotADirectoryError" in lines[1] or "FileExistsError" in lines[1]
        assert "nowhere: no such file" in lines[2]
        assert reports[2].error is None
        assert_same(read_blocks(good.out), build(rolling_bars(1), SYNTH, LEAN))
    # the months before the broken one are kept
    assert len(read_blocks(bad.out, partial=True)) > 0


@pytest.mark.usefixtures("ray_cluster")
def test_a_worker_that_always_dies_is_one_failed_instrument(
        markets: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(state: object, bar: object, out: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)  # as the system does to a process that takes too much memory

    fatal = Indicator("fatal", ("nothing",), lambda: np.zeros(1), die)
    good, bad = _jobs(markets[:2], tmp_path)
    monkeypatch.setattr(ray_features, "_ATTEMPTS", 2)
    reports = ray_features.run([replace(bad, indicators=(fatal,)), good], lambda block: None)
    assert reports[0].error is not None
    assert "its worker died 2 times" in reports[0].error
    assert reports[1].error is None
    assert_same(read_blocks(good.out), build(rolling_bars(1), SYNTH, LEAN))


_OWN = """
import numpy as np
from algospace.features import Indicator
def update(state, bar, out):
    state[0] += bar.close
    state[1] += 1
    out[0] = state[0] / state[1]
INDICATOR = Indicator("mean", ("mean_so_far",), lambda: np.zeros(2), update)
"""


@pytest.mark.usefixtures("ray_cluster")
def test_own_indicators_of_files_and_the_library_travel_to_the_workers(
        markets: list[Path], tmp_path: Path) -> None:
    """The workers do not have the modules that the files were loaded as, nor need they have the files."""
    plain, compiled = tmp_path / "mean.py", REPOSITORY / "docs" / "examples" / "my_indicator.py"
    plain.write_text(_OWN)
    own = tuple(i for i in map(load_indicator, (plain, compiled)) if isinstance(i, Indicator))
    plain.unlink()
    config = LEAN.model_copy(update={"library": ("rsi_14", "obv", "vwap_session", "percent_rank_100")})
    job = replace(_jobs(markets[:1], tmp_path)[0], config=config, indicators=own)
    (report,) = ray_features.run([job], lambda block: None)
    assert report.error is None
    whole = build(rolling_bars(1), SYNTH, config, own)
    assert_same(read_blocks(report.folder), whole)
    assert whole.base["mean_so_far"][-1] == pytest.approx(whole.base["close"].mean())


@pytest.mark.usefixtures("ray_cluster")
def test_a_job_that_a_worker_cannot_load_says_why(markets: list[Path], tmp_path: Path) -> None:
    helper = tmp_path / "helper_of_mine.py"
    helper.write_text("SPAN = 2\n")
    own = tmp_path / "mine.py"
    own.write_text(_OWN + "from helper_of_mine import SPAN\n")
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(tmp_path)
        indicator = load_indicator(own)
    assert isinstance(indicator, Indicator)
    good, bad = _jobs(markets[:2], tmp_path)
    reports = ray_features.run([replace(bad, indicators=(indicator,)), good], lambda block: None)
    assert reports[0].error is not None
    assert "a worker cannot load the job" in reports[0].error
    assert "No module named 'helper_of_mine'" in reports[0].error
    assert reports[1].error is None
    del sys.modules["helper_of_mine"]


_DRIVER = """
import os, signal, sys
from pathlib import Path
from algospace.features import FeatureConfig
from algospace.features.blocks import FeatureJob
from algospace.instruments import instrument
from training.ray_features import run
def say(block):
    if block.number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
spec, config = instrument("SYNTH"), FeatureConfig(regime=False)
run([FeatureJob(p.name, spec, p, Path(sys.argv[1]) / p.name, config) for p in map(Path, sys.argv[2:])], say)
"""


@pytest.mark.slow
def test_after_a_killed_driver_the_next_run_continues(markets: list[Path], tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    killed = subprocess.run([sys.executable, "-c", _DRIVER, str(tmp_path), *map(str, markets)], cwd=REPOSITORY,
                            env=environment, capture_output=True, text=True, timeout=200)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    reports = run_local(_jobs(markets, tmp_path), lambda block: None)
    assert max(report.kept for report in reports) >= 2
    for seed, report in zip(SEEDS, reports, strict=True):
        assert_same(read_blocks(report.folder), build(rolling_bars(seed), SYNTH, LEAN))


@pytest.mark.slow
def test_a_local_cluster_is_started_and_stopped_quietly(markets: list[Path], tmp_path: Path) -> None:
    code = _DRIVER.replace("if block.number == 2:\n        os.kill(os.getpid(), signal.SIGKILL)", "pass")
    code += "import ray\nassert not ray.is_initialized()\n"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), str(markets[0])], cwd=REPOSITORY,
                          env={**os.environ, "ALGOSPACE_RAY_CPUS": "1"}, capture_output=True, text=True,
                          timeout=200)
    assert (done.returncode, done.stdout) == (0, "")
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 3, done.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_running_cluster_is_joined_and_left_running(markets: list[Path], tmp_path: Path) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    code = _DRIVER.replace("if block.number == 2:\n        os.kill(os.getpid(), signal.SIGKILL)", "pass")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), str(markets[0])], cwd=REPOSITORY,
                          env={**os.environ, "RAY_ADDRESS": address}, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert_same(read_blocks(tmp_path / markets[0].name), build(rolling_bars(1), SYNTH, LEAN))
    assert ray.cluster_resources()["CPU"] == 2  # and it still answers


def test_jobs_are_planned_over_catalogs_and_folders(markets: list[Path], tmp_path: Path) -> None:
    planned = plan_jobs(markets[0].parent, "SYNTH", tmp_path)
    assert [(job.name, job.source) for job in planned] == [("SYNTH", markets[0].parent)]
    planned = plan_jobs(markets[0], "all", tmp_path)
    assert [(job.name, job.instrument, job.out) for job in planned] == [("SYNTH", SYNTH, tmp_path / "SYNTH")]
    reports = run_jobs(planned)
    assert (reports[0].error, reports[0].symbol) == (None, "SYNTH")
