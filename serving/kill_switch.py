"""The kill switch: thrown by an operator, it lets no position be opened until another person re-arms it.

One state for all replicas: the one with the highest revision counts, and of two with the same revision the one
that is thrown. A replica that throws it obeys at once, whether or not the others can be told; they hear of it
through the service's actor (serving.hub_actor), to which whoever holds the furthest state brings it back after a
loss. Until the actor has a throw, no older news of a re-arming undoes it. With a file (serving.kill_state) it
outlives the whole service.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import structlog

from serving.access import Refused
from serving.kill_state import SwitchState, exchange, read_state

__all__ = ["KillSwitch", "SwitchLink", "SwitchState", "read_state"]

_LOG = structlog.get_logger("serving")
_MOST_TRIES = 5
_FILE_S = 1.0
"""So long a change waits for its file; a file system that hangs holds up neither the event loop nor the order."""
_LOOK_S = 2.0
"""How often the file is read again."""


class SwitchLink(Protocol):
    """Where replicas agree on the switch (serving.hub_link.HubLink)."""

    async def agree_on_switch(self, mine: SwitchState) -> SwitchState:
        """What counts now that `mine` is known to all; an error, soon, if nobody answers."""
        ...


class KillSwitch:
    """The switch of one process. `file`: where its state is latched; `link`: the other replicas, if there are any;
    `announce`: told of every change, unless there is a link: who shares it then tells of it."""

    def __init__(self, file: Path | None, announce: Callable[[dict[str, Any]], Any]) -> None:
        self._file, self._announce = file, announce
        self.link: SwitchLink | None = None
        self.latched = True
        found = SwitchState() if file is None else read_state(file)
        self._floor = _unthrown_up_to(found)
        self.state = found if found.thrown else SwitchState()  # a file that is not thrown has nothing to say
        self._owed: tuple[str, str] | None = None
        """Who threw it and why, until the actor has it."""
        self._filing: asyncio.Task[None] | None = None
        self._fault: str | None = None
        self._files = ThreadPoolExecutor(1, "kill-switch-file")
        if self.state.thrown:
            self._tell()

    @property
    def thrown(self) -> bool:
        """Whether no position may be opened."""
        return self.state.thrown

    async def throw(self, user: str, why: str) -> dict[str, Any]:
        """Throw it here, then everywhere; what comes back of a re-arming that this process had not heard of does
        not undo it. Throwing what is thrown changes nothing."""
        self._owed = user, why
        shared = False
        for _ in range(_MOST_TRIES):
            if not self.thrown:
                self._obey(self._thrown_after(self.state.revision, user, why))
            told = self.state
            shared = await self._share()
            await self.latch()
            if self._floor >= self.state.revision and self.thrown:  # the file would say: re-armed since
                self._obey(self.state)
            if self.state == told:
                break
        return self.status() | {"shared": shared}

    async def rearm(self, user: str, why: str, second_person: bool) -> dict[str, Any]:
        """Let positions be opened again; Refused (409) if it is not thrown, by whoever threw it where a second
        person is asked for, or if it is thrown again meanwhile; Refused (503) if the other replicas cannot be
        asked."""
        before = self.state
        if not before.thrown:
            raise Refused(409, "the kill switch is not thrown")
        if second_person and user == before.user:
            raise Refused(409, f"{user} threw it: somebody else has to re-arm it")
        wanted = SwitchState(False, before.revision + 1, user, why, time.time_ns())
        if self.link is not None:
            try:
                agreed = await self.link.agree_on_switch(wanted)
            except Exception as error:  # noqa: BLE001  # whatever keeps Ray from answering
                _LOG.error("kill_switch_not_rearmed", error=type(error).__name__)
                refusal = Refused(503, "the other replicas do not answer: it may still be thrown; ask again")
                refusal.retry_after = 1
                raise refusal from None
            if agreed != wanted:
                self.adopt(agreed)
                raise Refused(409, "somebody else was faster: look at GET /v1/kill and ask again")
        if self.state is before:
            self._owed = None  # a throw that the actor had not heard of is re-armed, too
        self.adopt(wanted)
        await self.latch()
        if self.state != wanted:
            raise Refused(409, "it has been thrown again meanwhile: look at GET /v1/kill and ask again")
        return self.status() | {"shared": True}

    def hear(self, agreed: SwitchState) -> None:
        """Obey what the actor says counts."""
        if agreed.thrown and not self.state.beats(agreed):
            self._owed = None
        self.adopt(agreed)

    def adopt(self, state: SwitchState) -> None:
        """Obey `state` from now on if it is further than what is known. A throw that the actor has not yet heard
        of goes before a re-arming by somebody who had not heard of it either."""
        if not state.beats(self.state):
            return
        if self._owed is not None and not state.thrown:
            state = self._thrown_after(state.revision, *self._owed)
        self._obey(state)

    async def latch(self) -> None:
        """Have the file say what is so here, unless it is further; obey it if it says thrown. Waits `_FILE_S` at
        most, and no longer for a file that hangs: `latched` is false then."""
        if self._file is None:
            return
        if self._filing is None or self._filing.done():
            self._filing = asyncio.create_task(self._exchange(self._file))
        try:
            async with asyncio.timeout(_FILE_S):
                await asyncio.shield(self._filing)
        except TimeoutError:
            self._not_latched(f"no answer within {_FILE_S:g} s")

    async def watch_file(self) -> None:
        """Look into the file for ever: who throws it there is obeyed, and what could not be latched is tried
        again."""
        while self._file is not None:
            await asyncio.sleep(_LOOK_S)
            before = self.state
            await self.latch()
            if self.state is not before:
                await self._share()

    def status(self) -> dict[str, Any]:
        """The state, and whether it outlives the service (null: no file is configured)."""
        return asdict(self.state) | {"latched": None if self._file is None else self.latched}

    def _thrown_after(self, revision: int, user: str, why: str) -> SwitchState:
        return SwitchState(True, revision + 1, user, why, time.time_ns())

    def _obey(self, state: SwitchState) -> None:
        """Whatever else is known. A throw goes behind what the file says of an earlier re-arming, or it could not
        be latched there."""
        if state.thrown and state.revision <= self._floor:
            state = replace(state, revision=self._floor + 1)
        self.state = state
        self.latched = False
        self._tell()

    def _tell(self) -> None:
        values = asdict(self.state)
        _LOG.warning("kill_switch_thrown" if self.thrown else "kill_switch_rearmed", **values)
        if self.link is None:
            self._announce(values)

    async def _share(self) -> bool:
        """Whether the actor has what counts here."""
        if self.link is None:
            self._owed = None
            return True
        try:
            agreed = await self.link.agree_on_switch(self.state)
        except Exception as error:  # noqa: BLE001  # whatever keeps Ray from answering: they hear of it later
            _LOG.error("kill_switch_not_shared", error=type(error).__name__)
            return False
        self.hear(agreed)
        return not self.state.beats(agreed)

    async def _exchange(self, file: Path) -> None:
        """Until the file has been asked about the present state."""
        while True:
            mine = self.state
            try:
                found = await asyncio.get_running_loop().run_in_executor(self._files, exchange, file, mine)
            except Exception as error:  # noqa: BLE001  # whatever a file system raises, the service goes on
                self._not_latched(f"{type(error).__name__}: {error}")
                return
            self._floor = _unthrown_up_to(found)
            if found.throws(self.state):
                self._obey(found if found.beats(self.state) else replace(found, revision=self.state.revision + 1))
            if self.state is mine:
                self.latched, self._fault = found.thrown == mine.thrown, None
                return

    def _not_latched(self, fault: str) -> None:
        self.latched = False
        if fault != self._fault:  # it is tried again and again
            _LOG.error("kill_switch_not_latched", file=str(self._file), error=fault)
        self._fault = fault


def _unthrown_up_to(found: SwitchState) -> int:
    """The revision behind which a throw has to be for a file that says `found` to take it."""
    return found.revision - found.thrown
