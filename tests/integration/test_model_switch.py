"""Champion, shadow and previous in a running service: switched hot, refused with a reason, rolled back."""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from fastapi import FastAPI
from fastapi.testclient import TestClient

from algospace.errors import ConfigError
from serving.aliases import Aliases, Check, ModelRef
from serving.bundle import Bundle
from serving.client import request_of
from serving.lifecycle import LifecycleSettings, NotSwitched, Order
from serving.mlflow_source import Registry
from serving.policy import BundlePolicy
from serving.routes import model as routes
from serving.service import AppSettings, Service
from serving.shadow import ShadowRunner
from tests.serving_market import accounts, random_bundle, rows, serving_table

UNCHECKED = AppSettings(lifecycle=LifecycleSettings(require_checks=False))


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    folder = tmp_path_factory.mktemp("switch")
    return [random_bundle(folder / str(seed), seed=seed) for seed in range(3)]


@pytest.fixture(scope="module")
def bodies(bundles: list[Bundle]) -> list[bytes]:
    table = serving_table()
    policy = BundlePolicy(bundles[0], table)
    return [json.dumps(request_of(bundles[0], policy.inputs(row, accounts(table, row)[n % 3]))).encode()
            for n, row in enumerate(rows(table, 30))]


@pytest.fixture
def service(bundles: list[Bundle]) -> Iterator[Service]:
    made = Service(bundles[0], UNCHECKED)
    yield made
    made.life.close()


@pytest.fixture
def client(service: Service) -> TestClient:
    app = FastAPI()
    routes.add_routes(app, service)
    return TestClient(app)


def decided(service: Service, body: bytes) -> dict[str, Any]:
    answer = service.decide(body)
    assert answer.status_code == 200
    return {k: v for k, v in json.loads(bytes(answer.body)).items() if k not in ("latency_ms", "trace_id")}


def test_a_switch_under_load_fails_no_request(service: Service, bundles: list[Bundle],
                                              bodies: list[bytes]) -> None:
    expected = {}
    for bundle in bundles[:2]:
        alone = Service(bundle, UNCHECKED)
        expected[bundle.id] = [decided(alone, body) for body in bodies]
    assert expected[bundles[0].id] != expected[bundles[1].id]
    seen: list[str] = []

    async def load(stop: asyncio.Event) -> None:
        n = 0
        while not stop.is_set():
            answer = decided(service, bodies[n % len(bodies)])
            assert answer == expected[answer["model"]][n % len(bodies)]
            seen.append(answer["model"])
            n += 1
            await asyncio.sleep(0)

    async def play() -> None:
        stop = asyncio.Event()
        task = asyncio.create_task(load(stop))
        await asyncio.sleep(0.05)
        outcome = await service.life.switch(Order(source=str(bundles[1].directory)), "alice")
        assert (outcome["champion"], outcome["previous"]) == (bundles[1].id, bundles[0].id)
        await asyncio.sleep(0.05)
        await service.life.switch(Order(rollback=True), "alice")
        await asyncio.sleep(0.05)
        stop.set()
        await task

    asyncio.run(play())
    changes = [a for a, b in zip(seen, seen[1:] + [""], strict=True) if a != b]
    assert changes == [bundles[0].id, bundles[1].id, bundles[0].id]
    log = service.hub.log
    told = [e.data["champion"] for e in log.after(log.first - 1, 10_000) if e.topic == "model"]
    assert told[-2:] == [bundles[1].id, bundles[0].id]


def test_switching_by_the_route(client: TestClient, service: Service, bundles: list[Bundle]) -> None:
    assert client.post("/v1/model", json={"rollback": True}).status_code == 409
    answer = client.post("/v1/model", json={"source": str(bundles[1].directory)})
    assert answer.status_code == 200
    assert answer.json()["checks"] == [{"name": "fits", "passed": True, "found": "same instrument and schema"}]
    found = client.get("/v1/model").json()
    assert (found["champion"], found["previous"], found["revision"]) == (bundles[1].id, bundles[0].id, 1)
    assert client.post("/v1/model", json={"source": str(bundles[1].directory)}).status_code == 409
    assert client.post("/v1/model", json={"rollback": True}).json()["champion"] == bundles[0].id
    again = client.post("/v1/model", json={"rollback": True})  # HAProxy repeats what a killed replica had
    assert again.status_code == 409
    assert "s ago, to " + bundles[0].id[:12] in again.json()["detail"]
    assert client.get("/v1/model").json()["champion"] == bundles[0].id
    service.life._changed_at -= 6.0
    shadow = {"alias": "shadow", "source": str(bundles[1].directory)}
    assert client.post("/v1/model", json=shadow).status_code == 200  # no roll-back, so no second one behind it
    assert client.post("/v1/model", json={"rollback": True}).json()["champion"] == bundles[1].id


