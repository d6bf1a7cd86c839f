"""The kill switch: obeyed at once, by all replicas, until another person re-arms it, through any loss."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from serving import kill_state
from serving.access import Refused
from serving.bundle import Bundle
from serving.client import request_of
from serving.conditions import PreconditionsSettings
from serving.hub_link import HubLink
from serving.kill_switch import KillSwitch, SwitchState, read_state
from serving.policy import BundlePolicy
from serving.service import AppSettings, Service
from serving.stream import StreamSettings
from tests.hub_remote import Remote, until
from tests.serving_market import accounts, random_bundle, rows, serving_table

SETTINGS = AppSettings(stream=StreamSettings(ring=256, queue=128))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return random_bundle(tmp_path_factory.mktemp("kill") / "bundle")


def opened(bundle: Bundle, actor: Remote, file: Path | None = None) -> HubLink:
    settings = SETTINGS.model_copy(update={"preconditions": PreconditionsSettings(kill_file=file)})
    return HubLink(Service(bundle, settings), actor)


def switch(file: Path | None = None) -> KillSwitch:
    return KillSwitch(file, lambda data: None)


def test_of_two_states_one_counts_and_in_doubt_it_is_thrown() -> None:
    states = [SwitchState(thrown, revision) for thrown in (False, True) for revision in range(3)]
    for one, other in itertools.permutations(states, 2):
        assert one.beats(other) != other.beats(one)
    assert SwitchState(True, 1).beats(SwitchState(False, 1))
    assert SwitchState(False, 2).beats(SwitchState(True, 1))


def test_it_is_latched_and_an_unreadable_file_means_thrown(tmp_path: Path) -> None:
    file = tmp_path / "kill.json"
    first = switch(file)
    assert not first.thrown
    answer = asyncio.run(first.throw("ann", "odd fills"))
    assert (answer["thrown"], answer["latched"], answer["shared"]) == (True, True, True)
    again = switch(file)
    assert again.state == first.state
    assert (again.state.user, again.state.why, again.state.revision) == ("ann", "odd fills", 1)
    assert asyncio.run(again.throw("bob", "me too"))["user"] == "ann"  # it is thrown already
    asyncio.run(again.rearm("bob", "fills are right", second_person=True))
    assert not switch(file).thrown
    good = json.loads(file.read_text())
    for broken in ("", "{", "[]", "{}x", json.dumps(good | {"thrown": "no"}), json.dumps(good | {"more": 1})):
        file.write_text(broken)
        assert switch(file).thrown, broken
    file.unlink()
    file.mkdir()
    assert read_state(file).thrown
    unwritable = switch(file)
    asyncio.run(unwritable.rearm("bob", "x", second_person=False))
    answer = asyncio.run(unwritable.throw("ann", "y"))
    assert (answer["thrown"], answer["latched"]) == (True, False)  # obeyed, and said


def test_who_threw_it_does_not_rearm_it() -> None:
    kill = switch()
    with pytest.raises(Refused, match="not thrown"):
        asyncio.run(kill.rearm("ann", "?", second_person=True))
    asyncio.run(kill.throw("ann", "odd fills"))
    with pytest.raises(Refused, match="somebody else"):
        asyncio.run(kill.rearm("ann", "?", second_person=True))
    assert kill.thrown
    asyncio.run(kill.rearm("ann", "alone here", second_person=False))
    assert not kill.thrown


def reason(service: Service, body: dict[str, Any]) -> str:
    return str(service.answer(body)[1]["reason"])


def test_all_replicas_obey_whichever_was_told(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.hub_link._POLL_S", 30.0)  # news comes when it is news, not at the next question
    table = serving_table()
    row = rows(table, 1)[0]
    body = request_of(bundle, BundlePolicy(bundle, table).inputs(row, accounts(table, row)[0]))

    async def play() -> None:
        actor = Remote(SETTINGS)
        links = [opened(bundle, actor) for _ in range(2)]
        for link in links:
            await link.start()
        one, two = (link._service for link in links)
        free = reason(one, body)
        assert free != "KILL_SWITCH"
        answer = await one.kill.throw("ann", "odd fills")
        assert answer["shared"] is True
        assert reason(one, body) == "KILL_SWITCH"
        await until(lambda: two.kill.state == one.kill.state)
        assert reason(two, body) == "KILL_SWITCH"
        assert two.health()["kill_switch"] is True
        late = opened(bundle, actor)
        await late.start()
        assert late._service.kill.thrown  # before its first request
        await two.kill.rearm("bob", "right again", second_person=True)
        await until(lambda: not one.kill.thrown and not late._service.kill.thrown)
        assert reason(one, body) == free
        told = [event for event in one.hub.log.after(one.hub.log.first - 1, 99) if event.topic == "kill"]
        assert [event.data["thrown"] for event in told] == [True, False]
        for link in (*links, late):
            await link.stop()

    asyncio.run(play())


def test_it_survives_the_actor_and_an_actor_that_is_away(bundle: Bundle, tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.hub_link._POLL_S", 0.05)

    async def play() -> None:
        actor = Remote(SETTINGS)
        links = [opened(bundle, actor, tmp_path / f"{n}.json") for n in range(2)]
        for link in links:
            await link.start()
        one, two = (link._service.kill for link in links)
        actor.away = True
        answer = await one.throw("ann", "odd fills")
        assert (answer["thrown"], answer["shared"]) == (True, False)
        assert one.thrown
        assert not two.thrown
        with pytest.raises(Refused) as refused:  # it might be thrown again elsewhere: nobody can tell
            await one.rearm("bob", "?", second_person=True)
        assert refused.value.status == 503
        assert one.thrown
        actor.away = False
        await until(lambda: two.thrown)  # it was brought there
        actor.dies()
        await until(lambda: actor.body._switch == one.state)
        for link in links:
            await link.stop()
        everybody_new = opened(bundle, Remote(SETTINGS), tmp_path / "1.json")  # actor and replicas are lost
        await everybody_new.start()
        assert everybody_new._service.kill.state == one.state
        await everybody_new.stop()

    asyncio.run(play())


def test_two_who_change_it_at_once_leave_it_thrown(bundle: Bundle) -> None:
    async def play() -> None:
        actor = Remote(SETTINGS)
        links = [opened(bundle, actor) for _ in range(2)]
        for link in links:
            await link.start()
        one, two = (link._service.kill for link in links)
        await one.throw("ann", "odd fills")
        await until(lambda: two.thrown)
        actor.body._switch = SwitchState(True, 2, "cid", "thrown again", 1)  # unheard of here as yet
        with pytest.raises(Refused, match="faster"):
            await two.rearm("bob", "?", second_person=True)
        assert two.thrown
        assert two.state.user == "cid"
        for link in links:
            await link.stop()

    asyncio.run(play())


def test_a_replica_whose_link_to_the_switch_is_broken_is_not_ready(bundle: Bundle,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.hub_link._POLL_S", 0.05)

    async def play() -> None:
        actor = Remote(SETTINGS)
        link = opened(bundle, actor)
        await link.start()
        actor.faults["switch"] = 2
        await until(lambda: link._service.life.broken_links == {"switch"})
        assert link._service.not_ready() is not None
        await until(lambda: link._service.not_ready() is None)
        await link.stop()

    asyncio.run(play())


def test_a_throw_is_not_written_over_by_who_looked_before_it(tmp_path: Path,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    file, write = tmp_path / "kill.json", kill_state._write
    thrown, writing, rearmed = threading.Event(), threading.Event(), SwitchState(False, 5, "bob", "rearm", 5)

    def slow(target: Path, state: SwitchState) -> None:
        if state == rearmed:
            writing.set()
            thrown.wait(0.5)
        write(target, state)

    monkeypatch.setattr(kill_state, "_write", slow)
    one = threading.Thread(target=kill_state.exchange, args=(file, rearmed))
    one.start()
    assert writing.wait(30)
    kill_state.exchange(file, SwitchState(True, 6, "ann", "throw", 6))
    thrown.set()
    one.join()
    assert read_state(file).thrown
