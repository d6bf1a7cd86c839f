"""A kill answered with 200 is thrown, whatever was heard before, whoever is away, whatever the file says."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayActorError

from serving import kill_state
from serving.access import Refused
from serving.bundle import Bundle
from serving.client import request_of
from serving.conditions import PreconditionsSettings
from serving.hub_actor import HubBody
from serving.hub_link import HubLink
from serving.kill_switch import KillSwitch, SwitchState
from serving.policy import BundlePolicy
from serving.service import AppSettings, Service
from serving.stream import StreamSettings
from serving.stream_state import Event, StreamState
from tests.hub_remote import Remote, until
from tests.serving_market import accounts, random_bundle, rows, serving_table

SETTINGS = AppSettings(stream=StreamSettings(ring=256, queue=128))


class Hub:
    """A link to a hub in this process; `away`: it raises this."""

    def __init__(self) -> None:
        self.body = HubBody({})
        self.away: Exception | None = None

    async def agree_on_switch(self, mine: SwitchState) -> SwitchState:
        if self.away is not None:
            raise self.away
        return await self.body.switch(mine, 0.0)


def switch(link: Any = None, file: Path | None = None) -> KillSwitch:
    kill = KillSwitch(file, lambda data: None)
    kill.link = link
    return kill


def says(file: Path) -> SwitchState:
    return SwitchState(**json.loads(file.read_text()))


def test_who_missed_a_throw_and_its_rearming_throws_it_all_the_same() -> None:
    async def play() -> None:
        hub = Hub()
        one, two = switch(hub), switch(hub)
        await one.throw("ann", "x")
        await one.rearm("bob", "y", second_person=True)
        answer = await two.throw("eve", "now")  # of revision 1, where the others are at 2
        assert (answer["thrown"], answer["user"], answer["shared"]) == (True, "eve", True)
        assert two.thrown
        assert hub.body._switch == two.state
        assert two.state.revision == 3

    asyncio.run(play())


def test_who_still_believes_it_thrown_throws_it_again() -> None:
    async def play() -> None:
        hub = Hub()
        one, two = switch(hub), switch(hub)
        await one.throw("ann", "x")
        two.hear(hub.body._switch)
        await one.rearm("bob", "y", second_person=True)
        answer = await two.throw("eve", "now")
        assert (answer["thrown"], answer["user"], two.thrown, hub.body._switch.thrown) == (True, "eve", True, True)

    asyncio.run(play())


@pytest.mark.parametrize("away", [RayActorError(), ConnectionError(), RuntimeError()])
def test_a_throw_that_could_not_be_shared_is_not_undone_by_older_news(away: Exception) -> None:
    async def play() -> None:
        hub = Hub()
        one, two, three = switch(hub), switch(hub), switch(hub)
        await one.throw("ann", "x")
        three.hear(hub.body._switch)
        await one.rearm("bob", "y", second_person=True)
        hub.away = away
        for late in (two, three):  # one knows of nothing, one believes that it is thrown
            assert (await late.throw("eve", "now"))["shared"] is False
        hub.away = None
        for late in (two, three):
            late.hear(await hub.agree_on_switch(late.state))
            assert late.thrown
            late.hear(await hub.agree_on_switch(late.state))
        assert hub.body._switch.thrown
        await one.throw("ann", "me too")
        await three.rearm("bob", "seen by all", second_person=True)  # what is shared can be re-armed
        two.hear(hub.body._switch)
        assert not two.thrown
        assert not three.thrown

    asyncio.run(play())


def test_a_rearming_that_did_not_hold_is_refused() -> None:
    async def play() -> None:
        kill = switch()
        await kill.throw("ann", "x")

        class Slow:
            async def agree_on_switch(self, mine: SwitchState) -> SwitchState:
                kill.adopt(SwitchState(True, 3, "eve", "again", 9))  # while the answer is on its way
                return mine

        kill.link = Slow()
        with pytest.raises(Refused, match="thrown again") as refused:
            await kill.rearm("bob", "ok", second_person=True)
        assert refused.value.status == 409
        assert (kill.thrown, kill.state.user) == (True, "eve")

    asyncio.run(play())


def test_an_old_file_that_is_not_thrown_undoes_no_kill(tmp_path: Path) -> None:
    async def play() -> None:
        hub, file = Hub(), tmp_path / "a.json"
        two = switch(hub, tmp_path / "b.json")
        await two.throw("ann", "now")
        file.write_text(json.dumps(asdict(SwitchState(False, 4, "bob", "last month", 1))))
        one = switch(hub, file)
        for _ in range(2):
            one.hear(await hub.agree_on_switch(one.state))
            await one.latch()
            two.hear(await hub.agree_on_switch(two.state))
        assert one.thrown
        assert two.thrown
        assert says(file).thrown  # and latched, though the file was at a higher revision
        assert one.status()["latched"] is True
        await two.rearm("bob", "right again", second_person=True)
        one.hear(await hub.agree_on_switch(one.state))
        await one.latch()
        assert not one.thrown
        assert not says(file).thrown

    asyncio.run(play())


def test_a_kill_reaches_whoever_shares_only_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.kill_switch._LOOK_S", 0.02)

    async def play() -> None:
        file, hub = tmp_path / "kill.json", Hub()
        one, two = switch(None, file), switch(hub, file)
        watching = [asyncio.create_task(kill.watch_file()) for kill in (one, two)]
        await one.throw("ann", "x")
        await until(lambda: two.thrown and hub.body._switch.thrown)
        assert two.state.user == "ann"
        await two.rearm("bob", "y", second_person=True)
        assert one.thrown  # re-arming is not learnt from a file
        assert (await two.throw("cid", "z"))["latched"] is True
        await two.rearm("dan", "again", second_person=True)
        answer = await one.throw("eve", "still odd")  # thrown already, as far as it knows: the file has to say so
        assert (answer["thrown"], answer["latched"]) == (True, True)
        await until(lambda: two.thrown)
        for task in watching:
            task.cancel()

    asyncio.run(play())


def test_nothing_is_written_over_a_state_that_is_further(tmp_path: Path) -> None:
    async def play() -> None:
        file = tmp_path / "kill.json"
        one, two = switch(None, file), switch(None, file)
        await one.throw("ann", "x")
        two.adopt(SwitchState(False, 1, "bob", "old news", 1))
        await two.latch()
        assert says(file) == one.state
        assert two.thrown

    asyncio.run(play())


def test_what_could_not_be_latched_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.kill_switch._LOOK_S", 0.02)

    async def play() -> None:
        file = tmp_path / "kill.json"
        kill = switch(None, file)
        file.mkdir()
        assert (await kill.throw("ann", "x"))["latched"] is False
        watching = asyncio.create_task(kill.watch_file())
        await asyncio.sleep(0.1)
        assert kill.status()["latched"] is False
        file.rmdir()
        await until(lambda: kill.status()["latched"] is True)
        assert says(file) == kill.state
        watching.cancel()

    asyncio.run(play())


def test_a_latched_kill_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    sync = kill_state.os.fsync

    def fsync(handle: int) -> None:
        synced.append(Path(f"/proc/self/fd/{handle}").readlink())
        sync(handle)

    monkeypatch.setattr(kill_state.os, "fsync", fsync)
    asyncio.run(switch(None, tmp_path / "kill.json").throw("ann", "x"))
    assert [path.parent if path != tmp_path else path for path in synced] == [tmp_path, tmp_path]
    assert synced[0].name.startswith(".kill.json")
    assert synced[1] == tmp_path


def test_a_file_that_hangs_holds_up_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.kill_switch._FILE_S", 0.1)
    hang = threading.Event()
    monkeypatch.setattr("serving.kill_switch.exchange", lambda file, mine: (hang.wait(30), mine)[1])

    async def play() -> None:
        hub = Hub()
        kill, turns = switch(hub, tmp_path / "kill.json"), 0

        async def breathe() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0.01)

        breathing = asyncio.create_task(breathe())
        started = time.monotonic()
        answer = await kill.throw("ann", "x")
        assert time.monotonic() - started < 5.0
        assert (answer["thrown"], answer["shared"], answer["latched"]) == (True, True, False)
        assert turns > 3
        breathing.cancel()
        hang.set()
        await kill.latch()
        assert kill.status()["latched"] is True

    asyncio.run(play())


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return random_bundle(tmp_path_factory.mktemp("faults") / "bundle")


def answers(service: Service, bundle: Bundle) -> list[str]:
    """Reasons for a flat account that is let in, and for one whose position is to be closed."""
    table = serving_table()
    policy, found = BundlePolicy(bundle, table), []
    for row in rows(table, 30):
        inputs = policy.inputs(row, accounts(table, row)[0])
        for position in (0.0, 1.0):
            account = inputs.account.copy()
            account["position"], account["entry"] = position, inputs.market.close
            body = request_of(bundle, dataclasses.replace(inputs, account=account))
            found.append(f"{position:g} {service.answer(body)[1]['reason']}")
    return found


class Gone:
    """An actor whose every switch raises `error`; everything else is the hub's."""

    def __init__(self, actor: Remote) -> None:
        self.actor = actor
        self.error: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        if name == "switch" and self.error is not None:
            error = self.error

            class Method:
                @staticmethod
                async def remote(*_: Any) -> Any:
                    raise error

            return Method
        return getattr(self.actor, name)


