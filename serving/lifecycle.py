"""The models' life cycle in a running service: shadow, promotion, roll-back, without a request that fails.

A switch loads and warms the new model up in a thread while the old one answers, then replaces one reference.
Requests in flight end on the model they began with; whatever fails before leaves everything as it was.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import structlog
from pydantic import Field

from algospace.config import FrozenConfig
from algospace.errors import AlgoSpaceError
from algospace.execution.decision import Decision
from algospace.execution.preconditions import FORBIDDING
from serving.aliases import Alias, Aliases, Check, ModelRef
from serving.bundle import Bundle, load_bundle
from serving.calls import late
from serving.decider import DecisionInputs
from serving.logs import LogSettings, log_decision
from serving.mlflow_source import Registry, is_registry_uri
from serving.models import Model
from serving.shadow import ShadowRunner
from serving.shadow_history import Known, ShadowHistory, log_figures
from serving.stream import StreamHub
from serving.telling import decision_data

_LOG = structlog.get_logger("serving")
_LATENCY_EVERY_S = 1.0
_LATENCIES = 2048
_NOTE_WAIT_S = 20.0
"""So long the answer to a switch waits to tell what the registry said."""
_REPEATED_S = 5.0
"""A second roll-back this soon is the first one's repetition (its replica was killed before it answered, or it was
clicked twice), and would undo it."""
PRESENT_SHADOW = "shadow"
SWITCH = "switch"
"""In `Lifecycle.broken_links`: this replica does not hear of the kill switch."""
BEHIND = "not on the champion that the replicas agreed on; GET /v1/model says why"


class LifecycleSettings(FrozenConfig):
    """`registry`: MLflow's tracking URI, where `models:/...` and the checks of folders are looked up."""

    registry: str | None = None
    name: str = "algospace-bundle"
    """The registered model whose versions hold the recorded checks."""
    require_checks: bool = True
    """A bundle whose promotion no recorded check supports is refused."""
    min_shadow_decisions: int = Field(default=0, ge=0)
    """Comparisons that the present shadow needs before it can be promoted."""
    cache: Path | None = None
    """Folder of downloaded bundles; by default `algospace/bundles` in the user's cache."""
    shadow_queue: int = Field(default=64, ge=1)
    """Requests that may wait for the shadow; more are dropped and counted."""
    shadow_record_s: float = Field(default=300.0, gt=0)
    """How often the shadow's figures are recorded; MLflow takes a process of its own and some seconds for it."""


@dataclass(frozen=True)
class Order:
    """What is asked of POST /v1/model; see serving.routes.model.ModelOrder."""

    alias: Alias = "champion"
    source: str | None = None
    rollback: bool = False
    remove: bool = False


class NotSwitched(Exception):
    """Everything stays as it was: HTTP `status`, why, and the checks that were looked at."""

    def __init__(self, status: int, why: str, checks: tuple[Check, ...] = ()) -> None:
        super().__init__(why)
        self.status, self.checks = status, checks


class Host(Protocol):
    """What the life cycle acts on: the service."""

    champion: Model
    shadow: Model | None
    hub: StreamHub


class Link(Protocol):
    """Where replicas agree on the aliases (serving.hub_actor)."""

    async def move(self, aliases: Aliases) -> bool:
        """Make them everybody's; False if somebody else was faster."""
        ...

    async def replicas(self) -> dict[str, str]:
        """Replica -> the champion it runs."""
        ...

    replica: str
    """This one's name."""


