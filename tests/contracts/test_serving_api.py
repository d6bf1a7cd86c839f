"""The decision routes: batches in both forms, idempotency, deadlines, traces, readiness and the description."""

from __future__ import annotations

import json
import time
from typing import Any

import jsonschema
import numpy as np
import pyarrow as pa
import pytest
from fastapi.testclient import TestClient

from algospace.features.market_table import MarketTable
from serving.access import PERMISSIONS, is_open
from serving.app import create_app
from serving.auth import StaticToken, token_digest
from serving.batch import BatchInputs
from serving.batch_arrow import ANSWER, GATE_ANSWER, MEDIA_TYPE, batch_schema, encode, table_of
from serving.bundle import Bundle
from serving.client import request_of, row_of
from serving.decider import DecisionInputs
from serving.limits import LimitsSettings
from serving.policy import BundlePolicy
from serving.service import AppSettings
from tests.serving_market import accounts, random_bundle, rows, serving_table

TOKEN = "a-token-of-enough-length"
LIMITS = LimitsSettings(deadline_ms=20_000, batch_rows=40, batch_pass_rows=16, self_test_s=0.0, log_requests="all")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return random_bundle(tmp_path_factory.mktemp("api") / "bundle")


@pytest.fixture(scope="module")
def table() -> MarketTable:
    return serving_table()


@pytest.fixture(scope="module")
def wanted(bundle: Bundle, table: MarketTable) -> list[DecisionInputs]:
    policy = BundlePolicy(bundle, table)
    return [policy.inputs(row, account) for row in rows(table, 9) for account in accounts(table, row)]


@pytest.fixture(scope="module")
def client(bundle: Bundle) -> TestClient:
    app = create_app(bundle, AppSettings(service=LIMITS), StaticToken(token_digest(TOKEN)))
    return TestClient(app, headers={"Authorization": f"Bearer {TOKEN}"})


def as_arrow(bundle: Bundle, wanted: list[DecisionInputs], regime: np.ndarray | None = None) -> pa.Table:
    vectors = np.stack([one.regime for one in wanted]) if regime is None else regime
    return table_of(BatchInputs.of(wanted, vectors), bundle)


