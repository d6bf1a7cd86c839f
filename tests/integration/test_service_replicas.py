"""Two replicas of a service under load: a switch fails no request, a killed replica loses nothing."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from websockets.sync.client import connect

from serving.bundle import Bundle
from serving.client import ask, request_of
from serving.policy import BundlePolicy
from tests.integration.test_serving_cluster import command
from tests.serving_market import accounts, random_bundle, rows, serving_table

TOKEN = "a-token-of-enough-length"
MARK = "ALGOSPACE_SERVICE_UNDER_TEST"
pytestmark = pytest.mark.slow


class Running(NamedTuple):
    url: str
    bundles: list[Bundle]
    mark: str


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("replicas")
    bundles = [random_bundle(folder / str(seed), seed=seed) for seed in range(2)]
    (folder / "serve.yaml").write_text("replicas: 2\napp:\n  lifecycle:\n    require_checks: false\n")
    mark = f"{os.getpid()}-{time.time_ns()}"
    process = command("serve", "--bundle", bundles[0].directory, "--config", folder / "serve.yaml", "--json",
                      "--seconds", "600", **{MARK: mark, "ALGOSPACE_TOKEN": TOKEN})
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        pytest.fail(f"the service did not start: {process.communicate()[1][-2000:]}")
    yield Running(json.loads(line)["url"], bundles, mark)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)


def call(running: Running, method: str, path: str, body: Any = None) -> dict[str, Any]:
    request = urllib.request.Request(
        running.url + path, method=method, data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return dict(json.loads(answer.read()))


class Load(threading.Thread):
    """Asks one decision after the other until told to stop; a lost connection is one retry."""

    def __init__(self, running: Running, body: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self.running, self.body = running, body
        self.models: list[str] = []
        self.failures: list[str] = []
        self.retried = 0
        self.ending = threading.Event()

    def run(self) -> None:
        while not self.ending.is_set():
            try:
                self.models.append(ask(self.running.url, TOKEN, self.body, 60.0)["model"])
            except urllib.error.HTTPError as error:
                self.failures.append(f"{error.code}: {error.read()[:200]!r}")
            except OSError:
                self.retried += 1
            time.sleep(0.005)

    def end(self) -> None:
        self.ending.set()
        self.join(90)


@pytest.fixture(scope="module")
def body(running: Running) -> dict[str, Any]:
    table = serving_table()
    row = rows(table)[0]
    policy = BundlePolicy(running.bundles[0], table)
    return request_of(running.bundles[0], policy.inputs(row, accounts(table, row)[1]))


def champions(running: Running) -> dict[str, str]:
    return dict(call(running, "GET", "/v1/model")["replicas"])


def until_all_run(running: Running, model: str, seconds: float) -> float:
    started = time.monotonic()
    while (found := champions(running)).values() and (set(found.values()) != {model} or len(found) != 2):
        assert time.monotonic() - started < seconds, f"{found} instead of {model}"
        time.sleep(0.1)
    return time.monotonic() - started


def ports(pid: int) -> list[int]:
    """Where a process listens."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            inodes.add(os.readlink(link))
        except OSError:  # closed meanwhile
            continue
    lines = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return sorted({int(line[1].rpartition(":")[2], 16) for line in lines
                   if line[3] == "0A" and f"socket:[{line[9]}]" in inodes})


def test_every_replica_gives_the_same_bits(running: Running) -> None:
    """Asked past HAProxy, each by itself."""
    until_all_run(running, running.bundles[0].id, 60)
    table, bundle = serving_table(), running.bundles[0]
    policy = BundlePolicy(bundle, table)
    bodies = [request_of(bundle, policy.inputs(row, account)) for row in rows(table)[:30]
              for account in accounts(table, row)[:2]]
    answers: list[list[dict[str, Any]]] = []
    for pid in processes(running.mark):
        for port in ports(pid):
            url = f"http://127.0.0.1:{port}"
            try:
                ask(url, TOKEN, bodies[0], 10.0)
            except (OSError, ValueError):  # Ray's own ports speak no HTTP
                continue
            answers.append([ask(url, TOKEN, body, 60.0) for body in bodies])
    for found in answers:
        for answer in found:
            del answer["trace_id"], answer["latency_ms"]
    assert len(answers) == 2
    assert answers[0] == answers[1]
    assert len({answer["confidence"] for answer in answers[0]}) > 10


