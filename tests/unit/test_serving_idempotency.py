"""Idempotency keys are kept for a while, not for ever, and answer only the request that they came with."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx
from fastapi import Response

from serving.app import create_app
from serving.auth import StaticToken, token_digest
from serving.calls import Call
from serving.hub_actor import HubBody, HubLink
from serving.idempotency import (
    AnswersLink,
    Begun,
    IdempotencyTable,
    Key,
    SharedIdempotency,
    StoredAnswer,
    make_table,
)
from serving.limits import LimitsSettings
from serving.service import AppSettings
from tests.serving_market import random_bundle

TOKEN = "a-token-of-enough-length"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def table(clock: Clock, keys: int = 3, most_bytes: int = 100) -> IdempotencyTable:
    return IdempotencyTable(keys, most_bytes, 10.0, clock)


def mine(text: str, user: str = "ann") -> Key:
    return Key(user, text)


def answer(text: str = "x") -> StoredAnswer:
    return StoredAnswer(200, text.encode(), "application/json")


def test_a_key_gives_its_answer_again_and_conflicts_with_another_body() -> None:
    clock = Clock()
    known = table(clock)
    assert known.begin(mine("k"), b"a").state == "new"
    assert known.begin(mine("k"), b"a").state == "pending"
    assert known.finish(mine("k"), b"a", answer("first")) == answer("first")
    assert known.finish(mine("k"), b"a", answer("second")) == answer("first")
    again = known.begin(mine("k"), b"a")
    assert (again.state, again.answer) == ("stored", answer("first"))
    assert known.begin(mine("k"), b"b").state == "conflict"
    assert known.finish(mine("k"), b"b", answer("of another body")) is None
    clock.now = 10.0
    assert known.begin(mine("k"), b"b").state == "new"


def test_an_abandoned_key_is_free_and_a_finished_one_is_not() -> None:
    known = table(Clock())
    known.begin(mine("k"), b"a")
    known.abandon(mine("k"), b"b")
    assert known.begin(mine("k"), b"a").state == "pending"
    known.abandon(mine("k"), b"a")
    assert known.begin(mine("k"), b"b").state == "new"
    known.finish(mine("k"), b"b", answer())
    known.abandon(mine("k"), b"b")
    assert known.begin(mine("k"), b"b").state == "stored"


def test_one_who_never_ends_blocks_a_key_for_half_a_minute() -> None:
    clock = Clock()
    known = table(clock)
    known.begin(mine("k"), b"a")
    clock.now = 29.0
    assert known.begin(mine("k"), b"a").state == "pending"
    clock.now = 30.0
    assert known.begin(mine("k"), b"a").state == "new"


def test_what_a_killed_replica_began_is_free_once_its_deadline_is_over() -> None:
    """The client's next try is worked on: it waited half a minute before, and got 503 all the while."""
    clock = Clock()
    known = make_table(LimitsSettings(deadline_ms=2500.0))
    known._clock = clock
    known.begin(mine("k"), b"a")
    clock.now = 2.4
    assert known.begin(mine("k"), b"a").state == "pending"
    clock.now = 2.5
    assert known.begin(mine("k"), b"a").state == "new"
    assert known.finish(mine("k"), b"a", answer("second")) == answer("second")
    assert known.finish(mine("k"), b"a", answer("the first, after all")) == answer("second")


def test_the_oldest_leave_when_it_is_full() -> None:
    known = table(Clock())
    for number in range(5):
        known.begin(mine(str(number)), b"a")
        known.finish(mine(str(number)), b"a", answer())
    assert len(known) == 3
    assert known.begin(mine("1"), b"a").state == "new"
    assert known.begin(mine("4"), b"a").state == "stored"
    known.finish(mine("big"), b"a", answer("y" * 100))
    assert (len(known), known.size) == (2, 100)  # "1", which is under way, and the big one
    assert known.finish(mine("too big"), b"a", answer("y" * 101)) is None
    assert (len(known), known.size) == (2, 100)
    assert known.begin(mine("4"), b"a").state == "new"


def test_one_user_pushes_out_only_the_own() -> None:
    known = table(Clock(), keys=4, most_bytes=100)
    known.begin(mine("a"), b"a")
    known.finish(mine("a"), b"a", answer())
    for number in range(50):
        key = mine(str(number), "bob")
        known.begin(key, b"a")
        known.finish(key, b"a", answer("y" * 40))
    assert known.begin(mine("a"), b"a").state == "stored"
    assert known.begin(mine("49", "bob"), b"a").state == "stored"
    assert known.begin(mine("40", "bob"), b"a").state == "new"
    assert (len(known), known.size) == (4, 81)


def test_what_has_expired_is_dropped_not_only_hidden() -> None:
    clock = Clock()
    known = table(clock)
    known.begin(mine("a"), b"a")
    known.finish(mine("a"), b"a", answer("y" * 50))
    clock.now = 11.0
    known.purge()
    assert (len(known), known.size) == (0, 0)


