"""`algospace model ...` against a service's routes: what it prints, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from serving import kill_commands, model_commands
from serving.lifecycle import LifecycleSettings
from serving.routes import model as routes
from serving.service import AppSettings, Service
from tests.command_line import Runner, against, runner
from tests.serving_market import random_bundle


@pytest.fixture
def service(tmp_path: Path) -> Service:
    settings = AppSettings(lifecycle=LifecycleSettings(require_checks=False))
    return Service(random_bundle(tmp_path / "first"), settings)


@pytest.fixture
def call(service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Runner:
    def register(commands: typer.Typer) -> None:
        model_commands.register(commands)
        commands.command("other")(lambda: None)

    run = against(lambda app: routes.add_routes(app, service), monkeypatch, capsys, register)
    return lambda *words: run("model", *words)


def test_shadow_promote_and_rollback(call: Runner, service: Service, tmp_path: Path) -> None:
    second = random_bundle(tmp_path / "second", seed=1)
    first_id = service.champion.id
    code, out, _ = call("shadow", second.directory)
    assert (code, second.id[:12] in out) == (0, True)
    code, out, _ = call("status")
    assert code == 0
    assert f"champion  {first_id[:12]}" in out
    assert f"shadow    {second.id[:12]}  0 compared, 0 dropped" in out
    code, out, _ = call("promote", "shadow")
    assert (code, service.champion.id) == (0, second.id)
    assert out.startswith("passed  fits")
    code, out, _ = call("rollback")
    assert (code, service.champion.id) == (0, first_id)
    code, out, _ = call("status", "--json")
    assert json.loads(out)["previous"] == second.id
    service.life.close()


def test_refusals_and_bad_input(call: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code, out, _ = call("rollback")
    assert (code, "nothing has changed: there is no previous champion" in out) == (1, True)
    code, _, err = call("promote", tmp_path / "absent")
    assert (code, "not a bundle directory" in err) == (2, True)
    monkeypatch.delenv("ALGOSPACE_TOKEN")
    code, _, err = call("status")
    assert (code, "set ALGOSPACE_TOKEN" in err) == (2, True)


@pytest.mark.parametrize("url", ["service:8000", "127.0.0.1:8000", "ftp://service", "http://", "http://[service",
                                 "http://service:port", "http://a service"])
def test_an_address_that_is_none_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
                                             url: str) -> None:
    def register(commands: typer.Typer) -> None:
        model_commands.register(commands)
        kill_commands.register(commands)

    monkeypatch.setenv("ALGOSPACE_TOKEN", "a-token-of-enough-length")
    monkeypatch.setattr(kill_commands, "_PATIENCE_S", 0.0)
    run = runner(monkeypatch, capsys, register)
    for words in (("model", "status"), ("rearm", "why"), ("kill", "why")):
        code, out, err = run(*words, "--url", url)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert f"{url}: no address of a service" in err
