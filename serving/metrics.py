"""What Prometheus is told: every figure in one table, one object whose plain methods the service calls.

Figures live in a prometheus_client registry of the process. With several replicas each reports its figures to the
service's shared actor, so that `GET /v1/metrics` tells of all of them, whichever answers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from pydantic import Field
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from algospace.config import FrozenConfig
from algospace.execution.decision import Reason
from algospace.execution.result import REASONS
from serving.access import OPEN_PATHS, is_open, route_of
from serving.calls import call_of

if TYPE_CHECKING:
    from serving.batch import BatchDecisions
    from serving.service import Service

_LOG = structlog.get_logger("serving")
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
DECISION_BUCKETS = (0.0002, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25,
                    1.0)
"""Seconds: dense where the bounds of the speed budget lie (2, 5, 15 and 30 ms)."""
REQUEST_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
ALONE = "local"
"""The replica's name where there are no others."""
REFUSALS = frozenset({401, 403, 408, 413, 429, 431, 503})
_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "WS"})
_NO_STATUS = 500
_REFUSALS_LOGGED = 600


class MetricsSettings(FrozenConfig):
    """How replicas tell each other their figures."""

    report_s: float = Field(default=5.0, gt=0, le=60)
    """How often a replica reports to the others; three times this old, it is taken for gone."""
    replicas: int = Field(default=1, ge=1)
    """How many replicas there should be; the deployment sets it."""


