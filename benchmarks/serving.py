"""The decision service over HTTP on 127.0.0.1: Ray Serve behind HAProxy, and the same application under plain
uvicorn in the same run.

    steady     POST /v1/decide at a fixed rate over one kept-alive connection; latency counts from the due time, so
               that a stall also costs the requests behind it
    sustained  as fast as a few connections can, for a few seconds
    batch      256 instruments per request, as an Arrow stream and as JSON
    start      from nothing to the first decision, and the resident memory of each replica, at last, after batches

Aims on 2 idle cores: p50 < 2 ms and p99 < 5 ms at 50 requests/s, at most 2.5 x uvicorn's p50; 800 decisions/s;
5,000 decisions/s in Arrow batches; start < 15 s; 600 MB per replica. Prints a table and asserts nothing.
Every load ends by itself, and everything that is started is stopped, whatever happens.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np

from serving.app import create_app
from serving.auth import StaticToken, token_digest
from serving.batch import BatchInputs
from serving.batch_arrow import MEDIA_TYPE, encode, table_of
from serving.bundle import Bundle, load_bundle
from serving.client import request_of, row_of
from serving.deployment import ServeSettings, free_port, start_service
from serving.limits import LimitsSettings
from serving.policy import BundlePolicy
from serving.service import AppSettings
from tests.serving_market import accounts, random_bundle, serving_table

TOKEN = "a-token-of-enough-length"
JSON = "application/json"
BATCH = 256
CONNECTIONS = 4
SETTINGS = AppSettings(service=LimitsSettings(deadline_ms=10_000))
MARK = "ALGOSPACE_BENCHMARK_RUN"
_START_TIMEOUT_S = 90.0


class Bodies:
    """The requests that are sent."""

    def __init__(self, bundle: Bundle) -> None:
        table = serving_table()
        policy = BundlePolicy(bundle, table)
        rows = [int(row) for row in np.flatnonzero(table.decision)[:100]]
        inputs = [policy.inputs(row, accounts(table, row)[0]) for row in rows]
        self.single = [json.dumps(request_of(bundle, one)).encode() for one in inputs]
        many = [inputs[i % len(inputs)] for i in range(BATCH)]
        self.arrow = encode(table_of(BatchInputs.of(many, np.stack([one.regime for one in many])), bundle))
        self.json = json.dumps({"schema_hash": bundle.manifest.schema_hash,
                                "rows": [row_of(one) for one in many]}).encode()


class Connection:
    """One kept-alive connection on a bare socket: a request is one packet, an answer is read as it comes, because
    http.client's two packets and mail parser would be 0.3 ms of the service's figure."""

    def __init__(self, url: str) -> None:
        address = urlparse(url)
        self._url, self._host, self._port = url, address.hostname or "127.0.0.1", address.port or 80
        self._open()

    def _open(self) -> None:
        self._socket = socket.create_connection((self._host, self._port), timeout=30)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""

    def post(self, path: str, body: bytes, media_type: str = JSON) -> tuple[int, bytes]:
        """(status, answer). A connection that is closed before anything comes (HAProxy reads its settings anew
        soon after the start) is opened again, once."""
        try:
            return self._post(path, body, media_type)
        except ConnectionError:
            if self._rest:
                raise
            self.close()
            self._open()
            return self._post(path, body, media_type)

    def _post(self, path: str, body: bytes, media_type: str) -> tuple[int, bytes]:
        self._socket.sendall(f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nAuthorization: Bearer {TOKEN}\r\n"
                             f"Content-Type: {media_type}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        head = self._until(b"\r\n\r\n").lower()
        if b"\r\ntransfer-encoding: chunked" in head:
            parts = []
            while size := int(self._until(b"\r\n").partition(b";")[0], 16):
                parts.append(self._exactly(size + 2)[:-2])
            self._exactly(2)
            answer = b"".join(parts)
        else:
            answer = self._exactly(int(head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]))
        return int(head[9:12]), answer

    def _more(self) -> bytes:
        part = self._socket.recv(1 << 20)
        if not part:
            raise ConnectionError(f"{self._url} closed the connection")
        return part

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._rest:
            self._rest += self._more()
        found, _, self._rest = self._rest.partition(mark)
        return found

    def _exactly(self, size: int) -> bytes:
        parts, length = [self._rest], len(self._rest)
        while length < size:
            parts.append(self._more())
            length += len(parts[-1])
        joined = b"".join(parts)
        self._rest = joined[size:]
        return joined[:size]

    def sure(self, path: str, body: bytes, media_type: str = JSON) -> bytes:
        """The answer of a request that must succeed."""
        status, answer = self.post(path, body, media_type)
        if status != 200:
            raise RuntimeError(f"{self._url} answered {status}: {answer[:200]!r}")
        return answer

    def close(self) -> None:
        """Close it."""
        self._socket.close()


def steady(url: str, bodies: Bodies, rate: float, seconds: float) -> dict[str, float]:
    """Send `rate` requests per second for `seconds`; milliseconds from due time to answer."""
    connection = Connection(url)
    taken, inside = [], []
    started = time.perf_counter() + 0.1
    for i in range(round(rate * seconds)):
        due = started + i / rate
        time.sleep(max(0.0, due - time.perf_counter()))
        answer = connection.sure("/v1/decide", bodies.single[i % len(bodies.single)])
        taken.append(time.perf_counter() - due)
        inside.append(json.loads(answer)["latency_ms"])
    connection.close()
    p50, p99 = np.percentile(taken, [50, 99]) * 1e3
    return {"p50_ms": float(p50), "p99_ms": float(p99), "inside_p50_ms": float(np.median(inside))}


def sustained(url: str, bodies: Bodies, seconds: float) -> dict[str, float]:
    """Decisions per second over CONNECTIONS connections, each sending its next at once; 503 counts apart."""
    done, refused, faults = [0] * CONNECTIONS, [0] * CONNECTIONS, []
    until = time.perf_counter() + seconds

    def send(number: int) -> None:
        connection = Connection(url)
        try:
            while time.perf_counter() < until:
                status, answer = connection.post("/v1/decide", bodies.single[done[number] % len(bodies.single)])
                if status not in (200, 503):
                    raise RuntimeError(f"{status}: {answer[:200]!r}")
                (done if status == 200 else refused)[number] += 1
        except (OSError, RuntimeError, ValueError) as error:
            faults.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=send, args=(number,)) for number in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]
    return {"decisions_per_s": sum(done) / seconds, "refused_per_s": sum(refused) / seconds}


def batches(url: str, bodies: Bodies, seconds: float) -> dict[str, float]:
    """Decisions per second in requests of BATCH rows over one connection, in both forms."""
    figures = {}
    connection = Connection(url)
    for name, body, media_type in (("arrow", bodies.arrow, MEDIA_TYPE), ("json", bodies.json, JSON)):
        connection.sure("/v1/decide/batch", body, media_type)
        count, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            connection.sure("/v1/decide/batch", body, media_type)
            count += BATCH
        figures[f"batch_{name}_per_s"] = count / (time.perf_counter() - started)
    connection.close()
    return figures


def load(url: str, bodies: Bodies, rate: float, seconds: float) -> dict[str, float]:
    """All loads, after a warm-up."""
    steady(url, bodies, rate, 1.0)
    return (steady(url, bodies, rate, seconds) | sustained(url, bodies, seconds / 2)
            | batches(url, bodies, seconds / 4))


def replica_processes(mark: str) -> list[int]:
    """Ids of this run's replicas, the oldest first."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
                if line.startswith(b"ray::ServeReplica") and mark.encode() in environment:
                    found.append(int(entry.name))
            except OSError:  # gone, or another user's
                continue
    return sorted(found)


