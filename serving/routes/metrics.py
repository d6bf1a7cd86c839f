"""GET /v1/metrics: the figures of all replicas in Prometheus' text format."""

from __future__ import annotations

import structlog
from fastapi import FastAPI, Response

from serving.metrics import ALONE, CONTENT_TYPE, Readings, Reports, text_of
from serving.service import Service

_LOG = structlog.get_logger("serving")


def add_routes(app: FastAPI, service: Service) -> None:
    """Add the route."""

    @app.get("/v1/metrics", summary="Figures of all replicas, for Prometheus", response_class=Response,
             responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}})
    async def metrics() -> Response:
        return Response(text_of(await _all_reports(service)), media_type=CONTENT_TYPE)


async def _all_reports(service: Service) -> dict[str, Readings]:
    """Replica -> figures: this one's as they are now, the others' as they were told last."""
    service.metrics.look(service)
    link, own = service.life.link, service.metrics.readings()
    if not isinstance(link, Reports):
        return {ALONE: own}
    try:
        known = await link.reports()
    except Exception as error:  # noqa: BLE001  # one replica's figures are better than none
        _LOG.warning("metrics_of_others_away", error=type(error).__name__)
        known = {}
    return known | {link.replica: own}
