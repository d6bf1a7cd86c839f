"""POST /v1/decide over HTTP on 127.0.0.1 at a fixed rate: Ray Serve behind HAProxy, and the same application
under plain uvicorn as the peer.

Requests are sent at their due times over one kept-alive connection; latency counts from the due time, so that a
stall also costs the requests behind it. Must: p99 below 10 ms at 50 requests/s (budget: p50 < 2, p99 < 5 ms).
Everything that is started is stopped, whatever happens.
"""

from __future__ import annotations

import argparse
import http.client
import json
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlparse

import numpy as np

from serving.app import create_app
from serving.auth import StaticToken, token_digest
from serving.bundle import load_bundle
from serving.client import request_of
from serving.deployment import free_port, start_service
from serving.policy import BundlePolicy
from serving.service import AppSettings
from tests.serving_market import accounts, random_bundle, serving_table

TOKEN = "a-token-of-enough-length"
_START_TIMEOUT_S = 90.0


def drive(url: str, bodies: list[bytes], rate: float, seconds: float) -> dict[str, float]:
    """Send `rate` requests per second for `seconds`; milliseconds from due time to answer."""
    address = urlparse(url)
    connection = http.client.HTTPConnection(address.hostname or "127.0.0.1", address.port, timeout=10)
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    taken, inside = [], []
    started = time.perf_counter() + 0.1
    for i in range(round(rate * seconds)):
        due = started + i / rate
        time.sleep(max(0.0, due - time.perf_counter()))
        connection.request("POST", "/v1/decide", bodies[i % len(bodies)], headers)
        answer = connection.getresponse()
        body = answer.read()
        taken.append(time.perf_counter() - due)
        if answer.status != 200:
            raise RuntimeError(f"{url} answered {answer.status}: {body[:200]!r}")
        inside.append(json.loads(body)["latency_ms"])
    connection.close()
    p50, p99 = np.percentile(taken, [50, 99]) * 1e3
    return {"p50_ms": float(p50), "p99_ms": float(p99), "decision_p50_ms": float(np.median(inside)),
            "requests": float(len(taken))}


def under_uvicorn(directory: Path, bodies: list[bytes], rate: float, seconds: float) -> dict[str, float]:
    """The peer: one uvicorn process, no Ray, no proxy."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.serving", "--uvicorn", str(port),
                                "--bundle", str(directory)])
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not _ready(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("uvicorn did not start")
            time.sleep(0.1)
        drive(url, bodies, rate, 1.0)
        return drive(url, bodies, rate, seconds)
    finally:
        process.terminate()
        process.wait(10)


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/v1/ready", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def serve_with_uvicorn(directory: Path, port: int) -> None:
    """Run the peer until it is terminated."""
    import torch
    import uvicorn

    torch.set_num_threads(1)
    app = create_app(load_bundle(directory), AppSettings(), StaticToken(token_digest(TOKEN)))
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", access_log=False)


def main() -> None:
    """Measure both and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--uvicorn", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--bundle", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.uvicorn:
        serve_with_uvicorn(options.bundle, options.uvicorn)
        return
    with tempfile.TemporaryDirectory() as folder:
        bundle, table = random_bundle(Path(folder) / "bundle"), serving_table()
        policy = BundlePolicy(bundle, table)
        rows = np.flatnonzero(table.decision)[:100]
        bodies = [json.dumps(request_of(bundle, policy.inputs(int(r), accounts(table, int(r))[0]))).encode()
                  for r in rows]
        with start_service(bundle.directory, TOKEN) as service:
            drive(service.url, bodies, options.rate, 1.0)
            ours = drive(service.url, bodies, options.rate, options.seconds)
        peer = under_uvicorn(bundle.directory, bodies, options.rate, options.seconds)
    result = {"ray_serve_haproxy": ours, "uvicorn": peer,
              "ratio": {name: ours[name] / peer[name] for name in ("p50_ms", "p99_ms")}}
    print(json.dumps({k: {n: float(f"{v:.4g}") for n, v in r.items()} for k, r in result.items()}, indent=2))


if __name__ == "__main__":
    main()
