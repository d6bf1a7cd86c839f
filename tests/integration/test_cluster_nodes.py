"""Several Ray nodes on one machine: a submitted job, a node without the table, nodes and a head that are lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.conftest import REPOSITORY
from tests.integration.test_quickstart import TINY
from tests.integration.test_ray_job import BIN, free_port
from tests.training_market import MarketOnDisk, small_settings
from training.mappo.settings import MAPPOSettings
from training.team_training import load_team

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

DRIVER = """
import json, os, sys, time
from pathlib import Path
import ray
from training.mappo.settings import MAPPOSettings
from training.team_training import train_team
work = Path(sys.argv[1])
job = json.loads((work / "job.json").read_text())
alone = {"num_cpus": 1, "include_dashboard": False} if os.environ["RAY_ADDRESS"] == "local" else {}
ray.init(log_to_driver=False, **alone)
def log(step, figures):
    with (work / "steps").open("a") as stream:
        stream.write(f"{step}\\n")
    time.sleep(job["pause"])
team = train_team(job["spec"], MAPPOSettings(**job["settings"]), work / "run", log)
ray.shutdown()
"""


@dataclass
class Nodes:
    """A head without processors and what was started beside it."""

    folder: Path
    port: int
    dashboard: int
    environment: dict[str, str]
    started: list[subprocess.Popen[bytes]]

    def start(self, *arguments: str, hidden: Path | None = None, cache: str = "") -> subprocess.Popen[bytes]:
        """`ray start`, with ports and a folder of its own (in a shared one, a job's package is unpacked anew over
        the one in use); on a machine that does not see folder `hidden`, if given."""
        number = len(self.started)
        ports = [f"--{name}={free_port()}" for name in ("dashboard-agent-listen-port", "dashboard-agent-grpc-port",
                                                        "runtime-env-agent-port", "metrics-export-port")]
        command = [str(BIN / "ray"), "start", "--block", "--node-ip-address=127.0.0.1", "--disable-usage-stats",
                   f"--min-worker-port={21000 + 500 * number}", f"--max-worker-port={21499 + 500 * number}",
                   f"--temp-dir={self.folder}/{number}", f"--object-store-memory={200 << 20}", *ports, *arguments]
        if hidden is not None:
            command = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs none "{hidden}" && exec "$@"', "sh", *command]
        environment = self.environment | ({"ALGOSPACE_CACHE": cache} if cache else {})
        log = (self.folder / f"node-{number}.log").open("wb")
        node = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        self.started.append(node)
        return node

    def head(self, dashboard: bool = False) -> None:
        """The first node: it runs drivers only."""
        self.start("--head", f"--port={self.port}", "--num-cpus=0", f"--dashboard-port={self.dashboard}",
                   f"--include-dashboard={str(dashboard).lower()}", "--dashboard-host=127.0.0.1")

    def worker(self, hidden: Path | None = None, cache: str = "") -> subprocess.Popen[bytes]:
        """A node of one processor."""
        return self.start(f"--address=127.0.0.1:{self.port}", "--num-cpus=1", hidden=hidden, cache=cache)

    def wait_for(self, alive: int) -> None:
        """Until that many nodes are alive."""
        look = "import ray; ray.init(log_to_driver=False); print(sum(n['Alive'] for n in ray.nodes()))"
        for _ in range(60):
            for number, node in enumerate(self.started):
                log = (self.folder / f"node-{number}.log").read_text(errors="replace")[-2000:]
                assert node.poll() is None, f"node {number} ended at its start: {log}"
            done = subprocess.run(["timeout", "60", sys.executable, "-c", look], env=self.environment,
                                  capture_output=True, text=True, check=False)
            if done.stdout.strip() == str(alive):
                return
            time.sleep(1.0)
        raise AssertionError(f"{alive} nodes did not come up: {done.stdout} {done.stderr[-2000:]}")


@contextmanager
def started_nodes() -> Iterator[Nodes]:
    """Nodes on ports and in a folder of their own; what was started is ended with the block."""
    folder = Path(tempfile.mkdtemp(prefix="nodes-"))  # the names of sockets in it must be short
    port, dashboard = free_port(), free_port()
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1",
                   "RAY_ADDRESS": f"127.0.0.1:{port}", "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    cluster = Nodes(folder, port, dashboard, environment, [])
    try:
        yield cluster
    finally:
        for node in cluster.started:
            if node.poll() is None:
                node.terminate()
        for node in cluster.started:
            try:
                node.wait(timeout=30)
            except subprocess.TimeoutExpired:
                os.killpg(node.pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    with started_nodes() as cluster:
        yield cluster


def descendants(process: int) -> list[int]:
    """A process and the children of all its threads, theirs, and so on."""
    found = [process]
    for number in found:
        for listing in Path(f"/proc/{number}/task").glob("*/children"):
            with suppress(OSError):  # the thread has ended
                found += [int(child) for child in listing.read_text().split()]
    return found


def lose(node: subprocess.Popen[bytes]) -> None:
    """Every process of the node at once, as when a spot machine is taken away."""
    for process in descendants(node.pid):
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue


def write_job(work: Path, market: MarketOnDisk, settings: MAPPOSettings, pause: float = 0.0) -> None:
    work.mkdir(exist_ok=True)
    job = {"spec": market.core_spec(), "settings": settings.model_dump(), "pause": pause}
    (work / "job.json").write_text(json.dumps(job))


def train(work: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    with (work / "driver.log").open("wb") as log:
        return subprocess.Popen([sys.executable, "-c", DRIVER, str(work)], cwd=REPOSITORY, env=environment,
                                stdout=log, stderr=log)


def steps_of(work: Path) -> list[int]:
    """Team decisions after every iteration so far."""
    return [int(step) for step in (work / "steps").read_text().split()] if (work / "steps").is_file() else []


def wait_for_steps(work: Path, count: int, driver: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + 300.0
    while len(steps_of(work)) < count:
        assert driver is None or driver.poll() is None, (work / "driver.log").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def assert_same_team(first: Path, second: Path) -> None:
    one, two = (dict(load_team(path / "run" / "team").module.state_dict()) for path in (first, second))
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name


def alone(work: Path, market: MarketOnDisk, settings: MAPPOSettings) -> None:
    """The same training without runners, learners or other nodes."""
    write_job(work, market, settings.model_copy(update={"num_env_runners": 0, "num_learners": 0}))
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": "local", "OMP_NUM_THREADS": "1"}
    driver = train(work, environment)
    assert driver.wait(300) == 0, (work / "driver.log").read_text()[-3000:]


def test_a_node_without_the_table_gets_a_copy_and_trains_to_the_same_bits(
        nodes: Nodes, training_market: MarketOnDisk, tmp_path: Path) -> None:
    probe = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False)
    if probe.returncode != 0:
        pytest.skip("mount namespaces need root: no machine without the table can be simulated")
    nodes.head()
    nodes.worker(hidden=training_market.market.parent, cache=str(nodes.folder / "cache"))
    nodes.wait_for(2)
    settings = small_settings(num_env_runners=1)  # its only processor is on the node without the table
    write_job(tmp_path / "cluster", training_market, settings)
    driver = train(tmp_path / "cluster", nodes.environment)
    assert driver.wait(300) == 0, (tmp_path / "cluster" / "driver.log").read_text()[-3000:]
    copied = nodes.folder / "cache" / "tables" / training_market.digest
    assert (copied / "market" / "close.npy").read_bytes() == (training_market.market / "close.npy").read_bytes()
    alone(tmp_path / "alone", training_market, settings)
    assert_same_team(tmp_path / "cluster", tmp_path / "alone")


@pytest.mark.parametrize("kind", ["runner", "learner"])
def test_a_lost_node_ends_nothing_and_changes_nothing(nodes: Nodes, training_market: MarketOnDisk, tmp_path: Path,
                                                      kind: str) -> None:
    settings = small_settings(env_steps=128 * 20, checkpoint_every=5,
                              **({"num_env_runners": 2} if kind == "runner" else {"num_learners": 1}))
    nodes.head()
    doomed = nodes.worker()
    nodes.wait_for(2)
    if kind == "runner":
        nodes.worker()
        nodes.wait_for(3)
    work = tmp_path / "cluster"
    write_job(work, training_market, settings, pause=0.2)
    driver = train(work, nodes.environment)
    wait_for_steps(work, 5, driver)
    if kind == "learner":  # the machine that replaces it
        nodes.worker()
        nodes.wait_for(3)
    lose(doomed)
    assert driver.wait(400) == 0, (work / "driver.log").read_text()[-3000:]
    assert steps_of(work) == [128 * n for n in range(1, 21)]  # no iteration was repeated or left out
    alone(tmp_path / "alone", training_market, settings)
    assert_same_team(work, tmp_path / "alone")


def submit(nodes: Nodes, arguments: list[str]) -> None:
    """`ray job submit`, which succeeds; the head and its agent need a moment before they take jobs."""
    for _ in range(12):
        done = subprocess.run([str(BIN / "ray"), "job", "submit", *arguments], cwd=REPOSITORY,
                              env=nodes.environment, capture_output=True, text=True, timeout=900, check=False)
        if "Failed to connect" not in done.stderr and "No available agent" not in done.stderr:
            break
        time.sleep(5.0)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_after_the_head_was_lost_a_new_one_goes_on_from_the_last_checkpoint(training_market: MarketOnDisk,
                                                                          tmp_path: Path) -> None:
    """The job's driver runs on the head and is lost with it; the checkpoints lie elsewhere."""
    settings = small_settings(env_steps=128 * 40, checkpoint_every=5, num_env_runners=1)
    work = tmp_path / "cluster"
    write_job(work, training_market, settings, pause=0.2)
    (work / "driver.py").write_text(DRIVER)
    job = ["--", sys.executable, str(work / "driver.py"), str(work)]
    with started_nodes() as lost:
        lost.head(dashboard=True)
        lost.worker()
        lost.wait_for(2)
        submit(lost, ["--no-wait", *job])
        wait_for_steps(work, 12)
        lose(lost.started[0])
        time.sleep(1.0)
        before = steps_of(work)
        time.sleep(3.0)
        assert steps_of(work) == before  # nobody trains on
    assert len(before) < 40
    assert not (work / "run" / "team").exists()
    newest = max(int(folder.name) for folder in (work / "run" / "checkpoint").iterdir() if folder.name.isdigit())
    with started_nodes() as fresh:
        fresh.head(dashboard=True)
        fresh.worker()
        fresh.wait_for(2)
        submit(fresh, job)
    after = steps_of(work)[len(before):]
    repeated = len(before) + len(after) - 40
    assert 0 <= repeated <= 5  # checkpoint_every
    assert after == [128 * n for n in range(len(before) - repeated + 1, 41)]
    assert after[0] == 128 * (newest + 1)
    alone(tmp_path / "alone", training_market, settings)
    assert_same_team(work, tmp_path / "alone")


def test_a_job_submitted_to_several_nodes_trains_the_phases(nodes: Nodes, tmp_path: Path) -> None:
    nodes.head(dashboard=True)
    nodes.worker()
    nodes.worker()
    nodes.wait_for(3)
    run_dir = tmp_path / "job"
    command = ["--working-dir", ".", "--", sys.executable, "-m", "training.run", "--config",
               "configs/quickstart.yaml", "--run-dir", str(run_dir), *TINY, "core.mappo.num_env_runners=1",
               "core.mappo.num_learners=1"]
    submit(nodes, command)
    for phase in ("rde", "mrms", "core"):
        assert json.loads((run_dir / phase / "phase.json").read_text())["status"] == "finished"
