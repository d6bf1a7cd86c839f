"""What several replicas of a service share, in one small named Ray actor: the stream's numbers and last events,
the models' aliases, the kill switch, and answers that a repeated request gets again.

Each replica copies the stream to its own clients and follows the aliases. Nothing waits for the actor to decide.
If it dies, Ray starts it anew: a new stream begins, clients get a snapshot, and the replicas bring back the
aliases and the kill switch.
With one replica, or without Ray, none of this is needed.
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import structlog

from algospace.errors import InternalError
from serving.aliases import Aliases
from serving.idempotency import Begun, Key, StoredAnswer, make_table
from serving.kill_state import SwitchState
from serving.lifecycle import SWITCH, NotSwitched
from serving.limits import LimitsSettings
from serving.metrics import Readings, tell_figures
from serving.service import Service
from serving.stream import EventLog, StreamSettings
from serving.stream_state import Event, StreamState
from serving.together import Pace, Question, Together

NAME, NAMESPACE = "algospace-hub", "algospace"
_LOG = structlog.get_logger("serving")
_BATCH = 512
_POLL_S = 2.0
_SEEN_S = 3 * _POLL_S
_SILENCE_S = 5 * _POLL_S
_ANSWER_S = _POLL_S
"""How long the actor may take for what it knows: a page, a scrape or a report waits for it."""
_RETRY_S = 0.2
_MOST_TRIES = 3
_VITAL = frozenset({"send", "receive", SWITCH})
_LONGEST_RETRY_S = 30.0
"""What failed is tried again after `_RETRY_S`, twice that, and so on up to this."""
_MOST_WAITING = 20_000
_PACE_S = 0.01
"""Calls of one kind to the actor that come faster go in one. At 300 decisions/s over two replicas, asking it for
each key and each event took more of two cores than the decisions."""
_CONCURRENT = 1000

Attached = tuple[str, int, StreamState, list[Event], Aliases]
Update = tuple[str, list[Event], Aliases | None]


class HubSilent(InternalError, TimeoutError):
    """The actor gives no answer, and no error either."""

    def __init__(self, asked: str, seconds: float) -> None:
        super().__init__(f"the actor that the replicas share has not answered '{asked}' within {seconds:g} s")


class HubBody:
    """The actor's methods, testable without Ray. All run in one event loop."""

    def __init__(self, settings: dict[str, Any], limits: dict[str, Any] | None = None) -> None:
        self._settings = StreamSettings.model_validate(settings)
        self._log = EventLog(self._settings)
        self._aliases: Aliases | None = None
        self._configured = ""
        self._seen: dict[str, tuple[str, float]] = {}
        self._answers = make_table(LimitsSettings.model_validate(limits or {}))
        self._told: dict[str, tuple[float, Readings]] = {}
        self._switch = SwitchState()
        self._news, self._switched = asyncio.Event(), asyncio.Event()

    async def attach(self, configured: str, aliases: Aliases) -> Attached:
        """A replica comes, or comes back: the stream so far and the aliases that count.

        configured: the bundle that the deployment names. Its first appearance is a promotion of its own. aliases:
        the replica's; the furthest wins, which is how they survive this actor.
        """
        known = self._aliases
        if known is None or aliases.revision > known.revision:
            self._aliases = aliases
        elif aliases.revision == 0 and configured != self._configured and known.champion.id != configured:
            self._aliases = known.promote(aliases.champion)
        if aliases.revision == 0 or not self._configured:
            self._configured = configured
        if self._aliases is not known:
            self._tell()
        log = self._log
        assert self._aliases is not None
        return log.stream, log.seq, log.state, log.after(log.first - 1, self._settings.ring), self._aliases

    async def publish(self, batch: list[tuple[str, int, dict[str, Any]]]) -> None:
        """Number these events: (topic, ts_ns, data)."""
        for topic, ts_ns, data in batch:
            self._log.append(topic, ts_ns, data)
        self._tell()

    async def poll(self, replica: str, champion: str, stream: str, seq: int, revision: int) -> Update:
        """(stream, events after `seq`, aliases if they are further than `revision`), as soon as there is news.

        A stream that is not the asked one means: attach again.
        """
        self._answers.purge()
        self._seen[replica] = champion, time.monotonic()
        if not self._has_news(stream, seq, revision):
            with suppress(TimeoutError):
                async with asyncio.timeout(_POLL_S):
                    while not self._has_news(stream, seq, revision):
                        await self._news.wait()
        log, aliases = self._log, self._aliases
        if stream != log.stream or not log.holds_after(seq) or aliases is None:
            return "", [], None
        return log.stream, log.after(seq, _BATCH), aliases if aliases.revision > revision else None

    async def move(self, aliases: Aliases) -> bool:
        """Make these everybody's, if they follow the present ones."""
        if self._aliases is None or aliases.revision != self._aliases.revision + 1:
            return False
        self._aliases = aliases
        self._tell()
        return True

    async def replicas(self) -> dict[str, str]:
        """Replicas that asked lately -> the champion they run."""
        now = time.monotonic()
        self._seen = {name: seen for name, seen in self._seen.items() if now - seen[1] < _SEEN_S}
        return {name: champion for name, (champion, _) in self._seen.items()}

    async def switch(self, mine: SwitchState, wait_s: float) -> SwitchState:
        """The kill switch as it counts now that `mine` is known; if nothing is news to the replica, after `wait_s`
        at most. Every change is told in the stream once, here: whoever made it may not live to tell of it."""
        if mine.beats(self._switch):
            self._switch, news = mine, self._switched
            self._switched = asyncio.Event()
            news.set()
            self._log.append("kill", time.time_ns(), asdict(mine))
            self._tell()
        if wait_s > 0.0 and not self._switch.beats(mine):
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._switched.wait()
        return self._switch

    async def answers(self, questions: Sequence[Question]) -> list[Any]:
        """What the table of answers (serving.idempotency) says to each question, in order."""
        table = self._answers
        asked: dict[str, Callable[..., Any]] = {
            "begin": table.begin, "finish": table.finish, "abandon": table.abandon}
        return [asked[name](*about) for name, about in questions]

    async def report(self, replica: str, readings: Readings, seconds: float) -> None:
        """A replica's figures, which count for so long."""
        self._told[replica] = time.monotonic() + seconds, readings

    async def reports(self) -> dict[str, Readings]:
        """Replica -> its figures, of those that reported lately."""
        now = time.monotonic()
        self._told = {replica: told for replica, told in self._told.items() if told[0] > now}
        return {replica: readings for replica, (_, readings) in self._told.items()}

    def _has_news(self, stream: str, seq: int, revision: int) -> bool:
        further = self._aliases is not None and self._aliases.revision > revision
        return stream != self._log.stream or self._log.seq != seq or further

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()


