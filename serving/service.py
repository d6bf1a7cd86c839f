"""What the routes do: the service behind the application, usable without one."""

from __future__ import annotations

import json
import math
import time
import uuid
from functools import partial
from typing import Any, Self

import numpy as np
import structlog
from fastapi import Response
from fastapi.responses import JSONResponse
from pydantic import Field, ValidationError, model_validator

from algospace.config import FrozenConfig
from algospace.execution.decision import Reason
from serving.admission import Admission
from serving.backends import BackendName
from serving.batch import BatchInputs
from serving.batch_arrow import MEDIA_TYPE
from serving.batch_service import (
    JSON,
    decide_passes,
    only_finite,
    opened_ns,
    read_arrow,
    read_json,
    write_arrow,
    write_json,
)
from serving.bundle import Bundle
from serving.calls import Call
from serving.conditions import PreconditionsSettings, Watch
from serving.decider import DecisionInputs
from serving.engines import ENGINE_BACKENDS, Precision
from serving.explain import ExplainSettings
from serving.feature_state import FeatureSettings
from serving.idempotency import AnswersLink, Idempotency, LocalIdempotency, SharedIdempotency, make_table
from serving.kill_switch import KillSwitch
from serving.lifecycle import SWITCH, Lifecycle, LifecycleSettings
from serving.limits import LimitsSettings
from serving.logs import LogSettings
from serving.metrics import Metrics, MetricsSettings, reason_counts
from serving.models import Model
from serving.page.settings import PageSettings
from serving.reading import FieldError, decision_inputs, faults
from serving.schemas import DecideRequest, DecideResponse
from serving.security.settings import SecuritySettings
from serving.sources import reference
from serving.stream import StreamHub, StreamSettings
from serving.telling import Telling, behind_the_answer, told_rows

_LOG = structlog.get_logger("serving")


class AppSettings(FrozenConfig):
    """`backends` in order of preference: the first that this machine can run is used. `precision` is that of
    TensorRT's engines; the other backends compute in fp32."""

    backends: tuple[BackendName, ...] = Field(default=("onnx", "torch"), min_length=1)
    precision: Precision = "fp32"
    max_body_bytes: int = Field(default=262_144, ge=1024)
    security: SecuritySettings = SecuritySettings()
    stream: StreamSettings = StreamSettings()
    lifecycle: LifecycleSettings = LifecycleSettings()
    features: FeatureSettings = FeatureSettings()
    page: PageSettings = PageSettings()
    service: LimitsSettings = LimitsSettings()
    explain: ExplainSettings = ExplainSettings()
    metrics: MetricsSettings = MetricsSettings()
    logs: LogSettings = LogSettings()
    preconditions: PreconditionsSettings = PreconditionsSettings()

    @model_validator(mode="after")
    def _a_backend_computes_in_it(self) -> Self:
        if self.precision == "fp16" and not set(self.backends) & set(ENGINE_BACKENDS):
            raise ValueError(f"precision = fp16 is for engines, and backends = {', '.join(self.backends)} run "
                             f"none: add {' or '.join(ENGINE_BACKENDS)}")
        return self


