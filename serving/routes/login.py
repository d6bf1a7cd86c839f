"""POST /v1/login: name and password against a token."""

from __future__ import annotations

import structlog
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from serving.access import Refused, Role
from serving.guard import client_address, refusal_answer
from serving.security.gate import LoginBroken, Security
from serving.service import Service

_LOG = structlog.get_logger("serving.security")


class LoginRequest(BaseModel):
    """Who wants in. The password is in no log and in no error."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)

    user: str = Field(min_length=1, max_length=64, examples=["ann"])
    password: str = Field(min_length=1, max_length=256, repr=False, examples=["correct horse battery staple"])


class LoginAnswer(BaseModel):
    """A bearer token for `expires_in` seconds, and what its owner may do."""

    token: str
    expires_in: int
    role: Role


def add_routes(app: FastAPI, service: Service) -> None:
    """Add the route; 404 where this service does not issue tokens."""
    security: Security = app.state.security

    @app.post("/v1/login", summary="A token for a user's name and password", response_model=LoginAnswer)
    async def login(request: Request) -> JSONResponse:
        if security.logins is None:
            return JSONResponse({"detail": "this service issues no tokens; use the one you were given"}, 404)
        address = client_address(request.scope, security.settings.proxies)
        body = await request.body()
        try:
            asked = LoginRequest.model_validate_json(body)
        except ValueError:
            return JSONResponse({"detail": "give {\"user\": ..., \"password\": ...}"}, 422)
        try:
            security.logins.admit(address, asked.user)
            token, claims = await run_in_threadpool(security.logins.login, asked.user, asked.password)
        except Refused as refusal:
            if isinstance(refusal, LoginBroken):
                _LOG.error("login_broken", error=refusal.fault)
            security.refused(address, "POST", "/v1/login", refusal)
            return refusal_answer(refusal)
        await run_in_threadpool(security.record, "login", None, user=asked.user, role=claims["role"],
                                token_id=claims["jti"], address=address)
        answer = LoginAnswer(token=token, expires_in=int(claims["exp"] - claims["iat"]), role=claims["role"])
        return JSONResponse(answer.model_dump(), headers={"cache-control": "no-store"})
