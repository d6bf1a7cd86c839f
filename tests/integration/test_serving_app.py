"""The decision service's routes without Ray: answers, refusals, and equality with the policy."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from algospace.errors import ConfigError
from algospace.features.market_table import MarketTable
from algospace.instruments import INSTRUMENTS
from serving.access import is_open
from serving.app import create_app
from serving.auth import StaticToken, resolve_token, token_digest
from serving.bundle import Bundle
from serving.client import request_of
from serving.deployment import serve_environment
from serving.policy import BundlePolicy
from serving.service import AppSettings
from tests.serving_market import accounts, random_bundle, rows, serving_table

TOKEN = "a-token-of-enough-length"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return random_bundle(tmp_path_factory.mktemp("app") / "bundle")


@pytest.fixture(scope="module")
def table() -> MarketTable:
    return serving_table()


@pytest.fixture(scope="module")
def client(bundle: Bundle) -> TestClient:
    app = create_app(bundle, AppSettings(), StaticToken(token_digest(TOKEN)))
    return TestClient(app, headers={"Authorization": f"Bearer {TOKEN}"})


@pytest.fixture
def body(bundle: Bundle, table: MarketTable) -> dict[str, Any]:
    row = rows(table)[0]
    return request_of(bundle, BundlePolicy(bundle, table).inputs(row, accounts(table, row)[1]), "trace-1")


def test_the_service_answers_what_the_policy_decides(client: TestClient, bundle: Bundle,
                                                     table: MarketTable) -> None:
    policy = BundlePolicy(bundle, table)
    for row in rows(table, 25):
        for account in accounts(table, row):
            expected = policy.decide(row, account)
            answer = client.post("/v1/decide", json=request_of(bundle, policy.inputs(row, account))).json()
            assert (answer["reason"], answer["direction"]) == (expected.reason.value, expected.direction)
            assert answer["confidence"] == pytest.approx(expected.confidence, abs=1e-5)
            assert answer["proposal"] == {"contracts": expected.proposal.contracts,
                                          "stop_distance": expected.proposal.stop_distance,
                                          "target_distance": expected.proposal.target_distance,
                                          "limit": expected.proposal.limit}


def test_an_answer_is_complete_and_repeatable(client: TestClient, bundle: Bundle, body: dict[str, Any]) -> None:
    first, second = (client.post("/v1/decide", json=body) for _ in range(2))
    assert first.status_code == 200
    assert first.headers["x-trace-id"] == first.json()["trace_id"] == "trace-1"
    answers = [{k: v for k, v in r.json().items() if k != "latency_ms"} for r in (first, second)]
    assert answers[0] == answers[1]
    assert answers[0]["model"] == bundle.id
    assert set(answers[0]["votes"]) == {"strategic", "tactical", "arbitrage"}
    assert {"entropy", "mutual_information", "std", "agreement"} == set(answers[0]["uncertainty"])
    assert first.json()["latency_ms"] > 0
    unnamed = client.post("/v1/decide", json={k: v for k, v in body.items() if k != "trace_id"}).json()
    assert len(unnamed["trace_id"]) == 32


def test_a_regime_window_serves_as_well_as_its_vector(client: TestClient, table: MarketTable,
                                                      body: dict[str, Any]) -> None:
    last = int(table.row_30m[rows(table)[0]]) + 1
    window = table.regime[last - table.schema.regime.window:last].tolist()
    other = {k: v for k, v in body.items() if k != "regime"} | {"regime_window": window}
    a, b = (client.post("/v1/decide", json=x).json() for x in (body, other))
    assert a["reason"] == b["reason"]
    assert a["confidence"] == pytest.approx(b["confidence"], abs=1e-5)


def _set(path: str, value: Any):
    def change(body: dict[str, Any]) -> None:
        *parents, leaf = path.split(".")
        node: Any = body
        for name in parents:
            node = node[int(name)] if isinstance(node, list) else node[name]
        if isinstance(node, list):
            node[int(leaf)] = value
        elif value is ...:
            del node[leaf]
        else:
            node[leaf] = value
    return change


@pytest.mark.parametrize(("path", "value", "field"), [
    ("account", ..., "account"),
    ("surprise", 1, "surprise"),
    ("account.surprise", 1, "surprise"),
    ("account.equity", "much", "equity"),
    ("account.entry", 0.0, "account"),
    ("account.day_start", 0.0, "day_start"),
    ("account.bars_in_trade", 1.5, "bars_in_trade"),
    ("account.bars_in_trade", 2**63, "bars_in_trade"),
    ("market.close", -1.0, "close"),
    ("market.atr", None, "atr"),
    ("market.hour_sin", 2.0, "hour_sin"),
    ("market.atr", 1e39, "atr"),
    ("market.close", 1e300, "close"),
    ("market.close", 1e-300, "close"),
    ("market.low_volume_node", {"distance": 1e308, "strength": 1.0}, "distance"),
    ("market.low_volume_node", {"distance": 1.0, "strength": 1e308}, "strength"),
    ("account.position", 1e308, "position"),
    ("account.entry", 1e308, "entry"),
    ("account.stop", -1e308, "stop"),
    ("account.target", 1e308, "target"),
    ("account.equity", -1e300, "equity"),
    ("account.day_start", 1e-300, "day_start"),
    ("account.day_start", 1e300, "day_start"),
    ("strategic.0.0", "x", "strategic"),
    ("strategic.3.1", True, "strategic"),
    ("tactical.0.0", 1e300, "tactical"),
    ("tactical", [], "tactical"),
    ("tactical.5", [1.0], "tactical"),
    ("strategic", [[0.0]], "strategic"),
    ("regime", [0.0] * 7, "regime"),
    ("regime", None, "regime"),
    ("regime_window", [[0.0]], "regime"),
    ("synergy", [0.0, 0.0], "synergy"),
    ("seed", -1, "seed"),
    ("seed", 2**63, "seed"),
    ("trace_id", "a b", "trace_id"),
    ("schema_hash", "abc", "schema_hash"),
])
def test_a_fault_gets_422_with_the_field_named(client: TestClient, body: dict[str, Any], path: str, value: Any,
                                               field: str) -> None:
    broken = copy.deepcopy(body)
    _set(path, value)(broken)
    answer = client.post("/v1/decide", json=broken)
    assert answer.status_code == 422
    fault = answer.json()["detail"][0]
    assert field in " ".join(map(str, fault["loc"])) + fault["msg"]
    assert client.post("/v1/decide", json=body).status_code == 200


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b"null", b'{"strategic": [[NaN]]}', b"\xff\xfe"])
def test_what_is_no_request_gets_422(client: TestClient, raw: bytes) -> None:
    answer = client.post("/v1/decide", content=raw)
    assert answer.status_code == 422
    assert answer.json()["detail"]


def test_thousands_of_faults_get_a_short_answer(client: TestClient, body: dict[str, Any]) -> None:
    answer = client.post("/v1/decide", json=body | {"strategic": [["x"] * 2000]})
    assert answer.status_code == 422
    assert len(answer.json()["detail"]) == 20


def test_nan_is_refused(client: TestClient, body: dict[str, Any]) -> None:
    import json

    body["tactical"][0][0] = float("nan")
    answer = client.post("/v1/decide", content=json.dumps(body).encode())
    assert answer.status_code == 422
    assert "tactical" in answer.json()["detail"][0]["loc"]


def test_another_schema_is_a_conflict(client: TestClient, bundle: Bundle, body: dict[str, Any]) -> None:
    answer = client.post("/v1/decide", json=body | {"schema_hash": "0" * 64})
    assert answer.status_code == 409
    fault = answer.json()["detail"][0]
    assert fault["loc"] == ["body", "schema_hash"]
    assert bundle.manifest.schema_hash in fault["msg"]


def test_only_health_and_readiness_are_open(client: TestClient, bundle: Bundle, body: dict[str, Any]) -> None:
    stranger = TestClient(client.app)
    assert stranger.get("/v1/health").json()["model"] == bundle.id
    assert stranger.get("/v1/ready").json() == {"ready": True, "model": bundle.id}
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"},
                    {"Authorization": "Bearer"}):
        answer = stranger.post("/v1/decide", json=body, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
    for route in client.app.routes:
        if not is_open(route.path):
            assert stranger.request("POST", route.path).status_code == 401
    assert stranger.get("/docs").status_code == 401
    assert stranger.get("/nowhere").status_code == 401
    assert client.get("/nowhere").status_code == 404


def test_an_error_of_our_own_has_the_one_form_of_faults(client: TestClient, body: dict[str, Any],
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: Any) -> Any:
        raise RuntimeError("secret")

    monkeypatch.setattr("serving.explain.ExplainDesk.explain", broken)
    patient = TestClient(client.app, headers=client.headers, raise_server_exceptions=False)
    answer = patient.post("/v1/explain", json=body)
    assert (answer.status_code, list(answer.json())) == (500, ["detail"])
    assert "secret" not in answer.text


def test_bodies_are_bounded(client: TestClient, body: dict[str, Any]) -> None:
    assert client.post("/v1/decide", content=b" " * 300_000).status_code == 413

    def drip():
        for _ in range(300):
            yield b" " * 1000

    assert client.post("/v1/decide", content=drip()).status_code == 413
    assert client.post("/v1/decide", json=body).status_code == 200


def test_health_tells_what_runs(client: TestClient) -> None:
    health = client.get("/v1/health").json()
    assert health["backend"] == "onnx"
    assert health["fallbacks"] == []
    assert health["instrument"] in INSTRUMENTS


def test_a_backend_that_is_not_there_falls_back_visibly(bundle: Bundle) -> None:
    app = create_app(bundle, AppSettings(backends=("tensorrt", "torch")), StaticToken(token_digest(TOKEN)))
    health = TestClient(app).get("/v1/health").json()
    assert health["backend"] == "torch"
    assert health["fallbacks"][0].startswith("tensorrt: ")
    with pytest.raises(ConfigError, match="no configured backend works"):
        create_app(bundle, AppSettings(backends=("tensorrt",)), StaticToken(token_digest(TOKEN)))


def test_tokens(tmp_path: Path) -> None:
    token, made_up = resolve_token(None, {})
    assert made_up
    assert len(token) >= 32
    assert resolve_token(None, {})[0] != token
    assert resolve_token(None, {"ALGOSPACE_TOKEN": TOKEN}) == (TOKEN, False)
    (tmp_path / "token").write_text(TOKEN + "\n")
    assert resolve_token(tmp_path / "token", {"ALGOSPACE_TOKEN": "x"}) == (TOKEN, False)
    with pytest.raises(ConfigError, match="at least 16"):
        resolve_token(None, {"ALGOSPACE_TOKEN": "short"})
    with pytest.raises(ConfigError, match="cannot read a token"):
        resolve_token(tmp_path / "absent")


def test_services_on_one_machine_share_nothing(tmp_path: Path) -> None:
    ours, theirs = (serve_environment(tmp_path / name) for name in "ab")
    ports = [int(value) for values in (ours, theirs) for name, value in values.items() if name.endswith("_PORT")]
    assert len(set(ports)) == len(ports) == 8
    assert not {v for n, v in ours.items() if n.endswith(("_LOC", "_PATH", "_FILE"))} & set(theirs.values())
