"""`ray job submit` against a local head node: the job trains, and its client sees success."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.integration.test_quickstart import TINY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def head(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A head node of our own; ended with its own processes only."""
    port, dashboard = free_port(), free_port()
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    node = subprocess.Popen(
        [str(BIN / "ray"), "start", "--head", "--block", f"--port={port}", "--num-cpus=2",
         "--include-dashboard=true",
         f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", "--node-ip-address=127.0.0.1",
         "--min-worker-port=20000", "--max-worker-port=20999"],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield {**environment, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    finally:
        node.terminate()
        node.wait(timeout=60)


def test_a_submitted_job_trains_the_phases(head: dict[str, str], tmp_path: Path) -> None:
    run_dir = tmp_path / "job"
    command = [str(BIN / "ray"), "job", "submit", "--working-dir", ".", "--", sys.executable, "-m", "training.run",
               "--config", "configs/quickstart.yaml", "--run-dir", str(run_dir), *TINY]
    for _ in range(12):  # the head and its agent need a moment before they take jobs
        done = subprocess.run(command, cwd=REPOSITORY, env=head, capture_output=True, text=True, timeout=900)
        if "Failed to connect" not in done.stderr and "No available agent" not in done.stderr:
            break
        time.sleep(5.0)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "succeeded" in done.stdout
    for phase in ("rde", "mrms", "core"):
        assert json.loads((run_dir / phase / "phase.json").read_text())["status"] == "finished"
    assert (run_dir / "report" / "report.html").is_file()