@pytest.mark.parametrize("order", [{}, {"source": "a", "rollback": True}, {"remove": True}, {"surprise": 1},
                                   {"alias": "shadow", "rollback": True}, {"alias": "king", "source": "a"},
                                   {"alias": "shadow", "source": "shadow"}, {"rollback": 1}])
def test_an_order_that_says_too_little_or_too_much(client: TestClient, order: dict[str, Any]) -> None:
    assert client.post("/v1/model", json=order).status_code == 422


def test_a_failure_leaves_the_old_model_and_says_why(client: TestClient, service: Service, bundles: list[Bundle],
                                                     bodies: list[bytes], tmp_path: Path) -> None:
    damaged = random_bundle(tmp_path / "damaged", seed=5)
    (damaged.directory / "vote.onnx").write_bytes(b"x")
    small = random_bundle(tmp_path / "elsewhere", seed=6)
    for source, status, words in ((str(tmp_path / "absent"), 422, "not a bundle directory"),
                                  (str(damaged.directory), 422, "does not match its checksum"),
                                  ("models:/x@champion", 422, "no registry is configured"),
                                  ("models:x", 422, "write models:/NAME@ALIAS"), ("shadow", 409, "no shadow")):
        answer = client.post("/v1/model", json={"source": source})
        assert (answer.status_code, words in answer.json()["detail"]) == (status, True), answer.text
        assert service.champion.bundle is bundles[0]
        assert decided(service, bodies[0])["model"] == bundles[0].id
    object.__setattr__(small.manifest, "schema_hash", "0" * 64)
    assert not service.life._fits(small).passed


def test_without_recorded_checks_nothing_is_promoted(bundles: list[Bundle]) -> None:
    strict = Service(bundles[0], AppSettings())
    for order in (Order(source=str(bundles[1].directory)),):
        with pytest.raises(NotSwitched, match=r"refused: recorded: no registry.* set app\.lifecycle\.registry"):
            asyncio.run(strict.life.switch(order, "alice"))
    asyncio.run(strict.life.switch(Order(alias="shadow", source=str(bundles[1].directory)), "alice"))
    with pytest.raises(NotSwitched, match="recorded") as refused:
        asyncio.run(strict.life.switch(Order(source="shadow"), "alice"))
    assert [check.passed for check in refused.value.checks] == [True, False]
    strict.life.close()


def test_the_checks_of_the_registry_decide(bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(bundles[0], AppSettings(lifecycle=LifecycleSettings(min_shadow_decisions=2)))
    found = [Check("gate", False, "promise not kept"), Check("alarm", True, "silent")]
    asked: list[ModelRef] = []

    def checks(ref: ModelRef) -> tuple[Check, ...]:
        asked.append(ref)
        return tuple(found)

    monkeypatch.setattr(service.life.registry, "checks", checks)
    with pytest.raises(NotSwitched, match=r"shadow: 0 decisions as shadow, 2 asked; gate: promise not kept"):
        asyncio.run(service.life.switch(Order(source=str(bundles[1].directory)), "alice"))
    assert asked[0].id == bundles[1].id


class SlowLink:
    """Replicas that agree in a while."""

    def __init__(self) -> None:
        self.asked, self.go = asyncio.Event(), asyncio.Event()

    async def move(self, aliases: Aliases) -> bool:
        self.asked.set()
        await self.go.wait()
        return True

    async def replicas(self) -> dict[str, str]:
        return {}


def test_a_cancelled_switch_is_whole(service: Service, bundles: list[Bundle]) -> None:
    async def play() -> None:
        life = service.life
        await life.switch(Order(alias="shadow", source=str(bundles[1].directory)), "alice")
        life.link = link = SlowLink()
        task = asyncio.create_task(life.switch(Order(source=str(bundles[2].directory)), "alice"))
        await link.asked.wait()  # the replicas may have moved by now: there is no way back
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0.02)
        assert not task.done()
        link.go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert service.champion.id == life.aliases.champion.id == bundles[2].id
        assert service.hub.log.state.model == life.status()
        assert not life._switching.locked()
        life.link = None

        runner = life._runner
        assert runner is not None
        stop, stopping, let = runner.stop, threading.Event(), threading.Event()

        def slow() -> None:
            stopping.set()
            assert let.wait(60)
            stop()

        runner.stop = slow  # type: ignore[method-assign]
        task = asyncio.create_task(life.switch(Order(alias="shadow", source=str(bundles[0].directory)), "alice"))
        assert await asyncio.to_thread(stopping.wait, 60)
        task.cancel()
        await asyncio.sleep(0.02)
        let.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert service.shadow is not None
        assert life._runner is not None
        assert life.status()["shadow"] == service.shadow.id == life._runner.model.id == bundles[0].id

    asyncio.run(play())


