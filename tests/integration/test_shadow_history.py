"""What is known of a shadow outlives its pair, the stream and the service: in the log and in MLflow's registry."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import structlog

from serving import mlflow_source
from serving.bundle import Bundle
from serving.client import request_of
from serving.hub_link import HubLink
from serving.lifecycle import LifecycleSettings, Order
from serving.mlflow_source import Registry
from serving.policy import BundlePolicy
from serving.service import AppSettings, Service
from tests.hub_remote import Remote, until
from tests.serving_market import accounts, random_bundle, rows, serving_table
from training.promotion import MODEL
from training.tracking import Tracker, TrackingConfig


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    folder = tmp_path_factory.mktemp("history")
    return [random_bundle(folder / str(seed), seed=seed) for seed in range(3)]


@pytest.fixture(scope="module")
def bodies(bundles: list[Bundle]) -> list[bytes]:
    table = serving_table()
    policy = BundlePolicy(bundles[0], table)
    return [json.dumps(request_of(bundles[0], policy.inputs(row, accounts(table, row)[0]))).encode()
            for row in rows(table, 12)]


@pytest.fixture(scope="module")
def registered(bundles: list[Bundle], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database whose versions 1, 2, 3 are the bundles."""
    folder = tmp_path_factory.mktemp("registered")
    with Tracker.open(TrackingConfig(), folder, "run", {}, "c" * 64) as tracker:
        for bundle in bundles:
            with tracker.child("backtest", {}, {"bundle": bundle.id}) as run:
                run.register_model(MODEL, bundle.directory, "candidate", {}, "")
    return folder / "mlflow.db"


@pytest.fixture
def uri(registered: Path, tmp_path: Path) -> str:
    """A registry of the test's own."""
    return f"sqlite:///{shutil.copy(registered, tmp_path)}"


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow is asked in this process, where it is imported already."""

    def ask(self: Registry, what: str, **asked: Any) -> dict[str, Any]:
        client = mlflow.MlflowClient(self._uri, self._uri)
        return {"note": mlflow_source._note, "record": mlflow_source._record}[what](client, **asked)

    monkeypatch.setattr(Registry, "_ask", ask)


@pytest.fixture
def made() -> Iterator[Callable[..., Service]]:
    """Services that end with the test."""
    services: list[Service] = []

    def make(bundle: Bundle, **settings: Any) -> Service:
        life = LifecycleSettings(require_checks=False, **settings)
        services.append(Service(bundle, AppSettings(lifecycle=life)))
        return services[-1]

    yield make
    for service in services:
        service.life.close()


def tags(uri: str, version: int) -> list[dict[str, Any]]:
    """The shadow's tags of a version, oldest first."""
    found = mlflow.MlflowClient(uri, uri).get_model_version(MODEL, str(version)).tags
    return [json.loads(found[name]) for name in sorted(found) if name.startswith("shadow.")]


async def compare(service: Service, bodies: list[bytes]) -> None:
    """Have all of them decided, and the shadow through with them."""
    figures = service.hub.log.state.shadow.summary()
    assert figures is not None
    for n, body in enumerate(bodies, figures["compared"] + 1):
        assert service.decide(body).status_code == 200
        await asyncio.sleep(0)
        await until(lambda n=n: service.hub.log.state.shadow.compared >= n)


def test_the_registrys_shadow_is_the_services_or_none(
        bundles: list[Bundle], uri: str, in_process: None, made: Callable[..., Service], tmp_path: Path) -> None:
    """It kept its alias when it had been promoted, removed, or replaced by a bundle that is not registered."""
    service = made(bundles[0], registry=uri)
    client = mlflow.MlflowClient(uri, uri)
    unknown = random_bundle(tmp_path / "unknown", seed=9)

    def aliases() -> dict[str, int]:
        return {alias: int(version) for alias, version in client.get_registered_model(MODEL).aliases.items()}

    async def after(*orders: Order) -> dict[str, int]:
        for order in orders:
            await service.life.switch(order, "ann")
        await asyncio.gather(*service.life._notes)
        return aliases()

    async def play() -> None:
        before = aliases()
        shadow = [Order(alias="shadow", source=str(bundle.directory)) for bundle in (*bundles, unknown)]
        kept = before | {"champion": 1}
        assert await after(shadow[1]) == kept | {"shadow": 2}
        assert await after(shadow[2]) == kept | {"shadow": 3}
        assert await after(shadow[3]) == kept
        assert await after(shadow[1], Order(alias="shadow", remove=True)) == kept
        assert await after(shadow[1], Order(source="shadow")) == before | {"champion": 2}
        client.set_registered_model_alias(MODEL, "shadow", "3")  # somebody else's
        assert await after(Order(rollback=True)) == kept | {"shadow": 3}

    asyncio.run(play())


