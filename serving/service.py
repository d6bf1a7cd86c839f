"""What the routes do: the service behind the application, usable without one."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

import numpy as np
from fastapi import Response
from fastapi.responses import JSONResponse
from pydantic import Field, ValidationError

from algospace.config import FrozenConfig
from algospace.errors import SchemaError
from algospace.types import Float32Array
from serving.backends import BackendName
from serving.bundle import Bundle
from serving.decider import DecisionInputs, MarketState, account_record
from serving.feature_state import FeatureSettings
from serving.lifecycle import Lifecycle, LifecycleSettings
from serving.models import Model
from serving.page.settings import PageSettings
from serving.schemas import AccountIn, DecideRequest, DecideResponse, Matrix, level
from serving.security.settings import SecuritySettings
from serving.stream import StreamHub, StreamSettings

_JSON = "application/json"
_MOST_FAULTS = 20


class AppSettings(FrozenConfig):
    """`backends` in order of preference: the first that this machine can run is used."""

    backends: tuple[BackendName, ...] = Field(default=("onnx", "torch"), min_length=1)
    max_body_bytes: int = Field(default=262_144, ge=1024)
    security: SecuritySettings = SecuritySettings()
    stream: StreamSettings = StreamSettings()
    lifecycle: LifecycleSettings = LifecycleSettings()
    page: PageSettings = PageSettings()
    features: FeatureSettings = FeatureSettings()


class Service:
    """The state behind the routes."""

    def __init__(self, bundle: Bundle, settings: AppSettings) -> None:
        self.settings = settings
        self.champion = Model(bundle, settings.backends)
        self.shadow: Model | None = None
        self.hub = StreamHub(settings.stream)
        self.life = Lifecycle(self, settings.lifecycle, settings.backends)
        self.decisions = 0
        self.last_ns: int | None = None

    def decide(self, body: bytes) -> Response:
        """Answer one request."""
        started = time.perf_counter_ns()
        model = self.champion  # a switch meanwhile does not change what this request is answered by
        try:
            request = DecideRequest.model_validate_json(body)
            inputs = decision_inputs(model, request)
        except ValidationError as error:
            faults = error.errors(include_url=False, include_context=False, include_input=False)[:_MOST_FAULTS]
            return JSONResponse({"detail": [_fault(item) for item in faults]}, 422)
        except FieldError as error:
            return JSONResponse({"detail": [error.fault]}, error.status)
        decision = model.decider.decide(inputs)
        trace_id = request.trace_id or uuid.uuid4().hex
        latency_ms = (time.perf_counter_ns() - started) / 1e6
        self.decisions += 1
        self.last_ns = time.time_ns()
        answer = DecideResponse.of(decision, model.id, trace_id, latency_ms)
        response = Response(answer.model_dump_json(), 200, {"x-trace-id": trace_id}, _JSON)
        self.life.decided(model, inputs, decision, trace_id, latency_ms)
        return response

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
        return {"status": "ok", "backend": model.backend.name, "fallbacks": model.fallbacks,
                "model": model.id, "instrument": manifest.instrument,
                "schema_hash": manifest.schema_hash, "iterations": gate.config.iterations,
                "threshold": gate.threshold, "decisions": self.decisions, "seconds_since_decision": idle}


class FieldError(Exception):
    """A request is well formed but does not fit the bundle; `fault` names the field as FastAPI does."""

    def __init__(self, field: str, kind: str, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.fault = {"loc": ["body", field], "msg": message, "type": kind}
        self.status = status


def decision_inputs(model: Model, request: DecideRequest) -> DecisionInputs:
    """A request as the model takes it; FieldError if it does not fit the model's bundle."""
    expected = model.bundle.manifest.schema_hash
    if request.schema_hash != expected:
        raise FieldError("schema_hash", "schema_mismatch", f"the model was trained on schema {expected}, the "
                         f"request is of {request.schema_hash}; normalise with the bundle's schema", 409)
    if request.regime is not None:
        regime = np.array(request.regime, np.float32)
    else:
        assert request.regime_window is not None
        if not model.bundle.has("rde"):
            raise FieldError("regime_window", "no_rde", "the bundle holds no RDE: give regime instead")
        regime = _matrix("regime_window", request.regime_window)
    market = request.market
    node = market.low_volume_node
    state = MarketState(market.close, market.atr, (market.hour_sin, market.hour_cos),
                        np.array(request.synergy, np.float32),
                        (np.nan, 0.0) if node is None else (node.distance, node.strength))
    inputs = DecisionInputs(_matrix("strategic", request.strategic), _matrix("tactical", request.tactical),
                            regime, state, _account(request.account), request.seed)
    try:
        model.decider.check(inputs)
    except SchemaError as error:
        name = str(error).split(" ", 1)[0]
        if name == "regime" and request.regime is None:
            name = "regime_window"
        raise FieldError(name, "shape", str(error)) from None
    return inputs


def _matrix(name: str, rows: Matrix) -> Float32Array:
    widths = {len(row) for row in rows}
    if len(widths) != 1:
        raise FieldError(name, "shape", f"{name} has rows of {min(widths)} to {max(widths)} values")
    return np.array(rows, np.float32)


def _account(account: AccountIn) -> Any:
    return account_record(position=account.position, entry=account.entry, stop=level(account.stop),
                          target=level(account.target), equity=account.equity, peak=account.equity,
                          day_start=account.day_start, bars_in_trade=account.bars_in_trade)


def _fault(item: Any) -> dict[str, Any]:
    """One pydantic error without the rejected input, which may be large."""
    return {"loc": ["body", *item["loc"]], "msg": item["msg"], "type": item["type"]}