@dataclass(frozen=True)
class Figure:
    """One metric; `name` as Prometheus shows it, counters with _total."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    text: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


FIGURES = (
    Figure("algospace_decisions_total", "counter", "Decisions by reason.", ("reason",)),
    Figure("algospace_decision_seconds", "histogram", "From a request's body to its decision, single decisions.",
           (), DECISION_BUCKETS),
    Figure("algospace_batch_seconds", "histogram", "From a batch's body to its decisions.", (), REQUEST_BUCKETS),
    Figure("algospace_requests_total", "counter", "Answered requests.", ("route", "method", "status")),
    Figure("algospace_request_seconds", "histogram", "From a request's headers to its answer's last byte.",
           ("route",), REQUEST_BUCKETS),
    Figure("algospace_refused_total", "counter", "Requests that were not let in, or too late.", ("status",)),
    Figure("algospace_backend_info", "gauge", "1 for the champion's backend.", ("backend",)),
    Figure("algospace_backend_fallbacks_total", "counter", "Backends that a loaded model could not use.",
           ("backend",)),
    Figure("algospace_model_info", "gauge", "1 for the champion.", ("model", "instrument")),
    Figure("algospace_model_revision", "gauge", "Switches of the aliases so far."),
    Figure("algospace_shadow_comparisons_total", "counter", "Decisions of the shadow beside the champion's.",
           ("agrees",)),
    Figure("algospace_shadow_failures_total", "counter", "Comparisons that failed in the shadow."),
    Figure("algospace_stream_clients", "gauge", "WebSockets on the stream."),
    Figure("algospace_stream_slow_clients_total", "counter", "Stream clients that were closed as too slow."),
    Figure("algospace_stream_events_total", "counter", "The number of the stream's last event."),
    Figure("algospace_last_decision_timestamp_seconds", "gauge", "When it decided last; at first, when it began."),
    Figure("algospace_kill_switch", "gauge", "1 while the kill switch is thrown."),
    Figure("algospace_ready", "gauge", "1 while requests should be sent here."),
    Figure("algospace_replicas", "gauge", "Replicas that reported lately."),
    Figure("algospace_replicas_wanted", "gauge", "Replicas that there should be."),
)


class Reading(NamedTuple):
    """One figure's samples: (sample's name, labels, value)."""

    figure: str
    samples: list[tuple[str, dict[str, str], float]]


Readings = list[Reading]


@runtime_checkable
class Reports(Protocol):
    """Where replicas tell each other their figures (serving.hub_link.HubLink)."""

    replica: str

    async def report(self, readings: Readings, seconds: float) -> None:
        """Tell mine; they count for so long."""
        ...

    async def reports(self) -> dict[str, Readings]:
        """Replica -> what it told last."""
        ...


class Metrics:
    """The figures of one process. Methods may be called from any thread and take some microseconds."""

    def __init__(self, settings: MetricsSettings, clock: Callable[[], float] = time.time) -> None:
        self.settings, self._clock = settings, clock
        self._registry = CollectorRegistry()
        self._made: dict[str, Any] = {figure.name: _make(figure, self._registry) for figure in FIGURES}
        made = self._made
        self._reasons = {reason.value: made["algospace_decisions_total"].labels(reason.value) for reason in Reason}
        self._agree = {answer: made["algospace_shadow_comparisons_total"].labels(str(answer).lower())
                       for answer in (True, False)}
        self._decision, self._batch = made["algospace_decision_seconds"], made["algospace_batch_seconds"]
        self._last = made["algospace_last_decision_timestamp_seconds"]
        self._last.set(clock())
        made["algospace_replicas"].set(1)
        made["algospace_replicas_wanted"].set(settings.replicas)
        self._counted: dict[str, float] = {}
        self._models: set[int] = set()

    def decided(self, reason: str, seconds: float) -> None:
        """One decision was made, for one request."""
        self._reasons[reason].inc()
        self._decision.observe(seconds)
        self._last.set(self._clock())

    def counted(self, reason: str) -> None:
        """A request was refused for this reason before anything was decided."""
        self._reasons[reason].inc()

    def decided_batch(self, reasons: Mapping[str, int], seconds: float) -> None:
        """A batch was decided; how many rows for which reason."""
        for reason, count in reasons.items():
            self._reasons[reason].inc(count)
        self._batch.observe(seconds)
        if reasons:
            self._last.set(self._clock())

    def requested(self, path: str, method: str, status: int, seconds: float) -> None:
        """A request was answered. Paths and methods that the service does not have share one label."""
        route, method = _label(path), method if method in _METHODS else "other"
        self._made["algospace_requests_total"].labels(route, method, str(status)).inc()
        if method != "WS":
            self._made["algospace_request_seconds"].labels(route).observe(seconds)
        if status in REFUSALS:
            self.refused(status)

    def refused(self, status: int) -> None:
        """A request was not let in, or came too late."""
        self._made["algospace_refused_total"].labels(str(status)).inc()

    def fallback(self, backend: str) -> None:
        """A model could not use this backend."""
        self._made["algospace_backend_fallbacks_total"].labels(backend).inc()

    def backend(self, name: str) -> None:
        """This is the champion's backend now."""
        self._only("algospace_backend_info", name)

    def model(self, model_id: str, instrument: str, revision: int) -> None:
        """This is the champion now."""
        self._only("algospace_model_info", model_id[:12], instrument)
        self._made["algospace_model_revision"].set(revision)

    def shadow(self, agrees: bool) -> None:
        """The shadow has decided on the champion's inputs."""
        self._agree[bool(agrees)].inc()

    def clients(self, count: int) -> None:
        """So many WebSockets are on the stream."""
        self._made["algospace_stream_clients"].set(count)

    def watch(self, service: Service) -> None:
        """Have stream and shadow tell what happens."""
        service.hub.on_clients = self.clients
        service.life.agreed = self.shadow

    def look(self, service: Service) -> None:
        """Take what is read rather than told: models, stream, readiness."""
        champion, made = service.champion, self._made
        for model in (champion, service.shadow):
            if model is not None and id(model) not in self._models:
                self._models.add(id(model))
                for line in model.fallbacks:
                    self.fallback(line.partition(":")[0])
        self.backend(champion.backend.name)
        self.model(champion.id, champion.bundle.manifest.instrument, service.life.aliases.revision)
        self._upto("algospace_stream_slow_clients_total", service.hub.slow_clients)
        self._upto("algospace_shadow_failures_total", service.life.shadow_failures()[0])
        self._upto("algospace_stream_events_total", service.hub.log.seq)
        made["algospace_kill_switch"].set(service.kill.thrown)
        made["algospace_ready"].set(service.not_ready() is None)

    def readings(self) -> Readings:
        """All samples as plain values."""
        return [Reading(figure.name, [(s.name, dict(s.labels), s.value) for s in metric.samples
                                      if not s.name.endswith("_created")])
                for figure, metric in zip(FIGURES, self._registry.collect(), strict=True)]

    def _only(self, name: str, *labels: str) -> None:
        gauge = self._made[name]
        if gauge._metrics.keys() != {labels}:
            gauge.clear()
            gauge.labels(*labels).set(1)

    def _upto(self, name: str, total: float) -> None:
        """A counter that is counted elsewhere; where that began anew, what it has counted since is added."""
        before = self._counted.get(name, 0.0)
        self._made[name].inc(total - before if total >= before else total)
        self._counted[name] = total


