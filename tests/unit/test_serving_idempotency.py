"""Idempotency keys are kept for a while, not for ever, and answer only the request that they came with."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
from fastapi import Response

from serving.app import create_app
from serving.auth import StaticToken, token_digest
from serving.calls import Call
from serving.exchange import Question
from serving.hub_actor import HubBody, Place
from serving.hub_link import HubLink
from serving.idempotency import (
    AnswersLink,
    IdempotencyTable,
    Key,
    Settled,
    SharedIdempotency,
    StoredAnswer,
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
    for _ in range(2):  # to look is no claim: nobody waits for who looked first
        assert known.find(mine("k"), b"a") == Settled("none")
    assert known.settle(mine("k"), b"a", answer("first")) == Settled("kept")
    assert known.settle(mine("k"), b"a", answer("second")) == Settled("stored", answer("first"))
    assert known.find(mine("k"), b"a") == Settled("stored", answer("first"))
    assert known.find(mine("k"), b"b") == Settled("conflict")
    assert known.settle(mine("k"), b"b", answer("of another body")) == Settled("conflict")
    assert known.find(mine("k", "bob"), b"b") == Settled("none")
    clock.now = 10.0
    assert known.find(mine("k"), b"b") == Settled("none")


def stored(known: IdempotencyTable, key: Key) -> bool:
    return known.find(key, b"a").state == "stored"


def test_the_oldest_leave_when_it_is_full() -> None:
    known = table(Clock())
    for number in range(5):
        assert known.settle(mine(str(number)), b"a", answer()) == Settled("kept")
    assert len(known) == 3
    assert [stored(known, mine(str(number))) for number in range(5)] == [False, False, True, True, True]
    known.settle(mine("big"), b"a", answer("y" * 100))
    assert (len(known), known.size) == (1, 100)
    assert known.settle(mine("too big"), b"a", answer("y" * 101)) == Settled("lost")
    assert (len(known), known.size) == (1, 100)
    assert not stored(known, mine("4"))


def test_one_user_pushes_out_only_the_own() -> None:
    known = table(Clock(), keys=4, most_bytes=100)
    known.settle(mine("a"), b"a", answer())
    for number in range(50):
        known.settle(mine(str(number), "bob"), b"a", answer("y" * 40))
    assert stored(known, mine("a"))
    assert stored(known, mine("49", "bob"))
    assert not stored(known, mine("40", "bob"))
    assert (len(known), known.size) == (3, 81)


def test_what_has_expired_is_dropped_not_only_hidden() -> None:
    clock = Clock()
    known = table(clock)
    known.settle(mine("a"), b"a", answer("y" * 50))
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

    async def _ask(self, questions: list[Question]) -> list[Any]:
        answers, _ = await self.body.exchange(Place("r", "c", "", 0, 0), [], questions)
        return answers

    async def find_answer(self, key: Key, digest: bytes) -> Settled:
        await self._reach()
        settled: Settled = (await self._ask([("find", (key, digest))]))[0]
        return settled

    async def settle_answer(self, key: Key, digest: bytes, answer: StoredAnswer) -> Settled:
        await self._reach()
        settled: Settled = (await self._ask([("settle", (key, digest, answer))]))[0]
        return settled


def test_replicas_share_answers_and_work_on_without_the_actor() -> None:
    actor = Actor()
    assert isinstance(actor, AnswersLink)
    assert issubclass(HubLink, AnswersLink)
    ours, theirs = SharedIdempotency(actor, Call("")), SharedIdempotency(actor, Call(""))
    key = mine("k")

    async def play() -> None:
        assert await ours.find(key, b"a") == Settled("none")
        assert await theirs.settle(key, b"a", answer("theirs")) == Settled("kept")
        assert await ours.find(key, b"a") == Settled("stored", answer("theirs"))
        assert await ours.settle(key, b"a", answer("ours")) == Settled("stored", answer("theirs"))
        assert await ours.settle(key, b"b", answer("ours")) == Settled("conflict")
        actor.away = True
        assert await ours.find(key, b"a") == Settled("none")
        assert await ours.settle(key, b"a", answer("alone")) == Settled("lost")

    asyncio.run(play())


def test_the_actor_is_bounded_by_the_settings() -> None:
    async def play() -> None:
        actor = Actor(keys=5)
        shared = SharedIdempotency(actor, Call(""))
        for number in range(20):
            await shared.settle(mine(str(number)), b"a", answer())
        assert len(actor.body._answers) == 5

    asyncio.run(play())


def test_a_slow_actor_takes_half_of_what_is_left_of_the_deadline() -> None:
    async def play() -> None:
        actor = Actor()
        actor.seconds = 5.0
        call = Call("", deadline_ms=200.0)
        shared = SharedIdempotency(actor, call)
        assert await shared.find(mine("k"), b"a") == Settled("none")
        assert await shared.settle(mine("k"), b"a", answer()) == Settled("lost")
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
        async def settle_answer(self, key: Key, digest: bytes, answer: StoredAnswer) -> Settled:
            time.sleep(0.5)
            return await super().settle_answer(key, digest, answer)

    (answered,) = served(tmp_path, Blocking(), {"x-deadline-ms": "400", "Idempotency-Key": "k"})
    assert (answered.status_code, "past its deadline" in answered.text) == (503, True)