def test_a_switch_under_load_reaches_both_replicas_and_fails_nothing(running: Running,
                                                                     body: dict[str, Any]) -> None:
    first, second = (bundle.id for bundle in running.bundles)
    until_all_run(running, first, 60)
    load = [Load(running, body) for _ in range(2)]
    for thread in load:
        thread.start()
    url = running.url.replace("http", "ws") + "/v1/stream"
    with connect(url, additional_headers={"Authorization": f"Bearer {TOKEN}"}) as stream:
        seen = json.loads(stream.recv(60))
        assert seen["type"] == "snapshot"
        last = seen["seq"]
        call(running, "POST", "/v1/model", {"source": str(running.bundles[1].directory)})
        seconds = until_all_run(running, second, 60)
        call(running, "POST", "/v1/model", {"rollback": True})
        until_all_run(running, first, 60)
        told: list[str] = []
        while told[-2:] != [second, first]:
            message = json.loads(stream.recv(60))
            if message["type"] == "delta":
                assert message["seq"] == last + 1
                last = message["seq"]
                if message["topic"] == "model":
                    told.append(message["data"]["champion"])
        delays = sorted((time.time_ns() - json.loads(stream.recv(60)).get("ts_ns", 0)) / 1e6 for _ in range(100))
    for thread in load:
        thread.end()
    answered = sum(len(thread.models) for thread in load)
    print(f"both replicas on the new model after {seconds:.2f} s; {answered} answers; an event is at the client "
          f"{delays[50]:.1f} ms (median) after it was made")
    assert [thread.failures for thread in load] == [[], []]
    assert sum(thread.retried for thread in load) == 0
    assert {model for thread in load for model in thread.models} == {first, second}


def processes(mark: str, name: bytes = b"ServeReplica") -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if (entry.name.isdigit() and mark.encode() in (entry / "environ").read_bytes()
                    and name in (entry / "cmdline").read_bytes()):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_a_killed_replica_loses_nothing(running: Running, body: dict[str, Any]) -> None:
    """And one that is started in its place takes the alias, not the configured bundle."""
    second = running.bundles[1].id
    call(running, "POST", "/v1/model", {"source": str(running.bundles[1].directory)})
    until_all_run(running, second, 60)
    stream = call(running, "GET", "/v1/signals?limit=1")
    assert stream["decisions"]
    before = processes(running.mark)
    assert len(before) == 2
    load = Load(running, body)
    load.start()
    os.kill(before[0], signal.SIGKILL)
    deadline = time.monotonic() + 120
    while len(processes(running.mark)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    until_all_run(running, second, 120)
    load.end()
    print(f"{len(load.models)} answers, {load.retried} retried while a replica was killed")
    assert load.failures == []
    assert set(load.models) == {second}
    assert load.retried <= 1


def test_a_killed_hub_is_a_new_stream_with_the_same_champion(running: Running, body: dict[str, Any]) -> None:
    champion = call(running, "GET", "/v1/model")["champion"]
    url = running.url.replace("http", "ws") + "/v1/stream"
    with connect(url, additional_headers={"Authorization": f"Bearer {TOKEN}"}) as stream:
        first = json.loads(stream.recv(60))
        load = Load(running, body)
        load.start()
        (hub,) = processes(running.mark, b"HubBody")
        os.kill(hub, signal.SIGKILL)
        message = first
        while message["type"] != "snapshot" or message["stream"] == first["stream"]:
            message = json.loads(stream.recv(120))
        load.end()
    assert load.failures == []
    assert load.retried == 0
    assert set(load.models) == {champion}
    until_all_run(running, champion, 120)


def test_the_kill_switch_reaches_both_replicas_and_outlives_the_hub(running: Running) -> None:
    table = serving_table()
    row = rows(table)[0]
    inputs = BundlePolicy(running.bundles[0], table).inputs(row, accounts(table, row)[0])
    flat = request_of(running.bundles[0], inputs)

    def reasons(count: int = 40) -> set[str]:  # each on a connection of its own: both replicas are asked
        return {ask(running.url, TOKEN, flat, 60.0)["reason"] for _ in range(count)}

    assert "KILL_SWITCH" not in reasons()
    assert call(running, "POST", "/v1/kill", {"why": "odd fills"})["shared"] is True
    started = time.monotonic()
    while reasons(20) != {"KILL_SWITCH"}:
        assert time.monotonic() - started < 10
    (hub,) = processes(running.mark, b"HubBody")
    os.kill(hub, signal.SIGKILL)
    deadline = time.monotonic() + 120
    while not processes(running.mark, b"HubBody") or hub in processes(running.mark, b"HubBody"):
        assert time.monotonic() < deadline
        assert reasons(5) == {"KILL_SWITCH"}
    victim = processes(running.mark)[0]  # whoever takes its place asks the new hub
    os.kill(victim, signal.SIGKILL)
    while len(processes(running.mark)) < 2 or victim in processes(running.mark):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert reasons() == {"KILL_SWITCH"}
    assert call(running, "POST", "/v1/rearm", {"why": "right again"})["thrown"] is False
    started = time.monotonic()
    while "KILL_SWITCH" in reasons(20):
        assert time.monotonic() - started < 30