def test_a_registry_that_hangs_holds_nobody_up(bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.lifecycle._NOTE_WAIT_S", 0.2)
    service = Service(bundles[0], AppSettings(lifecycle=LifecycleSettings(registry="http://x",
                                                                              require_checks=False)))
    life, hangs, answers = service.life, threading.Event(), threading.Event()
    noted: list[str] = []

    def note(aliases: dict[str, ModelRef], ended: dict[str, ModelRef]) -> str:
        assert hangs.wait(60)
        noted.append(aliases["champion"].id)
        return "moved"

    def checks(ref: ModelRef) -> tuple[Check, ...]:
        assert answers.wait(60)
        return ()

    async def play() -> None:
        monkeypatch.setattr(life.registry, "note", note)
        outcome = await life.switch(Order(source=str(bundles[1].directory)), "alice")
        assert "being told" in outcome["registry"]
        asked = time.perf_counter()
        back = await life.switch(Order(rollback=True), "alice")
        assert (back["champion"], service.champion.id) == (bundles[0].id, bundles[0].id)
        assert time.perf_counter() - asked < 10
        hangs.set()
        await asyncio.gather(*life._notes)
        assert life.status()["registry"] == "moved"
        assert noted == [bundles[1].id, bundles[0].id]  # in order: the last is where the service is

        def late(*_: object) -> str:
            raise subprocess.TimeoutExpired("mlflow", 300)

        monkeypatch.setattr(life.registry, "note", late)
        outcome = await life.switch(Order(source=str(bundles[1].directory)), "alice")
        assert (outcome["champion"], service.champion.id) == (bundles[1].id, bundles[1].id)
        assert outcome["registry"].startswith("not noted: ")

        object.__setattr__(life, "settings", life.settings.model_copy(update={"require_checks": True}))
        monkeypatch.setattr(life.registry, "checks", checks)
        waiting = asyncio.create_task(life.switch(Order(source=str(bundles[2].directory)), "alice"))
        await asyncio.sleep(0.1)
        await life.switch(Order(rollback=True), "bob")  # while a promotion waits for its checks
        answers.set()
        with pytest.raises(NotSwitched, match="another switch came first"):
            await waiting
        assert service.champion.id == bundles[0].id

    with structlog.testing.capture_logs() as lines:
        asyncio.run(play())
    events = [line["event"] for line in lines if line["event"].startswith("model_switch")]
    assert events == ["model_switch_begins", "model_switched"] * 4
    assert lines[0] | {"user": "alice", "champion": bundles[1].id, "champion_before": bundles[0].id} == lines[0]


def test_a_registry_that_does_not_answer_is_an_error_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.mlflow_source._TIMEOUT_S", 0.01)
    with pytest.raises(ConfigError, match=r"http://x: the registry did not answer within 0\.01 s"):
        Registry("http://x", "m", None).note({}, {})


def wait_for(service: Service, compared: int) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        figures = service.hub.log.state.shadow.summary()
        if figures is not None and figures["compared"] + figures["dropped"] >= compared:
            return figures
        time.sleep(0.01)
    raise AssertionError(f"the shadow compared too little: {figures}")


def test_the_shadow_decides_behind_the_answers(client: TestClient, service: Service, bundles: list[Bundle],
                                               bodies: list[bytes]) -> None:
    assert client.get("/v1/shadow").json() == {"shadow": None}
    order = {"alias": "shadow", "source": str(bundles[1].directory)}
    assert client.post("/v1/model", json=order).status_code == 200
    other = Service(bundles[1], UNCHECKED)
    same = directions = 0
    for n, body in enumerate(bodies, 1):
        ours, theirs = decided(service, body), decided(other, body)
        same += ours["verdict"] == theirs["verdict"]
        directions += ours["direction"] == theirs["direction"]
        wait_for(service, n)
    figures = client.get("/v1/shadow").json()["shadow"]
    n = len(bodies)
    assert (figures["compared"], figures["dropped"]) == (n, 0)
    assert figures["verdict_agreement"] == pytest.approx(same / n)
    assert figures["direction_agreement"] == pytest.approx(directions / n)
    assert figures["champion"] == bundles[0].id
    assert figures["shadow"] == bundles[1].id == service.shadow.id  # type: ignore[union-attr]
    promoted = client.post("/v1/model", json={"source": "shadow"}).json()
    assert (promoted["champion"], promoted["shadow"], promoted["previous"]) == (bundles[1].id, None, bundles[0].id)
    assert decided(service, bodies[0]) == decided(other, bodies[0])
    assert client.get("/v1/shadow").json() == {"shadow": None}
    assert service.shadow is None
    client.post("/v1/model", json={"alias": "shadow", "source": str(bundles[2].directory)})
    assert client.post("/v1/model", json={"alias": "shadow", "remove": True}).json()["shadow"] is None


def test_a_shadow_that_cannot_keep_up_drops_and_counts(service: Service, bodies: list[bytes]) -> None:
    told: list[tuple[str, dict[str, Any]]] = []
    runner = ShadowRunner(service.champion, lambda topic, data: told.append((topic, data)), 2)
    runner.stop()  # the thread is gone: what is offered now only waits
    decided(service, bodies[0])
    for _ in range(5):
        runner.offer(None, None, "x", "t")  # type: ignore[arg-type]
    assert runner._dropped >= 3
    assert told == []


def test_a_shadow_that_fails_goes_on_and_says_so(client: TestClient, service: Service, bundles: list[Bundle],
                                                 bodies: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    client.post("/v1/model", json={"alias": "shadow", "source": str(bundles[1].directory)})
    runner = service.life._runner
    assert runner is not None

    def broken(_: object) -> None:
        raise RuntimeError("the device is gone")

    def failed() -> dict[str, Any]:
        told: dict[str, Any] = client.get("/v1/model").json()
        return {name: told[name] for name in ("shadow_failures", "shadow_error")}

    with monkeypatch.context() as patch:
        patch.setattr(runner.model.decider, "decide", broken)
        for n, body in enumerate(bodies[:3], 1):
            decided(service, body)
            deadline = time.monotonic() + 60
            while runner.failures < n and time.monotonic() < deadline:
                time.sleep(0.005)
    assert failed() == {"shadow_failures": 3, "shadow_error": "RuntimeError"}
    service.metrics.look(service)
    samples = {name: value for r in service.metrics.readings() for name, _, value in r.samples}
    assert samples["algospace_shadow_failures_total"] == 3
    for n, body in enumerate(bodies[3:6], 4):
        decided(service, body)
        figures = wait_for(service, n)
    assert (figures["compared"], figures["dropped"]) == (3, 3)
    assert runner._thread.is_alive()
    assert failed() == {"shadow_failures": 3, "shadow_error": None}


def test_agents_and_signals(client: TestClient, service: Service, bodies: list[bytes]) -> None:
    assert client.get("/v1/agents").json() == {"decisions": 0, "agents": {}}
    answers = [decided(service, body) for body in bodies]
    signals = client.get("/v1/signals?limit=7").json()["decisions"]
    assert [s["confidence"] for s in signals] == [a["confidence"] for a in answers[::-1][:7]]
    assert client.get("/v1/signals?instrument=NQ").json() == {"decisions": []}
    assert client.get("/v1/signals?limit=0").status_code == 422
    found = client.get("/v1/agents").json()
    assert found["decisions"] == len(bodies)
    assert set(found["agents"]) == {"strategic", "tactical", "arbitrage"}
    assert sum(agent["weight"] for agent in found["agents"].values()) == pytest.approx(1.0)
    for name, agent in found["agents"].items():
        assert agent["last"] == answers[-1]["votes"][name]
        assert sum(agent["votes"]) == pytest.approx(1.0, abs=1e-5)
        assert 0.0 <= agent["agreement"] <= 1.0