def replica_memory_mb(mark: str) -> list[float]:
    """Resident memory of this run's replicas."""
    pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in replica_processes(mark)]
    return [count * os.sysconf("SC_PAGE_SIZE") / 1e6 for count in pages]


def replica_share_mb(mark: str) -> list[float]:
    """Proportional memory of this run's replicas: pages that several processes hold count in parts."""
    rolls = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in replica_processes(mark)]
    return [int(roll.partition("\nPss:")[2].split()[0]) * 1024 / 1e6 for roll in rolls]


def under_uvicorn(directory: Path, bodies: Bodies, rate: float, seconds: float) -> dict[str, float]:
    """The peer: one uvicorn process, no Ray, no proxy."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.serving", "--uvicorn", str(port),
                                "--bundle", str(directory)])
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not ready(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("uvicorn did not start")
            time.sleep(0.1)
        return load(url, bodies, rate, seconds)
    finally:
        process.terminate()
        process.wait(10)


def ready(url: str) -> bool:
    """Whether a service answers there."""
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
    app = create_app(load_bundle(directory), SETTINGS, StaticToken(token_digest(TOKEN)))
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", access_log=False)


def under_serve(directory: Path, bodies: Bodies, rate: float, seconds: float) -> dict[str, float]:
    """Ray Serve with one replica behind HAProxy; first the time to its first decision."""
    mark = os.environ[MARK] = uuid.uuid4().hex
    started = time.perf_counter()
    with start_service(directory, TOKEN, settings=ServeSettings(app=SETTINGS)) as service:
        connection = Connection(service.url)
        connection.sure("/v1/decide", bodies.single[0])
        connection.close()
        first = time.perf_counter() - started
        figures = load(service.url, bodies, rate, seconds)
        memory, share = replica_memory_mb(mark), replica_share_mb(mark)
    return figures | {"start_to_first_decision_s": first, "replica_mb": max(memory, default=float("nan")),
                      "replica_pss_mb": max(share, default=float("nan"))}


def print_table(columns: dict[str, dict[str, float]]) -> None:
    """Figures by row, services by column."""
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    print(f"{'':28}" + "".join(f"{name:>22}" for name in columns))
    for name in names:
        cells = (f"{column[name]:22.4g}" if name in column else f"{'':22}" for column in columns.values())
        print(f"{name:28}" + "".join(cells))


def main() -> None:
    """Measure both and print a table, or with --json one object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--uvicorn", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--bundle", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.uvicorn:
        serve_with_uvicorn(options.bundle, options.uvicorn)
        return
    with tempfile.TemporaryDirectory() as folder:
        bundle = random_bundle(Path(folder) / "bundle")
        bodies = Bodies(bundle)
        ours = under_serve(bundle.directory, bodies, options.rate, options.seconds)
        peer = under_uvicorn(bundle.directory, bodies, options.rate, options.seconds)
    ratio = {name: ours[name] / peer[name] for name in peer if peer[name] and name in ours}
    columns: dict[str, dict[str, float]] = {"ray_serve_haproxy": ours, "uvicorn": peer, "ratio": ratio}
    if options.json:
        shown: dict[str, Any] = {k: {n: float(f"{v:.4g}") for n, v in r.items()} for k, r in columns.items()}
        print(json.dumps(shown | {"load_average": os.getloadavg()[0]}, indent=2))
    else:
        print_table(columns)
        print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