def post_arrow(client: TestClient, table: pa.Table, **headers: str) -> pa.Table:
    answer = client.post("/v1/decide/batch", content=encode(table), headers={"content-type": MEDIA_TYPE} | headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == MEDIA_TYPE
    return pa.ipc.open_stream(pa.BufferReader(answer.content)).read_all()


def test_a_batch_answers_what_its_rows_are_answered(client: TestClient, bundle: Bundle,
                                                    wanted: list[DecisionInputs]) -> None:
    alone = [client.post("/v1/decide", json=request_of(bundle, one)).json() for one in wanted]
    body = {"schema_hash": bundle.manifest.schema_hash, "rows": [row_of(one) for one in wanted]}
    together = client.post("/v1/decide/batch", json=body).json()
    columns = post_arrow(client, as_arrow(bundle, wanted)).to_pylist()
    assert together["decided"] == len(together["rows"]) == len(columns) == len(wanted)
    assert len({one["reason"] for one in alone}) > 2
    for one, row, column in zip(alone, together["rows"], columns, strict=True):
        for found in (row, column):
            assert (found["verdict"], found["reason"]) == (one["verdict"], one["reason"])
            assert found["direction"] == one["direction"]
            assert found["confidence"] == pytest.approx(one["confidence"], abs=1e-6)
        assert row["proposal"] == pytest.approx(one["proposal"], abs=1e-6)
        assert row["uncertainty"] == pytest.approx(one["uncertainty"], abs=1e-6)
        assert column["contracts"] == one["proposal"]["contracts"]
        assert column["limit"] == one["proposal"]["limit"]
        assert column["votes"] == pytest.approx([p for votes in one["votes"].values() for p in votes], abs=1e-6)
        assert column["uncertainty"] == pytest.approx(list(one["uncertainty"].values()), abs=1e-6)
        assert column["error"] is None


def test_windows_serve_as_well_as_vectors(client: TestClient, bundle: Bundle, table: MarketTable,
                                          wanted: list[DecisionInputs]) -> None:
    last = [int(table.row_30m[row]) + 1 for row in rows(table, 9) for _ in accounts(table, row)]
    windows = np.stack([table.regime[end - table.schema.regime.window:end] for end in last])
    known, found = (post_arrow(client, as_arrow(bundle, wanted, regime)) for regime in (None, windows))
    assert found["reason"].to_pylist() == known["reason"].to_pylist()
    assert found["confidence"].to_numpy() == pytest.approx(known["confidence"].to_numpy(), abs=1e-5)


def test_a_wrong_row_costs_the_others_nothing(client: TestClient, bundle: Bundle,
                                              wanted: list[DecisionInputs]) -> None:
    good = [row_of(one) for one in wanted[:4]]
    broken: list[Any] = [good[0], good[1] | {"seed": -1}, "no row", good[2], good[3] | {"strategic": [[0.0]]},
                         good[3] | {"schema_hash": "0" * 64}, good[3] | {"trace_id": "mine"}]
    body = {"schema_hash": bundle.manifest.schema_hash, "rows": broken}
    answer = client.post("/v1/decide/batch", json=body).json()
    expected = client.post("/v1/decide/batch", json=body | {"rows": good}).json()
    assert answer["decided"] == 3
    for at, alike in ((0, 0), (3, 2), (6, 3)):
        found, row = answer["rows"][at], expected["rows"][alike]
        assert (found["reason"], found["proposal"]["limit"]) == (row["reason"], row["proposal"]["limit"])
        assert found["confidence"] == pytest.approx(row["confidence"], abs=1e-6)
    assert "seed" in answer["rows"][1]["errors"][0]["loc"]
    assert answer["rows"][4]["errors"][0]["type"] == "shape"
    assert answer["rows"][6]["trace_id"] == "mine"


@pytest.mark.parametrize(("column", "value", "word"), [
    ("close", -1.0, "close"), ("close", None, "close"), ("atr", -1.0, "atr"), ("hour_sin", 3.0, "hour_sin"),
    ("equity", float("inf"), "equity"), ("day_start", 0.0, "day_start"), ("entry", -1.0, "entry"),
    ("position", 1.0, "position"), ("bars_in_trade", -1, "bars_in_trade"), ("seed", -1, "seed"),
    ("seed", None, "seed"), ("stop", float("inf"), "stop"), ("lvn_strength", float("inf"), "lvn"),
    ("atr", 1e39, "atr"), ("close", 1e300, "close"), ("close", 1e-300, "close"), ("position", 1e308, "position"),
    ("entry", 1e308, "entry"), ("equity", -1e300, "equity"), ("day_start", 1e-300, "day_start"),
    ("target", -1e308, "target"), ("lvn_distance", 1e308, "lvn"), ("lvn_strength", 1e39, "lvn")])
def test_a_wrong_row_of_a_table_has_its_error(client: TestClient, bundle: Bundle, wanted: list[DecisionInputs],
                                              column: str, value: Any, word: str) -> None:
    table = as_arrow(bundle, wanted[:4])
    place = table.schema.get_field_index(column)
    values = table[column].to_pylist()
    values[0] = value
    changed = table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))
    answers = post_arrow(client, changed)
    assert word in answers["error"][0].as_py()
    assert answers["verdict"][0].as_py() is None
    assert answers["confidence"][0].as_py() is None
    whole = post_arrow(client, table)
    assert answers["reason"].to_pylist()[1:] == whole["reason"].to_pylist()[1:]
    assert answers["confidence"].to_pylist()[1:] == pytest.approx(whole["confidence"].to_pylist()[1:], abs=1e-6)
    assert answers["error"].to_pylist()[1:] == [None] * 3


def test_numbers_that_are_none_are_refused_by_row(client: TestClient, bundle: Bundle,
                                                  wanted: list[DecisionInputs]) -> None:
    inputs = BatchInputs.of(wanted[:3], np.stack([one.regime for one in wanted[:3]]))
    inputs.strategic[1, 0, 0] = np.nan
    inputs.regime[2, 0] = 1e30
    answers = post_arrow(client, table_of(inputs, bundle))
    named = [error and error.split(":")[0] for error in answers["error"].to_pylist()]
    assert named == [None, "strategic", "regime"]


def test_a_batch_of_nothing_sound_is_answered(client: TestClient, bundle: Bundle,
                                              wanted: list[DecisionInputs]) -> None:
    inputs = BatchInputs.of(wanted[:2], np.full((2, 8), np.nan, np.float32))
    answers = post_arrow(client, table_of(inputs, bundle))
    assert answers.schema.equals(ANSWER)
    assert answers["reason"].null_count == 2
    body = {"schema_hash": bundle.manifest.schema_hash, "rows": [1, {}]}
    assert client.post("/v1/decide/batch", json=body).json()["decided"] == 0