def open_hub(settings: StreamSettings, limits: LimitsSettings) -> Any:
    """The handle of the service's actor, started if it is not there. It outlives replicas; `close_hub` ends it."""
    import ray

    actor = ray.remote(HubBody).options(
        name=NAME, namespace=NAMESPACE, get_if_exists=True, lifetime="detached", max_restarts=-1, num_cpus=0,
        max_concurrency=_CONCURRENT)
    return actor.remote(settings.model_dump(mode="json"), limits.model_dump(mode="json"))


def close_hub() -> None:
    """End the service's actor, if there is one."""
    import ray

    try:
        actor = ray.get_actor(NAME, namespace=NAMESPACE)
    except ValueError:
        return
    ray.kill(actor)


class HubLink:
    """A replica's connection to the actor (or to a HubBody behind the same calls).

    Forwards what the replica publishes, brings in the numbered events, and follows the aliases.
    """

    def __init__(self, service: Service, actor: Any) -> None:
        self._service, self._actor = service, actor
        self.replica = uuid.uuid4().hex[:12]
        self._configured = service.champion.id
        self._waiting: deque[tuple[str, int, dict[str, Any]]] = deque()
        self.lost = 0
        self._work = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._answers = Together(lambda questions: self._ask("answers", questions), _PACE_S)
        self._sends, self._polls = Pace(_PACE_S), Pace(_PACE_S)
        self._refused = 0
        self._behind: Aliases | None = None
        self._retry_s, self._retry_at = _RETRY_S, 0.0

    async def start(self) -> None:
        """Take stream and aliases from the actor before the first request; InternalError if that cannot be."""
        self._loop = asyncio.get_running_loop()
        self._service.hub.forward_to(self._forward)
        await self._attach()
        if self._service.life.last_failure is not None:
            raise InternalError(self._service.life.last_failure)  # a replica of another model would be worse
        self._service.kill.link = self
        await self._follow_switch(0.0)
        self._service.life.link = self
        self._tasks = [asyncio.create_task(self._keep("send", self._send)),
                       asyncio.create_task(self._keep("receive", self._receive)),
                       asyncio.create_task(self._keep(SWITCH, lambda: self._follow_switch(_POLL_S))),
                       asyncio.create_task(self._keep("figures", lambda: tell_figures(self._service, self)))]

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

    async def begin_answer(self, key: Key, digest: bytes) -> Begun:
        """See HubBody."""
        begun: Begun = await self._answers("begin", key, digest)
        return begun

    async def finish_answer(self, key: Key, digest: bytes, answer: StoredAnswer) -> StoredAnswer | None:
        """See HubBody."""
        kept: StoredAnswer | None = await self._answers("finish", key, digest, answer)
        return kept

    async def abandon_answer(self, key: Key, digest: bytes) -> None:
        """See HubBody."""
        await self._answers("abandon", key, digest)

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

    def _forward(self, topic: str, ts_ns: int, data: dict[str, Any]) -> None:
        """From any thread."""
        if len(self._waiting) >= _MOST_WAITING:  # the actor has been away for long
            self._waiting.popleft()
            self.lost += 1
        self._waiting.append((topic, ts_ns, data))
        if not self._work.is_set() and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._work.set)

    async def _attach(self) -> None:
        service = self._service
        stream, seq, state, events, aliases = await _patiently(
            "attach", lambda: self._actor.attach.remote(self._configured, service.life.aliases))
        service.hub.begin_at(stream, seq, state, events)
        await self._follow(aliases)
        if state.model is None:
            service.life.announce()

    async def _keep(self, name: str, step: Callable[[], Awaitable[None]]) -> None:
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
                wait = min(2.0 * wait, _LONGEST_RETRY_S)
            else:
                broken.discard(name)
                wait = _RETRY_S

    async def _send(self) -> None:
        """What waits, or what comes in a while. Events that the actor refuses again and again are lost."""
        if not self._waiting:
            with suppress(TimeoutError):
                async with asyncio.timeout(_POLL_S):
                    await self._work.wait()
        self._work.clear()
        while self._waiting:
            await self._sends.turn()
            batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
            try:
                await _patiently("publish", lambda batch=batch: self._actor.publish.remote(batch))
            except Exception:
                self._refused += 1
                if self._refused < _MOST_TRIES:
                    self._waiting.extendleft(reversed(batch))
                else:
                    self.lost, self._refused = self.lost + len(batch), 0
                raise
            self._refused = 0

    async def _receive(self) -> None:
        """One poll and what follows from it."""
        service = self._service
        await self._polls.turn()
        log, known = service.hub.log, self._behind or service.life.aliases
        stream, events, aliases = await _patiently("poll", lambda: self._actor.poll.remote(
            self.replica, service.champion.id, log.stream, log.seq, known.revision))
        if stream != log.stream:
            await self._attach()
            return
        service.hub.receive(events)
        if aliases is not None:
            self._retry_s = _RETRY_S
            await self._follow(aliases)
        elif self._behind is not None and time.monotonic() >= self._retry_at:
            await self._follow(self._behind)

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

