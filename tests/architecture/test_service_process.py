"""What a replica's process holds: what its decisions need, and no more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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
from serving.deployment import Replica, ServeSettings

folder, token, unneeded, requests = json.loads(sys.stdin.read())
settings = ServeSettings().app.model_dump(mode="json")
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


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, list[str], int]]:
    """Path -> (status, modules that are loaded then, torch's threads), of a new process."""
    import numpy as np

    from serving.client import request_of, row_of
    from serving.policy import BundlePolicy
    from tests.serving_market import accounts, random_bundle, serving_table

    bundle, table = random_bundle(tmp_path_factory.mktemp("replica") / "bundle"), serving_table()
    policy = BundlePolicy(bundle, table)
    row = int(np.flatnonzero(table.decision)[0])
    inputs = policy.inputs(row, accounts(table, row)[0])
    batch = {"schema_hash": bundle.manifest.schema_hash, "rows": [row_of(inputs)] * 2}
    requests: list[tuple[str, str, Any]] = [
        ("POST", "/v1/decide", request_of(bundle, inputs)), ("POST", "/v1/decide/batch", batch),
        ("GET", "/v1/health", None), ("GET", "/v1/metrics", None),
        ("POST", "/v1/explain", request_of(bundle, inputs))]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    ended = subprocess.run([sys.executable, "-c", REPLICA], cwd=ROOT, env=environment, timeout=240, check=False,
                           input=json.dumps((str(bundle.directory), TOKEN, UNNEEDED, requests)),
                           capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    found = json.loads(ended.stdout.splitlines()[-1])
    return {path: tuple(answer) for (_, path, _), answer in zip(requests, found, strict=True)}


@pytest.mark.parametrize("path", ["/v1/decide", "/v1/decide/batch", "/v1/health", "/v1/metrics"])
def test_a_replica_that_decides_loads_nothing_for_training(
        answers: dict[str, tuple[int, list[str], int]], path: str) -> None:
    assert answers[path] == (200, [], 0)


def test_an_explanation_brings_torch_on_one_thread(answers: dict[str, tuple[int, list[str], int]]) -> None:
    status, held, threads = answers["/v1/explain"]
    assert (status, held[0], threads) == (200, "torch", 1)
