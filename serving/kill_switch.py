"""The kill switch: thrown by an operator, it lets no position be opened until another person re-arms it.

One state for all replicas: the one with the highest revision counts, and of two with the same revision the one
that is thrown. A replica that throws it obeys at once, whether or not the others can be told; they hear of it
through the service's actor (serving.hub_actor), to which whoever holds the furthest state brings it back after a
loss. With a file the state outlives the whole service.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import structlog

from algospace.files import write_json
from serving.access import Refused

_LOG = structlog.get_logger("serving")
_SHARE_S = 5.0
"""So long throwing waits until the others are told; after that they hear of it later."""


@dataclass(frozen=True)
class SwitchState:
    """The switch after `revision` changes: who changed it last, why and when (ns UTC)."""

    thrown: bool = False
    revision: int = 0
    user: str = ""
    why: str = ""
    at_ns: int = 0

    def beats(self, other: SwitchState) -> bool:
        """Whether this is what counts if both are known."""
        return (self.revision, self.thrown) > (other.revision, other.thrown)


class SwitchLink(Protocol):
    """Where replicas agree on the switch (serving.hub_actor.HubLink)."""

    async def agree_on_switch(self, mine: SwitchState) -> SwitchState:
        """What counts now that `mine` is known to all."""
        ...


class KillSwitch:
    """The switch of one process. `file`: where its state is latched; `link`: the other replicas, if there are any;
    `announce`: told of every change that this process makes."""

    def __init__(self, file: Path | None, announce: Callable[[dict[str, Any]], Any]) -> None:
        self._file, self._announce = file, announce
        self.state = SwitchState() if file is None else read_state(file)
        self.link: SwitchLink | None = None
        self.latched = True
        if self.state.thrown:
            _LOG.warning("kill_switch_is_thrown", **asdict(self.state))

    @property
    def thrown(self) -> bool:
        """Whether no position may be opened."""
        return self.state.thrown

    async def throw(self, user: str, why: str) -> dict[str, Any]:
        """Throw it here, then everywhere. Throwing what is thrown changes nothing."""
        if not self.thrown:
            self.adopt(SwitchState(True, self.state.revision + 1, user, why, time.time_ns()))
            self._announce(self.status())
        return self.status() | {"shared": await self._share()}

    async def rearm(self, user: str, why: str, second_person: bool) -> dict[str, Any]:
        """Let positions be opened again; Refused (409) if it is not thrown, or by whoever threw it where a second
        person is asked for; Refused (503) if the other replicas cannot be asked."""
        before = self.state
        if not before.thrown:
            raise Refused(409, "the kill switch is not thrown")
        if second_person and user == before.user:
            raise Refused(409, f"{user} threw it: somebody else has to re-arm it")
        wanted = SwitchState(False, before.revision + 1, user, why, time.time_ns())
        if self.link is not None:
            try:
                async with asyncio.timeout(_SHARE_S):
                    agreed = await self.link.agree_on_switch(wanted)
            except Exception as error:  # noqa: BLE001  # whatever keeps Ray from answering
                _LOG.error("kill_switch_not_rearmed", error=type(error).__name__)
                raise Refused(503, "the other replicas do not answer: it may still be thrown; ask again") from None
            if agreed != wanted:
                self.adopt(agreed)
                raise Refused(409, "somebody else was faster: look at GET /v1/kill and ask again")
        self.adopt(wanted)
        self._announce(self.status())
        return self.status() | {"shared": True}

    def adopt(self, state: SwitchState) -> None:
        """Obey `state` from now on if it is further than what is known, and latch it."""
        if not state.beats(self.state):
            return
        self.state = state
        _LOG.warning("kill_switch_thrown" if state.thrown else "kill_switch_rearmed", **asdict(state))
        if self._file is None:
            return
        try:
            write_json(self._file, asdict(state))
            self.latched = True
        except OSError as error:
            self.latched = False
            _LOG.error("kill_switch_not_latched", file=str(self._file), error=str(error))

    def status(self) -> dict[str, Any]:
        """The state, and whether it outlives the service (null: no file is configured)."""
        return asdict(self.state) | {"latched": None if self._file is None else self.latched}

    async def _share(self) -> bool:
        if self.link is None:
            return True
        try:
            async with asyncio.timeout(_SHARE_S):
                self.adopt(await self.link.agree_on_switch(self.state))
        except Exception as error:  # noqa: BLE001  # whatever keeps Ray from answering: they hear of it later
            _LOG.error("kill_switch_not_shared", error=type(error).__name__)
            return False
        return True


def read_state(file: Path) -> SwitchState:
    """What is latched in `file`; thrown if it cannot be read: nobody knows that it is not."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        state = SwitchState(**values)
        if [type(value) for value in asdict(state).values()] != [bool, int, str, str, int]:
            raise TypeError("a value is of another type")
        return state
    except FileNotFoundError:
        return SwitchState()
    except (OSError, ValueError, TypeError) as error:
        return SwitchState(True, why=f"{file} cannot be read ({error})", at_ns=time.time_ns())
