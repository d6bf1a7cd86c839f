"""`algospace kill` and `algospace rearm` against a service's routes: what they print, and their exit codes."""

from __future__ import annotations

import http.client
import io
import json
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from serving import kill_commands
from serving.conditions import PreconditionsSettings
from serving.routes import kill as routes
from serving.service import AppSettings, Service
from tests.command_line import Runner, against
from tests.serving_market import random_bundle


@pytest.fixture
def service(tmp_path: Path) -> Service:
    file = tmp_path / "kill.json"
    return Service(random_bundle(tmp_path / "bundle"),
                   AppSettings(preconditions=PreconditionsSettings(kill_file=file)))


@pytest.fixture
def call(service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Runner:
    return against(lambda app: routes.add_routes(app, service), monkeypatch, capsys, kill_commands.register)


def test_thrown_and_rearmed(call: Runner, service: Service) -> None:
    code, out, _ = call("rearm", "why not")
    assert (code, "nothing has changed: the kill switch is not thrown" in out) == (1, True)
    code, out, _ = call("kill", "odd fills")
    assert (code, service.kill.thrown, service.kill.state.why) == (0, True, "odd fills")
    assert out.strip().endswith("odd fills")  # latched and shared: nothing more to say
    code, out, _ = call("rearm", "right again", "--json")
    assert (code, service.kill.thrown) == (0, False)
    assert json.loads(out)["why"] == "right again"


def test_what_is_not_so_is_said(call: Runner, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    class Away:
        async def agree_on_switch(self, mine: Any) -> Any:
            raise ConnectionError

    monkeypatch.setattr(service.kill, "link", Away())
    monkeypatch.setattr(service.kill, "_file", None)
    code, out, _ = call("kill", "odd fills")
    assert (code, service.kill.thrown) == (0, True)
    assert "could not be told yet" in out
    assert "does not outlive the service: preconditions.kill_file is not set" in out
    code, _, err = call("rearm", "right again")
    assert (code, "do not answer" in err) == (2, True)
    assert service.kill.thrown
    code, _, err = call("kill", "")
    assert code == 2


def test_a_busy_service_is_asked_again_until_it_is_thrown(call: Runner, service: Service,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kill_commands, "_PAUSE_S", 0.01)
    through, tries = urllib.request.urlopen, []
    faults: list[Exception] = [
        urllib.error.HTTPError("u", 503, "busy", Message(), io.BytesIO(b"no room")), ConnectionResetError("reset"),
        urllib.error.URLError("refused"), http.client.RemoteDisconnected("gone"), TimeoutError("slow")]
    waiting = list(faults)

    def urlopen(request: urllib.request.Request, timeout: float) -> Any:
        tries.append(timeout)
        if waiting:
            raise waiting.pop(0)
        return through(request, timeout=timeout)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    code, out, err = call("kill", "odd fills")
    assert (code, service.kill.thrown) == (0, True)
    assert out.startswith("thrown by ")
    assert len([line for line in err.splitlines() if line.startswith("tried again: ")]) == len(faults)
    assert max(tries) <= 5.0
    monkeypatch.setattr(kill_commands, "_PATIENCE_S", 0.05)
    waiting += faults[1:] * 50
    code, _, err = call("kill", "odd fills")
    assert (code, "no answer" in err) == (2, True)


@pytest.mark.parametrize(("word", "path"), [("kill", "throw"), ("rearm", "rearm")])
def test_an_answer_that_is_not_what_was_ordered_is_no_success(
        call: Runner, service: Service, monkeypatch: pytest.MonkeyPatch, word: str, path: str) -> None:
    async def other(*_: Any, **__: Any) -> dict[str, Any]:
        return service.kill.status() | {"thrown": word != "kill", "user": "eve", "why": "faster", "shared": True}

    monkeypatch.setattr(service.kill, path, other)
    code, _, err = call(word, "odd fills")
    assert (code, "meanwhile by eve: faster" in err) == (1, True)


def test_the_description_says_what_the_routes_answer(service: Service) -> None:
    app = FastAPI()
    routes.add_routes(app, service)
    paths = app.openapi()["paths"]
    for path in ("/v1/kill", "/v1/rearm"):
        found = paths[path]["post"]["responses"]
        assert "Idempotency" not in found["409"]["description"]
        assert "ask again" in found["503"]["description"].lower()
        assert "Retry-After" in found["503"]["headers"]