class Service:
    """The state behind the routes."""

    def __init__(self, bundle: Bundle, settings: AppSettings, source: str | None = None) -> None:
        """`source`: what the bundle was asked for by, as serving.sources.find_bundle gives it."""
        self.settings = settings
        open_model = partial(Model, backends=settings.backends, precision=settings.precision)
        self.champion = open_model(bundle)
        self.shadow: Model | None = None
        self.hub = StreamHub(settings.stream)
        self.telling = Telling(self.hub)
        self.life = Lifecycle(self, settings.lifecycle, open_model, reference(bundle, source))
        self.idempotency: Idempotency = LocalIdempotency(make_table(settings.service))
        self.kill = KillSwitch(settings.preconditions.kill_file, partial(self.hub.publish, "kill"))
        self.watch = Watch(settings.preconditions, bundle.instrument.session, self.opens_nothing)
        self.admission = Admission()
        self.draining = False
        self.metrics = Metrics(settings.metrics)
        self.metrics.watch(self)
        self.life.logs = settings.logs
        self._tested: tuple[float, Model | None, bool] = (-math.inf, None, False)
        self.decisions = 0
        self.last_ns: int | None = None
        self._warm_up_batches()

    def opens_nothing(self) -> bool:
        """Whether the kill switch is thrown, or may be: this replica cannot hear of it."""
        return self.kill.thrown or SWITCH in self.life.broken_links

    def decide(self, body: bytes, call: Call | None = None) -> Response:
        """Answer one request. Refused (503) if it is past its deadline before the work, or after it."""
        call = call or Call(uuid.uuid4().hex)
        call.check("the request waited")
        self.life.check()
        started = time.perf_counter_ns()
        model = self.champion  # a switch meanwhile does not change what this request is answered by
        try:
            request = DecideRequest.model_validate_json(body)
            inputs = decision_inputs(model, request)
            self.watch.require_time(inputs.market.ts_close_ns)
        except ValidationError as error:
            return JSONResponse({"detail": faults(error)}, 422)
        except FieldError as error:
            return self._refused(error)
        answer = self.decided(model, inputs, request.trace_id or call.trace_id, started, call)
        return Response(answer.model_dump_json(exclude_none=True), 200, {"x-trace-id": answer.trace_id}, JSON)

    def decided(self, model: Model, inputs: DecisionInputs, trace_id: str, started_ns: int,
                call: Call) -> DecideResponse:
        """The one way of every decision that is made alone: conditions, model, deadline, what is counted and told.

        `started_ns` (time.perf_counter_ns): when work on the request began. Refused past the deadline.
        """
        decision = self.watch.decide(model.decider, inputs)
        latency_ms = (time.perf_counter_ns() - started_ns) / 1e6
        call.check("the decision was made")
        call.notes |= {"verdict": decision.verdict, "reason": decision.reason.value, "model": model.id[:12]}
        if decision.reason is Reason.EXECUTE:
            call.opens_ns = inputs.market.ts_close_ns or 0

        def told() -> None:
            self._count(1)
            self.metrics.decided(decision.reason.value, latency_ms / 1e3)
            behind_the_answer(self.life.decided, model, inputs, decision, trace_id, latency_ms)

        call.tell(told)
        return DecideResponse.of(decision, model.id, trace_id, latency_ms, inputs.gate)

    def _refused(self, error: FieldError) -> JSONResponse:
        """A request that does not fit the bundle; where that is one of the reasons, told and counted as one."""
        if error.reason is None:
            return JSONResponse({"detail": [error.fault]}, error.status)
        self.metrics.counted(error.reason.value)
        return JSONResponse({"detail": [error.fault], "verdict": "REJECT", "reason": error.reason.value},
                            error.status)

    async def decide_batch(self, body: bytes, media_type: str, call: Call) -> Response:
        """Answer a batch in the form it came in: JSON or an Arrow stream. Its rows are told behind the answer."""
        call.check("the request waited")
        await self.telling.room(call)
        self.life.check()
        started = time.perf_counter_ns()
        model, limits = self.champion, self.settings.service
        arrow = media_type == MEDIA_TYPE
        try:
            read = await (read_arrow if arrow else read_json)(model, self.watch, body, limits, call)
        except ValidationError as error:
            return JSONResponse({"detail": faults(error)}, 422)
        except FieldError as error:
            return self._refused(error)
        decided = None
        if read.inputs is not None:
            every = await decide_passes(model, self.watch, read.inputs, read.rulings, limits.batch_pass_rows, call)
            read, decided = only_finite(read, every, arrow)
        call.check("the batch was decided")
        latency_ms = (time.perf_counter_ns() - started) / 1e6
        call.notes |= {"rows": len(read.errors), "decided": len(read.kept), "model": model.id[:12]}
        call.opens_ns = opened_ns(read, decided)
        content = (write_arrow if arrow else write_json)(read, decided, model.id, call)

        def told() -> None:
            self._count(len(read.kept))
            self.metrics.decided_batch(reason_counts(decided), latency_ms / 1e3)
            if decided is not None and limits.stream_batches:
                each = latency_ms / len(read.kept)
                self.telling.begin(told_rows(read, decided, model.id, call.trace_id),
                                   lambda inputs, decision, trace_id: self.life.decided(
                                       model, inputs, decision, trace_id, each))

        call.tell(told)
        return Response(content, 200, {"x-trace-id": call.trace_id}, MEDIA_TYPE if arrow else JSON)

    def _warm_up_batches(self) -> None:
        """Load, or on a new machine compile, what only batches use: half a minute in the first one otherwise."""
        blank = self.champion._blank_inputs(0)
        self.champion.decider.decide_batch(BatchInputs.of([blank, blank], np.stack([blank.regime] * 2)))

    def answers(self, call: Call) -> Idempotency:
        """Where answers to idempotency keys are kept: with all replicas, where there are several."""
        link = self.life.link
        if isinstance(link, AnswersLink):
            return SharedIdempotency(link, call)
        return self.idempotency

    def _count(self, decisions: int) -> None:
        self.decisions += decisions
        self.last_ns = time.time_ns()

    def self_test(self) -> bool:
        """Decide on blank inputs again: the champion must still answer what it answered when it was loaded."""
        model = self.champion
        try:
            found = model.decider.decide(model._blank_inputs(0))
        except Exception as error:  # noqa: BLE001  # whatever a backend raises, the service is not ready
            _LOG.error("self_test_failed", model=model.id, error=str(error))
            self._tested = (time.monotonic(), model, False)
            return False
        passed = found == model.expected
        if not passed:
            _LOG.error("self_test_failed", model=model.id, error="another decision than when it was loaded")
        self._tested = (time.monotonic(), model, passed)
        return passed

    def not_ready(self) -> str | None:
        """Why no request should be sent here, in one line; None if all is well."""
        if self.draining:
            return "draining: this replica ends once its last answers are given"
        behind = self.life.not_ready()
        if behind is not None:
            return behind
        tested_at, model, passed = self._tested
        recent = time.monotonic() - tested_at < self.settings.service.self_test_s
        if not (recent and model is self.champion):
            passed = self.self_test()
        return None if passed else "the last self-test decision failed"

    def drain(self) -> None:
        """Take no more requests than are on their way: readiness is false from now on."""
        self.draining = True

    def answer(self, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """(HTTP status, decoded body) of a request given as values."""
        response = self.decide(json.dumps(request).encode())
        decoded: dict[str, Any] = json.loads(bytes(response.body))
        return response.status_code, decoded

    def health(self) -> dict[str, Any]:
        """What runs here."""
        model = self.champion
        gate, manifest = model.decider.gate, model.bundle.manifest
        idle = None if self.last_ns is None else (time.time_ns() - self.last_ns) / 1e9
        why = self.not_ready()
        return {"status": "ok" if why is None else "not ready", "why": why,
                "backend": model.backend.name, "precision": model.backend.precision, "fallbacks": model.fallbacks,
                "model": model.id, "instrument": manifest.instrument,
                "schema_hash": manifest.schema_hash, "iterations": gate.config.iterations,
                "threshold": gate.threshold, "decisions": self.decisions, "seconds_since_decision": idle,
                "draining": self.draining, "kill_switch": self.kill.thrown}
