"""The kill switch: GET and POST /v1/kill, POST /v1/rearm."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field

from serving.access import Refused
from serving.guard import refusal_answer
from serving.service import Service


class SwitchOrder(BaseModel):
    """Why the switch is thrown or re-armed; it stands in the log and in GET /v1/kill."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True,
                              json_schema_extra={"examples": [{"why": "the feed repeats itself"}]})

    why: str = Field(min_length=1, max_length=200)


class SwitchStatus(BaseModel):
    """Whether it is thrown, who changed it last, why, when (ns UTC); how often it was changed. `latched`: whether
    that outlives the service (null: no file is configured). `shared`: whether the hub has it, from which the other
    replicas hear of it; one that cannot for ten seconds opens no position."""

    thrown: bool
    user: str
    why: str
    at_ns: int
    revision: int
    latched: bool | None = None
    shared: bool | None = None


_BUSY = {"description": "No room, or the replica is ending: nothing is thrown. Ask again until it is; throwing it "
                        "twice does no harm. Retry-After says when",
         "headers": {"Retry-After": {"description": "Seconds", "schema": {"type": "integer"}}}}
_KILL: dict[int | str, dict[str, Any]] = {
    409: {"description": "Not given: throwing what is thrown changes nothing and is answered with 200"},
    503: _BUSY}
_REARM: dict[int | str, dict[str, Any]] = {
    409: {"description": "It is not thrown; or the same user threw it; or somebody else was faster, or has thrown "
                         "it again meanwhile"},
    503: _BUSY | {"description": "The other replicas cannot be asked, or there is no room: it may still be "
                                 "thrown. Look at GET /v1/kill and ask again; Retry-After says when"}}


def add_routes(app: FastAPI, service: Service) -> None:
    """Add the routes."""
    signed = service.settings.security.mode == "jwt"  # with one token for all there is no second person

    def user_of(request: Request) -> str:
        principal = getattr(request.state, "principal", None)
        return principal.user if principal else ""

    @app.get("/v1/kill", summary="The kill switch", response_model=SwitchStatus)
    async def status() -> dict[str, Any]:
        return service.kill.status()

    @app.post("/v1/kill", summary="Let no position be opened, on any replica, until somebody re-arms",
              response_model=SwitchStatus, responses=_KILL)
    async def kill(order: SwitchOrder, request: Request) -> dict[str, Any]:
        return await service.kill.throw(user_of(request), order.why)

    @app.post("/v1/rearm", summary="Let positions be opened again; with signed tokens a second person has to ask",
              response_model=SwitchStatus, responses=_REARM)
    async def rearm(order: SwitchOrder, request: Request) -> Any:
        try:
            return await service.kill.rearm(user_of(request), order.why, second_person=signed)
        except Refused as refusal:
            return refusal_answer(refusal)