@pytest.mark.parametrize("error", [RayActorError(), ConnectionError(), RuntimeError("x")])
def test_a_replica_that_cannot_hear_of_a_kill_opens_nothing(bundle: Bundle, monkeypatch: pytest.MonkeyPatch,
                                                            error: Exception) -> None:
    for name, seconds in {"_POLL_S": 0.05, "_SILENCE_S": 0.4, "_LONGEST_RETRY_S": 0.2}.items():
        monkeypatch.setattr(f"serving.hub_link.{name}", seconds)

    async def play() -> None:
        actor = Gone(Remote(SETTINGS))
        link = HubLink(Service(bundle, SETTINGS), actor)
        service = link._service
        model = service.champion
        model.decider.heads._bias[3, 2] = 0.5  # random weights never want to close
        model.expected = model.decider.decide(model._blank_inputs(0))
        await link.start()
        free = answers(service, bundle)
        assert {"0 EXECUTE", "1 CLOSE"} <= set(free)
        actor.error = error
        await until(lambda: "switch" in service.life.broken_links)
        assert "link" in str(service.not_ready())
        held = answers(service, bundle)
        assert {reason for reason in held if reason.startswith("0")} == {"0 KILL_SWITCH"}
        assert [one for one in held if one == "1 CLOSE"] == [one for one in free if one == "1 CLOSE"]
        assert {reason for reason in held if reason.startswith("1")} == {"1 CLOSE", "1 KILL_SWITCH"}
        assert service.health()["kill_switch"] is False  # it is not known to be thrown
        actor.error = None
        await until(lambda: service.not_ready() is None)
        assert answers(service, bundle) == free
        await link.stop()

    asyncio.run(play())