def arrow_faults(bundle: Bundle, wanted: list[DecisionInputs]) -> dict[str, bytes]:
    good = as_arrow(bundle, wanted[:2])
    whole = encode(good)
    squeezed = pa.BufferOutputStream()
    with pa.ipc.new_stream(squeezed, good.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(good)
    encoded = good.set_column(4, "close", good["close"].dictionary_encode())
    return {"empty": b"", "noise": b"\xff" * 64, "cut": whole[:-200], "half": whole[:len(whole) // 2],
            "compressed": squeezed.getvalue().to_pybytes(), "dictionary": encode(encoded),
            "missing": encode(good.drop_columns(["atr"])), "strange": encode(good.append_column("x", good["atr"])),
            "type": encode(good.set_column(4, "close", good["close"].cast(pa.float32()))),
            "none": encode(good.slice(0, 0)),
            "many": encode(pa.concat_tables([good] * 21))}


def test_what_is_no_batch_gets_422(client: TestClient, bundle: Bundle, wanted: list[DecisionInputs]) -> None:
    for name, body in arrow_faults(bundle, wanted).items():
        answer = client.post("/v1/decide/batch", content=body, headers={"content-type": MEDIA_TYPE})
        assert answer.status_code == 422, name
        assert answer.json()["detail"][0]["type"] == "arrow", name
    for content in (b"", b"{", b"[]", b'{"rows": []}', b'{"a": NaN}', b"[" * 100_000, b"\xff"):
        assert client.post("/v1/decide/batch", content=content).status_code == 422
    other = {"schema_hash": "0" * 64, "rows": [1]}
    assert client.post("/v1/decide/batch", json=other).status_code == 409
    table = as_arrow(bundle, wanted[:1]).replace_schema_metadata({"schema_hash": "0" * 64})
    assert client.post("/v1/decide/batch", content=encode(table),
                       headers={"content-type": MEDIA_TYPE}).status_code == 409
    own = {"schema_hash": bundle.manifest.schema_hash}
    assert client.post("/v1/decide/batch", json=own | {"rows": [1] * 41}).status_code == 422
    for path, media in (("/v1/decide", MEDIA_TYPE), ("/v1/decide", "text/plain"),
                        ("/v1/decide/batch", "text/csv")):
        assert client.post(path, content=b"x", headers={"content-type": media}).status_code == 415


def test_flipped_bytes_of_a_batch_never_break_the_service(client: TestClient, bundle: Bundle,
                                                          wanted: list[DecisionInputs]) -> None:
    whole, rng = encode(as_arrow(bundle, wanted[:1])), np.random.default_rng(0)
    for _ in range(150):
        body = bytearray(whole)
        body[int(rng.integers(len(body) if rng.random() < 0.3 else 3000))] ^= 1 << int(rng.integers(8))
        answer = client.post("/v1/decide/batch", content=bytes(body), headers={"content-type": MEDIA_TYPE})
        assert answer.status_code in (200, 409, 422)


@pytest.mark.parametrize("form", ["one", "batch", "arrow"])
def test_the_same_key_gets_the_same_answer(client: TestClient, bundle: Bundle, wanted: list[DecisionInputs],
                                           form: str) -> None:
    if form == "arrow":
        bodies = [encode(as_arrow(bundle, [one])) for one in wanted[:2]]
    else:
        wrap = {"one": lambda one: request_of(bundle, one), "batch": lambda one: {
            "schema_hash": bundle.manifest.schema_hash, "rows": [row_of(one)]}}[form]
        bodies = [json.dumps(wrap(one)).encode() for one in wanted[:2]]
    path = "/v1/decide" if form == "one" else "/v1/decide/batch"
    headers = {"Idempotency-Key": f"key {form}",
               "content-type": MEDIA_TYPE if form == "arrow" else "application/json"}
    before = client.get("/v1/health").json()["decisions"]
    first, again = (client.post(path, content=bodies[0], headers=headers) for _ in range(2))
    assert first.status_code == again.status_code == 200
    assert again.content == first.content
    assert (again.headers["idempotent-replayed"], again.headers["x-trace-id"]) == ("true",
                                                                                   first.headers["x-trace-id"])
    assert "idempotent-replayed" not in first.headers
    assert client.post(path, content=bodies[1], headers=headers).status_code == 409
    assert client.get("/v1/health").json()["decisions"] == before + 1  # and told once, as the answer that counts
    traces = [told["trace_id"] for told in client.get("/v1/signals", params={"limit": 1000}).json()["decisions"]]
    told = first.headers["x-trace-id"] if form == "one" else f"{first.headers['x-trace-id']}-0"
    assert traces[0] == told
    assert traces.count(told) == 1


def test_a_fault_does_not_use_a_key_up(client: TestClient, bundle: Bundle, wanted: list[DecisionInputs]) -> None:
    headers = {"Idempotency-Key": "used once"}
    assert client.post("/v1/decide", content=b"{}", headers=headers).status_code == 422
    assert client.post("/v1/decide", json=request_of(bundle, wanted[0]), headers=headers).status_code == 200
    for key in ("", "x" * 129, "\u00e4"):
        answer = client.post("/v1/decide", content=b"{}", headers={"Idempotency-Key": key.encode("latin-1")})
        assert answer.status_code == 400


def test_what_is_too_old_is_not_worked_on(client: TestClient, bundle: Bundle,
                                          wanted: list[DecisionInputs]) -> None:
    body, before = request_of(bundle, wanted[0]), client.get("/v1/health").json()["decisions"]
    sent = {"x-request-start": f"{(time.time() - 30) * 1000:.0f}"}
    batch = {"schema_hash": bundle.manifest.schema_hash, "rows": [row_of(wanted[0])]}
    for path, content in (("/v1/decide", body), ("/v1/decide/batch", batch)):
        answer = client.post(path, json=content, headers=sent)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert "deadline" in answer.json()["detail"]
    assert client.get("/v1/health").json()["decisions"] == before
    for headers in ({"x-deadline-ms": "soon"}, {"x-deadline-ms": "-1"}, {"x-request-start": "nan"}):
        assert client.post("/v1/decide", json=body, headers=headers).status_code == 400
    ok = {"x-deadline-ms": "60000", "x-request-start": f"{time.time() * 1000:.0f}"}
    assert client.post("/v1/decide", json=body, headers=ok).status_code == 200


def test_an_answer_that_comes_too_late_is_not_given(bundle: Bundle, wanted: list[DecisionInputs],
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    settings = AppSettings(service=LimitsSettings(deadline_ms=60_000))
    app = create_app(bundle, settings, StaticToken(token_digest(TOKEN)))
    client = TestClient(app, headers={"Authorization": f"Bearer {TOKEN}"})
    decider = app.state.service.champion.decider
    decide = decider.decide
    monkeypatch.setattr(decider, "decide", lambda inputs: (time.sleep(0.6), decide(inputs))[1])
    body = request_of(bundle, wanted[0])
    late = client.post("/v1/decide", json=body, headers={"x-deadline-ms": "500", "Idempotency-Key": "late"})
    assert late.status_code == 503
    assert "no decision is given" in late.json()["detail"]
    assert client.post("/v1/decide", json=body, headers={"Idempotency-Key": "late"}).status_code == 200


def test_a_trace_goes_through(client: TestClient, bundle: Bundle, wanted: list[DecisionInputs],
                              capsys: pytest.CaptureFixture[str]) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    body = request_of(bundle, wanted[0])
    answer = client.post("/v1/decide", json=body, headers={"traceparent": f"00-{trace}-00f067aa0ba902b7-01"})
    assert answer.json()["trace_id"] == answer.headers["x-trace-id"] == trace
    version, same, span, flags = answer.headers["traceparent"].split("-")
    assert (version, same, flags) == ("00", trace, "01")
    assert span != "00f067aa0ba902b7"
    assert trace in capsys.readouterr().out
    for malformed in ("", "00-" + "0" * 32 + "-00f067aa0ba902b7-01", f"ff-{trace}-00f067aa0ba902b7-01", "x",
                      f"00-{trace}-00f067aa0ba902b7-01-more", f"00-{trace.upper()}-00f067aa0ba902b7-01"):
        answer = client.post("/v1/decide", json=body, headers={"traceparent": malformed})
        assert answer.json()["trace_id"] == answer.headers["traceparent"].split("-")[1] != trace
    stranger = TestClient(client.app).post("/v1/decide", json=body, headers={
        "traceparent": f"00-{trace}-00f067aa0ba902b7-01"})
    assert stranger.status_code == 401
    assert stranger.headers["x-trace-id"] == trace


def test_readiness_fails_with_the_self_test_and_while_draining(bundle: Bundle,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_app(bundle, AppSettings(service=LIMITS), StaticToken(token_digest(TOKEN)))
    client, service = TestClient(app), app.state.service
    assert client.get("/v1/ready").json() == {"ready": True, "model": bundle.id}

    def broken(graph: str, inputs: Any) -> Any:
        raise RuntimeError("the device is gone")

    with monkeypatch.context() as patch:
        patch.setattr(service.champion.backend, "infer", broken)
        assert client.get("/v1/ready").status_code == 503
    assert client.get("/v1/ready").status_code == 200
    infer = service.champion.backend.infer
    with monkeypatch.context() as patch:
        patch.setattr(service.champion.backend, "infer",
                      lambda graph, inputs: {k: v + np.float32(0.5) for k, v in infer(graph, inputs).items()})
        answer = client.get("/v1/ready")
        assert answer.status_code == 503
        assert "self-test" in answer.json()["detail"]
    service.drain()
    answer = client.get("/v1/ready")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert client.get("/v1/health").json()["draining"] is True


def test_a_fault_of_ours_is_one_line(bundle: Bundle, wanted: list[DecisionInputs],
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_app(bundle, AppSettings(service=LIMITS), StaticToken(token_digest(TOKEN)))
    client = TestClient(app, headers={"Authorization": f"Bearer {TOKEN}"})
    monkeypatch.setattr(app.state.service.champion.decider, "decide", lambda inputs: 1 / 0)
    answer = client.post("/v1/decide", json=request_of(bundle, wanted[0]))
    assert answer.status_code == 500
    assert "ZeroDivision" not in answer.text
    assert isinstance(answer.json()["detail"], str)


def described(client: TestClient) -> dict[str, Any]:
    answer = client.get("/v1/openapi.json")
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


def test_every_route_is_described_with_examples_that_hold(client: TestClient) -> None:
    document = described(client)
    assert document["openapi"].startswith("3.1")
    routes = {(method, path) for method, path in PERMISSIONS if method != "WS"}
    found = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert {route for route in found if not is_open(route[1])} <= routes
    checked = 0
    for methods in document["paths"].values():
        for operation in methods.values():
            assert "401" in operation["responses"]
            contents = [operation.get("requestBody", {}).get("content", {}),
                        *(response.get("content", {}) for response in operation["responses"].values())]
            for content in (kind for kinds in contents for kind in kinds.values()):
                for example in content.get("examples", {}).values():
                    schema = content["schema"] | {"components": document["components"]}
                    jsonschema.validate(example["value"], schema, jsonschema.Draft202012Validator)
                    checked += 1
    assert checked > 50
    for model in document["components"]["schemas"].values():
        for example in model.get("examples", ()):
            jsonschema.validate(example, model | {"components": document["components"]})


def test_examples_are_answered_and_answers_are_as_described(client: TestClient) -> None:
    document = described(client)
    for path in ("/v1/decide", "/v1/decide/batch"):
        operation = document["paths"][path]["post"]
        example = operation["requestBody"]["content"]["application/json"]["examples"]["one"]["value"]
        answer = client.post(path, json=example)
        assert answer.status_code == 200, answer.text
        schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
        jsonschema.validate(answer.json(), schema | {"components": document["components"]})
    problem = document["components"]["schemas"]["Problem"] | {"components": document["components"]}
    for status, answer in ((422, client.post("/v1/decide", content=b"{}")), (404, client.get("/v1/nothing")),
                           (405, client.get("/v1/decide")), (401, TestClient(client.app).get("/v1/model"))):
        assert answer.status_code == status
        jsonschema.validate(answer.json(), problem)


def test_the_description_names_every_column_of_a_batch(client: TestClient, bundle: Bundle) -> None:
    operation = described(client)["paths"]["/v1/decide/batch"]["post"]
    asked = operation["requestBody"]["content"][MEDIA_TYPE]["schema"]["description"]
    answered = operation["responses"]["200"]["content"][MEDIA_TYPE]["schema"]["description"]
    for text, schema in ((asked, batch_schema(bundle, times=True, gates=True)), (answered, ANSWER),
                         (answered, GATE_ANSWER)):
        for field in schema:
            assert f"{field.name} {field.type}" in text


def test_the_description_says_which_answers_are_not_repeated(client: TestClient) -> None:
    for path in ("/v1/decide", "/v1/decide/batch", "/v1/decide/bars"):
        parameters = described(client)["paths"][path]["post"]["parameters"]
        (text,) = (one["description"] for one in parameters if one["name"] == "Idempotency-Key")
        assert "kill switch" in text
        assert "too old" in text
        assert "market has closed" in text


def test_the_description_can_be_switched_off(bundle: Bundle) -> None:
    app = create_app(bundle, AppSettings(service=LimitsSettings(openapi=False)), StaticToken(token_digest(TOKEN)))
    client = TestClient(app, headers={"Authorization": f"Bearer {TOKEN}"})
    assert client.get("/v1/openapi.json").status_code == 404
    assert TestClient(app).get("/v1/openapi.json").status_code == 401
