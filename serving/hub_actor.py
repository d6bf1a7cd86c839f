"""What several replicas of a service share, in one small named Ray actor: the stream's numbers and last events,
the models' aliases, the kill switch, and answers that a repeated request gets again.

Each replica copies the stream to its own clients and follows the aliases. Nothing waits for the actor to decide.
If it dies, Ray starts it anew: a new stream begins, clients get a snapshot, and the replicas bring back the
aliases and the kill switch.
With one replica, or without Ray, none of this is needed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any, NamedTuple

from serving.aliases import Aliases
from serving.exchange import Question, Told
from serving.idempotency import Settled, make_table
from serving.kill_state import SwitchState
from serving.limits import LimitsSettings
from serving.metrics import Readings
from serving.stream import EventLog, StreamSettings
from serving.stream_state import Event, StreamState

NAME, NAMESPACE = "algospace-hub", "algospace"
MOST_EVENTS = 512
"""In one update."""
_SEEN_S = 6.0
_CONCURRENT = 1000

Attached = tuple[str, int, StreamState, list[Event], Aliases]
Update = tuple[str, list[Event], Aliases | None]
"""(stream, the next events, aliases if they are further than the replica's). A stream that is not the replica's
means: attach again."""


class Place(NamedTuple):
    """Who asks, and how far it is: its name and champion; stream and number of its last event; its aliases'
    revision."""

    replica: str
    champion: str
    stream: str
    seq: int
    revision: int


class HubBody:
    """The actor's methods, testable without Ray. All run in one event loop."""

    def __init__(self, settings: dict[str, Any], limits: dict[str, Any] | None = None) -> None:
        self._settings = StreamSettings.model_validate(settings)
        self._log = EventLog(self._settings)
        self._aliases: Aliases | None = None
        self._configured = ""
        self._seen: dict[str, tuple[str, float]] = {}
        self._heard: dict[str, int] = {}
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

    async def exchange(self, at: Place, events: list[Told],
                       questions: Sequence[Question]) -> tuple[list[Any], Update]:
        """Number these events, but for those that this replica has told before; what the table of answers
        (serving.idempotency) says to each question, in order; and the news there is, without waiting for any."""
        for event in events:
            if event.number > self._heard.get(at.replica, -1):
                self._log.append(event.topic, event.ts_ns, event.data)
                self._heard[at.replica] = event.number  # each at once: one behind it may be refused
        if events:
            self._tell()
        asked: dict[str, Callable[..., Settled]] = {"find": self._answers.find, "settle": self._answers.settle}
        return [asked[name](*about) for name, about in questions], self._update(at)

    async def poll(self, at: Place, wait_s: float) -> Update:
        """The news, as soon as there is any, or after `wait_s`."""
        self._answers.purge()
        if not self._has_news(at):
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    while not self._has_news(at):
                        await self._news.wait()
        return self._update(at)

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

    async def report(self, replica: str, readings: Readings, seconds: float) -> None:
        """A replica's figures, which count for so long."""
        self._told[replica] = time.monotonic() + seconds, readings

    async def reports(self) -> dict[str, Readings]:
        """Replica -> its figures, of those that reported lately."""
        now = time.monotonic()
        self._told = {replica: told for replica, told in self._told.items() if told[0] > now}
        return {replica: readings for replica, (_, readings) in self._told.items()}

    def _has_news(self, at: Place) -> bool:
        further = self._aliases is not None and self._aliases.revision > at.revision
        return at.stream != self._log.stream or self._log.seq != at.seq or further

    def _update(self, at: Place) -> Update:
        self._seen[at.replica] = at.champion, time.monotonic()
        log, aliases = self._log, self._aliases
        if at.stream != log.stream or not log.holds_after(at.seq) or aliases is None:
            return "", [], None
        return log.stream, log.after(at.seq, MOST_EVENTS), aliases if aliases.revision > at.revision else None

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()


def open_hub(settings: StreamSettings, limits: LimitsSettings) -> Any:
    """The handle of the service's actor, started if it is not there. It outlives replicas; `close_hub` ends it."""
    import ray

    actor = ray.remote(HubBody).options(
        name=NAME, namespace=NAMESPACE, get_if_exists=True, lifetime="detached", max_restarts=-1, num_cpus=0,
        max_concurrency=_CONCURRENT, enable_task_events=False)
    return actor.remote(settings.model_dump(mode="json"), limits.model_dump(mode="json"))


def close_hub() -> None:
    """End the service's actor, if there is one."""
    import ray

    try:
        actor = ray.get_actor(NAME, namespace=NAMESPACE)
    except ValueError:
        return
    ray.kill(actor)