def test_an_actor_that_is_away_for_a_moment_costs_nobody_a_decision(bundle: Bundle,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.hub_link._POLL_S", 0.05)

    async def play() -> None:
        actor = Remote(SETTINGS)
        link = HubLink(Service(bundle, SETTINGS), actor)
        await link.start()
        actor.away = True
        await asyncio.sleep(1.0)
        assert link._service.life.broken_links == set()
        assert not link._service.opens_nothing()
        actor.away = False
        await link.stop()

    asyncio.run(play())


def kill_event(seq: int, **values: Any) -> Event:
    return Event(seq, "kill", seq, asdict(SwitchState(**values)))


def test_a_late_older_event_does_not_win() -> None:
    state = StreamState(10)
    state.take(kill_event(1, thrown=True, revision=3))
    state.take(kill_event(2, thrown=False, revision=2))
    state.take(kill_event(3, thrown=False, revision=3))
    assert state.kill is not None
    assert (state.kill["thrown"], state.kill["revision"]) == (True, 3)
    state.take(kill_event(4, thrown=False, revision=4))
    assert not state.kill["thrown"]


def test_a_throw_whose_replica_dies_is_announced_once(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.hub_link._POLL_S", 0.05)

    async def play() -> None:
        actor = Remote(SETTINGS)
        links = [HubLink(Service(bundle, SETTINGS), actor) for _ in range(3)]
        for link in links:
            await link.start()
        one, two, _ = (link._service for link in links)

        def told() -> list[Any]:
            log = two.hub.log
            return [event.data["why"] for event in log.after(log.first - 1, 99) if event.topic == "kill"]

        for task in links[0]._tasks:
            task.cancel()  # nothing that it publishes from now on leaves it
        await one.kill.throw("ann", "its last word")
        await until(lambda: two.kill.thrown and told() != [])
        await asyncio.sleep(0.3)
        assert told() == ["its last word"]
        actor.dies()  # a new stream tells it, too, to whoever comes now
        await until(lambda: two.hub.log.stream == actor.body._log.stream and told() == ["its last word"])
        for link in links:
            await link.stop()

    asyncio.run(play())


def test_a_service_alone_tells_its_stream(bundle: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "kill.json"
    alone = SETTINGS.model_copy(update={"preconditions": PreconditionsSettings(kill_file=file)})
    service = Service(bundle, alone)
    asyncio.run(service.kill.throw("ann", "x"))
    again = Service(bundle, alone)  # it starts thrown, and says so
    for one in (service, again):
        assert one.hub.log.state.kill is not None
        assert one.hub.log.state.kill["why"] == "x"