def test_whatever_ends_a_pair_leaves_its_figures_with_the_shadows_version(
        bundles: list[Bundle], bodies: list[bytes], uri: str, in_process: None,
        made: Callable[..., Service]) -> None:
    service = made(bundles[0], registry=uri)
    life = service.life

    async def play() -> None:
        ends = {"replaced": Order(alias="shadow", source=str(bundles[2].directory)),
                "removed": Order(alias="shadow", remove=True), "promoted": Order(source="shadow"),
                "rolled back": Order(rollback=True)}
        await life.switch(Order(alias="shadow", source=str(bundles[1].directory)), "ann")
        for n, (what, order) in enumerate(ends.items(), 2):
            asked = bodies[:n]
            await compare(service, asked)
            figures = service.hub.log.state.shadow.summary()
            assert figures is not None
            shadow = 1 + next(place for place, bundle in enumerate(bundles) if bundle.id == figures["shadow"])
            before = len(tags(uri, shadow))
            await life.switch(order, "ann")
            await life.history.written()
            told = tags(uri, shadow)
            assert len(told) == before + 1, what
            assert (told[-1]["ended"], told[-1]["champion"]) == (True, figures["champion"])
            assert (told[-1]["compared"], told[-1]["dropped"]) == (n, 0)
            for name in ("verdict_agreement", "direction_agreement", "confidence_difference"):
                assert told[-1][name] == pytest.approx(figures[name], abs=1e-6)
            assert told[-1]["calibration"] == {who: {key: pytest.approx(value, abs=1e-6) if value else value
                                                     for key, value in found.items()}
                                               for who, found in figures["calibration"].items()}
            if what != "replaced":
                await life.switch(Order(alias="shadow", source=str(bundles[1].directory)), "ann")

    with structlog.testing.capture_logs() as lines:
        asyncio.run(play())
    logged = [line for line in lines if line["event"] == "shadow_figures"]
    assert [(line["compared"], line["ended"]) for line in logged] == [(n, True) for n in (2, 3, 4, 5)]
    assert all({"verdict_agreement", "calibration", "champion", "shadow"} <= set(line) for line in logged)


def test_while_a_shadow_runs_its_figures_are_written_now_and_then(
        bundles: list[Bundle], bodies: list[bytes], uri: str, in_process: None,
        made: Callable[..., Service]) -> None:
    service = made(bundles[0], registry=uri, shadow_record_s=0.05)
    life = service.life

    async def play() -> None:
        watching = asyncio.create_task(life.history.watch(life))
        await life.switch(Order(alias="shadow", source=str(bundles[1].directory)), "ann")
        await compare(service, bodies[:5])
        await until(lambda: [tag["compared"] for tag in tags(uri, 2)] == [5])
        assert tags(uri, 2)[0]["ended"] is False
        await compare(service, bodies[:3])
        await until(lambda: [tag["compared"] for tag in tags(uri, 2)] == [8])  # the same stretch, the same tag
        await asyncio.sleep(0.2)
        watching.cancel()
        await life.history.written()

    with structlog.testing.capture_logs() as lines:
        asyncio.run(play())
    told = [line["compared"] for line in lines if line["event"] == "shadow_figures"]
    assert told == sorted(set(told))  # nothing is told twice
    assert told[-1] == 8
    with structlog.testing.capture_logs() as lines:
        life.close()
    assert [line["compared"] for line in lines if line["event"] == "shadow_figures"] == [8]


