"""Who is served next where many wait: a decision, or those who have just come.

Decisions hold the event loop up. If all that are ready ran in one iteration of it, whoever comes meanwhile would
wait for all of them, also those who can only be told that there is no room.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from serving.calls import Call, late

_ITERATIONS = 3
"""Of the event loop, until who has just come is answered: accept, read, run."""
_CAUTION = 1.5
"""How much longer than the pace says a wait may become before it is in vain."""
_NEWEST = 0.3
"""Weight of the newest measurement in the pace of turns."""


class Admission:
    """Turns for work that holds the event loop up, first come, first served.

    After each turn the loop serves its sockets for some iterations, or for as long as the turn took. Where that
    takes longer, several that wait have their turns at once: at least half of the time goes to work, however many
    are refused. Who would wait past the deadline is refused before the wait. Who comes to an idle service waits
    for nothing.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._alternating: asyncio.Task[None] | None = None
        self._worked_ns = self._turns = 0
        self._took_ns, self._pace_ns = 1, 0.0

    @asynccontextmanager
    async def turn(self, call: Call) -> AsyncIterator[None]:
        """`async with admission.turn(call):` around the work. Refused (503) if its turn would come too late."""
        await self._wait(call)
        began_ns = time.perf_counter_ns()
        try:
            yield
        finally:
            self._worked_ns += time.perf_counter_ns() - began_ns
            self._turns += 1

    async def _wait(self, call: Call) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # tests have a loop for each request
            self._loop, self._alternating = loop, None
            self._waiting.clear()
        if self._alternating is None:
            self._alternating = loop.create_task(self._alternate())
            return
        call.check("the request waited")
        expected_ms = (len(self._waiting) + 1) * self._pace_ns / 1e6
        if call.age_ms() + _CAUTION * expected_ms > call.deadline_ms:
            call.notes["late"] = True
            raise late(f"busy: {len(self._waiting)} requests wait, some {expected_ms:.0f} ms, which may be past "
                       f"the deadline of {call.deadline_ms:g} ms; no decision is given")
        mine = loop.create_future()
        self._waiting.append(mine)
        await mine

    async def _alternate(self) -> None:
        """Let turns and newcomers follow each other, until nobody waits."""
        try:
            while True:
                heard_ns, took_ns = await self._hear()
                while self._waiting and self._waiting[0].done():  # cancelled
                    self._waiting.popleft()
                if not self._waiting:
                    return
                for _ in range(min(len(self._waiting), max(1, heard_ns // took_ns))):
                    one = self._waiting.popleft()
                    if not one.done():
                        one.set_result(None)
        finally:
            self._alternating = None

    async def _hear(self) -> tuple[int, int]:
        """Let those work whose turn it is, and the sockets be served. How long the latter took, and a turn."""
        heard_ns, before_ns = 0, self._worked_ns
        began_ns = time.perf_counter_ns()
        for _ in range(_ITERATIONS):
            await asyncio.sleep(0)
            heard_ns = time.perf_counter_ns() - began_ns - (self._worked_ns - before_ns)
            if self._turns and heard_ns > self._worked_ns:
                break
        if self._turns:
            pace_ns = (heard_ns + self._worked_ns) / self._turns
            self._pace_ns += _NEWEST * (pace_ns - self._pace_ns)
            self._took_ns = max(1, self._worked_ns // self._turns)
            self._worked_ns = self._turns = 0
        return heard_ns, self._took_ns
