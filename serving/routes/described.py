"""The OpenAPI 3.1 description: what the hand-read bodies are, examples, tokens and the one form of faults."""

from __future__ import annotations

import re
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from serving.access import PERMISSIONS, is_open
from serving.batch_arrow import ANSWER, GATE_ANSWER, MEDIA_TYPE, batch_schema
from serving.bundle import Bundle
from serving.schemas import (
    BarsRequest,
    BarsResponse,
    BatchRequest,
    BatchResponse,
    DecideRequest,
    DecideResponse,
    Problem,
)

_VERSION = "1"
_REFERENCE = "#/components/schemas/{model}"
_MODEL = "3f" * 32
_TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
_STATE = f"1790000000000000000-{'0a' * 16}"
_FAULTS = {"400": "A header is malformed", "401": "No token, or one that is not valid",
           "403": "The role may not use this route", "405": "Another method is meant",
           "408": "The body came too slowly",
           "409": "Another schema, or an Idempotency-Key with another body", "413": "The body is too long",
           "415": "Another content type is meant", "422": "The request is wrong; `detail` says where",
           "429": "Too many requests; Retry-After says when to come back",
           "431": "The headers are too long", "500": "A fault of the service",
           "503": "Busy, or the deadline has passed: no decision is given; Retry-After says when to come back"}
_HEADERS = [
    ("Idempotency-Key", {"type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[ -~]*$"},
     "The same key and body get the same answer, also after a switch of models, but none from before the kill "
     "switch was thrown or re-armed (503 if that happens meanwhile), and no EXECUTE once its bar is too old or "
     "the market has closed: the request is then decided anew. Another body gets 409.",
     "order-17"),
    ("x-deadline-ms", {"type": "number", "exclusiveMinimum": 0},
     "Milliseconds that the answer is worth something; at most the service's own deadline.", 50),
    ("x-request-start", {"type": "number"},
     "When the request was sent, milliseconds since 1970 by a synchronised clock: the deadline counts from then.",
     1790000000000),
    ("traceparent", {"type": "string"}, "W3C trace context; answers carry it back.",
     f"00-{_TRACE}-00f067aa0ba902b7-01")]


def decide_described(bundle: Bundle, batch: bool) -> dict[str, Any]:
    """What FastAPI cannot know of a decision route, for `openapi_extra`."""
    request, response = ("BatchRequest", "BatchResponse") if batch else ("DecideRequest", "DecideResponse")
    row = example_row(bundle)
    schema_hash = bundle.manifest.schema_hash
    asked: dict[str, Any] = {"schema_hash": schema_hash, **({"rows": [row, row | {"seed": 2}]} if batch else row)}
    answer: dict[str, Any] = {"model": _MODEL, "trace_id": _TRACE, "latency_ms": 0.61}
    answer |= {"rows": [_ANSWER, _ANSWER], "decided": 2} if batch else _ANSWER
    takes = {"application/json": _content(request, asked)}
    gives = {"application/json": _content(response, answer)}
    if batch:
        takes[MEDIA_TYPE] = {"schema": {"type": "string", "format": "binary", "description": (
            "An uncompressed Arrow IPC stream; metadata `schema_hash`; columns: "
            + _columns(batch_schema(bundle, times=True, gates=True)) + "; or regime_window instead of regime. "
            "ts_close_ns may be left out where preconditions.max_age_s is not set, the three gate columns where "
            "no row's gate is corrected")}}
        gives[MEDIA_TYPE] = {"schema": {"type": "string", "format": "binary", "description": (
            "An Arrow IPC stream; metadata `model`, `trace_id`, `latency_ms`; columns: " + _columns(ANSWER)
            + "; and where a row says where its gate stands: " + _columns(GATE_ANSWER))}}
    said = ("Content-Type chooses the form; the answer comes in the same. A row that is wrong gets `errors` "
            "(`error` in Arrow) and costs the others nothing."
            if batch else "Unknown fields, wrong types, NaN and infinities are refused; nothing is converted.")
    return {
        "description": f"{said} Matrices need the shapes and the columns of the bundle's schema. Decisions are "
                       "pure: the same request gives the same decision, unless something forbids to open a "
                       "position now: KILL_SWITCH, STALE_DATA (`market.ts_close_ns` is old), OUT_OF_SESSION.",
        **_described(takes, gives)}