async def tell_figures(service: Service, link: Reports) -> None:
    """Report this replica's figures to the others for ever."""
    metrics = service.metrics
    while True:
        metrics.look(service)
        try:
            await link.report(metrics.readings(), 3.0 * metrics.settings.report_s)
        except Exception as error:  # noqa: BLE001  # the next report says it all
            _LOG.warning("metrics_not_reported", error=type(error).__name__)
        await asyncio.sleep(metrics.settings.report_s)


def reason_counts(decided: BatchDecisions | None) -> dict[str, int]:
    """Reason -> rows of a batch."""
    if decided is None:
        return {}
    counts = np.bincount(decided.reasons, minlength=len(REASONS)).tolist()
    return {reason.value: count for reason, count in zip(REASONS, counts, strict=True) if count}


def text_of(reports: Mapping[str, Readings]) -> bytes:
    """Prometheus' text format of what all replicas told; each sample is labelled with its replica.

    The number of replicas is the number of reports, whatever they say.
    """

    def families() -> Iterator[Metric]:
        for place, figure in enumerate(FIGURES):
            kind = figure.kind
            family = Metric(figure.name.removesuffix("_total") if kind == "counter" else figure.name, figure.text,
                            kind)
            if figure.name == "algospace_replicas":
                family.add_sample(figure.name, {}, len(reports))
            elif figure.name == "algospace_replicas_wanted":
                family.add_sample(figure.name, {}, max(_values(reports.values(), place), default=0.0))
            else:
                for replica, readings in sorted(reports.items()):
                    for name, labels, value in readings[place].samples:
                        family.add_sample(name, {"replica": replica, **labels}, value)
            yield family

    return generate_latest(_Collected(families))


class _Collected(CollectorRegistry):
    """A registry whose families are made when they are asked for."""

    def __init__(self, families: Callable[[], Iterator[Metric]]) -> None:
        super().__init__()
        self._families = families

    def collect(self) -> Iterator[Metric]:
        """See CollectorRegistry."""
        return self._families()


def _values(reports: Iterable[Readings], place: int) -> list[float]:
    return [value for readings in reports for _, _, value in readings[place].samples]


def _make(figure: Figure, registry: CollectorRegistry) -> Any:
    if figure.kind == "histogram":
        return Histogram(figure.name, figure.text, figure.labels, buckets=figure.buckets, registry=registry)
    made = Counter if figure.kind == "counter" else Gauge
    return made(figure.name, figure.text, figure.labels, registry=registry)


def _label(path: str) -> str:
    if path in OPEN_PATHS:
        return path
    return route_of(path) or ("page" if is_open(path) else "other")


class Measured:
    """ASGI middleware, outermost but one: counts every answer, and logs refusals, 600 a minute at most."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self._metrics = app, metrics
        self._until, self._lines = 0.0, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        socket = scope["type"] == "websocket"
        method = "WS" if socket else scope["method"]
        began, status = time.perf_counter(), 0

        async def seen(message: Message) -> None:
            nonlocal status
            kind = message["type"]
            if kind in ("http.response.start", "websocket.http.response.start"):
                status = message["status"]
            elif not status and kind in ("websocket.accept", "websocket.close"):
                status = 101 if kind == "websocket.accept" else 403
                self._answered(scope, method, status, 0.0)
            await send(message)

        try:
            await self.app(scope, receive, seen)
        finally:
            if not socket or (status and status not in (101, 403)):
                self._answered(scope, method, status or _NO_STATUS, time.perf_counter() - began)

    def _answered(self, scope: Scope, method: str, status: int, seconds: float) -> None:
        self._metrics.requested(scope["path"], method, status, seconds)
        if status not in REFUSALS:
            return
        now = time.monotonic()
        if now >= self._until:
            self._until, self._lines = now + 60.0, 0
        self._lines += 1
        if self._lines <= _REFUSALS_LOGGED:
            principal = scope.get("state", {}).get("principal")
            _LOG.info("refused", method=method, path=scope["path"][:200], status=status,
                      trace_id=call_of(scope).trace_id, user=getattr(principal, "user", None))
        elif self._lines == _REFUSALS_LOGGED + 1:
            _LOG.warning("refusals_not_logged", until_s=round(self._until - now))
