"""What Serve is told of a replica: whether it is healthy, and that it ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi.testclient import TestClient

from algospace.errors import InternalError
from serving.app import create_app
from serving.auth import StaticToken, token_digest
from serving.bundle import Bundle
from serving.deployment import Replica
from serving.hub_actor import HubBody
from serving.lifecycle import LifecycleSettings, Order
from serving.limits import LimitsSettings
from serving.service import AppSettings, Service
from tests.serving_market import random_bundle

SETTINGS = AppSettings(lifecycle=LifecycleSettings(require_checks=False), service=LimitsSettings(self_test_s=0.0))
DIGEST = token_digest("a-token-of-enough-length")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    folder = tmp_path_factory.mktemp("replica")
    return [random_bundle(folder / str(seed), seed=seed) for seed in range(2)]


class Handle:
    """A HubBody behind the calls of a Ray handle."""

    def __init__(self) -> None:
        self._body = HubBody({})

    def __getattr__(self, name: str) -> Any:
        class Method:
            remote = staticmethod(getattr(self._body, name))

        return Method


def test_serve_asks_whether_it_is_ready_and_ends_it(bundles: list[Bundle],
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.deployment.configure_logs", lambda _: None)
    monkeypatch.setattr("serving.deployment.gc.freeze", lambda: None)
    monkeypatch.setattr("serving.deployment.open_hub", lambda *_: Handle())

    async def play() -> None:
        replica = Replica.__new__(Replica)
        await replica.__init__(str(bundles[0].directory), DIGEST,  # type: ignore[func-returns-value, misc]
                               SETTINGS.model_dump(mode="json"), True)
        service = replica.__serve_build_asgi_app__().state.service
        await replica.check_health()
        service.life.last_failure = "cannot follow"
        with pytest.raises(InternalError, match="not ready"):
            await replica.check_health()
        service.life.last_failure = None
        await service.life.switch(Order(alias="shadow", source=str(bundles[1].directory)), "alice")
        replica.__del__()
        assert service.draining
        assert service.life._runner is None
        link = replica._link
        assert link is not None
        await asyncio.gather(*link._tasks, return_exceptions=True)
        assert all(task.cancelled() for task in link._tasks)
        with pytest.raises(InternalError, match="draining"):
            await replica.check_health()

    asyncio.run(play())
    Replica.__new__(Replica).__del__()  # one that never began has nothing to end


def test_the_application_ends_as_drained(bundles: list[Bundle]) -> None:
    app = create_app(bundles[0], SETTINGS, StaticToken(DIGEST))
    with TestClient(app) as client:
        assert client.get("/v1/ready").status_code == 200
    assert app.state.service.draining


def test_the_first_self_test_is_against_what_was_loaded(bundles: list[Bundle],
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(bundles[0], SETTINGS)
    asyncio.run(service.life.switch(Order(source=str(bundles[1].directory)), "alice"))
    backend = service.champion.backend
    infer = backend.infer
    with monkeypatch.context() as patch:  # it broke between its loading and its first self-test
        patch.setattr(backend, "infer",
                      lambda graph, inputs: {k: v + 0.5 for k, v in infer(graph, inputs).items()})
        assert service.not_ready() is not None
        assert service.not_ready() is not None
    assert service.not_ready() is None
