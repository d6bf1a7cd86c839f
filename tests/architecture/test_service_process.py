"""What a replica's process holds: what its decisions need, and no more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "a-token-of-enough-length"
UNNEEDED = ("torch", "mlflow", "sklearn", "scipy.stats", "scipy.optimize", "sympy", "matplotlib", "gymnasium",
            "pettingzoo", "ray.rllib", "ray.tune", "training")
"""Each takes tens of megabytes and a second of the start."""
REPLICA = """
import asyncio, json, sys
from fastapi.testclient import TestClient
from serving.auth import token_digest
from serving.deployment import Replica

folder, token, settings, unneeded, requests = json.loads(sys.stdin.read())
replica = object.__new__(Replica)
asyncio.run(Replica.__init__(replica, folder, token_digest(token), settings, False))
answers = []
with TestClient(replica.__serve_build_asgi_app__(), headers={"Authorization": f"Bearer {token}"}) as client:
    for method, path, body in requests:
        answer = client.request(method, path, json=body)
        held = [name for name in unneeded if name in sys.modules]
        threads = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else 0
        answers.append((answer.status_code, held, threads))
print(json.dumps(answers))
"""


Answers = dict[str, tuple[int, list[str], int]]
"""Path -> (status, modules that are loaded then, torch's threads)."""


def answers_of(folder: Path, settings: Any, token: str) -> Answers:
    """What a new process with these settings answers."""
    import numpy as np

    from serving.client import request_of, row_of
    from serving.policy import BundlePolicy
    from tests.serving_market import accounts, random_bundle, serving_table

    bundle, table = random_bundle(folder / "bundle"), serving_table()
    policy = BundlePolicy(bundle, table)
    row = int(np.flatnonzero(table.decision)[0])
    inputs = policy.inputs(row, accounts(table, row)[0])
    inputs = replace(inputs, market=replace(inputs.market, ts_close_ns=time.time_ns()))
    batch = {"schema_hash": bundle.manifest.schema_hash, "rows": [row_of(inputs)] * 2}
    requests: list[tuple[str, str, Any]] = [
        ("POST", "/v1/decide", request_of(bundle, inputs)), ("POST", "/v1/decide/batch", batch),
        ("GET", "/v1/health", None), ("GET", "/v1/metrics", None),
        ("POST", "/v1/explain", request_of(bundle, inputs))]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    asked = json.dumps((str(bundle.directory), token, settings.model_dump(mode="json"), UNNEEDED, requests))
    ended = subprocess.run([sys.executable, "-c", REPLICA], cwd=ROOT, env=environment, timeout=240, check=False,
                           input=asked, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    found = json.loads(ended.stdout.splitlines()[-1])
    return {path: tuple(answer) for (_, path, _), answer in zip(requests, found, strict=True)}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    from serving.deployment import ServeSettings

    return answers_of(tmp_path_factory.mktemp("replica"), ServeSettings().app, TOKEN)


@pytest.mark.parametrize("path", ["/v1/decide", "/v1/decide/batch", "/v1/health", "/v1/metrics"])
def test_a_replica_that_decides_loads_nothing_for_training(answers: Answers, path: str) -> None:
    assert answers[path] == (200, [], 0)


def test_an_explanation_brings_torch_on_one_thread(answers: Answers) -> None:
    status, held, threads = answers["/v1/explain"]
    assert (status, held[0], threads) == (200, "torch", 1)


@pytest.mark.parametrize("profile", ["production", "production-gpu"])
def test_nor_does_one_with_the_shipped_production_settings(tmp_path: Path, profile: str) -> None:
    """On a machine without TensorRT: that a backend is not installed is found out without torch."""
    from algospace.config import load_config
    from serving.deployment import ServeSettings
    from serving.security.keys import rotate
    from serving.security.tokens import TokenIssuer
    from serving.security.users import UserStore

    if find_spec("tensorrt"):
        pytest.skip("TensorRT is installed here, and its backend uses torch")
    rotate(tmp_path / "keys")
    UserStore(tmp_path / "users.json").add("ann", "trader", "correct horse battery")
    settings = load_config(ServeSettings, ROOT / "configs" / "serve" / f"{profile}.yaml", [
        f"app.security.folder={tmp_path}", f"app.preconditions.kill_file={tmp_path / 'kill_switch.json'}",
        "app.service.deadline_ms=60000"]).app
    found = answers_of(tmp_path, settings, TokenIssuer(settings.security).issue("ann", "trader", 600)[0])
    del found["/v1/explain"]
    assert found == dict.fromkeys(found, (200, [], 0))
