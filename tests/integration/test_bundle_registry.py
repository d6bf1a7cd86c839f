"""Bundles and their recorded checks from the MLflow registry, as `algospace promote` leaves them."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import Any

import mlflow
import pytest

from algospace.errors import BundleError, ConfigError
from serving import mlflow_source
from serving.aliases import ModelRef
from serving.bundle import Bundle, load_bundle
from serving.lifecycle import LifecycleSettings, NotSwitched, Order
from serving.mlflow_source import CHECKS, Registry
from serving.serve_app import build
from serving.service import AppSettings, Service
from serving.sources import find_bundle
from tests.serving_market import random_bundle
from training.promotion import MODEL, _alarm, _beats_baselines, _control, _deflated_sharpe, _gate
from training.tracking import Tracker, TrackingConfig


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Bundle]]:
    """(tracking URI, two registered bundles): version 1 passed its checks, version 2 failed one."""
    folder = tmp_path_factory.mktemp("registry")
    bundles = [random_bundle(folder / str(seed), seed=seed) for seed in range(2)]
    with Tracker.open(TrackingConfig(experiment="served"), folder, "run", {}, "c" * 64) as tracker:
        for bundle in bundles:
            with tracker.child("backtest", {}, {"bundle": bundle.id}) as run:
                run.register_model(MODEL, bundle.directory, "candidate", {"net_pnl": 1.0}, "tried")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = mlflow.MlflowClient(uri, uri)
    for version in ("1", "2"):
        for name in CHECKS:
            found = "failed: promise" if (version, name) == ("2", "gate") else "passed: ok"
            client.set_model_version_tag(MODEL, version, f"check.{name}", found)
    return uri, bundles


@pytest.fixture(autouse=True)
def _in_process(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """The registry is asked in this process, where MLflow is imported already; one test asks a real child."""
    if "child" in request.node.name:
        return

    def ask(self: Registry, what: str, **asked: Any) -> dict[str, Any]:
        if not self._uri:
            raise ConfigError("no registry is configured")
        mlflow.set_tracking_uri(self._uri)
        client = mlflow.MlflowClient(self._uri, self._uri)
        return {"fetch": mlflow_source._fetch, "tags": mlflow_source._tags, "note": mlflow_source._note}[what](
            client, **asked)

    monkeypatch.setattr(Registry, "_ask", ask)


def test_the_checks_are_those_that_promotion_records() -> None:
    report = {"policy": {"trades": 1, "net_pnl": 1.0}, "baselines": {"hold": {"net_pnl": 0.0}}, "gate": None,
              "significance": {"deflated_sharpe": 1.0, "probabilistic_sharpe": 1.0, "trials": 1}}
    found = (_beats_baselines(report), _deflated_sharpe(report), _alarm({"config_hash": "a"}, "b"),
             _control([], "b"), _gate(report))
    assert tuple(check.name for check in found) == CHECKS


def test_a_bundle_is_fetched_once_and_by_its_id(registered: tuple[str, list[Bundle]], tmp_path: Path) -> None:
    uri, bundles = registered
    registry = Registry(uri, MODEL, tmp_path / "cache")
    found = registry.fetch(f"models:/{MODEL}/1")
    assert load_bundle(found.folder).id == bundles[0].id
    assert (found.name, found.version) == (MODEL, "1")
    before = Path(found.folder).stat().st_mtime_ns
    assert registry.fetch(f"models:/{MODEL}/1") == found
    assert Path(found.folder).stat().st_mtime_ns == before
    assert registry.fetch(f"models:/{MODEL}@candidate").version == "2"
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == sorted(
        bundle.id for bundle in bundles)
    with pytest.raises(ConfigError, match="write models:/NAME@ALIAS"):
        registry.fetch("models:/a/b/c")


def test_a_service_starts_from_an_alias_and_stays_at_its_version(
        registered: tuple[str, list[Bundle]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas that start later, on other nodes, get what the first one got, wherever the alias points by then."""
    uri, bundles = registered
    here = LifecycleSettings(registry=uri, cache=tmp_path / "cache")
    bundle, source = find_bundle(f"models:/{MODEL}@candidate", here)
    assert (bundle.id, source) == (bundles[1].id, f"models:/{MODEL}/2#{bundles[1].id}")
    elsewhere = here.model_copy(update={"cache": tmp_path / "other"})
    again, same = find_bundle(source, elsewhere)
    assert (again.id, same) == (bundle.id, source)
    assert again.directory != bundle.directory
    away = here.model_copy(update={"registry": None})  # a replica that is started while MLflow is away
    assert find_bundle(source, away)[0].id == bundle.id
    service = Service(bundle, AppSettings(lifecycle=here), source)
    champion = service.life.aliases.champion
    assert (service.life.status()["source"], champion.name, champion.version) == (f"models:/{MODEL}/2", MODEL, "2")
    assert champion.folder == str(bundle.directory)
    service.life.close()
    with pytest.raises(ConfigError, match=f"holds bundle {bundle.id[:12]} now, the service was started with ffff"):
        find_bundle(f"models:/{MODEL}/2#{'f' * 64}", here)
    folder = bundles[0].directory
    assert find_bundle(str(folder), LifecycleSettings())[1] == str(folder.resolve())
    plain = Service(bundles[0], AppSettings(), str(folder.resolve()))
    assert plain.life.status()["source"] == str(folder)
    plain.life.close()
    config = tmp_path / "serve.yaml"
    config.write_text(f"app: {{lifecycle: {{registry: '{uri}', cache: '{tmp_path / 'cache'}'}}}}\n")
    monkeypatch.setenv("ALGOSPACE_TOKEN", "a-token-of-enough-length")
    deployment = build({"bundle": f"models:/{MODEL}@candidate", "config": str(config)})._bound_deployment
    assert deployment.init_args[0] == source
    with pytest.raises(ConfigError, match="no registry is configured"):
        build({"bundle": f"models:/{MODEL}@candidate"})


