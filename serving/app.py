"""The decision service as a plain FastAPI application; Ray Serve only wraps it.

POST /v1/decide (token), GET /v1/health and /v1/ready (open). Decisions run in the event loop: one takes about a
millisecond, and the decider's scratch memory is not for several threads.
"""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

import numpy as np
import structlog
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field, ValidationError

from algospace.config import FrozenConfig
from algospace.errors import AlgoSpaceError, ConfigError, SchemaError
from algospace.types import Float32Array
from serving.auth import BearerGuard
from serving.backends import Backend, BackendName, make_backend
from serving.bundle import Bundle
from serving.decider import Decider, DecisionInputs, MarketState, account_record
from serving.schemas import AccountIn, DecideRequest, DecideResponse, Matrix, level

_LOG = structlog.get_logger("serving")
_JSON = "application/json"
_WARM_UP = 3
_MOST_FAULTS = 20


class AppSettings(FrozenConfig):
    """`backends` in order of preference: the first that this machine can run is used."""

    backends: tuple[BackendName, ...] = Field(default=("onnx", "torch"), min_length=1)
    max_body_bytes: int = Field(default=262_144, ge=1024)


class Service:
    """The state behind the routes."""

    def __init__(self, bundle: Bundle, settings: AppSettings) -> None:
        self.bundle = bundle
        self.backend, self.fallbacks = choose_backend(bundle, settings)
        self.decider = Decider(bundle, self.backend)
        self.decisions = 0
        self.last_ns: int | None = None
        for seed in range(_WARM_UP):
            self.decider.decide(self._blank_inputs(seed))

    def _blank_inputs(self, seed: int) -> DecisionInputs:
        schema = self.bundle.schema
        market = MarketState(5000.0, 5.0, (0.0, 1.0), np.zeros(3, np.float32))
        account = account_record(position=1.0, entry=4990.0, equity=1e5, day_start=1e5)
        return DecisionInputs(
            np.zeros((schema.strategic.window, schema.strategic.width), np.float32),
            np.zeros((schema.tactical.window, schema.tactical.width), np.float32),
            np.zeros(self.bundle.manifest.regime_size, np.float32), market, account, seed)

    def decide(self, body: bytes) -> Response:
        """Answer one request."""
        started = time.perf_counter_ns()
        try:
            request = DecideRequest.model_validate_json(body)
            inputs = self._inputs(request)
        except ValidationError as error:
            faults = error.errors(include_url=False, include_context=False, include_input=False)[:_MOST_FAULTS]
            return JSONResponse({"detail": [_fault(item) for item in faults]}, 422)
        except FieldError as error:
            return JSONResponse({"detail": [error.fault]}, error.status)
        decision = self.decider.decide(inputs)
        trace_id = request.trace_id or uuid.uuid4().hex
        latency_ms = (time.perf_counter_ns() - started) / 1e6
        self.decisions += 1
        self.last_ns = time.time_ns()
        answer = DecideResponse.of(decision, self.bundle.id, trace_id, latency_ms)
        return Response(answer.model_dump_json(), 200, {"x-trace-id": trace_id}, _JSON)

    def answer(self, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """(HTTP status, decoded body) of a request given as values."""
        response = self.decide(json.dumps(request).encode())
        decoded: dict[str, Any] = json.loads(bytes(response.body))
        return response.status_code, decoded

    def _inputs(self, request: DecideRequest) -> DecisionInputs:
        expected = self.bundle.manifest.schema_hash
        if request.schema_hash != expected:
            raise FieldError("schema_hash", "schema_mismatch", f"the model was trained on schema {expected}, the "
                             f"request is of {request.schema_hash}; normalise with the bundle's schema", 409)
        if request.regime is not None:
            regime = np.array(request.regime, np.float32)
        else:
            assert request.regime_window is not None
            if not self.bundle.has("rde"):
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
            self.decider.check(inputs)
        except SchemaError as error:
            name = str(error).split(" ", 1)[0]
            if name == "regime" and request.regime is None:
                name = "regime_window"
            raise FieldError(name, "shape", str(error)) from None
        return inputs

    def health(self) -> dict[str, Any]:
        """What runs here."""
        gate = self.decider.gate
        idle = None if self.last_ns is None else (time.time_ns() - self.last_ns) / 1e9
        return {"status": "ok", "backend": self.backend.name, "fallbacks": self.fallbacks,
                "model": self.bundle.id, "instrument": self.bundle.manifest.instrument,
                "schema_hash": self.bundle.manifest.schema_hash, "iterations": gate.config.iterations,
                "threshold": gate.threshold, "decisions": self.decisions, "seconds_since_decision": idle}


class FieldError(Exception):
    """A request is well formed but does not fit the bundle; `fault` names the field as FastAPI does."""

    def __init__(self, field: str, kind: str, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.fault = {"loc": ["body", field], "msg": message, "type": kind}
        self.status = status


def create_app(bundle: Bundle, settings: AppSettings, digest: bytes) -> FastAPI:
    """The application for one bundle; `digest` is the SHA-256 of the bearer token (serving.auth)."""
    service = Service(bundle, settings)
    app = FastAPI(title="AlgoSpace decision service", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(BearerGuard, digest=digest, max_body=settings.max_body_bytes)

    @app.post("/v1/decide")
    async def decide(request: Request) -> Response:
        return service.decide(await request.body())

    @app.get("/v1/health")
    async def health() -> dict[str, Any]:
        return service.health()

    @app.get("/v1/ready")
    async def ready() -> dict[str, Any]:
        return {"ready": True, "model": bundle.id}

    return app


def choose_backend(bundle: Bundle, settings: AppSettings) -> tuple[Backend, list[str]]:
    """(the first backend that works here, one line per backend that did not)."""
    failures: list[str] = []
    for name in settings.backends:
        try:
            return make_backend(name, bundle), failures
        except AlgoSpaceError as error:
            failures.append(f"{name}: {error}")
            _LOG.warning("backend_fallback", backend=name, error=str(error))
    raise ConfigError(f"no configured backend works: {'; '.join(failures)}")


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
