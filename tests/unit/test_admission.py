"""Newcomers are heard between two decisions, nobody waits in vain, and an idle service does not wait at all."""

from __future__ import annotations

import asyncio
import os
import socket
import time
import warnings
from typing import Any

import pytest
import uvloop

from serving.accepting import accept_many
from serving.access import Refused
from serving.admission import Admission
from serving.calls import Call

_WORK_S = 0.004


def work() -> None:
    """Hold the event loop up, as a decision does."""
    until = time.perf_counter() + _WORK_S
    while time.perf_counter() < until:
        pass


def test_newcomers_are_heard_between_two_turns() -> None:
    """Forty that are ready at once do not run in one iteration of the loop."""
    async def play() -> tuple[int, list[int]]:
        admission, done, rounds = Admission(), [], 0

        async def one(number: int) -> None:
            async with admission.turn(Call("t")):
                work()
                done.append(number)

        tasks = [asyncio.create_task(one(number)) for number in range(40)]
        while len(done) < len(tasks):
            await asyncio.sleep(0)
            rounds += 1
        await asyncio.gather(*tasks)
        return rounds, done

    rounds, done = asyncio.run(play())
    assert done == list(range(40))
    assert rounds >= 80


def test_where_newcomers_take_long_work_keeps_half_of_the_time() -> None:
    """Several turns in one iteration, if each iteration is as long as twenty of them."""
    async def play() -> int:
        admission, rounds = Admission(), 0

        async def crowd() -> None:
            nonlocal rounds
            while True:
                time.sleep(20 * _WORK_S)
                rounds += 1
                await asyncio.sleep(0)

        async def one() -> None:
            async with admission.turn(Call("t")):
                work()

        noise = asyncio.create_task(crowd())
        await asyncio.gather(*(one() for _ in range(40)))
        noise.cancel()
        return rounds

    assert asyncio.run(play()) <= 20


def test_an_idle_service_waits_for_nothing() -> None:
    async def play() -> list[int]:
        admission, order = Admission(), [0]

        async def one() -> None:
            async with admission.turn(Call("t")):
                order.append(1)

        task = asyncio.create_task(one())
        await asyncio.sleep(0)
        order.append(2)
        await task
        return order

    assert asyncio.run(play()) == [0, 1, 2]


def test_who_would_wait_past_the_deadline_is_refused_before_the_wait() -> None:
    refusals: list[Refused] = []

    async def play() -> tuple[list[float], int]:
        admission, refused, done = Admission(), [], 0

        async def one() -> None:
            nonlocal done
            call = Call("t", deadline_ms=100.0)
            try:
                async with admission.turn(call):
                    work()
                    done += 1
            except Refused as refusal:
                refusals.append(refusal)
                refused.append(call.age_ms())

        await asyncio.gather(*(one() for _ in range(4)))  # the pace is known from now on
        await asyncio.gather(*(one() for _ in range(200)))
        return refused, done

    refused, done = asyncio.run(play())
    assert len(refused) + done == 204
    assert len(refused) >= 150
    assert max(refused) < 50.0
    assert {(one.status, one.retry_after, one.detail[:5]) for one in refusals} == {(503, 1, "busy:")}


def test_a_cancelled_request_gives_its_turn_away() -> None:
    async def play() -> list[int]:
        admission, done = Admission(), []

        async def one(number: int) -> None:
            async with admission.turn(Call("t")):
                work()
                done.append(number)

        tasks = [asyncio.create_task(one(number)) for number in range(6)]
        await asyncio.sleep(0)
        for task in tasks[2:4]:
            task.cancel()
        await asyncio.wait(tasks, timeout=10)
        await asyncio.wait_for(one(9), 10)
        return done

    assert asyncio.run(play()) == [0, 1, 4, 5, 9]


def test_a_failing_decision_ends_its_turn() -> None:
    async def play() -> None:
        admission = Admission()
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                async with admission.turn(Call("t")):
                    raise ZeroDivisionError
        async with asyncio.timeout(10), admission.turn(Call("t")):
            pass

    asyncio.run(play())


@pytest.mark.parametrize("several", [True, False], ids=["several", "one"])
def test_many_connections_are_accepted_in_one_iteration(several: bool) -> None:
    """Without `accept_many` uvloop needs an iteration for each; if that changes, serving.accepting can go."""
    async def play() -> int:
        loop, made = asyncio.get_running_loop(), []
        if several:
            accept_many(loop)
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.bind(("127.0.0.1", 0))

        class Taken(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                made.append(transport)

        server = await loop.create_server(Taken, sock=listener, backlog=100)
        callers = [socket.create_connection(listener.getsockname()) for _ in range(48)]
        rounds = 0
        while len(made) < len(callers):
            await asyncio.sleep(0)
            rounds += 1
        address = listener.getsockname()
        server.close()
        for one in (*made, *callers):
            one.close()
        await server.wait_closed()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, timeout=5)
        return rounds

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        rounds = runner.run(play())
    assert rounds <= 8 if several else rounds >= 40


def open_sockets() -> int:
    """Of this process."""
    links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    return sum(os.readlink(link).startswith("socket:") for link in links if os.path.lexists(link))


@pytest.mark.parametrize("made", [0, 5, 15])
def test_a_socket_that_cannot_be_listened_on_often_enough_is_left_as_it_was(made: int) -> None:
    """Out of file descriptors, say: nothing of what was made stays open."""
    async def play() -> None:
        loop = asyncio.get_running_loop()
        make, left = loop.create_server, made

        async def scarce(*args: Any, **options: Any) -> asyncio.AbstractServer:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError("too many open files")
            return await make(*args, **options)

        loop.create_server = scarce  # type: ignore[method-assign,assignment]
        accept_many(loop)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            before = open_sockets()
            with pytest.raises(OSError, match="too many open files"):
                await loop.create_server(asyncio.Protocol, sock=listener)
            for _ in range(3):
                await asyncio.sleep(0)  # uvloop closes in its next iterations
            assert open_sockets() == before
            server = await make(asyncio.Protocol, sock=listener)
            server.close()
            await server.wait_closed()

    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        for factory in (uvloop.new_event_loop, asyncio.new_event_loop):
            with asyncio.Runner(loop_factory=factory) as runner:
                runner.run(play())
