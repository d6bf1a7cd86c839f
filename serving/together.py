"""Calls to an actor, several in one: a call between processes costs both a millisecond, however little it asks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from algospace.errors import InternalError

Question = tuple[str, tuple[Any, ...]]
"""What is asked, and about what."""


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


class Together:
    """Questions that come within `seconds` of each other go in one call: `ask` takes them in order and gives their
    answers in order. A lone one goes at once. What `ask` raises, everybody of that call hears."""

    def __init__(self, ask: Callable[[Sequence[Question]], Awaitable[Sequence[Any]]], seconds: float) -> None:
        self._ask, self._pace = ask, Pace(seconds)
        self._waiting: list[tuple[Question, asyncio.Future[Any]]] = []
        self._sending: asyncio.Task[None] | None = None
        self._sent: set[asyncio.Task[None]] = set()

    async def __call__(self, name: str, *about: Any) -> Any:
        """The answer to one question."""
        mine = asyncio.get_running_loop().create_future()
        self._waiting.append(((name, about), mine))
        if self._sending is None:
            self._sending = asyncio.create_task(self._send())
        return await mine

    async def _send(self) -> None:
        try:
            while self._waiting:
                await self._pace.turn()
                together, self._waiting = self._waiting, []
                task = asyncio.create_task(self._answer(together))
                self._sent.add(task)  # the loop itself would not keep it alive
                task.add_done_callback(self._sent.discard)
        finally:
            self._sending = None

    async def _answer(self, together: list[tuple[Question, asyncio.Future[Any]]]) -> None:
        try:
            answers = await self._ask([question for question, _ in together])
            if len(answers) != len(together):
                raise InternalError(f"{len(together)} questions got {len(answers)} answers")
        except Exception as error:  # noqa: BLE001  # whoever asked gets it
            for _, mine in together:
                if not mine.done():
                    mine.set_exception(error)
            return
        for (_, mine), answer in zip(together, answers, strict=True):
            if not mine.done():  # its caller has given up meanwhile
                mine.set_result(answer)
