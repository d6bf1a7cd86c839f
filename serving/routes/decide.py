"""POST /v1/decide and POST /v1/decide/batch.

Bodies are read by hand, for speed and so that a fault is answered in few lines whatever was sent; what is accepted
is exactly serving.schemas.DecideRequest and BatchRequest, and the OpenAPI description is made from those.
"""

from __future__ import annotations

from fastapi import FastAPI, Request, Response

from serving.batch_arrow import MEDIA_TYPE
from serving.batch_service import JSON
from serving.calls import Call
from serving.routes.answering import answer
from serving.routes.described import decide_described
from serving.service import Service


def add_routes(app: FastAPI, service: Service) -> None:
    """Add the decision routes."""
    bundle = service.champion.bundle

    @app.post("/v1/decide", summary="Decide once", openapi_extra=decide_described(bundle, batch=False))
    async def decide(request: Request) -> Response:
        async def work(body: bytes, _: str, call: Call) -> Response:
            async with service.admission.turn(call):
                return service.decide(body, call)

        return await answer(service, request, (JSON,), service.settings.max_body_bytes, work, look_first=False)

    @app.post("/v1/decide/batch", summary="Decide many rows in one pass",
              openapi_extra=decide_described(bundle, batch=True))
    async def batch(request: Request) -> Response:
        return await answer(service, request, (JSON, MEDIA_TYPE), service.settings.service.batch_body_bytes,
                            service.decide_batch)
