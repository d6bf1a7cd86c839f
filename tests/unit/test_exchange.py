"""Events and questions that go in few calls: each gets its own answer, a lone one goes at once, a fault reaches
whom it concerns, and no event is lost to one."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from algospace.errors import InternalError
from serving.exchange import Away, Exchange, Pace, Question, Told


class Other:
    """The other side: it may be slow, refuse a bad question, or fail some times."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.calls: list[list[Question]] = []
        self.told: list[Told] = []
        self.seconds, self.fails = seconds, list[Exception]()

    async def __call__(self, events: list[Told], questions: list[Question]) -> list[Any]:
        self.calls.append(questions)
        await asyncio.sleep(self.seconds)
        if self.fails:
            raise self.fails.pop(0)
        if any(about == ("bad",) for _, about in questions):
            raise ConnectionError("bad")
        self.told += events
        return [(name, *about) for name, about in questions]


@asynccontextmanager
async def working(call: Any, seconds: float) -> AsyncIterator[Exchange]:
    """An exchange whose steps go on, whatever fails."""
    exchange = Exchange(call, seconds)
    exchange.open()

    async def steps() -> None:
        while True:
            with suppress(Exception):
                await exchange.step(60.0)
            await asyncio.sleep(0)

    task = asyncio.create_task(steps())
    try:
        async with asyncio.timeout(30.0):
            yield exchange
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_many_go_in_few_calls_and_each_gets_its_own_answer() -> None:
    other = Other()

    async def play() -> list[Any]:
        async with working(other, 0.02) as exchange:
            async def ask(number: int) -> Any:
                await asyncio.sleep(0.0002 * number)
                exchange.tell("trade", number, {})
                return await exchange.ask("settle", number)

            found = await asyncio.gather(*(ask(number) for number in range(300)))
            await until(lambda: len(other.told) == 300)
            return found

    assert asyncio.run(play()) == [("settle", number) for number in range(300)]
    assert 2 <= len(other.calls) <= 30
    asked = [about for call in other.calls for _, about in call]
    assert asked == sorted(asked)
    assert [event.ts_ns for event in other.told] == list(range(300))


def test_a_lone_question_and_a_lone_event_wait_for_nothing() -> None:
    async def play() -> float:
        other = Other()
        async with working(other, 0.0) as exchange:
            await asyncio.sleep(0.05)
            began = time.monotonic()
            await exchange.ask("settle", 1)
            exchange.tell("trade", 1, {})
            await until(lambda: len(other.told) == 1)
            return time.monotonic() - began

    assert asyncio.run(play()) < 5.0


def test_one_call_at_a_time_and_the_slower_it_is_the_more_goes_in_one() -> None:
    async def play() -> None:
        other = Other(0.05)
        async with working(other, 0.0) as exchange:
            asked = []
            for number in range(40):
                asked.append(asyncio.create_task(exchange.ask("settle", number)))
                await asyncio.sleep(0.002)
            await asyncio.gather(*asked)
        assert 2 <= len(other.calls) <= 10

    asyncio.run(play())


def test_a_fault_reaches_all_that_went_together_and_nobody_else() -> None:
    async def play() -> None:
        async with working(Other(), 0.01) as exchange:
            await exchange.ask("settle", 0)
            found = await asyncio.gather(exchange.ask("settle", "bad"), exchange.ask("settle", 2),
                                         return_exceptions=True)
            assert [type(one) for one in found] == [ConnectionError, ConnectionError]
            with suppress(Away):
                await exchange.ask("settle", 3)
            await asyncio.sleep(0.05)
            assert await exchange.ask("settle", 3) == ("settle", 3)

    asyncio.run(play())


