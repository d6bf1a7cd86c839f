"""Calls that go together: each gets its own answer, a lone one goes at once, a fault reaches all it concerns."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pytest

from algospace.errors import InternalError
from serving.together import Pace, Question, Together


class Actor:
    def __init__(self, seconds: float = 0.0) -> None:
        self.calls: list[Sequence[Question]] = []
        self.seconds = seconds

    async def ask(self, questions: Sequence[Question]) -> list[Any]:
        self.calls.append(questions)
        await asyncio.sleep(self.seconds)
        if any(about == ("bad",) for _, about in questions):
            raise ConnectionError("bad")
        return [(name, *about) for name, about in questions]


def test_many_go_in_few_calls_and_each_gets_its_own_answer() -> None:
    actor = Actor()

    async def play() -> list[Any]:
        together = Together(actor.ask, 0.02)

        async def ask(number: int) -> Any:
            await asyncio.sleep(0.0002 * number)
            return await together("begin", number)

        return await asyncio.gather(*(ask(number) for number in range(300)))

    assert asyncio.run(play()) == [("begin", number) for number in range(300)]
    assert 2 <= len(actor.calls) <= 30
    assert [about for call in actor.calls for _, about in call] == sorted(
        about for call in actor.calls for _, about in call)


def test_a_lone_question_waits_for_nothing() -> None:
    async def play() -> float:
        together = Together(Actor().ask, 10.0)
        began = time.monotonic()
        await together("begin", 1)
        return time.monotonic() - began

    assert asyncio.run(play()) < 5.0


def test_a_slow_answer_holds_up_no_later_question() -> None:
    async def play() -> None:
        actor = Actor(30.0)
        together = Together(actor.ask, 0.001)
        first = asyncio.create_task(together("begin", 1))
        await asyncio.sleep(0.05)
        actor.seconds = 0.0
        async with asyncio.timeout(5.0):
            assert await together("begin", 2) == ("begin", 2)
        first.cancel()

    asyncio.run(play())


def test_a_fault_reaches_all_that_went_together_and_nobody_else() -> None:
    async def play() -> None:
        together = Together(Actor().ask, 0.01)
        await together("begin", 0)
        found = await asyncio.gather(together("begin", "bad"), together("begin", 2), return_exceptions=True)
        assert [type(one) for one in found] == [ConnectionError, ConnectionError]
        assert await together("begin", 3) == ("begin", 3)

    asyncio.run(play())


def test_answers_that_are_missing_leave_nobody_waiting() -> None:
    async def ask(questions: Sequence[Question]) -> list[Any]:
        return []

    async def play() -> None:
        async with asyncio.timeout(5.0):
            with pytest.raises(InternalError, match="1 questions got 0 answers"):
                await Together(ask, 0.01)("begin", 1)

    asyncio.run(play())


def test_who_gives_up_takes_nobody_along() -> None:
    async def play() -> None:
        actor = Actor(0.02)
        together = Together(actor.ask, 0.02)
        await together("begin", 0)
        gone, stays = asyncio.create_task(together("begin", 1)), asyncio.create_task(together("begin", 2))
        await asyncio.sleep(0.005)
        gone.cancel()
        assert await stays == ("begin", 2)
        with pytest.raises(asyncio.CancelledError):
            await gone

    asyncio.run(play())


def test_a_pace_is_kept_and_owes_nothing_for_idle_times() -> None:
    async def play() -> tuple[float, float]:
        pace = Pace(0.02)
        began = time.monotonic()
        for _ in range(6):
            await pace.turn()
        busy = time.monotonic() - began
        await asyncio.sleep(0.1)
        began = time.monotonic()
        await pace.turn()
        await pace.turn()
        return busy, time.monotonic() - began

    busy, behind = asyncio.run(play())
    assert busy >= 5 * 0.02 - 1e-3
    assert behind >= 0.02 - 1e-3
