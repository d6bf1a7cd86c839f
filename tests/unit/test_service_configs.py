"""Serve configurations, KubeRay's manifest and the images: they load, agree and keep production's promises."""

from __future__ import annotations

import copy
import importlib
import re
import resource
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from algospace import __version__
from algospace.config import load_config
from algospace.errors import ConfigError
from serving.deployment import SERVE_FLAGS, ServeSettings, build_application, port_blocks, serve_environment
from serving.serve_app import Arguments, build
from tests.conftest import REPOSITORY
from tests.serving_market import random_bundle

SERVE, CLUSTER = REPOSITORY / "configs" / "serve", REPOSITORY / "configs" / "cluster"
PRODUCTION = ("production", "production-autoscaling", "production-gpu")


def serve_config() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CLUSTER / "serve-production.yaml").read_text())
    return found


def manifest() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CLUSTER / "rayservice.yaml").read_text())
    return found


@pytest.mark.parametrize("name", PRODUCTION)
def test_production_is_signed_replicated_documented_nowhere_and_drains(name: str) -> None:
    settings = load_config(ServeSettings, SERVE / f"{name}.yaml")
    assert settings.replicas >= 2
    assert settings.app.security.mode == "jwt"
    assert not settings.app.service.openapi
    assert settings.app.lifecycle.require_checks
    assert settings.drain_s * 1000 > settings.app.service.deadline_ms
    assert settings.max_queued_requests <= 64
    assert (settings.autoscaling is not None) == name.endswith("autoscaling")


def test_production_profiles_differ_in_size_and_backends_only() -> None:
    fixed, growing, gpu = (load_config(ServeSettings, SERVE / f"{name}.yaml").model_dump() for name in PRODUCTION)
    assert growing["autoscaling"] is not None
    assert growing | {"autoscaling": None} == fixed
    assert gpu["app"]["backends"] == ("tensorrt", *fixed["app"]["backends"])
    assert gpu | {"app": gpu["app"] | {"backends": fixed["app"]["backends"]}} == fixed


@pytest.mark.parametrize("path", sorted(SERVE.glob("*.yaml")), ids=lambda path: path.stem)
def test_only_the_gpu_profile_names_what_a_cpu_never_has(path: Path) -> None:
    """Anywhere else the alert of a fallback would never end, and nobody would look when a real one comes."""
    backends = load_config(ServeSettings, path).app.backends
    assert (backends != ("onnx", "torch")) == path.stem.endswith("-gpu")
    assert "-gpu" not in serve_config()["applications"][0]["args"]["config"]


@pytest.mark.parametrize("name", PRODUCTION)
def test_production_has_a_place_for_the_registry_that_promotions_need(name: str) -> None:
    text = (SERVE / f"{name}.yaml").read_text()
    assert "registry" not in yaml.safe_load(text)["app"]["lifecycle"]
    filled = yaml.safe_load(text.replace("    # registry: ", "    registry: "))
    assert ServeSettings.model_validate(filled).app.lifecycle.registry == "https://mlflow.example"


def test_dev_is_one_replica_with_a_token() -> None:
    settings = load_config(ServeSettings, SERVE / "dev.yaml")
    assert (settings.replicas, settings.app.security.mode) == (1, "token")


def test_autoscaling_below_the_least_is_refused() -> None:
    with pytest.raises(ValueError, match="less than replicas"):
        ServeSettings.model_validate({"replicas": 4, "autoscaling": {"max_replicas": 2}})


