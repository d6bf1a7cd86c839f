"""POST /v1/explain: a decision request -> why it would be decided so."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from serving.access import Refused
from serving.calls import call_of
from serving.explain import ExplainDesk
from serving.guard import refusal_answer
from serving.reading import FieldError, decision_inputs, faults
from serving.routes.described import decide_described
from serving.schemas import DecideRequest, Problem
from serving.service import Service


def add_routes(app: FastAPI, service: Service) -> None:
    """Add the route."""
    desk = app.state.explain = ExplainDesk(service.settings.explain)
    described = decide_described(service.champion.bundle, batch=False)

    @app.post("/v1/explain", summary="Explain a decision: votes, limits and what the deciding voter saw",
              openapi_extra={"requestBody": described["requestBody"]},
              responses={504: {"model": Problem, "description": "No explanation within explain.timeout_s"}})
    async def explain(request: Request) -> Response:
        model = service.champion  # a switch meanwhile does not change what this request is answered by
        try:
            asked = DecideRequest.model_validate_json(await request.body())
            inputs = decision_inputs(model, asked)
        except ValidationError as error:
            return JSONResponse({"detail": faults(error)}, 422)
        except FieldError as error:
            return JSONResponse({"detail": [error.fault]}, error.status)
        trace_id = asked.trace_id or call_of(request.scope).trace_id
        try:
            document: dict[str, Any] = await desk.explain(model.bundle, inputs)
        except Refused as refusal:
            return refusal_answer(refusal)
        return JSONResponse(document | {"trace_id": trace_id})
