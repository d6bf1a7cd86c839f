"""A replica's connection to the actor that all replicas share (serving.hub_actor).

It forwards what the replica publishes, asks for answers to idempotency keys, brings in the numbered events, and
follows the aliases and the kill switch. While there is much to tell and to ask, the news comes back with that;
else a question waits at the actor until there is some.
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from algospace.errors import InternalError
from serving.aliases import Aliases
from serving.exchange import Away, Exchange, Pace, Question, Told
from serving.hub_actor import MOST_EVENTS, Place, Update
from serving.idempotency import Key, Settled, StoredAnswer
from serving.kill_state import SwitchState
from serving.lifecycle import SWITCH, NotSwitched
from serving.metrics import Readings, tell_figures
from serving.service import Service

_LOG = structlog.get_logger("serving")
_POLL_S = 2.0
_SILENCE_S = 5 * _POLL_S
_ANSWER_S = _POLL_S
"""How long the actor may take for what it knows: a page, a scrape or a report waits for it."""
_RETRY_S = 0.2
_VITAL = frozenset({"exchange", "receive", SWITCH})
_LONGEST_RETRY_S = 30.0
"""What failed is tried again after `_RETRY_S`, twice that, and so on up to this."""
_PACE_S = 0.02
"""Calls to the actor that come faster go in one. At 300 decisions/s over two replicas, asking it for each key and
each event took more of two cores than the decisions."""
_FRESH_S = 0.06
"""News that came with an exchange so lately is not asked for."""


class HubSilent(InternalError, TimeoutError):
    """The actor gives no answer, and no error either."""

    def __init__(self, asked: str, seconds: float) -> None:
        super().__init__(f"the actor that the replicas share has not answered '{asked}' within {seconds:g} s")


class HubLink:
    """The connection to the actor, or to a HubBody behind the same calls."""

    def __init__(self, service: Service, actor: Any) -> None:
        self._service, self._actor = service, actor
        self.replica = uuid.uuid4().hex[:12]
        self._configured = service.champion.id
        self._tasks: list[asyncio.Task[None]] = []
        self._exchange, self._polls = Exchange(self._carry, _PACE_S), Pace(_PACE_S)
        self._fresh_until = 0.0
        self._behind: Aliases | None = None
        self._retry_s, self._retry_at = _RETRY_S, 0.0

    async def start(self) -> None:
        """Take stream and aliases from the actor before the first request; InternalError if that cannot be."""
        self._exchange.open()
        self._service.hub.forward_to(self._exchange.tell)
        await self._attach()
        if self._service.life.last_failure is not None:
            raise InternalError(self._service.life.last_failure)  # a replica of another model would be worse
        self._service.kill.link = self
        await self._follow_switch(0.0)
        self._service.life.link = self
        self._tasks = [asyncio.create_task(self._keep("exchange", self._talk, _POLL_S)),
                       asyncio.create_task(self._keep("receive", self._receive)),
                       asyncio.create_task(self._keep(SWITCH, lambda: self._follow_switch(_POLL_S))),
                       asyncio.create_task(self._keep("figures", lambda: tell_figures(self._service, self)))]

    @property
    def lost(self) -> int:
        """Events that the actor never took."""
        return self._exchange.lost

    async def stop(self) -> None:
        """End the connection's tasks, and wait for their end."""
        self.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def close(self) -> None:
        """End the connection's tasks."""
        for task in self._tasks:
            task.cancel()

    async def move(self, aliases: Aliases) -> bool:
        """See serving.lifecycle.Link."""
        try:
            return bool(await self._ask("move", aliases, seconds=_SILENCE_S))
        except HubSilent as error:  # it may have heard: then all replicas follow, this one too
            raise NotSwitched(503, f"{error}; whether the models change is unknown: see GET /v1/model") from None

    async def replicas(self) -> dict[str, str]:
        """See serving.lifecycle.Link."""
        return dict(await self._ask("replicas"))

    async def agree_on_switch(self, mine: SwitchState) -> SwitchState:
        """See serving.kill_switch.SwitchLink."""
        agreed: SwitchState = await self._ask("switch", mine, 0.0)
        return agreed

    async def find_answer(self, key: Key, digest: bytes) -> Settled:
        """See serving.idempotency."""
        return await self._settled("find", key, digest)

    async def settle_answer(self, key: Key, digest: bytes, answer: StoredAnswer) -> Settled:
        """See serving.idempotency."""
        return await self._settled("settle", key, digest, answer)

    async def _settled(self, name: str, *about: Any) -> Settled:
        try:
            async with asyncio.timeout(_ANSWER_S):
                settled: Settled = await self._exchange.ask(name, *about)
                return settled
        except TimeoutError:
            raise HubSilent(name, _ANSWER_S) from None

    async def report(self, readings: Readings, seconds: float) -> None:
        """See serving.metrics.Reports."""
        await self._ask("report", self.replica, readings, seconds)

    async def reports(self) -> dict[str, Readings]:
        """See serving.metrics.Reports."""
        return dict(await self._ask("reports"))

    async def _ask(self, method: str, *arguments: Any, seconds: float | None = None) -> Any:
        """What the actor answers; HubSilent if it does not within `seconds`."""
        patience = _ANSWER_S if seconds is None else seconds
        try:
            async with asyncio.timeout(patience):
                return await getattr(self._actor, method).remote(*arguments)
        except TimeoutError:
            raise HubSilent(method, patience) from None

    async def _attach(self) -> None:
        service = self._service
        stream, seq, state, events, aliases = await _patiently(
            "attach", lambda: self._actor.attach.remote(self._configured, service.life.aliases))
        known = service.life.shadow_figures()
        service.hub.begin_at(stream, seq, state, events)
        await self._follow(aliases)
        if state.model is None and known is not None:  # the actor has died, and what it had counted
            service.life.history.tell(*known, ended=True)
        if state.model is None or state.model["revision"] < aliases.revision:  # a deployment has promoted
            service.life.announce()

    async def _keep(self, name: str, step: Callable[[], Awaitable[None]], longest_s: float = math.inf) -> None:
        """Repeat `step` for ever. After an error it is tried again, later each time, and the replica is not ready
        until it has gone well (but for its figures: others can do without)."""
        broken, wait = self._service.life.broken_links, _RETRY_S
        while True:
            try:
                await step()
            except Exception as error:  # noqa: BLE001  # a task that ended here would be missed by nobody
                _LOG.error("hub_link_failed", task=name, error=f"{type(error).__name__}: {error}", retry_s=wait)
                if name in _VITAL:
                    broken.add(name)
                await asyncio.sleep(wait)
                wait = min(2.0 * wait, _LONGEST_RETRY_S, longest_s)
            else:
                broken.discard(name)
                wait = _RETRY_S

    async def _talk(self) -> None:
        """Tell and ask what waits, or what comes in a while. While the actor is away that is tried again."""
        try:
            await self._exchange.step(_POLL_S)
        except Away as error:
            _LOG.warning("hub_away", error=str(error))
            await asyncio.sleep(_RETRY_S)

    async def _carry(self, events: list[Told], questions: list[Question]) -> list[Any]:
        """One exchange, and the news it brings, but for what a poll has to follow."""
        from ray.exceptions import RayActorError

        place = self._place()
        try:
            answers, (stream, news, aliases) = await self._ask("exchange", place, events, questions,
                                                               seconds=_SILENCE_S)
        except RayActorError as error:
            raise Away(type(error).__name__) from None
        if stream == place.stream == self._service.hub.log.stream:
            self._service.hub.receive(news)
            if aliases is None and len(news) < MOST_EVENTS:
                self._fresh_until = time.monotonic() + _FRESH_S
        return list(answers)

    async def _receive(self) -> None:
        """The news, and what follows from it."""
        fresh_s = self._fresh_until - time.monotonic()
        if fresh_s > 0.0:
            await asyncio.sleep(fresh_s)
        else:
            await self._polls.turn()
            stream, events, aliases = await self._poll()
            if stream != self._service.hub.log.stream:
                await self._attach()
                return
            self._service.hub.receive(events)
            if aliases is not None:
                self._retry_s = _RETRY_S
                await self._follow(aliases)
                return
        if self._behind is not None and time.monotonic() >= self._retry_at:
            await self._follow(self._behind)

    async def _poll(self) -> Update:
        found: Update = await _patiently("poll", lambda: self._actor.poll.remote(self._place(), _POLL_S))
        return found

    def _place(self) -> Place:
        service, known = self._service, self._behind or self._service.life.aliases
        log = service.hub.log
        return Place(self.replica, service.champion.id, log.stream, log.seq, known.revision)

    async def _follow_switch(self, wait_s: float) -> None:
        """Tell mine, hear what counts, obey it. An error once nothing has been heard for `_SILENCE_S`: then this
        replica opens no position (Service.opens_nothing)."""
        kill = self._service.kill
        before = kill.state
        kill.hear(await _patiently("switch", lambda: self._actor.switch.remote(kill.state, wait_s), _SILENCE_S))
        if kill.state is not before:
            await kill.latch()

    async def _follow(self, aliases: Aliases) -> None:
        """Follow, or remember to try again: later each time, and at once when the aliases change."""
        await self._service.life.follow(aliases)
        if self._service.life.last_failure is None:
            self._behind, self._retry_s = None, _RETRY_S
            return
        self._behind, self._retry_at = aliases, time.monotonic() + self._retry_s
        self._retry_s = min(2.0 * self._retry_s, _LONGEST_RETRY_S)


async def _patiently(what: str, call: Any, away_s: float = math.inf) -> Any:
    """The call's result; while the actor is away, it is repeated, for `away_s` at most. HubSilent if it does not
    answer."""
    from ray.exceptions import RayActorError

    since = time.monotonic()
    while True:
        try:
            async with asyncio.timeout(_SILENCE_S):
                return await call()
        except RayActorError as error:
            _LOG.warning("hub_away", error=type(error).__name__)
            if time.monotonic() - since >= away_s:
                raise HubSilent(what, away_s) from None
            await asyncio.sleep(_RETRY_S)
        except TimeoutError:
            raise HubSilent(what, _SILENCE_S) from None