def test_the_switches_are_on_wherever_a_cluster_is_started(tmp_path: Path) -> None:
    """All of them: what a killed replica costs was measured with all of them."""
    assert SERVE_FLAGS.items() <= serve_environment(tmp_path).items()
    spec = manifest()["spec"]["rayClusterConfig"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        for container in group["template"]["spec"]["containers"]:
            assert {e["name"]: e["value"] for e in container["env"]} == SERVE_FLAGS
    printed = subprocess.run(["bash", "-c", "set -a; . configs/cluster/serve.env; env -0"], cwd=REPOSITORY, env={},
                             capture_output=True, text=True, check=True).stdout
    set_by_shell = {"PWD", "SHLVL", "_"}
    found = dict(line.split("=", 1) for line in printed.split("\0") if line)
    assert {name: value for name, value in found.items() if name not in set_by_shell} == SERVE_FLAGS


def test_only_what_is_of_one_machine_is_set_beside_the_switches(tmp_path: Path) -> None:
    """Ports, paths, the limit of open files, and what a load balancer between machines would need to be longer."""
    beside = serve_environment(tmp_path).keys() - SERVE_FLAGS.keys()
    assert {name for name in beside if not re.search("_PORT$|_PATH$|_LOC$|_STATE_(BASE|FILE)$", name)} == {
        "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S", "RAY_SERVE_HAPROXY_MAXCONN"}


@pytest.mark.parametrize(("limit", "most"), [(4_096, 1_558), (20_000, 7_920), (1_048_576, 20_000), (-1, 20_000)])
def test_haproxy_holds_as_many_connections_as_its_open_files_allow(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, most: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda what: (1024, limit))
    assert serve_environment(tmp_path)["RAY_SERVE_HAPROXY_MAXCONN"] == str(most)


def test_serve_knows_every_switch(tmp_path: Path) -> None:
    """In the pinned version: one that was renamed would do nothing, and nobody would see it."""
    (place,) = importlib.import_module("ray.serve").__path__
    known = (Path(place) / "_private" / "constants.py").read_text()
    switches = [name for name in serve_environment(tmp_path) if name.startswith("RAY_SERVE_")]
    assert len(switches) > len(SERVE_FLAGS)
    assert [name for name in switches if f'"{name}"' not in known] == []


@pytest.mark.parametrize("name", [*PRODUCTION, "dev"])
def test_watchers_take_no_decisions_place(tmp_path: Path, name: str) -> None:
    """Serve counts an open socket as a request in work."""
    settings = load_config(ServeSettings, SERVE / f"{name}.yaml")
    deployment = build_application("models:/a/1", b"", settings)._bound_deployment
    assert settings.app.stream.max_clients >= 100
    assert deployment.max_ongoing_requests - settings.app.stream.max_clients == settings.max_ongoing_requests


def test_no_port_of_a_service_is_one_that_clients_are_given(tmp_path: Path) -> None:
    """An outgoing connection may take any ephemeral port between the choice and HAProxy's start."""
    found = serve_environment(tmp_path)
    first, last = (int(found[f"RAY_SERVE_DIRECT_INGRESS_{end}_HTTP_PORT"]) for end in ("MIN", "MAX"))
    ports = [int(found[f"RAY_SERVE_HAPROXY_{name}_PORT"]) for name in ("STATS", "METRICS")]
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert len({*ports, *range(first, last + 1)}) == last - first + 3
    assert max(last, *ports) < lowest


@pytest.mark.parametrize("count", [1, 3, 66, 1000, 22_528])
def test_every_block_of_ports_ends_below_the_ephemeral_ones(count: int) -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    blocks = port_blocks(count)
    assert blocks[0] >= 1024
    assert blocks[-1] + count <= lowest
    assert blocks[-1] + 2 * count > 32_768, "none left out that would fit"


@pytest.mark.parametrize(("arguments", "fault"), [
    ({"bundle": "b", "replicas": "many"}, "args: replicas: Input should be a valid integer"),
    ({"bundel": "b"}, "args: bundle: Field required"), ({"bundle": "b", "replicas": 65}, "args: replicas: ")])
def test_arguments_that_are_none_are_refused_in_a_line(arguments: dict[str, object], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        build(arguments)


def test_serve_accepts_the_configuration_and_its_parts_exist() -> None:
    from ray.serve.schema import ServeDeploySchema

    (application,) = ServeDeploySchema.model_validate(serve_config()).applications
    module, _, name = str(application.import_path).partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    arguments = Arguments.model_validate(application.args)
    assert arguments.config is not None
    load_config(ServeSettings, REPOSITORY / arguments.config)


def test_what_is_deployed_is_the_configured_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = random_bundle(tmp_path / "bundle")
    monkeypatch.setenv("ALGOSPACE_TOKEN", "a-token-of-enough-length")
    arguments = {"bundle": str(bundle.directory), "config": str(SERVE / "dev.yaml")}
    deployment = build(arguments | {"replicas": 3})._bound_deployment
    assert deployment.num_replicas == 3
    assert deployment.init_args[2]["metrics"]["replicas"] == 3
    monkeypatch.delenv("ALGOSPACE_TOKEN")
    with pytest.raises(ConfigError, match="nobody would see"):
        build(arguments)


def test_security_without_its_files_is_refused_before_it_is_deployed(tmp_path: Path) -> None:
    """Serve started replicas that could not be, one after the other, and the status said DEPLOYING."""
    bundle = random_bundle(tmp_path / "bundle")
    config = tmp_path / "service.yaml"
    config.write_text(f"app: {{security: {{mode: jwt, login: true, folder: {tmp_path / 'security'}}}}}\n")
    with pytest.raises(ConfigError, match="algospace keys rotate"):
        build({"bundle": str(bundle.directory), "config": str(config)})


def schema_errors(document: dict[str, Any]) -> list[str]:
    schema = yaml.safe_load((REPOSITORY / "tests" / "fixtures" / "kuberay_schema.yaml").read_text())
    validator = Draft202012Validator({"$defs": schema["$defs"], "$ref": "#/$defs/RayService"})
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


def test_every_field_of_the_manifest_is_one_of_kuberay() -> None:
    assert schema_errors(manifest()) == []


@pytest.mark.parametrize("damage", [
    lambda d: d["spec"].update(serveConfig={}),
    lambda d: d["spec"].update(serveConfigV2={"applications": []}),
    lambda d: d["spec"].update(upgradeStrategy={"type": "Rolling"}),
    lambda d: d["spec"]["rayClusterConfig"]["workerGroupSpecs"][0].update(maxReplicas="4"),
    lambda d: d.update(kind="RayServe"),
])
def test_the_check_finds_what_is_wrong(damage: Any) -> None:
    broken = copy.deepcopy(manifest())
    damage(broken)
    assert schema_errors(broken)


def test_the_manifest_deploys_the_same_configuration_and_pinned_versions() -> None:
    spec = manifest()["spec"]
    assert yaml.safe_load(spec["serveConfigV2"]) == serve_config()
    cluster = spec["rayClusterConfig"]
    pinned = re.search(r"^ray==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert cluster["rayVersion"] == pinned[1]
    assert cluster["authOptions"] == {"mode": "token"}
    groups = (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
    for pod in (group["template"]["spec"] for group in groups):
        (container,) = pod["containers"]
        assert container["image"] == f"algospace:{__version__}"
        assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}


def test_the_workers_hold_the_replicas_and_outlast_their_drain() -> None:
    settings = load_config(ServeSettings, SERVE / "production.yaml")
    (workers,) = manifest()["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    pod = workers["template"]["spec"]
    processors = int(pod["containers"][0]["resources"]["requests"]["cpu"])
    assert workers["minReplicas"] >= 2
    assert (workers["minReplicas"] - 1) * processors >= settings.replicas * settings.cpus_per_replica
    assert pod["terminationGracePeriodSeconds"] > settings.drain_s


@pytest.mark.parametrize(("name", "base"), [("Dockerfile", "cpu"), ("Dockerfile.gpu", "cu128")])
def test_images_are_pinned_hold_no_secret_and_differ_where_they_must(name: str, base: str) -> None:
    """Text only: no image has been built here."""
    text = (CLUSTER / name).read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert re.fullmatch(rf"FROM rayproject/ray:\d+\.\d+\.\d+-py311-{base}", lines[0])
    torch = re.search(r"^torch==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    assert torch is not None
    assert f"torch=={torch[1]}" in text
    assert text.count("-c constraints.txt") == 2
    assert not re.search(r"^(ENV|ARG).*(TOKEN|PASSWORD|SECRET|KEY)|^USER root|^ADD |:latest|curl|wget", text, re.M)
    assert f"algospace:{__version__}" in text