class Lifecycle:
    """Champion, shadow and previous of one process, and the switches between them."""

    def __init__(self, host: Host, settings: LifecycleSettings, open_model: Callable[[Bundle], Model],
                 champion: ModelRef) -> None:
        self._host, self.settings, self._open_model = host, settings, open_model
        self.registry = Registry(settings.registry, settings.name, settings.cache)
        self.history = ShadowHistory(self.registry)
        self.aliases = Aliases(champion)
        self._refs: dict[str, ModelRef] = {}
        self._changed_at = -math.inf
        self.link: Link | None = None
        self.agreed: Callable[[bool], None] | None = None
        self._models: dict[str, Model] = {champion.id: host.champion}
        self._runner: ShadowRunner | None = None
        self._switching, self._noting = asyncio.Lock(), asyncio.Lock()
        self.noted: str | None = None
        self._notes: set[asyncio.Task[None]] = set()
        self._latencies: list[float] = []
        self._latency_due = 0.0
        self.last_failure: str | None = None
        self.broken_links: set[str] = set()
        self.logs = LogSettings()
        self.announce()

    def decided(self, model: Model, inputs: DecisionInputs, decision: Decision, trace_id: str,
                latency_ms: float) -> None:
        """Tell the stream, the log and the shadow of a decision whose answer is made. Some 50 µs."""
        hub = self._host.hub
        data = decision_data(model, inputs, decision, trace_id, latency_ms)
        hub.publish("decision", data)
        log_decision(self.logs, data)
        if self._runner is not None and decision.reason not in FORBIDDING:  # the shadow knows no conditions
            self._runner.offer(inputs, decision, model.id, trace_id)
        self._latencies.append(latency_ms)
        now = time.monotonic()
        if now >= self._latency_due or len(self._latencies) >= _LATENCIES:
            ordered, self._latencies = sorted(self._latencies), []
            self._latency_due = now + _LATENCY_EVERY_S
            n = len(ordered)
            hub.publish("latency", {"count": n, "p50_ms": ordered[n // 2], "p99_ms": ordered[n * 99 // 100],
                                    "max_ms": ordered[-1]})

    def announce(self) -> None:
        """Publish which models there are (topic model). The figures of a pair that ends by it are kept first."""
        known, now = self.shadow_figures(), self.status()
        if known is not None and (known[1]["champion"], known[1]["shadow"]) != (now["champion"], now["shadow"]):
            self.history.tell(*known, ended=True)
        self._host.hub.publish("model", now)

    def shadow_figures(self) -> Known | None:
        """The shadow that the stream tells of, and what is known of it; None without one."""
        figures = self._host.hub.log.state.shadow.summary()
        if figures is None:
            return None
        name = figures["shadow"]
        return self._refs.get(name, ModelRef(name, "", "")), figures

    def status(self) -> dict[str, Any]:
        """Ids of champion, shadow and previous, what the champion is, and what the registry said last."""
        a, model = self.aliases, self._host.champion
        manifest = model.bundle.manifest
        return {"champion": a.champion.id, "shadow": a.shadow and a.shadow.id,
                "previous": a.previous and a.previous.id, "revision": a.revision, "source": a.champion.source,
                "backend": model.backend.name, "instrument": manifest.instrument,
                "schema_hash": manifest.schema_hash, "registry": self.noted}

    def shadow_failures(self) -> tuple[int, str | None]:
        """Comparisons of the present shadow that failed, and with what the last one did, if it did."""
        runner = self._runner
        if runner is None:
            return 0, None if self.aliases.shadow is None else "it could not be opened here; see the log"
        return runner.failures, runner.error

    async def switch(self, order: Order, user: str) -> dict[str, Any]:
        """Do what `order` asks, whole or not at all; NotSwitched says why not."""
        if self._switching.locked():
            raise NotSwitched(409, "another switch is under way: ask again when it has ended")
        started, before = time.perf_counter(), self.aliases
        try:  # the registry may take minutes to answer; a roll-back does not wait for that
            wanted, checks = await asyncio.to_thread(self._plan, order)
        except (AlgoSpaceError, OSError) as error:
            raise self._unchanged(error) from None
        if self._switching.locked() or self.aliases is not before:
            raise NotSwitched(409, "another switch came first: look at GET /v1/model and ask again")
        async with self._switching:
            try:
                models = await asyncio.to_thread(self._load, wanted, order.alias)
            except (AlgoSpaceError, OSError) as error:
                raise self._unchanged(error) from None
            log = _LOG.bind(user=user, alias=order.alias, champion=wanted.champion.id,
                            shadow=wanted.shadow and wanted.shadow.id, revision=wanted.revision)
            log.info("model_switch_begins", champion_before=before.champion.id)
            await _whole(self._change(wanted, models, log))
        took = time.perf_counter() - started
        await self._tell_registry(before)
        return self.status() | {"checks": [vars(check) for check in checks], "seconds": took}

    async def _change(self, wanted: Aliases, models: dict[str, Model], log: Any) -> None:
        """Everybody's aliases, this replica's models, what stream and log say: all of it or nothing."""
        if self.link is not None and not await self.link.move(wanted):
            log.info("model_not_switched", why="another replica was faster")
            raise NotSwitched(409, "another replica switched at the same time: look at GET /v1/model")
        await self._adopt(wanted, models)
        self.announce()
        log.info("model_switched")

    def _unchanged(self, error: Exception) -> NotSwitched:
        return NotSwitched(422, f"{error}; the champion stays {self.aliases.champion.id[:12]}")

    def not_ready(self) -> str | None:
        """Why no request should be sent here, as far as the other replicas are concerned. Anybody may ask: no
        details."""
        if self.last_failure is not None:
            return BEHIND
        if self.broken_links:
            return "the link to the other replicas is broken; the log of the service says why"
        return None

    def check(self) -> None:
        """Refused (503) while this replica is not on the agreed champion: another one would answer otherwise."""
        if self.last_failure is not None:
            raise late(BEHIND)

    async def follow(self, aliases: Aliases) -> None:
        """Become what all replicas agreed on; a failure leaves the old models and is kept in `last_failure`, and
        the replica is not ready until it has followed."""
        async with self._switching:
            if aliases.revision <= self.aliases.revision:
                self.last_failure = None
                return
            try:
                models = await asyncio.to_thread(self._load, aliases)
            except Exception as error:  # noqa: BLE001  # whatever a bundle or a backend raises, it is behind
                self.last_failure = f"cannot follow to {aliases.champion.id[:12]}: {error}"
                _LOG.error("model_not_followed", champion=aliases.champion.id, error=str(error))
                return
            await _whole(self._adopt(aliases, models))
            self.last_failure = None

    def close(self) -> None:
        """End the shadow's thread; what is known of it stays in the log."""
        if self._runner is not None:
            self._runner.stop()
            self._runner = None
            if (known := self.shadow_figures()) is not None:
                log_figures(known[1], ended=False)

    def _plan(self, order: Order) -> tuple[Aliases, tuple[Check, ...]]:
        """The aliases that the order leads to, after its checks."""
        now = self.aliases
        if order.rollback:
            back = now.rollback()
            if back is None:
                raise NotSwitched(409, "there is no previous champion to roll back to")
            ago = time.monotonic() - self._changed_at
            if now.rolled_back and ago < _REPEATED_S:
                raise NotSwitched(409, f"rolled back {ago:.1f} s ago, to {now.champion.id[:12]}: back again is "
                                       f"taken {_REPEATED_S:g} s after that")
            return back, ()
        if order.remove:
            return now.with_shadow(None), ()
        ref, bundle = self._find(order.source or "")
        checks: tuple[Check, ...] = (self._fits(bundle),)
        if order.alias == "champion":
            if ref.id == now.champion.id:
                raise NotSwitched(409, f"{ref.id[:12]} is the champion already")
            checks += self._earned(ref)
        failed = [check for check in checks if not check.passed]
        if failed:
            raise NotSwitched(409, "refused: " + "; ".join(f"{c.name}: {c.found}" for c in failed), checks)
        return (now.promote(ref) if order.alias == "champion" else now.with_shadow(ref)), checks

    def _find(self, source: str) -> tuple[ModelRef, Bundle]:
        """The bundle that a folder, a registry's URI or the word `shadow` means."""
        if source == PRESENT_SHADOW:
            shadow = self.aliases.shadow
            if shadow is None:
                raise NotSwitched(409, "there is no shadow to promote")
            return shadow, load_bundle(self.registry.folder(shadow))
        if is_registry_uri(source):
            found = self.registry.fetch(source)
            bundle = load_bundle(found.folder)
            return ModelRef(bundle.id, found.folder, source, found.name, found.version), bundle
        bundle = load_bundle(source)
        return ModelRef(bundle.id, str(Path(source).resolve()), source), bundle

    def _fits(self, bundle: Bundle) -> Check:
        """Requests that are on their way must be good for the new model."""
        ours, theirs = self._host.champion.bundle.manifest, bundle.manifest
        for name in ("instrument", "schema_hash"):
            old, new = getattr(ours, name), getattr(theirs, name)
            if old != new:
                return Check("fits", False, f"its {name} is {new}, the champion's {old}: serve it by a service "
                                            "of its own")
        return Check("fits", True, "same instrument and schema")

    def _earned(self, ref: ModelRef) -> tuple[Check, ...]:
        """The checks recorded with a version, and the shadow's."""
        checks: tuple[Check, ...] = ()
        shadow, asked = self.aliases.shadow, self.settings.min_shadow_decisions
        if asked:
            figures = self._host.hub.log.state.shadow.summary()
            compared = figures["compared"] if figures and shadow and shadow.id == ref.id else 0
            checks = (Check("shadow", compared >= asked, f"{compared} decisions as shadow, {asked} asked"),)
        if self.settings.require_checks:
            checks += self.registry.checks(ref)
        return checks

    def _load(self, wanted: Aliases, asked: Alias = "champion") -> dict[str, Model]:
        """Champion and previous by id, warmed up; those already here are not loaded again. Of the others, which
        answer nobody, only the one that is `asked` for has to be there."""
        found: dict[str, Model | None] = {
            wanted.champion.id: self._models.get(wanted.champion.id) or self._open(wanted.champion)}
        previous, shadow = wanted.previous, wanted.shadow
        if previous is not None and previous.id not in found:
            found[previous.id] = self._models.get(previous.id) or self._open_if_possible(previous)
        if shadow is not None and (self._host.shadow is None or self._host.shadow.id != shadow.id):
            opened = self._open if asked == "shadow" else self._open_if_possible
            found["shadow"] = opened(shadow)  # its own, even if it is champion too: deciders are not shared
        return {name: model for name, model in found.items() if model is not None}

    def _open_if_possible(self, ref: ModelRef) -> Model | None:
        try:
            return self._open(ref)
        except Exception as error:  # noqa: BLE001  # whatever a bundle or a backend raises
            _LOG.error("model_not_opened", model=ref.id, error=str(error))
            return None

    def _open(self, ref: ModelRef) -> Model:
        bundle = load_bundle(self.registry.folder(ref))
        if bundle.id != ref.id:
            raise NotSwitched(409, f"{bundle.directory}: holds {bundle.id[:12]} now, not {ref.id[:12]}")
        return self._open_model(bundle)

    async def _adopt(self, wanted: Aliases, models: dict[str, Model]) -> None:
        """The switch itself: one reference, between two requests of the event loop."""
        host, shadow, ended = self._host, wanted.shadow, None
        if self._runner is not None and (shadow is None or shadow.id != self._runner.model.id):
            ended, self._runner, host.shadow = self._runner, None, None
        host.champion = models[wanted.champion.id]
        if shadow is not None and "shadow" in models:
            host.shadow = models.pop("shadow")
        self._refs |= {ref.id: ref for ref in (wanted.champion, shadow) if ref is not None}
        if wanted.champion != self.aliases.champion:
            self._changed_at = time.monotonic()
        self.aliases, self._models = wanted, models
        if host.shadow is not None and self._runner is None:
            self._runner = ShadowRunner(host.shadow, host.hub.publish, self.settings.shadow_queue, self.agreed)
        if ended is not None:
            await asyncio.to_thread(ended.stop)

    async def _tell_registry(self, before: Aliases) -> None:
        """Have the registry's aliases moved in the background; wait a moment for what comes of it (`noted`)."""
        if not self.settings.registry:
            return
        self.noted = "being told; GET /v1/model says what came of it"
        task = asyncio.create_task(self._note(before))
        self._notes.add(task)
        task.add_done_callback(self._notes.discard)
        with suppress(TimeoutError):
            async with asyncio.timeout(_NOTE_WAIT_S):
                await asyncio.shield(task)

    async def _note(self, before: Aliases) -> None:
        """Move the registry's aliases to where the service's are, one note after the other."""
        async with self._noting:
            now, ended = {"champion": self.aliases.champion}, {}
            if self.aliases.shadow is not None:
                now["shadow"] = self.aliases.shadow
            if before.shadow is not None:
                ended["shadow"] = before.shadow
            try:
                self.noted = await asyncio.to_thread(self.registry.note, now, ended)
            except Exception as error:  # noqa: BLE001  # the service has switched; the status tells, nobody else can
                _LOG.warning("registry_not_noted", champion=self.aliases.champion.id, error=str(error))
                self.noted = f"not noted: {error}"


async def _whole(work: Coroutine[Any, Any, None]) -> None:
    """`work` to its end, even if the caller is cancelled meanwhile; the cancellation comes behind it."""
    task = asyncio.create_task(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait((task,))
        raise
