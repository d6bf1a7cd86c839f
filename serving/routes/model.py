"""The models: /v1/model (which, and switching), /v1/shadow, /v1/agents and /v1/signals."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Literal

from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator

from serving.lifecycle import NotSwitched, Order
from serving.service import Service

_MOST_SIGNALS = 1000


class ModelOrder(BaseModel):
    """What to switch: exactly one of source, rollback and remove.

    source: a bundle's folder on the service's machine, `models:/NAME@ALIAS`, `models:/NAME/VERSION`, or `shadow`,
    the present shadow. alias: whether it becomes champion or shadow. rollback: champion and previous change
    places. remove: no shadow any more.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, json_schema_extra={"examples": [
        {"alias": "shadow", "source": "models:/algospace-bundle@candidate"}, {"source": "shadow"},
        {"rollback": True}]})

    alias: Literal["champion", "shadow"] = "champion"
    source: str | None = Field(default=None, min_length=1, max_length=1024)
    rollback: bool = False
    remove: bool = False

    @model_validator(mode="after")
    def _one_order(self) -> ModelOrder:
        if (self.source is not None) + self.rollback + self.remove != 1:
            raise ValueError("give exactly one of source, rollback and remove")
        if self.remove != (self.alias == "shadow" and self.source is None):
            raise ValueError("remove goes with alias shadow, rollback with champion")
        if self.alias == "shadow" and self.source == "shadow":
            raise ValueError("the shadow is the shadow already")
        return self


def add_routes(app: FastAPI, service: Service) -> None:
    """Add the routes."""

    @app.get("/v1/model", summary="Champion, shadow and previous champion")
    async def model() -> dict[str, Any]:
        life = service.life
        failures, error = life.shadow_failures()
        found = life.status() | {"last_failure": life.last_failure, "shadow_failures": failures,
                                 "shadow_error": error}
        if life.link is not None:
            try:
                found["replicas"] = await life.link.replicas()
            except Exception as error:  # noqa: BLE001  # this replica's models are better than none
                found |= {"replicas": None, "replicas_error": f"{type(error).__name__}: {error}"}
        return found

    @app.post("/v1/model", summary="Promote, roll back, set or remove the shadow; nothing changes if it fails",
              response_model=None)
    async def switch(order: ModelOrder, request: Request) -> dict[str, Any] | JSONResponse:
        principal = getattr(request.state, "principal", None)
        try:
            return await service.life.switch(Order(**order.model_dump()), principal.user if principal else "")
        except NotSwitched as reason:
            checks = [vars(check) for check in reason.checks]
            return JSONResponse({"detail": str(reason), "checks": checks}, reason.status)

    @app.get("/v1/shadow", summary="The shadow's agreement with the champion, and both calibrations")
    async def shadow() -> dict[str, Any]:
        return {"shadow": service.hub.log.state.shadow.summary()}

    @app.get("/v1/signals", summary="The most recent decisions, newest first")
    async def signals(limit: int = Query(default=50, ge=1, le=_MOST_SIGNALS),
                      instrument: str | None = Query(default=None, max_length=32)) -> dict[str, Any]:
        found = [event.data for event in reversed(tuple(service.hub.log.state.decisions))
                 if instrument is None or event.data["instrument"] == instrument]
        return {"decisions": found[:limit]}

    @app.get("/v1/agents", summary="What each agent voted in recent decisions, and how much it weighed")
    async def agents() -> dict[str, Any]:
        decisions = [event.data for event in tuple(service.hub.log.state.decisions)]
        return {"decisions": len(decisions), "agents": agent_figures(decisions)}


def agent_figures(decisions: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per agent: its mean probabilities (short, pass, long), its last ones, how often its side was the team's,
    and its weight, its share of the probability that the voters gave to the side taken."""
    votes: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    agreed: dict[str, int] = defaultdict(int)
    taken: dict[str, float] = defaultdict(float)
    for data in decisions:
        place = data["direction"] + 1
        total = sum(p[place] for p in data["votes"].values())
        for name, p in data["votes"].items():
            votes[name].append(p)
            agreed[name] += max(range(3), key=p.__getitem__) == place
            taken[name] += p[place] / total if total > 0.0 else 0.0
    return {name: {"votes": [sum(p[i] for p in found) / len(found) for i in range(3)], "last": found[-1],
                   "agreement": agreed[name] / len(found), "weight": taken[name] / len(found)}
            for name, found in votes.items()}
