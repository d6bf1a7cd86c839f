"""`algospace doctor` tells what is there, what is missing and what will not work."""

from __future__ import annotations

import json
import socket
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from algospace.cli import build_app
from serving import doctor
from tests.conftest import REPOSITORY
from tests.serving_market import random_bundle

WHEEL = "tensorrt_rtx_cu13_bindings"


def states(findings: list[doctor.Finding]) -> dict[str, str]:
    return {finding.what: finding.state for finding in findings}


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def test_a_sound_machine_has_no_fault_and_the_output_is_json() -> None:
    done = CliRunner().invoke(build_app(), ["doctor", "--json"])
    found = {line["what"]: line for line in json.loads(done.stdout)}
    assert {"python", "ray", "torch", "gpu", "tensorrt", "tensorrt-rtx", "haproxy", "mlflow",
            "ray cluster"} <= set(found)
    assert [line for line in found.values() if line["state"] == "fault"] == []
    assert done.exit_code == 0


def test_a_version_that_is_not_the_pinned_one_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version", lambda name: "0.0.1")
    assert states(list(doctor.versions()))["ray"] == "fault"


def test_a_taken_port_is_a_fault_and_a_free_one_is_not() -> None:
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        taken = listener.getsockname()[1]
        (finding,) = doctor.port_parts([taken])
        assert finding.state == "fault"
        done = CliRunner().invoke(build_app(), ["doctor", "--port", str(taken)])
        assert done.exit_code == 1
        assert f"port {taken}" in done.stdout
    (finding,) = doctor.port_parts([taken])
    assert finding.state == "ok"


def test_addresses_where_nobody_answers_are_faults_without_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:hunter2@127.0.0.1:1")
    assert states(list(doctor.serve_parts()))["ray cluster"] == "fault"
    (finding,) = doctor.tracking()
    assert finding.state == "fault"
    assert "hunter2" not in finding.found


@pytest.mark.parametrize(("module", "distribution"), [
    ("tensorrt_rtx_bindings", WHEEL), ("tensorrt_rtx", "tensorrt_rtx_cu13")])
def test_tensorrt_is_found_by_its_module_whatever_brought_it(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, distribution: str) -> None:
    """The wheel that our extra names, and NVIDIA's package of it, as pip leaves them."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])  # whatever is installed here
    found = {finding.what: finding for finding in doctor.engine_parts()}
    assert {finding.state for finding in found.values()} == {"note"}
    assert "pip install 'algospace[tensorrt-rtx]'" in found["tensorrt-rtx"].found
    info = tmp_path / f"{distribution}-1.7.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {distribution}\nVersion: 1.7.1\n")
    (info / "top_level.txt").write_text(f"{module}\n")
    found = {finding.what: finding for finding in doctor.engine_parts()}
    assert (found["tensorrt-rtx"].state, found["tensorrt-rtx"].found) == ("ok", f"{distribution} 1.7.1")
    assert found["tensorrt"].state == "note"


def test_the_wheel_whose_module_is_asked_for_is_the_one_that_the_extra_names() -> None:
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(line.startswith(f"{WHEEL}==") for line in extras["tensorrt-rtx"])


def test_a_bundle_decides_or_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    bundle = random_bundle(tmp_path / "bundle")
    (finding,) = doctor.bundle_parts(bundle.directory)
    assert finding.state == "ok"
    assert bundle.id[:12] in finding.found
    path = bundle.directory / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b"SYNTH", b"SYNTX"))
    (finding,) = doctor.bundle_parts(bundle.directory)
    assert finding.state == "fault"
