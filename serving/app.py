"""The decision service as a plain FastAPI application; Ray Serve only wraps it.

Decisions run in the event loop: one takes about a millisecond, and the decider's scratch memory is not for several
threads. Who may use which route: serving.access.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse

from serving.access import Authenticator
from serving.bundle import Bundle
from serving.calls import Calls
from serving.guard import Guard
from serving.metrics import Measured
from serving.routes import decide, explain, health, kill, login, metrics, model, page, state, stream
from serving.security.gate import Security
from serving.service import AppSettings, Service

_MOST_FAULTS = 20


def create_app(bundle: Bundle, settings: AppSettings, authenticator: Authenticator,
               source: str | None = None) -> FastAPI:
    """The application for one bundle, its champion; `source`: see Service."""
    service = Service(bundle, settings, source)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        watching = [asyncio.create_task(work) for work in (
            service.kill.watch_file(), service.life.history.watch(service.life))]
        yield
        for task in watching:
            task.cancel()
        service.drain()
        await service.telling.end()
        service.life.close()

    app = FastAPI(title="AlgoSpace decision service", lifespan=life, docs_url=None, redoc_url=None,
                  openapi_url=None)
    app.add_exception_handler(RequestValidationError, _wrong)
    app.add_exception_handler(Exception, _broken)
    app.state.service = service
    app.state.security = security = Security(settings.security, authenticator)
    app.add_middleware(Guard, security=security, max_body=settings.max_body_bytes,
                       bodies={"/v1/decide/batch": settings.service.batch_body_bytes})
    if settings.security.origins:  # outside the guard: a preflight request carries no token
        app.add_middleware(CORSMiddleware, allow_origins=settings.security.origins, allow_methods=["GET", "POST"],
                           allow_headers=["Authorization", "Content-Type"])
    app.add_middleware(Measured, metrics=service.metrics)
    app.add_middleware(Calls, limits=settings.service)  # outermost: refusals have a trace and a log line too

    decide.add_routes(app, service)
    explain.add_routes(app, service)
    health.add_routes(app, service)
    login.add_routes(app, service)
    stream.add_routes(app, service)
    model.add_routes(app, service)
    kill.add_routes(app, service)
    metrics.add_routes(app, service)
    state.add_routes(app, service)
    page.add_routes(app, service)
    return app


async def _broken(_: Request, __: Exception) -> Response:
    """500 in the one form of faults; whoever runs the application logs the exception."""
    return JSONResponse({"detail": "an internal error; the log of the service says more"}, 500)


async def _wrong(_: Request, error: Exception) -> Response:
    """422 in the one form of faults: without what was sent, and in ASCII, for a name or a text may hold half a
    character (a lone surrogate), which is no UTF-8."""
    assert isinstance(error, RequestValidationError)
    found = [{name: item[name] for name in ("loc", "msg", "type")} for item in error.errors()[:_MOST_FAULTS]]
    return Response(json.dumps({"detail": found}), 422, media_type="application/json")
