"""The page and what it replays: static files for everybody, recordings for those who may look."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse

from algospace.errors import InputError
from serving.page.replays import Replays
from serving.service import Service

FILES = {"/": ("index.html", "text/html; charset=utf-8"),
         "/page.js": ("page.js", "text/javascript; charset=utf-8"),
         "/page.css": ("page.css", "text/css; charset=utf-8"),
         "/icon.svg": ("icon.svg", "image/svg+xml")}
"""Path -> file of the built page and its type: a closed list, so that nothing else can be asked for."""

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
                               "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}

MISSING = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>AlgoSpace</title></head>
<body><h1>The page is not built</h1>
<p>The decision service runs; its trading page has not been built on this machine.</p>
<p>With Node.js 18 or newer and npm: run <code>make page</code> in the repository, then load this address again.
The service does not need to be started anew.</p>
<p>Everything else works without the page; <a href="/v1/health">/v1/health</a> says what runs here.</p>
</body></html>
"""


def add_routes(app: FastAPI, service: Service) -> None:
    """Add the page's files and `GET /v1/replays`, `GET /v1/replay`."""
    settings = service.settings.page
    replays = Replays(None if settings.replays is None else Path(settings.replays))

    for path, (name, kind) in FILES.items():
        _add_file(app, path, settings.built / name, kind)

    @app.get("/v1/replays", summary="Recorded backtests that can be replayed")
    async def listed() -> dict[str, Any]:
        return {"replays": await run_in_threadpool(replays.listed)}

    @app.get("/v1/replay", summary="Bars, decisions and fills of a recorded backtest", response_model=None)
    async def replay(name: Annotated[str, Query(max_length=512)], start: Annotated[int, Query(ge=0, lt=2**31)] = 0,
                     count: Annotated[int, Query(ge=1, lt=2**31)] = 5000) -> Response:
        try:
            found = await run_in_threadpool(_encoded, replays, name, start, min(count, settings.max_rows))
        except InputError as error:
            return JSONResponse({"detail": f"{name}: {error.rule}; {error.fix}"}, 409)
        if found is None:
            return JSONResponse({"detail": "no recording of this name; GET /v1/replays lists them"}, 404)
        return Response(found, media_type="application/json")


def _encoded(replays: Replays, name: str, start: int, count: int) -> bytes | None:
    """Bars of a recording as JSON, for a thread: thousands of rows take longer than the event loop has."""
    found = replays.read(name, start, count)
    if found is None:
        return None
    return json.dumps(found, allow_nan=False, separators=(",", ":")).encode()


def _add_file(app: FastAPI, path: str, file: Path, kind: str) -> None:
    @app.api_route(path, methods=["GET", "HEAD"], include_in_schema=False)
    async def static() -> Response:
        if file.is_file():
            return FileResponse(file, media_type=kind, headers=HEADERS)
        if path == "/":
            return HTMLResponse(MISSING, 200, HEADERS)
        return JSONResponse({"detail": "the page is not built: run `make page`"}, 404)
