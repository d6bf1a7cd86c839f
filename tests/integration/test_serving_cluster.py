"""The service as users start it: `algospace serve` in its own process, behind HAProxy, and gone after Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from algospace.features.market_table import MarketTable
from serving.bundle import Bundle
from serving.client import ask, request_of
from serving.policy import BundlePolicy
from serving.security.audit import AUDIT, read
from tests.ray_callers import answers
from tests.serving_market import accounts, random_bundle, rows, serving_table

TOKEN = "a-token-of-enough-length"
_STARTED_WITH = "ALGOSPACE_SERVICE_UNDER_TEST"


class Service(NamedTuple):
    process: subprocess.Popen[str]
    url: str
    bundle: Bundle
    mark: str
    audit: Path


def command(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """`algospace ...` in a process of its own, whose descendants can be told by their environment."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.Popen(
        [sys.executable, "-m", "algospace.cli", *map(str, arguments)], text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env=plain | {"OMP_NUM_THREADS": "1"} | environment)


def processes(mark: str) -> list[str]:
    """Ids of live processes that carry `mark` in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if mark.encode() in (entry / "environ").read_bytes():
                found.append(entry.name)
        except OSError:  # gone, or another user's
            continue
    return found


def descendants(mark: str) -> list[str]:
    """Command lines of those."""
    found = []
    for process in processes(mark):
        try:
            found.append(Path("/proc", process, "cmdline").read_text().replace("\0", " "))
        except OSError:  # gone
            continue
    return [line for line in found if line]


@pytest.fixture(scope="module")
def table() -> MarketTable:
    return serving_table()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    bundle = random_bundle(folder / "bundle")
    (folder / "serve.yaml").write_text(
        f"app: {{security: {{folder: {folder / 'security'}}}, service: {{log_requests: all}}}}\n")
    mark = f"{os.getpid()}-{time.time_ns()}"
    process = command("serve", "--bundle", bundle.directory, "--config", folder / "serve.yaml", "--json",
                      "--seconds", "300", **{_STARTED_WITH: mark, "ALGOSPACE_TOKEN": TOKEN})
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        pytest.fail(f"the service did not start: {process.communicate()[1][-2000:]}")
    started: dict[str, Any] = json.loads(line)
    yield Service(process, started["url"], bundle, mark, folder / "security" / AUDIT)
    process.kill()
    process.communicate()


def test_the_service_answers_what_the_policy_decides(service: Service, table: MarketTable) -> None:
    policy = BundlePolicy(service.bundle, table)
    for row in rows(table, 8):
        for account in accounts(table, row):
            expected = policy.decide(row, account)
            answer = ask(service.url, TOKEN, request_of(service.bundle, policy.inputs(row, account), f"row-{row}"))
            assert (answer["reason"], answer["direction"]) == (expected.reason.value, expected.direction)
            assert answer["confidence"] == pytest.approx(expected.confidence, abs=1e-5)
            assert (answer["model"], answer["trace_id"]) == (service.bundle.id, f"row-{row}")


def test_refusals_pass_through_the_proxy(service: Service, table: MarketTable) -> None:
    policy = BundlePolicy(service.bundle, table)
    row = rows(table)[0]
    body = request_of(service.bundle, policy.inputs(row, accounts(table, row)[0]))
    for token, broken, status in (("wrong", body, 401), (TOKEN, body | {"seed": -1}, 422),
                                  (TOKEN, body | {"schema_hash": "0" * 64}, 409)):
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(service.url, token, broken)
        assert refused.value.code == status
    with urllib.request.urlopen(f"{service.url}/v1/health", timeout=10) as answer:
        assert json.loads(answer.read())["model"] == service.bundle.id


def test_nobody_says_himself_where_he_calls_from(service: Service) -> None:
    """No proxy is configured: what a caller writes into X-Forwarded-For is neither logged nor counted."""
    request = urllib.request.Request(f"{service.url}/v1/model", headers={
        "Authorization": "Bearer wrong", "X-Forwarded-For": "203.0.113.7"})
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(request, timeout=10)
    deadline = time.monotonic() + 10
    while not (refused := [line for line in read(service.audit) if line["path"] == "/v1/model"]):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert [line["address"] for line in refused] == ["127.0.0.1"]


def test_ray_beneath_the_service_answers_nobody_without_its_token(service: Service, tmp_path: Path) -> None:
    """It listens on all interfaces, and whoever reaches it may run what he likes."""
    (address,) = {found for line in descendants(service.mark)
                  for found in re.findall(r"--gcs-address=(\S+)", line)}
    variables = [pair for process in processes(service.mark)
                 for pair in Path("/proc", process, "environ").read_text().split("\0")]
    own = dict(pair.split("=", 1) for pair in variables if pair.startswith("RAY_AUTH"))
    assert answers(address, **own)
    assert not answers(address, RAY_AUTH_MODE="disabled", HOME=str(tmp_path))


def test_the_log_of_a_replica_is_where_ray_keeps_what_its_processes_say(service: Service) -> None:
    with urllib.request.urlopen(f"{service.url}/v1/health", timeout=10) as answer:
        trace = answer.headers["x-trace-id"]
    errors = {os.readlink(f"/proc/{process}/fd/2") for process in processes(service.mark)}
    files = [Path(name) for name in errors if name.endswith(".err")]
    assert {file.parent.name for file in files} == {"logs"}
    deadline = time.monotonic() + 10
    while not (found := [line for file in files for line in file.read_text().splitlines() if trace in line]):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (line,) = map(json.loads, found)
    assert (line["event"], line["path"], line["status"]) == ("request", "/v1/health", 200)


def test_the_proxy_is_haproxy_and_nothing_is_left_after_an_interrupt(service: Service) -> None:
    """Runs last: it ends the service."""
    running = descendants(service.mark)
    assert any("haproxy" in line for line in running)
    assert any("raylet" in line for line in running)
    service.process.send_signal(signal.SIGINT)
    said, errors = service.process.communicate(timeout=60)
    assert service.process.returncode == 0, errors[-2000:]
    assert (said, "graceful_shutdown" in errors) == ("", False)  # one line when it was ready, and none at the end
    deadline = time.monotonic() + 15
    while (left := descendants(service.mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []
