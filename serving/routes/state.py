"""Decisions from raw bars: GET /v1/state, and POST /v1/decide/bars with the bars behind a state."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from algospace.errors import ConfigError, InputError, SchemaError
from algospace.features.market_table import MarketTable
from algospace.types import Bars
from serving.batch_service import JSON
from serving.calls import Call, late
from serving.feature_state import Building, FeatureState, FeatureStates, UnknownState, row_inputs
from serving.reading import account_of, faults, gate_of
from serving.routes.answering import answer, within
from serving.routes.described import bars_described
from serving.schemas import BarIn, BarsRequest
from serving.service import Service

_THREADS = 2
"""A state that is built leaves one for those that are known; the process's other threads are never waited for."""
Threads = Callable[[Callable[[], Any]], Awaitable[Any]]
NO_STATE = ("the features of a bar depend on all bars before it: give the state_id of GET /v1/state, or of the "
            "last answer, and the bars behind it")


def add_routes(app: FastAPI, service: Service) -> None:
    """Add the routes."""
    states = FeatureStates(service.champion.bundle, service.settings.features)
    work = partial(_work, ThreadPoolExecutor(_THREADS, "states"))

    @app.get("/v1/state", summary="The feature state behind the catalog's last bar", response_model=None)
    async def state() -> dict[str, Any] | JSONResponse:
        try:
            return _told(await work(states.base))
        except (ConfigError, InputError) as error:
            return _refused(409, "state_id", "no_catalog", str(error))

    @app.post("/v1/decide/bars", summary="Decide from raw bars behind a feature state",
              openapi_extra=bars_described())
    async def decide_bars(request: Request) -> Response:
        async def decide(body: bytes, _: str, call: Call) -> Response:
            return await _decide_bars(service, states, work, body, call)

        return await answer(service, request, (JSON,), service.settings.max_body_bytes, decide)


async def _decide_bars(service: Service, states: FeatureStates, work: Threads, body: bytes,
                       call: Call) -> Response:
    """From bars to a decision at the last one. The same request reaches the same state however often it comes: a
    state is a value that its id names, and nothing is written over."""
    call.check("the request waited")
    service.life.check()
    started = time.perf_counter_ns()
    model = service.champion  # a switch meanwhile does not change what this request is answered by
    try:
        asked = BarsRequest.model_validate_json(body)
    except ValidationError as error:
        return JSONResponse({"detail": faults(error)}, 422)
    if states.schema_hash != model.bundle.manifest.schema_hash:  # a deployment replaces this replica
        raise late("the champion is of another schema than this replica's features: ask again")
    if asked.state_id is None:
        return _refused(422, "state_id", "missing", NO_STATE)
    if len(asked.bars) > service.settings.features.bars:
        return _refused(422, "bars", "too_long", f"at most {service.settings.features.bars} bars at once")
    try:
        state, market = await within(call, work(partial(_reach, states, asked)), "the bars were being read")
    except UnknownState:
        base = await within(call, work(states.base), "the state was being looked for")
        why = f"the state is not known here: send the bars from {base.through_ns} on with state_id {base.id}"
        return _refused(409, "state_id", "unknown_state", why, **_told(base))
    except Building:
        refused = _refused(503, "state_id", "building", "another state is being built; try again")
        refused.headers["retry-after"] = "1"
        return refused
    except (ConfigError, InputError) as error:
        return _refused(422, "bars", "bars", str(error))
    trace_id = asked.trace_id or call.trace_id
    try:
        inputs = row_inputs(market, len(market) - 1, account_of(asked.account), asked.seed)
        inputs = replace(inputs, gate=gate_of(model, asked.gate))
        model.decider.check(inputs)
    except SchemaError as error:
        call.check("the bars were read")
        decided: dict[str, Any] = {"decision": None, "why": str(error), "row_ts_close_ns": None}
    else:
        decision = service.decided(model, inputs, trace_id, started, call)
        decided = {"decision": decision.model_dump(exclude_none=True), "why": None,
                   "row_ts_close_ns": int(market.ts_close[-1])}
    return JSONResponse(_told(state) | decided, 200, {"x-trace-id": trace_id})


async def _work(pool: ThreadPoolExecutor, call: Callable[[], Any]) -> Any:
    """In a thread of the pool; what still waits there when its caller has gone is not done."""
    return await asyncio.get_running_loop().run_in_executor(pool, call)


def _reach(states: FeatureStates, asked: BarsRequest) -> tuple[FeatureState, MarketTable]:
    """The state behind the bars, and its last rows as a backtest would see them."""
    state = states.get(asked.state_id or "")
    reached = states.advance(state, _bars(asked.bars, state.width_ns))
    return reached, states.market(reached)


def _bars(given: list[BarIn], width_ns: int) -> Bars:
    def column(name: str) -> Any:
        values = [getattr(bar, name) for bar in given]
        return np.array([math.nan if value is None else value for value in values], np.float64)

    return Bars(np.array([bar.ts_open for bar in given], np.int64), column("open"), column("high"), column("low"),
                column("close"), column("volume"), width_ns, np.array([bar.contract for bar in given], np.int32))


def _told(state: FeatureState) -> dict[str, Any]:
    return {"state_id": state.id, "through_ns": state.through_ns, "width_ns": state.width_ns}


def _refused(status: int, field: str, kind: str, message: str, **more: Any) -> JSONResponse:
    return JSONResponse({"detail": [{"loc": ["body", field], "msg": message, "type": kind}], **more}, status)
