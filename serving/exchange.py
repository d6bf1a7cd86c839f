"""What one side tells and asks the other, gathered: a call between processes costs both a millisecond, however
little it carries, and several that wait for each other's turn cost more than one that carries everything."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any, NamedTuple

from algospace.errors import InternalError


class Told(NamedTuple):
    """An event: topic, time (ns UTC), data, and its number among those of this side, by which the other side knows
    one that it has heard, though its answer came too late."""

    topic: str
    ts_ns: int
    data: dict[str, Any]
    number: int


Question = tuple[str, tuple[Any, ...]]
"""What is asked, and about what."""
Call = Callable[[list[Told], list[Question]], Awaitable[list[Any]]]
"""Carries events and questions over; the answers come back in the questions' order."""

_MOST_EVENTS = 512
_MOST_WAITING = 20_000
_MOST_TRIES = 3


class Away(InternalError):
    """The other side is not there for now. What it had heard is lost with it, and told again."""


class Pace:
    """A turn every `seconds` at most. Who comes later than that after the turn before waits for nothing."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._next = seconds, 0.0

    async def turn(self) -> None:
        """Wait for it."""
        rest = self._next - time.monotonic()
        if rest > 0.0:
            await asyncio.sleep(rest)
        self._next = time.monotonic() + self._seconds


class Exchange:
    """Events to tell and questions to ask, over one call at a time, every `seconds` at most. What comes meanwhile
    goes with the next: the busier, the more goes in one. A lone event or question goes at once.

    Whoever asks gets what the call raises. Events are kept and told again: in order, unless the other side refuses
    them _MOST_TRIES times. While a failure has not been made good nobody waits for an answer.
    """

    def __init__(self, call: Call, seconds: float) -> None:
        self._call, self._pace = call, Pace(seconds)
        self._told: deque[Told] = deque()
        self._numbers, self._telling = count(), threading.Lock()
        self._asked: list[tuple[Question, asyncio.Future[Any]]] = []
        self._work = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failure: Exception | None = None
        self._refused = 0
        self.lost = 0
        """Events that were given up: refused, or too many for an other side that was away."""

    def open(self) -> None:
        """Take the running event loop; events may be told before, and from any thread."""
        self._loop = asyncio.get_running_loop()

    def tell(self, topic: str, ts_ns: int, data: dict[str, Any]) -> None:
        """Add an event, from any thread."""
        with self._telling:  # or a lower number could come behind a higher one, and would count as heard
            if len(self._told) >= _MOST_WAITING:
                self._told.popleft()
                self.lost += 1
            self._told.append(Told(topic, ts_ns, data, next(self._numbers)))
        if not self._work.is_set() and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._work.set)

    async def ask(self, name: str, *about: Any) -> Any:
        """The answer to one question. Away where the call before failed."""
        if self._failure is not None:
            raise Away(f"'{name}' is not asked: {self._failure}")
        mine: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked.append(((name, about), mine))
        self._work.set()
        return await mine

    async def step(self, patience_s: float) -> None:
        """One call with what waits, or with what comes within `patience_s`; after a failure at once, to see
        whether it is over. Raises what the call raises."""
        self._work.clear()  # before the look: what another thread tells behind it sets it again
        if self._failure is None and not self._told and not self._asked:
            try:
                async with asyncio.timeout(patience_s):
                    await self._work.wait()
            except TimeoutError:
                return
        await self._pace.turn()
        events = [self._told.popleft() for _ in range(min(_MOST_EVENTS, len(self._told)))]
        asked, self._asked = self._asked, []
        try:
            answers = await self._call(events, [question for question, _ in asked])
            if len(answers) != len(asked):
                raise InternalError(f"{len(asked)} questions got {len(answers)} answers")
        except BaseException as error:
            self._failed(error, events, asked)
            raise
        self._failure, self._refused = None, 0
        for (_, mine), answer in zip(asked, answers, strict=True):
            if not mine.done():  # its caller has given up meanwhile
                mine.set_result(answer)

    def _failed(self, error: BaseException, events: list[Told],
                asked: list[tuple[Question, asyncio.Future[Any]]]) -> None:
        self._refused += bool(events) and not isinstance(error, Away)
        if self._refused < _MOST_TRIES:
            self._told.extendleft(reversed(events))
        else:
            self.lost, self._refused = self.lost + len(events), 0
        if isinstance(error, Exception):
            self._failure = error
        for _, mine in (*asked, *self._asked):
            if not mine.done():
                mine.set_exception(error) if isinstance(error, Exception) else mine.cancel()
        self._asked = []
