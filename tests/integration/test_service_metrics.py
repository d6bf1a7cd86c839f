"""The service counts what it does: decisions, requests, refusals, models, replicas; in Prometheus' text format."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from algospace.execution.decision import Reason
from serving.app import create_app
from serving.auth import StaticToken, token_digest
from serving.bundle import Bundle
from serving.client import request_of
from serving.hub_actor import HubBody
from serving.limits import LimitsSettings
from serving.metrics import FIGURES, Metrics, MetricsSettings, text_of
from serving.policy import BundlePolicy
from serving.service import AppSettings
from tests.serving_market import accounts, random_bundle, rows, serving_table

TOKEN = "a-token-of-enough-length"
AUTH = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return random_bundle(tmp_path_factory.mktemp("metrics") / "bundle")


@pytest.fixture(scope="module")
def bodies(bundle: Bundle) -> list[dict[str, Any]]:
    table = serving_table()
    policy = BundlePolicy(bundle, table)
    return [request_of(bundle, policy.inputs(row, accounts(table, row)[0])) for row in rows(table, 12)]


@pytest.fixture
def client(bundle: Bundle) -> Iterator[TestClient]:
    settings = AppSettings(service=LimitsSettings(deadline_ms=60_000))
    app = create_app(bundle, settings, StaticToken(token_digest(TOKEN)))
    with TestClient(app, headers=AUTH) as found:
        yield found


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """(name, labels without the replica) -> value."""
    return {(s.name, tuple(sorted((k, v) for k, v in s.labels.items() if k != "replica"))): s.value
            for family in text_string_to_metric_families(text) for s in family.samples}


def scraped(client: TestClient) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    answer = client.get("/v1/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return samples(answer.text)


def test_each_decision_is_counted_under_its_reason_and_timed(client: TestClient, bodies: list[Any]) -> None:
    before = scraped(client)["algospace_last_decision_timestamp_seconds", ()]
    reasons = [client.post("/v1/decide", json=body).json()["reason"] for body in bodies]
    found = scraped(client)
    for reason in Reason:
        assert found["algospace_decisions_total", (("reason", reason.value),)] == reasons.count(reason.value)
    assert found["algospace_decision_seconds_count", ()] == len(bodies)
    assert found["algospace_last_decision_timestamp_seconds", ()] > before
    key = (("method", "POST"), ("route", "/v1/decide"), ("status", "200"))
    assert found["algospace_requests_total", key] == len(bodies)
    assert found["algospace_request_seconds_count", (("route", "/v1/decide"),)] == len(bodies)


def test_a_batch_counts_its_rows_once(client: TestClient, bodies: list[dict[str, Any]]) -> None:
    batch = {"schema_hash": bodies[0]["schema_hash"],
             "rows": [{k: v for k, v in body.items() if k != "schema_hash"} for body in bodies]}
    answer = client.post("/v1/decide/batch", json=batch)
    if answer.status_code == 503:  # the first batch on this machine compiled its kernels past the deadline
        answer = client.post("/v1/decide/batch", json=batch)
    assert answer.status_code == 200, answer.text[:300]
    found = scraped(client)
    assert sum(v for (name, _), v in found.items() if name == "algospace_decisions_total") == len(bodies)
    assert found["algospace_batch_seconds_count", ()] == 1
    assert found["algospace_decision_seconds_count", ()] == 0


def test_refusals_are_counted_by_status_and_unknown_paths_share_a_label(client: TestClient) -> None:
    assert client.post("/v1/decide", json={}, headers={"Authorization": "Bearer wrong"}).status_code == 401
    for name in ("a", "b", "c" * 300):
        assert client.get(f"/{name}/x").status_code == 404
    assert client.post("/v1/decide", content=b"{").status_code == 422
    found = scraped(client)
    assert found["algospace_refused_total", (("status", "401"),)] == 1
    assert found["algospace_requests_total", (("method", "GET"), ("route", "other"), ("status", "404"))] == 3
    assert found["algospace_requests_total",
                 (("method", "POST"), ("route", "/v1/decide"), ("status", "422"))] == 1


def test_the_figures_need_a_token(client: TestClient) -> None:
    assert client.get("/v1/metrics", headers={"Authorization": ""}).status_code == 401


def test_backend_model_stream_and_readiness_are_told(client: TestClient, bundle: Bundle,
                                                      bodies: list[Any]) -> None:
    with client.websocket_connect("/v1/stream") as socket:
        assert json.loads(socket.receive_text())["type"] == "snapshot"
        client.post("/v1/decide", json=bodies[0])
        assert scraped(client)["algospace_stream_clients", ()] == 1
    found = scraped(client)
    assert found["algospace_backend_info", (("backend", "onnx"),)] == 1
    assert found["algospace_model_info", (("instrument", "SYNTH"), ("model", bundle.id[:12]))] == 1
    assert found["algospace_ready", ()] == 1
    assert found["algospace_replicas", ()] == found["algospace_replicas_wanted", ()] == 1
    assert found["algospace_stream_events_total", ()] >= 1
    assert found["algospace_requests_total", (("method", "WS"), ("route", "/v1/stream"), ("status", "101"))] == 1
    client.app.state.service.drain()  # type: ignore[attr-defined]
    assert scraped(client)["algospace_ready", ()] == 0


def test_a_backend_that_does_not_work_here_is_counted(bundle: Bundle) -> None:
    settings = AppSettings(backends=("tensorrt", "onnx"))
    with TestClient(create_app(bundle, settings, StaticToken(token_digest(TOKEN))), headers=AUTH) as client:
        scraped(client)
        found = scraped(client)
        if client.get("/v1/health").json()["backend"] == "tensorrt":
            pytest.skip("this machine runs TensorRT: nothing falls back")
        assert found["algospace_backend_fallbacks_total", (("backend", "tensorrt"),)] == 1


def test_only_one_backend_and_one_model_are_named_after_a_switch() -> None:
    metrics = Metrics(MetricsSettings())
    for name in ("tensorrt", "onnx"):
        metrics.backend(name)
        metrics.model(name * 12, "ES", 1)
    found = samples(text_of({"r": metrics.readings()}).decode())
    assert [labels for name, labels in found if name == "algospace_backend_info"] == [(("backend", "onnx"),)]
    assert len([1 for name, _ in found if name == "algospace_model_info"]) == 1


def test_every_replica_tells_of_all_and_one_that_is_gone_is_missed() -> None:
    """Through the shared actor's body: two report, one of them stops."""
    async def play() -> tuple[str, str]:
        hub = HubBody(*_hub_arguments())
        one, two = Metrics(MetricsSettings(replicas=2)), Metrics(MetricsSettings(replicas=2))
        one.decided("EXECUTE", 0.001)
        two.decided("EXECUTE", 0.002)
        two.shadow(False)
        await hub.report("one", one.readings(), 30.0)
        await hub.report("two", two.readings(), 0.02)
        both = text_of(await hub.reports()).decode()
        await asyncio.sleep(0.05)
        return both, text_of(await hub.reports()).decode()

    both, later = asyncio.run(play())
    families = {f.name: f for f in text_string_to_metric_families(both)}
    assert {s.labels["replica"]: s.value for s in families["algospace_decisions"].samples
            if s.labels["reason"] == "EXECUTE"} == {"one": 1.0, "two": 1.0}
    assert samples(both)["algospace_replicas", ()] == 2
    assert samples(later)["algospace_replicas", ()] == 1
    assert samples(later)["algospace_replicas_wanted", ()] == 2


def _hub_arguments() -> tuple[Any, ...]:
    """HubBody takes the values of its settings sections, in the order of its parameters."""
    import inspect

    values = AppSettings().model_dump(mode="json")
    sections = {"settings": values["stream"], "stream": values["stream"], "limits": values["service"]}
    return tuple(sections[name] for name in inspect.signature(HubBody).parameters)


def test_every_figure_has_a_name_of_prometheus_kind_and_words() -> None:
    for figure in FIGURES:
        assert figure.name.startswith("algospace_")
        assert figure.text.endswith(".")
        assert (figure.kind == "counter") == figure.name.endswith("_total")
        assert (figure.kind == "histogram") == bool(figure.buckets)
        assert list(figure.buckets) == sorted(figure.buckets)