def test_a_registry_that_is_away_costs_the_tag_and_nothing_else(bundles: list[Bundle], bodies: list[bytes],
                                                                made: Callable[..., Service],
                                                                tmp_path: Path) -> None:
    """The real child process, and a database that cannot be."""
    (tmp_path / "file").touch()
    away = f"sqlite:///{tmp_path / 'file' / 'mlflow.db'}"
    service = made(bundles[0], registry=away)
    life = service.life

    async def play() -> None:
        life.registry._uri = None  # until the shadow is in: to wait for one failed note is enough
        await life.switch(Order(alias="shadow", source=str(bundles[1].directory)), "ann")
        life.registry._uri = away
        await compare(service, bodies[:4])
        switching = asyncio.create_task(life.switch(Order(source="shadow"), "ann"))
        await until(lambda: service.champion.id == bundles[1].id)
        assert service.decide(bodies[0]).status_code == 200
        assert not switching.done()  # it is still waiting for what the registry says, and nobody waits for it
        await switching
        await life.history.written()

    with structlog.testing.capture_logs() as lines:
        asyncio.run(play())
    figures, = (line for line in lines if line["event"] == "shadow_figures")
    assert (figures["compared"], figures["ended"], figures["shadow"]) == (4, True, bundles[1].id)
    lost, = (line for line in lines if line["event"] == "shadow_not_recorded")
    assert lost["log_level"] == "warning"
    assert lost["why"].startswith(away)


def test_a_bundle_that_no_registry_knows_is_in_the_log(bundles: list[Bundle], bodies: list[bytes], uri: str,
                                                       in_process: None, made: Callable[..., Service],
                                                       tmp_path: Path) -> None:
    service = made(bundles[0], registry=uri)
    unknown = random_bundle(tmp_path / "unknown", seed=7)

    async def play() -> None:
        await service.life.switch(Order(alias="shadow", source=str(unknown.directory)), "ann")
        await compare(service, bodies[:2])
        await service.life.switch(Order(alias="shadow", remove=True), "ann")
        await service.life.history.written()

    with structlog.testing.capture_logs() as lines:
        asyncio.run(play())
    lost, = (line for line in lines if line["event"] == "shadow_not_recorded")
    assert lost["why"] == "the registry does not know this bundle"


def test_of_several_replicas_one_tells_and_a_lost_actor_or_a_new_deployment_loses_nothing(
        bundles: list[Bundle], bodies: list[bytes], uri: str, in_process: None,
        made: Callable[..., Service]) -> None:
    async def play() -> None:
        first, second = (made(bundles[0], registry=uri, shadow_record_s=0.05) for _ in range(2))
        actor = Remote(first.settings)
        links = [HubLink(service, actor) for service in (first, second)]
        for link in links:
            await link.start()
        services = {link.replica: link._service for link in links}
        await until(lambda: set(actor.body._seen) == set(services))
        watching = [asyncio.create_task(s.life.history.watch(s.life)) for s in (first, second)]
        await first.life.switch(Order(alias="shadow", source=str(bundles[1].directory)), "ann")
        await until(lambda: second.shadow is not None and second.hub.log.state.shadow.summary() is not None)
        await compare(second, bodies[:4])
        await until(lambda: [tag["compared"] for tag in tags(uri, 2)] == [4])
        speaker = services[min(services)].life.history
        assert [s.life.history._told is not None for s in (first, second)] == [
            s.life.history is speaker for s in (first, second)]
        for task in watching:
            task.cancel()

        actor.dies()
        await until(lambda: tags(uri, 2)[0]["ended"])  # what was counted is not lost with it
        await until(lambda: all(s.hub.log.stream == actor.body._log.stream for s in (first, second)))
        await until(lambda: second.hub.log.state.shadow.summary() is not None)
        await compare(second, bodies[:2])
        deployed = made(bundles[2], registry=uri)
        new = HubLink(deployed, actor)
        await new.start()
        await deployed.life.history.written()
        assert [(tag["compared"], tag["ended"]) for tag in tags(uri, 2)] == [(4, True), (2, True)]
        await until(lambda: first.champion.id == second.champion.id == bundles[2].id)
        await until(lambda: first.hub.log.state.model["champion"] == bundles[2].id)
        for link in (*links, new):
            await link.stop()

    asyncio.run(play())


def test_a_tag_of_another_bundles_version_is_not_written(bundles: list[Bundle], uri: str) -> None:
    client = mlflow.MlflowClient(uri, uri)
    answer = mlflow_source._record(client, MODEL, "1", bundles[1].id, "shadow.x", "{}")
    assert answer == {"recorded": ""}
    assert tags(uri, 1) == []
