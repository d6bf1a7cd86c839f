"""Two replicas that share a hub, in one process: one stream, one champion, and the hub may be lost."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from serving.access import Refused
from serving.aliases import Aliases, ModelRef
from serving.bundle import Bundle
from serving.calls import Call
from serving.exchange import Away
from serving.hub_actor import HubBody
from serving.hub_link import _RETRY_S, HubLink, HubSilent
from serving.idempotency import Key, StoredAnswer
from serving.lifecycle import LifecycleSettings, NotSwitched, Order
from serving.routes import model
from serving.service import AppSettings, Service
from serving.stream import EventLog, StreamSettings
from tests.hub_remote import Remote, until
from tests.serving_market import random_bundle

SETTINGS = AppSettings(lifecycle=LifecycleSettings(require_checks=False),
                       stream=StreamSettings(ring=256, queue=128))


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    folder = tmp_path_factory.mktemp("hub")
    return [random_bundle(folder / str(seed), seed=seed) for seed in range(2)]


def opened(bundle: Bundle, actor: Remote) -> HubLink:
    return HubLink(Service(bundle, SETTINGS), actor)


def trades(log: EventLog) -> list[int]:
    """The numbers of the trades that it holds."""
    return [event.data["n"] for event in log.after(log.first - 1, 99) if event.topic == "trade"]


def test_replicas_are_one_service(bundles: list[Bundle]) -> None:
    async def play() -> None:
        actor = Remote(SETTINGS)
        links = [opened(bundles[0], actor) for _ in range(2)]
        one, two = (link._service for link in links)
        for link in links:
            await link.start()
        assert one.hub.log.stream == two.hub.log.stream
        client = two.hub.subscribe(one.hub.log.stream, one.hub.log.seq)
        assert one.hub.publish("trade", {"n": 1}) == 0
        await until(lambda: two.hub.log.seq >= 2)
        seen = [json.loads(text) for text in await client.next()]
        assert {"trade"} <= {m["topic"] for m in seen}

        await one.life.switch(Order(source=str(bundles[1].directory)), "alice")
        await until(lambda: two.champion.id == bundles[1].id)
        assert two.life.aliases == one.life.aliases
        await until(lambda: set(actor.body._seen) == {link.replica for link in links})
        found = await links[0].replicas()
        assert set(found) == {link.replica for link in links}

        late = opened(bundles[0], actor)  # of the configured bundle, but the alias has moved
        await late.start()
        assert late._service.champion.id == bundles[1].id
        assert late._service.life.aliases.previous.id == bundles[0].id  # type: ignore[union-attr]

        before = one.hub.log.stream
        actor.dies()
        await until(lambda: one.hub.log.stream == two.hub.log.stream != before)
        await until(lambda: actor.body._aliases is not None and actor.body._aliases.revision == 1)
        fresh = [json.loads(text) for text in await client.next()]
        while fresh[-1]["type"] != "snapshot":
            fresh += [json.loads(text) for text in await client.next()]
        assert fresh[-1]["stream"] == one.hub.log.stream
        await two.life.switch(Order(rollback=True), "bob")
        await until(lambda: one.champion.id == bundles[0].id)
        for link in (*links, late):
            assert link.lost == 0
            await link.stop()

    asyncio.run(play())


def test_what_is_published_while_the_hub_is_away_comes_later(bundles: list[Bundle]) -> None:
    async def play() -> None:
        actor = Remote(SETTINGS)
        link = opened(bundles[0], actor)
        await link.start()
        service = link._service
        await until(lambda: service.hub.log.seq >= 1)
        actor.away = True
        for n in range(20):
            service.hub.publish("trade", {"n": n})
        await asyncio.sleep(0.05)
        actor.away = False
        await until(lambda: service.hub.log.seq >= 21)
        assert trades(service.hub.log) == list(range(20))
        await link.stop()

    asyncio.run(play())


def test_an_error_of_the_link_is_repaired_and_the_replica_not_ready_meanwhile(
        bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.hub_link._POLL_S", 0.05)
    monkeypatch.setattr("serving.hub_link._SILENCE_S", 0.3)

    async def play() -> None:
        actor = Remote(SETTINGS)
        link = opened(bundles[0], actor)
        await link.start()
        service = link._service

        for n, (call, task) in enumerate((("exchange", "exchange"), ("poll", "receive"))):
            actor.faults[call] = 2
            service.hub.publish("trade", {"n": n})
            await until(lambda task=task: service.life.broken_links == {task})
            assert "link" in str(service.not_ready())
            service.life.check()  # decisions need no link
            await until(lambda: service.not_ready() is None)
            await until(lambda n=n: trades(service.hub.log) == list(range(n + 1)))  # once, and not lost
        actor.faults["exchange"] = 3  # whatever it is, it must not stand in the way of the rest for ever
        service.hub.publish("trade", {"n": 2})
        await until(lambda: link.lost == 1)
        await until(lambda: service.not_ready() is None)
        actor.silent = True  # neither an answer nor an error
        await until(lambda: service.not_ready() is not None)
        actor.silent = False
        await until(lambda: service.not_ready() is None)
        with monkeypatch.context() as patch:  # figures are not worth a replica, but they come back too
            def broken(_: Service) -> None:
                raise RuntimeError("no figures")

            patch.setattr(service.metrics, "look", broken)
            other = opened(bundles[0], actor)
            patch.setattr(other._service.metrics, "look", broken)
            await other.start()
            await asyncio.sleep(0.1)
            assert other._service.not_ready() is None
        await until(lambda: other.replica in actor.body._told)
        assert not any(task.done() for task in (*link._tasks, *other._tasks))
        await link.stop()
        await other.stop()

    asyncio.run(play())


def test_a_replica_is_ready_again_after_an_error_however_much_it_has_to_tell(bundles: list[Bundle]) -> None:
    async def play() -> None:
        actor = Remote(SETTINGS)
        link = opened(bundles[0], actor)
        await link.start()
        service, exchange = link._service, actor.body.exchange

        async def slow(*given: object) -> object:
            await asyncio.sleep(0.01)
            return await exchange(*given)  # type: ignore[arg-type]

        actor.body.exchange = slow  # type: ignore[assignment, method-assign]

        async def talk() -> None:  # there is never a moment without something to tell
            while True:
                service.hub.publish("trade", {"n": 0})
                await asyncio.sleep(0.002)

        talking = asyncio.create_task(talk())
        actor.faults["exchange"] = 1
        await until(lambda: "exchange" in service.life.broken_links)
        async with asyncio.timeout(10):
            await until(lambda: service.not_ready() is None)
        talking.cancel()
        await link.stop()

    asyncio.run(play())


def test_what_the_actor_has_heard_counts_once_however_late_it_says_so(
        bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.hub_link._SILENCE_S", 0.3)

    async def play() -> None:
        actor = Remote(SETTINGS)
        link = opened(bundles[0], actor)
        await link.start()
        service = link._service
        for number in range(9):
            if number in (2, 5):
                actor.late["exchange"] = 2
            service.hub.publish("trade", {"n": number})
            await asyncio.sleep(0.02)
        await until(lambda: any(e.data == {"n": 8} for e in actor.body._log.after(0, 99)))
        await asyncio.sleep(0.1)
        assert trades(actor.body._log) == trades(service.hub.log) == list(range(9))
        await link.stop()

    asyncio.run(play())


def test_events_before_one_that_the_actor_refuses_count_once(bundles: list[Bundle],
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    async def play() -> None:
        actor = Remote(SETTINGS)
        link = opened(bundles[0], actor)
        await link.start()
        log, append = actor.body._log, actor.body._log.append
        refusals = [2, 2]

        def refusing(topic: str, ts_ns: int, data: dict[str, Any]) -> Any:
            if topic == "trade" and data["n"] in refusals:
                refusals.remove(data["n"])
                raise ValueError("no event")
            return append(topic, ts_ns, data)

        monkeypatch.setattr(log, "append", refusing)
        actor.away = True  # so that all go in one
        for number in range(4):
            link._service.hub.publish("trade", {"n": number})
        await asyncio.sleep(0.05)
        actor.away = False
        await until(lambda: len(trades(log)) >= 4)
        assert trades(log) == list(range(4))
        await link.stop()

    asyncio.run(play())


def test_nobody_waits_for_an_actor_that_never_answers(bundles: list[Bundle],
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """A switch, a look, a scrape and a report end with one line; the replica decides on, and follows later."""
    for name, seconds in {"_POLL_S": 0.05, "_SILENCE_S": 0.2, "_ANSWER_S": 0.1, "_LONGEST_RETRY_S": 0.2}.items():
        monkeypatch.setattr(f"serving.hub_link.{name}", seconds)

    async def play() -> None:
        actor = Remote(SETTINGS)
        link = opened(bundles[0], actor)
        await link.start()
        service = link._service
        actor.silent = True
        async with asyncio.timeout(5):  # Remote sleeps a minute
            with pytest.raises(NotSwitched, match="has not answered 'move' within 0") as no:
                await service.life.switch(Order(source=str(bundles[1].directory)), "x")
            assert no.value.status == 503
            key = Key("ann", "k")
            for name, call in [("replicas", link.replicas()), ("reports", link.reports()),
                               ("report", link.report({}, 1.0)),
                               ("switch", link.agree_on_switch(service.kill.state))]:
                with pytest.raises(HubSilent, match=f"that the replicas share has not answered '{name}'"):
                    await call
            with pytest.raises((HubSilent, Away), match="that the replicas share has not answered"):
                await link.settle_answer(key, b"a", StoredAnswer(200, b"", "text/plain"))
            with pytest.raises(HubSilent, match="'attach'"):
                await opened(bundles[0], actor).start()
            app = FastAPI()
            model.add_routes(app, service)
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
                answer = await client.get("/v1/model")
        assert (answer.status_code, answer.json()["replicas"]) == (200, None)
        assert answer.json()["replicas_error"].startswith("HubSilent: the actor")
        assert service.champion.id == bundles[0].id
        actor.silent = False
        await until(lambda: service.not_ready() is None)
        await service.life.switch(Order(source=str(bundles[1].directory)), "x")
        assert service.champion.id == bundles[1].id
        await link.stop()

    asyncio.run(play())


def test_two_switches_at_once_are_one(bundles: list[Bundle]) -> None:
    async def play() -> None:
        actor = Remote(SETTINGS)
        links = [opened(bundles[0], actor) for _ in range(2)]
        for link in links:
            await link.start()
        order = Order(source=str(bundles[1].directory))
        outcomes = await asyncio.gather(*(link._service.life.switch(order, "x") for link in links),
                                        return_exceptions=True)
        refused = [o for o in outcomes if isinstance(o, NotSwitched)]
        assert len(refused) == 1
        assert refused[0].status == 409
        await until(lambda: all(link._service.champion.id == bundles[1].id for link in links))
        assert actor.body._aliases.revision == 1  # type: ignore[union-attr]
        for link in links:
            await link.stop()

    asyncio.run(play())


def test_a_replica_that_cannot_follow_is_not_ready_until_it_has_followed(
        bundles: list[Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.hub_link._POLL_S", 0.05)

    async def play() -> None:
        actor = Remote(SETTINGS)
        link = opened(bundles[0], actor)
        service = link._service
        await link.start()
        late = tmp_path / "late"
        assert await actor.body.move(Aliases(ModelRef(bundles[1].id, str(late), "late"), revision=1))
        await until(lambda: service.life.last_failure is not None)
        assert service.champion.id == bundles[0].id
        assert "not on the champion" in str(service.not_ready())
        assert str(tmp_path) not in str(service.not_ready())  # /v1/ready and /v1/health are open to everybody
        assert (service.health()["status"], service.health()["why"]) == ("not ready", service.not_ready())
        with pytest.raises(Refused) as refused:
            service.decide(b"{}")
        assert refused.value.status == 503
        with pytest.raises(Refused):
            await service.decide_batch(b"{}", "application/json", Call("t"))
        await until(lambda: link._retry_s > 4 * _RETRY_S)  # later each time

        service.hub.publish("trade", {"n": 1})  # the stream goes on meanwhile
        seq = service.hub.log.seq
        await until(lambda: service.hub.log.seq > seq)
        shutil.copytree(bundles[1].directory, late)
        await until(lambda: service.champion.id == bundles[1].id)
        await until(lambda: service.not_ready() is None)
        assert service.health()["status"] == "ok"
        assert service.decide(b"{}").status_code == 422
        await link.stop()

    asyncio.run(play())


def test_a_replica_that_is_behind_is_ready_when_the_others_come_back(bundles: list[Bundle],
                                                                     tmp_path: Path) -> None:
    async def play() -> None:
        service = Service(bundles[0], SETTINGS)
        gone = ModelRef("f" * 64, str(tmp_path / "gone"), "gone")
        before = service.life.aliases
        await service.life.follow(before.promote(gone))
        assert service.life.not_ready() is not None
        await service.life.follow(before)  # the hub died and the alias with it
        assert service.life.not_ready() is None

    asyncio.run(play())


def test_a_newly_configured_bundle_is_champion(bundles: list[Bundle]) -> None:
    async def play() -> None:
        body = HubBody({})
        refs = [ModelRef(bundle.id, str(bundle.directory), "config") for bundle in bundles]
        *_, first = await body.attach(refs[0].id, Aliases(refs[0]))
        assert first.champion == refs[0]
        *_, second = await body.attach(refs[1].id, Aliases(refs[1]))
        assert (second.champion, second.previous, second.revision) == (refs[1], refs[0], 1)
        *_, again = await body.attach(refs[1].id, Aliases(refs[1]))
        assert again == second

    asyncio.run(play())


def test_a_replica_answers_without_a_previous_champion_or_a_shadow_that_is_gone(bundles: list[Bundle],
                                                                                tmp_path: Path) -> None:
    async def play() -> None:
        gone = [ModelRef(letter * 64, str(tmp_path / letter), letter) for letter in "ef"]
        actor = Remote(SETTINGS)
        first = ModelRef(bundles[0].id, str(bundles[0].directory), "config")
        await actor.body.attach(first.id, Aliases(gone[0]).promote(first).with_shadow(gone[1]))
        link = opened(bundles[0], actor)
        service = link._service
        await link.start()
        assert (service.champion.id, service.not_ready()) == (bundles[0].id, None)
        assert service.life.aliases.previous == gone[0]
        assert "could not be opened" in str(service.life.shadow_failures()[1])
        with pytest.raises(NotSwitched) as refused:
            await service.life.switch(Order(rollback=True), "alice")
        assert (refused.value.status, service.champion.id) == (422, bundles[0].id)
        await service.life.switch(Order(alias="shadow", source=str(bundles[1].directory)), "alice")
        assert service.shadow is not None
        assert service.life.shadow_failures() == (0, None)
        await link.stop()
        service.life.close()

    asyncio.run(play())