def test_replicas_may_download_one_bundle_at_once(registered: tuple[str, list[Bundle]], tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    uri, bundles = registered
    registry, replace = Registry(uri, MODEL, tmp_path / "cache"), os.replace

    def beaten(found: Path, kept: Path) -> None:
        shutil.copytree(found, kept)
        replace(found, kept)

    monkeypatch.setattr(os, "replace", beaten)
    assert load_bundle(registry.fetch(f"models:/{MODEL}/1").folder).id == bundles[0].id


def test_a_download_that_is_damaged_is_made_again_and_not_kept(registered: tuple[str, list[Bundle]],
                                                               tmp_path: Path) -> None:
    uri, bundles = registered
    registry = Registry(uri, MODEL, tmp_path / "cache")
    folder = Path(registry.fetch(f"models:/{MODEL}/1").folder)
    (folder / "vote.onnx").write_bytes(b"")  # the machine lost its power
    assert registry.kept(bundles[0].id) is None
    assert load_bundle(registry.fetch(f"models:/{MODEL}/1").folder).id == bundles[0].id
    assert registry.kept(bundles[0].id) == folder
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [bundles[0].id]

    client = mlflow.MlflowClient(uri, uri)
    stolen = tmp_path / "stolen"
    shutil.copytree(bundles[0].directory, stolen)
    (stolen / "manifest.sha256").write_text("../out\n")
    mlflow.set_tracking_uri(uri)
    with mlflow.start_run() as run:
        mlflow.log_artifacts(str(stolen), "bundle")
    client.create_registered_model("forged")
    client.create_model_version("forged", f"{run.info.artifact_uri}/bundle", run.info.run_id, {"bundle": ".."})
    with pytest.raises(BundleError, match=r"does not match manifest\.sha256"):
        registry.fetch("models:/forged/1")
    assert not (tmp_path / "out").exists()


def test_a_service_is_promoted_with_its_checks(registered: tuple[str, list[Bundle]], tmp_path: Path) -> None:
    uri, bundles = registered
    start = random_bundle(tmp_path / "start", seed=9)
    service = Service(start, AppSettings(lifecycle=LifecycleSettings(registry=uri, cache=tmp_path / "cache")))
    with pytest.raises(NotSwitched, match="gate: promise"):
        asyncio.run(service.life.switch(Order(source=f"models:/{MODEL}/2"), "alice"))
    outcome = asyncio.run(service.life.switch(Order(source=f"models:/{MODEL}/1"), "alice"))
    assert outcome["champion"] == bundles[0].id
    assert [check["name"] for check in outcome["checks"]] == ["fits", *CHECKS]
    assert outcome["registry"] == f"models:/{MODEL}@champion is version 1"
    asyncio.run(service.life.switch(Order(alias="shadow", source=str(bundles[1].directory)), "alice"))
    client = mlflow.MlflowClient(uri, uri)
    aliases = client.get_registered_model(MODEL).aliases
    assert {name: str(version) for name, version in aliases.items()} == {
        "candidate": "2", "champion": "1", "shadow": "2"}
    with pytest.raises(NotSwitched, match="gate: promise"):  # a folder's checks are found by the bundle's id
        asyncio.run(service.life.switch(Order(source="shadow"), "alice"))
    back = asyncio.run(service.life.switch(Order(rollback=True), "alice"))
    assert back["champion"] == start.id
    service.life.close()


def test_a_replica_on_another_node_downloads_what_it_follows_to(registered: tuple[str, list[Bundle]],
                                                                tmp_path: Path) -> None:
    """The node that was asked has the bundle in its own cache, whose path leads nowhere on the others."""
    uri, bundles = registered
    settings = LifecycleSettings(registry=uri, cache=tmp_path / "here", require_checks=False)
    elsewhere = [ModelRef(bundle.id, str(tmp_path / "there" / bundle.id), f"models:/{MODEL}/{place}", MODEL,
                          str(place)) for place, bundle in enumerate(bundles, 1)]
    service = Service(random_bundle(tmp_path / "start", seed=9), AppSettings(lifecycle=settings))
    asyncio.run(service.life.follow(service.life.aliases.promote(elsewhere[0]).with_shadow(elsewhere[1])))
    assert service.life.last_failure is None
    assert (service.champion.id, service.shadow and service.shadow.id) == (bundles[0].id, bundles[1].id)
    assert asyncio.run(service.life.switch(Order(source="shadow"), "alice"))["champion"] == bundles[1].id
    service.life.close()
    away = AppSettings(lifecycle=settings.model_copy(update={"registry": None}))  # it is in the cache by now
    later = Service(random_bundle(tmp_path / "start", seed=9), away)
    asyncio.run(later.life.follow(later.life.aliases.promote(elsewhere[0])))
    assert later.champion.id == bundles[0].id
    later.life.close()


def test_tags_of_another_bundle_do_not_count(registered: tuple[str, list[Bundle]]) -> None:
    uri, bundles = registered
    registry = Registry(uri, MODEL, None)
    assert all(check.passed for check in registry.checks(ModelRef(bundles[0].id, "", "")))
    stolen = registry.checks(ModelRef(bundles[1].id, "", "", MODEL, "1"))
    assert [check.passed for check in stolen] == [False]
    assert not registry.checks(ModelRef("f" * 64, "", ""))[0].passed


@pytest.mark.slow
def test_a_child_process_asks_mlflow(registered: tuple[str, list[Bundle]], tmp_path: Path) -> None:
    uri, bundles = registered
    registry = Registry(uri, MODEL, tmp_path / "cache")
    assert load_bundle(registry.fetch(f"models:/{MODEL}/1").folder).id == bundles[0].id
    with pytest.raises(ConfigError, match="absent"):
        registry.fetch("models:/absent@champion")
