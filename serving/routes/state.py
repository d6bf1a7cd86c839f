"""Decisions from raw bars: GET /v1/state, and POST /v1/decide/bars with the bars behind a state."""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from algospace.errors import ConfigError, InputError, SchemaError
from algospace.types import Bars
from serving.decider import account_record
from serving.feature_state import Building, FeatureState, FeatureStates, UnknownState, row_inputs
from serving.schemas import AccountIn, DecideResponse, level
from serving.service import Service

_MOST_BARS = 100_000
_MOST_FAULTS = 20
_THREADS = 2
"""A state that is built leaves one for those that are known; the process's other threads are never waited for."""
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)
NO_STATE = ("the features of a bar depend on all bars before it: give the state_id of GET /v1/state, or of the "
            "last answer, and the bars behind it")


class BarIn(BaseModel):
    """One closed source bar: [ts_open, ts_open + the catalog's width), ns UTC, raw prices."""

    model_config = _STRICT

    ts_open: int = Field(ge=0, lt=2**62)
    open: float = Field(gt=0)
    high: float = Field(gt=0)
    low: float = Field(gt=0)
    close: float = Field(gt=0)
    volume: float | None = Field(default=None, ge=0)
    contract: int = Field(default=0, ge=0, lt=2**31)


class BarsRequest(BaseModel):
    """The bars behind `state_id`, oldest first, and the account at the last one's close; see DecideRequest."""

    model_config = _STRICT

    state_id: str | None = Field(default=None, max_length=100)
    bars: list[BarIn] = Field(max_length=_MOST_BARS)
    account: AccountIn
    seed: int = Field(default=0, ge=0, lt=2**63)
    trace_id: str | None = Field(default=None, pattern="^[A-Za-z0-9_.-]{1,64}$")


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

    @app.post("/v1/decide/bars", summary="Decide from raw bars behind a feature state", response_model=None)
    async def decide_bars(request: Request) -> dict[str, Any] | JSONResponse:
        try:
            asked = BarsRequest.model_validate_json(await request.body())
        except ValidationError as error:
            found = error.errors(include_url=False, include_context=False, include_input=False)[:_MOST_FAULTS]
            return JSONResponse({"detail": [{"loc": ["body", *item["loc"]], "msg": item["msg"],
                                             "type": item["type"]} for item in found]}, 422)
        if asked.state_id is None:
            return _refused(422, "state_id", "missing", NO_STATE)
        if len(asked.bars) > service.settings.features.bars:
            return _refused(422, "bars", "too_long", f"at most {service.settings.features.bars} bars at once")
        try:
            reached = await work(partial(_reach, states, asked))
        except UnknownState:
            base = await work(states.base)
            why = f"the state is not known here: send the bars from {base.through_ns} on with state_id {base.id}"
            return _refused(409, "state_id", "unknown_state", why, **_told(base))
        except Building:
            refused = _refused(503, "state_id", "building", "another state is being built; try again")
            refused.headers["retry-after"] = "1"
            return refused
        except (ConfigError, InputError) as error:
            return _refused(422, "bars", "bars", str(error))
        return await _decide(service, states, reached, asked, work)


async def _work(pool: ThreadPoolExecutor, call: Callable[[], Any]) -> Any:
    return await asyncio.get_running_loop().run_in_executor(pool, call)


def _reach(states: FeatureStates, asked: BarsRequest) -> FeatureState:
    state = states.get(asked.state_id or "")
    return states.advance(state, _bars(asked.bars, state.width_ns))


async def _decide(service: Service, states: FeatureStates, state: FeatureState,
                  asked: BarsRequest, work: Callable[[Callable[[], Any]], Any]) -> dict[str, Any]:
    """The state reached and the decision at its last row, or why there is none."""
    started = time.perf_counter_ns()
    model = service.champion
    a = asked.account
    account = account_record(position=a.position, entry=a.entry, stop=level(a.stop), target=level(a.target),
                             equity=a.equity, peak=a.equity, day_start=a.day_start, bars_in_trade=a.bars_in_trade)
    market = await work(partial(states.market, state))
    try:
        inputs = row_inputs(market, len(market) - 1, account, asked.seed)
        decision = model.decider.decide(inputs)
    except SchemaError as error:
        return _told(state) | {"decision": None, "why": str(error)}
    trace_id = asked.trace_id or uuid.uuid4().hex
    latency_ms = (time.perf_counter_ns() - started) / 1e6
    service.decisions += 1
    service.last_ns = time.time_ns()
    answer = DecideResponse.of(decision, model.id, trace_id, latency_ms).model_dump()
    service.life.decided(model, inputs, decision, trace_id, latency_ms)
    return _told(state) | {"decision": answer, "why": None, "row_ts_close_ns": int(market.ts_close[-1])}


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
