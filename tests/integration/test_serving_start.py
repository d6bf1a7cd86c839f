"""A start that is broken off leaves no process, no folder and no variable behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from serving.auth import TOKEN_VARIABLE
from serving.deployment import start_service
from serving.ending import until
from tests.serving_market import random_bundle

TOKEN = "a-token-of-enough-length"
_STARTED_WITH = "ALGOSPACE_TEST_START"


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder for temporary files whose name leaves room for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def marked(mark: str) -> list[str]:
    """Command lines of the processes that were started with `mark`."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark.encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return [line for line in found if line]


def test_a_ray_that_does_not_start_leaves_nothing(tmp_path: Path, short: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = random_bundle(tmp_path / "bundle")
    monkeypatch.setattr(tempfile, "tempdir", str(short))
    monkeypatch.delitem(sys.modules, "ray.serve._private.constants", raising=False)  # as in a process of its own

    def broken(**_: object) -> None:
        assert list(short.iterdir())
        assert "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC" in os.environ
        raise ConnectionError("no room")

    monkeypatch.setattr(ray, "init", broken)
    before = dict(os.environ)
    with pytest.raises(ConnectionError, match="no room"):
        start_service(bundle.directory, TOKEN)
    assert list(short.iterdir()) == []
    assert dict(os.environ) == before


@pytest.mark.slow
@pytest.mark.parametrize(("reached", "sign"), [
    ("gcs_server", signal.SIGTERM), ("/raylet/raylet", signal.SIGTERM), ("/raylet/raylet", signal.SIGINT),
    ("ServeController", signal.SIGTERM)], ids=["gcs", "raylet", "raylet-interrupt", "serve"])
def test_a_signal_while_it_starts_ends_all_that_was_started(tmp_path: Path, short: Path, sign: signal.Signals,
                                                            reached: str) -> None:
    bundle = random_bundle(tmp_path / "bundle")
    mark = f"{os.getpid()}-{time.time_ns()}"
    process = subprocess.Popen(
        [sys.executable, "-m", "algospace.cli", "serve", "--bundle", str(bundle.directory)],
        env=os.environ | {_STARTED_WITH: mark, "TMPDIR": str(short), TOKEN_VARIABLE: TOKEN,
                          "RAY_AUTH_MODE": "disabled"},
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert until(lambda: any(reached in line for line in marked(mark)), 120)
        process.send_signal(sign)
        out, _ = process.communicate(timeout=120)
        assert (process.returncode > 0, out) == (True, "")  # it ended by itself, before it was ready
        assert until(lambda: not marked(mark), 10), marked(mark)
        assert not list(short.glob("as-*"))
    finally:
        process.kill()
        process.communicate()