def test_nobody_waits_while_a_failure_is_not_made_good() -> None:
    """Not even who asked while the call that failed was on its way."""
    async def play() -> None:
        other = Other(0.05)
        other.fails = [ConnectionError("gone")]
        exchange = Exchange(other, 0.0)
        exchange.open()
        first = asyncio.create_task(exchange.ask("settle", 1))
        await asyncio.sleep(0)
        step = asyncio.create_task(exchange.step(60.0))
        await asyncio.sleep(0.01)
        meanwhile = asyncio.create_task(exchange.ask("settle", 2))
        async with asyncio.timeout(5.0):
            found = await asyncio.gather(step, first, meanwhile, return_exceptions=True)
            assert [type(one) for one in found] == [ConnectionError] * 3
            with pytest.raises(Away, match="'settle' is not asked: gone"):
                await exchange.ask("settle", 3)
            await exchange.step(60.0)  # looks at once, though nothing waits
            assert other.calls[-1] == []
            answered = asyncio.create_task(exchange.ask("settle", 4))
            await asyncio.sleep(0)
            await exchange.step(60.0)
            assert await answered == ("settle", 4)

    asyncio.run(play())


@pytest.mark.parametrize(("failures", "lost"), [
    ([ConnectionError()] * 2, 0), ([Away("x")] * 5, 0), ([ConnectionError()] * 3, 2),
    ([ConnectionError(), Away("x"), ConnectionError(), Away("x")], 0)])
def test_events_are_told_in_order_and_lost_only_if_they_are_refused(failures: list[Exception], lost: int) -> None:
    async def play() -> None:
        other = Other()
        other.fails = list(failures)
        async with working(other, 0.0) as exchange:
            exchange.tell("trade", 1, {})
            exchange.tell("trade", 2, {})
            await until(lambda: not other.fails)
            exchange.tell("trade", 3, {})
            await until(lambda: bool(other.told) and other.told[-1].ts_ns == 3)
            assert [event.ts_ns for event in other.told] == ([3] if lost else [1, 2, 3])
            assert exchange.lost == lost

    asyncio.run(play())


def test_answers_that_are_missing_leave_nobody_waiting() -> None:
    async def call(events: list[Told], questions: list[Question]) -> list[Any]:
        return []

    async def play() -> None:
        async with working(call, 0.01) as exchange:
            with pytest.raises(InternalError, match="1 questions got 0 answers"):
                await exchange.ask("settle", 1)

    asyncio.run(play())


def test_who_gives_up_takes_nobody_along() -> None:
    async def play() -> None:
        async with working(Other(0.02), 0.02) as exchange:
            await exchange.ask("settle", 0)
            gone, stays = (asyncio.create_task(exchange.ask("settle", number)) for number in (1, 2))
            await asyncio.sleep(0.005)
            gone.cancel()
            assert await stays == ("settle", 2)
            with pytest.raises(asyncio.CancelledError):
                await gone

    asyncio.run(play())


def test_who_waits_when_the_exchange_ends_is_let_go() -> None:
    async def play() -> None:
        async with working(Other(60.0), 0.0) as exchange:
            asked = asyncio.create_task(exchange.ask("settle", 1))
            await asyncio.sleep(0.05)
        with pytest.raises(asyncio.CancelledError):
            async with asyncio.timeout(5.0):
                await asked

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


def test_what_a_thread_tells_between_the_look_and_the_wait_is_not_left_lying() -> None:
    class Looked(deque[Told]):
        """Behind a look that finds nothing another thread tells of something, once."""

        def __len__(self) -> int:
            length = super().__len__()
            if length == 0 and threads:
                thread = threads.pop()
                thread.start()
                thread.join()
            return length

    threads: list[threading.Thread] = []

    async def play() -> None:
        other = Other()
        exchange = Exchange(other, 0.0)
        exchange.open()
        exchange._told = Looked()
        exchange.tell("shadow", 1, {})
        await exchange.step(60.0)
        threads.append(threading.Thread(target=exchange.tell, args=("shadow", 2, {})))
        async with asyncio.timeout(10.0):
            await exchange.step(60.0)
        assert [event.ts_ns for event in other.told] == [1, 2]

    asyncio.run(play())


def test_numbers_rise_whichever_thread_tells() -> None:
    exchange = Exchange(Other(), 0.0)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=lambda: [exchange.tell("trade", 0, {}) for _ in range(4_000)])
                   for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert [event.number for event in exchange._told] == list(range(16_000))
