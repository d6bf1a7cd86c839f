"""The shipped production files on a cluster of our own: `ray start`, `serve deploy`, signed tokens, a decision."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from serving.bundle import Bundle
from serving.client import Client, ServiceRefusal, request_of
from serving.deployment import _scratch_directory, free_port, free_ports, serve_environment
from serving.ending import until
from serving.policy import BundlePolicy
from tests.conftest import REPOSITORY
from tests.serving_market import accounts, random_bundle, rows, serving_table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
BIN = Path(sys.executable).parent


class Deployed(NamedTuple):
    """A cluster, and where its service is."""

    url: str
    dashboard: str
    bundle: Bundle
    folder: Path
    environment: dict[str, str]

    def run(self, *command: object, check: bool = True) -> str:
        """What a program of this environment says."""
        done = subprocess.run([str(BIN / str(command[0])), *map(str, command[1:])], env=self.environment,
                              text=True, capture_output=True, timeout=300, check=False, cwd=REPOSITORY)
        assert not check or done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
        return done.stdout + done.stderr

    def token(self, role: str) -> str:
        """Of the user who is named like the role."""
        return self.run("algospace", "user", "token", role, "--folder", self.folder / "security").splitlines()[0]


def written(file: Path, source: str, change: Callable[[Any], None]) -> Path:
    """A shipped file with what differs from site to site."""
    values = yaml.safe_load((REPOSITORY / source).read_text())
    change(values)
    file.write_text(yaml.safe_dump(values))
    return file


def ready(url: str) -> bool:
    with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{url}/v1/ready", timeout=5) as answer:
        return bool(answer.status == 200)
    return False


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    folder = tmp_path_factory.mktemp("deploy")
    bundle, port, scratch = random_bundle(folder / "bundle"), free_port(), _scratch_directory()
    head, dashboard, agent = free_port(), free_port(), free_ports(1)
    # what configs/cluster/serve.env sets, and ports that no other cluster of the machine has
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= serve_environment(scratch) | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32),
                                                 "ALGOSPACE_PASSWORD": "a-long-password-1"}
    made = Deployed(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", bundle, folder, environment)
    security = folder / "security"

    def service(values: dict[str, Any]) -> None:
        values["cpus_per_replica"] = 0.5
        values["app"]["security"]["folder"] = str(security)
        values["app"]["preconditions"] |= {  # the bars asked about are of a made-up past
            "kill_file": str(security / "kill_switch.json"), "max_age_s": None, "trading_hours": False}
        values["app"]["service"]["deadline_ms"] = 5000  # on a machine that runs tests

    def cluster(values: dict[str, Any]) -> None:
        values["http_options"] |= {"port": port}
        values["applications"][0]["args"] = {
            "bundle": str(bundle.directory),
            "config": str(written(folder / "service.yaml", "configs/serve/production.yaml", service))}

    made.run("algospace", "keys", "rotate", "--folder", security)
    for role in ("trader", "viewer"):
        made.run("algospace", "user", "add", role, "--role", role, "--folder", security)
    written(folder / "deploy.yaml", "configs/cluster/serve-production.yaml", cluster)
    node = subprocess.Popen(
        [str(BIN / "ray"), "start", "--head", "--block", f"--port={head}", "--num-cpus=2",
         "--include-dashboard=true", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1",
         f"--dashboard-agent-listen-port={agent}", "--node-ip-address=127.0.0.1", "--min-worker-port=21000",
         "--max-worker-port=21999"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        said = [""]

        def deploy() -> bool:  # the dashboard needs a moment before it takes applications
            said[0] = made.run("serve", "deploy", folder / "deploy.yaml", "-a", made.dashboard, check=False)
            return "Sent deploy request successfully" in said[0]

        assert until(deploy, 120), said[0]
        assert until(lambda: ready(made.url), 180)
        yield made
        made.run("serve", "shutdown", "-y", "-a", made.dashboard)
        assert until(lambda: not ready(made.url), 60)
    finally:
        node.terminate()
        node.wait(timeout=60)


def test_a_trader_gets_what_the_policy_decides_from_both_replicas(deployed: Deployed) -> None:
    table = serving_table()
    policy = BundlePolicy(deployed.bundle, table)
    with Client(deployed.url, deployed.token("trader"), timeout_s=30.0) as client:
        for row in rows(table, 8):
            for account in accounts(table, row):
                expected = policy.decide(row, account)
                answer = client.decide(request_of(deployed.bundle, policy.inputs(row, account)))
                assert (answer.reason, answer.direction) == (expected.reason.value, expected.direction)
                assert answer.confidence == pytest.approx(expected.confidence, abs=1e-5)
    status = deployed.run("serve", "status", "-a", deployed.dashboard)
    assert "RUNNING: 2" in status
    assert "HEALTHY" in status


def test_others_are_refused(deployed: Deployed) -> None:
    table = serving_table()
    policy = BundlePolicy(deployed.bundle, table)
    row = rows(table)[0]
    body = request_of(deployed.bundle, policy.inputs(row, accounts(table, row)[0]))
    for token, status in (("none", 401), (deployed.token("viewer"), 403)):
        with Client(deployed.url, token) as client, pytest.raises(ServiceRefusal) as refused:
            client.decide(body)
        assert refused.value.status == status