def bars_described() -> dict[str, Any]:
    """What FastAPI cannot know of the route that takes bars, for `openapi_extra`."""
    asked = {"state_id": _STATE, "bars": [
        {"ts_open": 1790000000000000000, "open": 5000.0, "high": 5001.0, "low": 4999.5, "close": 5000.5,
         "volume": 1200.0}], "account": {"position": 0.0, "equity": 100000.0, "day_start": 100000.0}, "seed": 1}
    answer = {"state_id": _STATE, "through_ns": 1790000000000000000, "width_ns": 300000000000, "why": None,
              "decision": {**_ANSWER, "model": _MODEL, "trace_id": _TRACE, "latency_ms": 4.2},
              "row_ts_close_ns": 1790000000000000000}
    return {"description": "A state is a value that its id names: the same request reaches the same state however "
                           "often it comes. `decision` is null, and `why` says so, where the last row is no "
                           "decision point.",
            **_described({"application/json": _content("BarsRequest", asked)},
                         {"application/json": _content("BarsResponse", answer)})}


def _described(takes: dict[str, Any], gives: dict[str, Any]) -> dict[str, Any]:
    """Bodies and the headers that every decision route takes."""
    return {
        "requestBody": {"required": True, "content": takes},
        "parameters": [{"name": name, "in": "header", "required": False, "schema": schema, "description": text,
                        "example": example} for name, schema, text, example in _HEADERS],
        "responses": {"200": {"description": "Decided", "content": gives}}}


def example_row(bundle: Bundle) -> dict[str, Any]:
    """A row of zeros of the right shapes."""
    schema = bundle.schema
    return {"strategic": [[0.0] * schema.strategic.width] * schema.strategic.window,
            "tactical": [[0.0] * schema.tactical.width] * schema.tactical.window,
            "regime": [0.0] * bundle.manifest.regime_size, "synergy": [0.25, 1.0, 0.2],
            "market": {"close": 5000.0, "atr": 5.0, "hour_sin": 0.0, "hour_cos": 1.0,
                       "ts_close_ns": 1790000000000000000,
                       "low_volume_node": {"distance": -4.5, "strength": 80.0}},
            "account": {"position": 1.0, "entry": 4990.0, "stop": 4980.0, "target": None, "equity": 100000.0,
                        "day_start": 99000.0, "bars_in_trade": 3},
            "seed": 1}


_VOTE = [0.1, 0.2, 0.7]
_ANSWER: dict[str, Any] = {
    "verdict": "EXECUTE", "reason": "EXECUTE", "direction": 1, "confidence": 0.71,
    "votes": {"strategic": _VOTE, "tactical": _VOTE, "arbitrage": _VOTE},
    "proposal": {"contracts": 2.0, "stop_distance": 7.5, "target_distance": 15.0, "limit": "NONE"},
    "uncertainty": {"entropy": 0.8, "mutual_information": 0.02, "std": 0.05, "agreement": 0.97}}


def _content(model: str, example: dict[str, Any]) -> dict[str, Any]:
    return {"schema": {"$ref": _REFERENCE.format(model=model)}, "examples": {"one": {"value": example}}}


def _columns(schema: Any) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


def openapi_of(app: FastAPI) -> dict[str, Any]:
    """The description of all routes, made once."""
    if app.openapi_schema is None:
        app.openapi_schema = _describe(app)
    return app.openapi_schema


def _describe(app: FastAPI) -> dict[str, Any]:
    described = get_openapi(title=app.title, version=_VERSION, openapi_version="3.1.0", routes=app.routes,
                            description="Decisions of a trained team; every fault is `{\"detail\": ...}`.")
    components = described.setdefault("components", {})
    models = (DecideRequest, BatchRequest, BarsRequest, DecideResponse, BatchResponse, BarsResponse, Problem)
    _, definitions = models_json_schema([(model, "validation") for model in models], ref_template=_REFERENCE)
    schemas = components.setdefault("schemas", {})
    schemas |= definitions["$defs"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    fault = {"schema": {"$ref": _REFERENCE.format(model="Problem")},
             "examples": {"one": {"value": {"detail": "one line that says what to do"}}}}
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            responses = operation.setdefault("responses", {})
            given = responses.get("422", {})
            if "HTTPValidationError" in str(given):
                responses.pop("422")
            for status, text in _FAULTS.items():
                responses.setdefault(status, {"description": text})["content"] = {"application/json": fault}
            if is_open(path):
                operation["security"] = []
                continue
            operation["security"] = [{"bearer": []}]
            roles = sorted(PERMISSIONS.get((method.upper(), path), ()))
            operation["x-roles"] = roles
            note = f"Roles: {', '.join(roles)}."
            operation["description"] = re.sub(r"\s*$", f" {note}", operation.get("description", "")).strip()
    return described
