"""GET /v1/health and /v1/ready, which are open, and GET /v1/openapi.json."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from serving.routes.described import openapi_of
from serving.schemas import Problem
from serving.service import Service

_MODEL = "3f" * 32


class Health(BaseModel):
    """What runs here."""

    model_config = ConfigDict(json_schema_extra={"examples": [{
        "status": "ok", "why": None, "backend": "onnx", "precision": "fp32", "fallbacks": [],
        "model": _MODEL, "instrument": "ES", "schema_hash": "0a" * 32, "iterations": 30,
        "threshold": 0.61, "decisions": 1042, "seconds_since_decision": 0.02, "draining": False,
        "kill_switch": False}]}, extra="allow")

    status: str
    why: str | None = None
    backend: str
    precision: str
    fallbacks: list[str]
    model: str
    instrument: str
    schema_hash: str
    iterations: int
    threshold: float
    decisions: int
    seconds_since_decision: float | None
    draining: bool
    kill_switch: bool


class Ready(BaseModel):
    """Requests may be sent here."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"ready": True, "model": _MODEL}]})

    ready: bool
    model: str


def add_routes(app: FastAPI, service: Service) -> None:
    """Add the routes; without the description where the settings say so."""

    @app.get("/v1/health", summary="Backend, model and schema", response_model=Health)
    async def health() -> dict[str, Any]:
        return service.health()

    @app.get("/v1/ready", summary="Whether requests should be sent here", response_model=Ready,
             responses={503: {"model": Problem,
                              "description": "Draining, behind the other replicas, or the self-test failed"}})
    async def ready() -> JSONResponse:
        why = service.not_ready()
        if why is not None:
            return JSONResponse({"detail": why}, 503, {"retry-after": "1"})
        return JSONResponse({"ready": True, "model": service.champion.id})

    if service.settings.service.openapi:
        @app.get("/v1/openapi.json", summary="This description", response_model=dict[str, Any])
        async def openapi() -> dict[str, Any]:
            return openapi_of(app)
