"""The manifests of configs/cluster name fields that KubeRay has, the pinned versions, and no secret."""

from __future__ import annotations

import copy
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from algospace import __version__
from algospace.config import load_config
from tests.conftest import REPOSITORY
from training.config import RunConfig

CLUSTER = REPOSITORY / "configs" / "cluster"
MANIFESTS = sorted(CLUSTER.glob("kuberay-*.yaml"))


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def cluster_spec(document: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = document["spec"]
    found: dict[str, Any] = spec["rayClusterSpec"] if document["kind"] == "RayJob" else spec
    return found


def errors(document: dict[str, Any]) -> list[str]:
    schema = yaml.safe_load((REPOSITORY / "tests" / "fixtures" / "kuberay_schema.yaml").read_text())
    validator = Draft202012Validator({"$defs": schema["$defs"], "$ref": f"#/$defs/{document['kind']}"})
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


def leaves(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key), inner
            yield from leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner)


@pytest.fixture(params=MANIFESTS, ids=lambda path: path.stem)
def document(request: pytest.FixtureRequest) -> dict[str, Any]:
    (found,) = documents(request.param)
    return found


def test_there_is_one_of_each_kind() -> None:
    assert {documents(path)[0]["kind"] for path in MANIFESTS} == {"RayCluster", "RayJob"}


def test_every_field_is_one_of_kuberay(document: dict[str, Any]) -> None:
    assert errors(document) == []


@pytest.mark.parametrize("damage", [
    lambda d: cluster_spec(d).update(headGroupspec={}),
    lambda d: cluster_spec(d)["workerGroupSpecs"][0].update(maxReplicas="16"),
    lambda d: cluster_spec(d)["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
    lambda d: cluster_spec(d)["workerGroupSpecs"][0]["template"]["spec"].pop("containers"),
    lambda d: d.update(apiVersion="ray.io/v2"),
])
def test_the_check_finds_what_is_wrong(document: dict[str, Any], damage: Any) -> None:
    broken = copy.deepcopy(document)
    damage(broken)
    assert errors(broken)


def test_versions_are_those_that_are_pinned(document: dict[str, Any]) -> None:
    pinned = re.search(r"^ray==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    torch = re.search(r"^torch==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert torch is not None
    dockerfile = (CLUSTER / "Dockerfile").read_text()
    assert f"FROM rayproject/ray:{pinned[1]}-py311" in dockerfile
    assert f"torch=={torch[1]}" in dockerfile
    assert cluster_spec(document)["rayVersion"] == pinned[1]
    assert {value for key, value in leaves(document) if key == "image"} == {f"algospace:{__version__}"}


def test_authentication_is_on_and_no_secret_is_written_down(document: dict[str, Any]) -> None:
    assert cluster_spec(document)["authOptions"] == {"mode": "token"}
    for key, value in leaves(document):
        assert not re.search(r"token|password|secret", key, re.IGNORECASE)
        assert not (key == "name" and re.search(r"TOKEN|PASSWORD|SECRET", str(value)))


def test_the_head_runs_drivers_only_and_every_mount_has_its_volume(document: dict[str, Any]) -> None:
    spec = cluster_spec(document)
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        assert {mount["name"] for c in pod["containers"] for mount in c.get("volumeMounts", [])} == volumes


def test_the_jobs_command_is_one_that_the_project_understands() -> None:
    (job,) = (documents(path)[0] for path in MANIFESTS if documents(path)[0]["kind"] == "RayJob")
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "training.run"]
    config, overrides = words[words.index("--config") + 1], [word for word in words if "=" in word]
    settings = load_config(RunConfig, REPOSITORY / config, overrides).core.mappo
    (workers,) = cluster_spec(job)["workerGroupSpecs"]
    processors = int(workers["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"])
    assert 0 < settings.num_env_runners + settings.num_learners <= workers["replicas"] * processors


def test_both_manifests_describe_the_same_machines() -> None:
    specs = [cluster_spec(documents(path)[0]) for path in MANIFESTS]
    assert specs[0]["headGroupSpec"] == specs[1]["headGroupSpec"]
    assert specs[0]["workerGroupSpecs"] == specs[1]["workerGroupSpecs"]
