"""Idempotency keys are kept for a while, not for ever, and answer only the request that they came with."""

from __future__ import annotations

import asyncio
from typing import Any

from serving.idempotency import IdempotencyTable, Memory, SharedIdempotency, StoredAnswer


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def table(clock: Clock, keys: int = 3, most_bytes: int = 100) -> IdempotencyTable:
    return IdempotencyTable(keys, most_bytes, 10.0, clock)


def answer(text: str = "x") -> StoredAnswer:
    return StoredAnswer(200, text.encode(), "application/json")


def test_a_key_gives_its_answer_again_and_conflicts_with_another_body() -> None:
    clock = Clock()
    known = table(clock)
    assert known.begin("k", b"a").state == "new"
    assert known.begin("k", b"a").state == "pending"
    assert known.finish("k", b"a", answer("first")) == answer("first")
    assert known.finish("k", b"a", answer("second")) == answer("first")
    again = known.begin("k", b"a")
    assert (again.state, again.answer) == ("stored", answer("first"))
    assert known.begin("k", b"b").state == "conflict"
    clock.now = 10.0
    assert known.begin("k", b"b").state == "new"


def test_an_abandoned_key_is_free_and_a_finished_one_is_not() -> None:
    known = table(Clock())
    known.begin("k", b"a")
    known.abandon("k", b"b")
    assert known.begin("k", b"a").state == "pending"
    known.abandon("k", b"a")
    assert known.begin("k", b"b").state == "new"
    known.finish("k", b"b", answer())
    known.abandon("k", b"b")
    assert known.begin("k", b"b").state == "stored"


def test_one_who_never_ends_blocks_a_key_for_half_a_minute() -> None:
    clock = Clock()
    known = table(clock)
    known.begin("k", b"a")
    clock.now = 29.0
    assert known.begin("k", b"a").state == "pending"
    clock.now = 30.0
    assert known.begin("k", b"a").state == "new"


def test_the_oldest_leave_when_it_is_full() -> None:
    known = table(Clock())
    for number in range(5):
        known.begin(str(number), b"a")
        known.finish(str(number), b"a", answer())
    assert len(known) == 3
    assert known.begin("1", b"a").state == "new"
    assert known.begin("4", b"a").state == "stored"
    known.finish("big", b"a", answer("y" * 100))
    assert len(known) == 2
    known.finish("too big", b"a", answer("y" * 101))
    assert len(known) == 0
    assert known.begin("4", b"a").state == "new"


class Actor:
    """What HubLink offers."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}
        self.away = False

    async def recall(self, key: str) -> Any:
        if self.away:
            raise ConnectionError
        return self.kept.get(key)

    async def remember(self, key: str, value: Any, seconds: float) -> Any:
        if self.away:
            raise ConnectionError
        return self.kept.setdefault(key, value)


def test_replicas_share_answers_and_work_on_without_the_actor() -> None:
    actor = Actor()
    assert isinstance(actor, Memory)
    ours, theirs = SharedIdempotency(actor, 10.0), SharedIdempotency(actor, 10.0)

    async def play() -> None:
        assert (await ours.begin("k", b"a")).state == "new"
        assert (await theirs.begin("k", b"a")).state == "new"
        assert await ours.finish("k", b"a", answer("ours")) == answer("ours")
        assert await theirs.finish("k", b"a", answer("theirs")) == answer("ours")
        assert (await theirs.begin("k", b"a")).answer == answer("ours")
        assert (await theirs.begin("k", b"b")).state == "conflict"
        actor.away = True
        assert (await ours.begin("k", b"a")).state == "new"
        assert await ours.finish("k", b"a", answer("alone")) == answer("alone")

    asyncio.run(play())


def test_hub_link_is_such_a_memory() -> None:
    from serving.hub_actor import HubLink

    assert issubclass(HubLink, Memory)
