"""A browser and a service to show the page in, for the tests of the page."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI

from serving.access import Principal, Refused, Role
from serving.page.settings import BUILT

TOKENS: dict[str, Role] = {"viewer-token-long-enough": "viewer", "trader-token-long-enough": "trader"}
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_SOURCES = BUILT.parent / "web" / "src"


class Table:
    """An authenticator with a table of tokens; one can be taken away."""

    def __init__(self) -> None:
        self.tokens = dict(TOKENS)

    def authenticate(self, token: bytes) -> Principal:
        role = self.tokens.get(token.decode("ascii", "replace"))
        if role is None:
            raise Refused(401, "unknown token")
        return Principal(role, role)


def built_page() -> Path:
    """The folder of the built page; skips where it is missing or older than its sources."""
    script = BUILT / "page.js"
    if not script.is_file():
        pytest.skip("the page is not built: run `make page`")
    newest = max(path.stat().st_mtime for path in _SOURCES.iterdir())
    if script.stat().st_mtime < newest:
        pytest.skip("the built page is older than its sources: run `make page`")
    return BUILT


@contextmanager
def browser() -> Iterator[Any]:
    """Headless Chromium: the system's, else Playwright's; skips where there is neither."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra 'page' (Playwright)")
    path = next((found for name in _BROWSERS if (found := shutil.which(name))), None)
    with sync_api.sync_playwright() as playwright:
        try:
            started = playwright.chromium.launch(executable_path=path)
        except sync_api.Error as error:
            pytest.skip(f"no Chromium: {str(error).splitlines()[0]}")
        try:
            yield started
        finally:
            started.close()


class Server:
    """The application under uvicorn in a thread; `stop` breaks every connection, `start` takes the same port."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        config = uvicorn.Config(self.app, port=self.port, log_level="error", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 60
        while not self._server.started:
            assert self._thread.is_alive(), "uvicorn did not start"
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def stop(self) -> None:
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(60)
            assert not self._thread.is_alive()
            self._server = None