class Actor:
    """What HubLink offers, over the body of the real actor."""

    def __init__(self, keys: int = 10) -> None:
        self.body = HubBody({}, LimitsSettings(idempotency_keys=keys).model_dump(mode="json"))
        self.away, self.seconds = False, 0.0

    async def _reach(self) -> None:
        await asyncio.sleep(self.seconds)
        if self.away:
            raise ConnectionError

    async def begin_answer(self, key: Key, digest: bytes) -> Begun:
        await self._reach()
        begun: Begun = (await self.body.answers([("begin", (key, digest))]))[0]
        return begun

    async def finish_answer(self, key: Key, digest: bytes, answer: StoredAnswer) -> StoredAnswer | None:
        await self._reach()
        kept: StoredAnswer | None = (await self.body.answers([("finish", (key, digest, answer))]))[0]
        return kept

    async def abandon_answer(self, key: Key, digest: bytes) -> None:
        await self._reach()
        await self.body.answers([("abandon", (key, digest))])


def test_replicas_share_answers_and_work_on_without_the_actor() -> None:
    actor = Actor()
    assert isinstance(actor, AnswersLink)
    assert issubclass(HubLink, AnswersLink)
    ours, theirs = SharedIdempotency(actor, Call("")), SharedIdempotency(actor, Call(""))
    key = mine("k")

    async def play() -> None:
        assert (await ours.begin(key, b"a")).state == "new"
        assert (await ours.begin(key, b"a")).state == "pending"
        assert (await theirs.begin(key, b"a")).state == "pending"
        assert (await theirs.begin(key, b"b")).state == "conflict"
        await ours.abandon(key, b"a")
        await asyncio.sleep(0.01)
        assert (await theirs.begin(key, b"a")).state == "new"
        assert await theirs.finish(key, b"a", answer("theirs")) == answer("theirs")
        assert await ours.finish(key, b"a", answer("ours")) == answer("theirs")
        assert (await ours.begin(key, b"a")).answer == answer("theirs")
        assert (await theirs.begin(mine("k", "bob"), b"a")).state == "new"
        actor.away = True
        assert (await ours.begin(key, b"a")).state == "new"
        assert await ours.finish(key, b"a", answer("alone")) is None
        await ours.abandon(key, b"a")
        await asyncio.sleep(0.01)

    asyncio.run(play())


def test_the_actor_is_bounded_by_the_settings() -> None:
    async def play() -> None:
        actor = Actor(keys=5)
        shared = SharedIdempotency(actor, Call(""))
        for number in range(20):
            await shared.finish(mine(str(number)), b"a", answer())
        assert len(actor.body._answers) == 5

    asyncio.run(play())


def test_a_slow_actor_takes_half_of_what_is_left_of_the_deadline() -> None:
    async def play() -> None:
        actor = Actor()
        actor.seconds = 5.0
        call = Call("", deadline_ms=200.0)
        shared = SharedIdempotency(actor, call)
        assert (await shared.begin(mine("k"), b"a")).state == "new"
        assert await shared.finish(mine("k"), b"a", answer()) is None
        await shared.abandon(mine("k"), b"a")
        assert call.age_ms() < 1000.0

    asyncio.run(play())


def served(folder: Path, link: Actor, *calls: dict[str, str]) -> list[httpx.Response]:
    """Decisions asked one behind the other with these headers, over `link`."""
    app = create_app(random_bundle(folder / "bundle"), AppSettings(), StaticToken(token_digest(TOKEN)))

    async def play() -> list[httpx.Response]:
        app.state.service.life.link = link
        app.state.service.decide = lambda body, call: Response("{}")
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://x") as client:
            return [await client.post("/v1/decide", json={}, headers={"Authorization": f"Bearer {TOKEN}", **more})
                    for more in calls]

    return asyncio.run(play())


def test_the_client_is_told_that_its_answer_is_not_kept(tmp_path: Path) -> None:
    actor = Actor()
    key = {"Idempotency-Key": "k"}
    kept, again = served(tmp_path / "near", actor, key, key)
    assert "idempotent-stored" not in kept.headers
    assert again.headers["idempotent-replayed"] == "true"
    actor.away = True
    alone, without = served(tmp_path / "away", actor, key, {})
    assert (alone.status_code, alone.text, alone.headers["idempotent-stored"]) == (200, "{}", "false")
    assert "idempotent-stored" not in without.headers


def test_no_answer_leaves_after_its_deadline_because_keeping_it_took_long(tmp_path: Path) -> None:
    """An actor that stops the whole loop: even then the answer is refused, not given late."""
    class Blocking(Actor):
        async def finish_answer(self, key: Key, digest: bytes, answer: StoredAnswer) -> StoredAnswer | None:
            time.sleep(0.5)
            return await super().finish_answer(key, digest, answer)

    (answered,) = served(tmp_path, Blocking(), {"x-deadline-ms": "400", "Idempotency-Key": "k"})
    assert (answered.status_code, "past its deadline" in answered.text) == (503, True)
