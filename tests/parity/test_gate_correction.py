"""The gate's online correction: the service, which keeps nothing, decides as the session does, in any form."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from agents.calibration import AdaptiveConformal, Calibration
from agents.gate import GateConfig
from algospace.execution.outcomes import ClosedTrade
from serving.app import create_app
from serving.auth import StaticToken, token_digest
from serving.batch import BatchInputs
from serving.batch_arrow import MEDIA_TYPE, encode, table_of
from serving.bundle import Bundle
from serving.client import request_of, row_of
from serving.correction import Correction, GateLevel
from serving.policy import BundlePolicy
from serving.service import AppSettings
from tests.serving_market import accounts, random_bundle, rows, serving_table

TOKEN = "a-token-of-enough-length"
OUTCOMES = [False, False, True, False, False, False, True, False]
CLOSED = {True: ClosedTrade(0, 1, 1.0, 5.0), False: ClosedTrade(0, 1, 1.0, -5.0)}


def calibration(confidence: list[float], coverage: float = 0.9) -> Calibration:
    threshold = float(np.quantile(confidence, 1.0 - coverage, method="higher"))
    return Calibration(temperature=1.0, threshold=threshold, promise_kept=True, promised_precision=0.5,
                       precision=0.6, coverage=coverage, n=len(confidence), fitted_on="a" * 64, ece_before=0.1,
                       ece_after=0.1, precision_bound=0.5, trades=90, quantiles=tuple(sorted(confidence)))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Calibrated on the confidences of its own decisions, so that a tightened gate refuses some of them."""
    folder, table, gate = tmp_path_factory.mktemp("gate"), serving_table(), GateConfig(adaptive_rate=0.1)
    policy = BundlePolicy(random_bundle(folder / "open", gate=GateConfig(confidence_threshold=0.0)), table)
    found = [policy.decide(row, accounts(table, row)[0]) for row in rows(table, 80)]
    sure = [one.confidence for one in found if one.reason.value == "EXECUTE"]
    return random_bundle(folder / "bundle", gate=gate, calibration=calibration(sure))


@pytest.fixture(scope="module")
def client(bundle: Bundle) -> Any:
    app = create_app(bundle, AppSettings(), StaticToken(token_digest(TOKEN)))
    with TestClient(app, headers={"Authorization": f"Bearer {TOKEN}"}) as open_client:
        yield open_client


def session_policy(bundle: Bundle, outcomes: list[bool]) -> BundlePolicy:
    policy = BundlePolicy(bundle, serving_table())
    policy.began()
    for gained in outcomes:
        policy.closed(CLOSED[gained])
    return policy


def test_the_service_decides_as_the_session_after_the_same_trades(bundle: Bundle, client: TestClient) -> None:
    table, changed = serving_table(), 0
    plain = BundlePolicy(bundle, table)
    gate: dict[str, Any] = {}
    told = 0
    for trades, row in enumerate(rows(table, 40)):
        count = min(trades // 4, len(OUTCOMES))
        expected = session_policy(bundle, OUTCOMES[:count]).decide(row, accounts(table, row)[0])
        request = request_of(bundle, replace(plain.inputs(row, accounts(table, row)[0]), gate=None))
        answer = client.post("/v1/decide", json=request | {"gate": gate | {"closed": OUTCOMES[told:count]}}).json()
        assert answer["reason"] == expected.reason.value
        assert answer["confidence"] == pytest.approx(expected.confidence, abs=1e-6)
        told, gate = count, {name: answer["gate"][name] for name in ("model", "level")}
        before = client.post("/v1/decide", json=request).json()
        assert "gate" not in before
        changed += before["reason"] != answer["reason"]
    final = session_policy(bundle, OUTCOMES)
    assert final.correction is not None
    assert (answer["gate"]["level"], answer["gate"]["threshold"]) == (
        final.correction.level, final.correction.threshold)
    assert changed > 3


def test_what_a_policy_sends_holds_its_level(bundle: Bundle, client: TestClient) -> None:
    table = serving_table()
    policy = session_policy(bundle, OUTCOMES)
    for row in rows(table, 20):
        account = accounts(table, row)[0]
        answer = client.post("/v1/decide", json=request_of(bundle, policy.inputs(row, account))).json()
        expected = policy.decide(row, account)
        assert answer["reason"] == expected.reason.value
        assert answer["gate"]["threshold"] == policy.gate_threshold


def test_batches_correct_each_row_by_its_own_gate(bundle: Bundle, client: TestClient) -> None:
    table = serving_table()
    inputs = [session_policy(bundle, OUTCOMES[:at % 9]).inputs(row, accounts(table, row)[0])
              for at, row in enumerate(rows(table, 36))]
    inputs[5] = replace(inputs[5], gate=None)
    bodies = [request_of(bundle, one) for one in inputs]
    alone: list[dict[str, Any]] = [client.post("/v1/decide", json=body).json() for body in bodies]
    assert len({one["gate"]["threshold"] for one in alone if "gate" in one}) > 3
    body = {"schema_hash": bundle.manifest.schema_hash, "rows": [row_of(one) for one in inputs]}
    together = client.post("/v1/decide/batch", json=body).json()["rows"]
    for one, row in zip(alone, together, strict=True):
        assert (row["reason"], row.get("gate")) == (one["reason"], one.get("gate"))
    sent = table_of(BatchInputs.of(inputs, np.stack([one.regime for one in inputs])), bundle)
    got = client.post("/v1/decide/batch", content=encode(sent), headers={"Content-Type": MEDIA_TYPE}).content
    columns = pa.ipc.open_stream(got).read_all().to_pydict()
    assert columns["error"] == [None] * len(inputs)
    assert [str(reason) for reason in columns["reason"]] == [one["reason"] for one in alone]
    start = Correction(bundle).after(None, None, ())._asdict()  # a row without a gate, where others have one
    for at, one in enumerate(alone):
        expected = one.get("gate", start)
        assert (columns["gate_level"][at], columns["gate_threshold"][at]) == (
            expected["level"], expected["threshold"])


def test_closed_trades_in_arrow_count_as_in_json(bundle: Bundle, client: TestClient) -> None:
    table = serving_table()
    policy = BundlePolicy(bundle, table)
    inputs = [policy.inputs(row, accounts(table, row)[0]) for row in rows(table, 8)]
    sent = table_of(BatchInputs.of(inputs, np.stack([one.regime for one in inputs])), bundle)
    closed = [OUTCOMES[:at] for at in range(7)] + [None]
    place = sent.schema.get_field_index("gate_closed")
    sent = sent.set_column(place, sent.schema.field(place), pa.array(closed, pa.list_(pa.bool_())))
    got = client.post("/v1/decide/batch", content=encode(sent), headers={"Content-Type": MEDIA_TYPE}).content
    columns = pa.ipc.open_stream(got).read_all().to_pydict()
    assert "gate_closed" in columns["error"][7]
    for at in range(7):
        correction = session_policy(bundle, OUTCOMES[:at]).correction
        assert correction is not None
        assert columns["gate_threshold"][at] == correction.threshold


def test_another_models_level_begins_anew(bundle: Bundle) -> None:
    correction = Correction(bundle)
    start = correction.after(None, None, ())
    assert start.threshold == bundle.gate().threshold
    tightened = correction.after(bundle.id, start.level, [False] * 3)
    assert tightened.threshold > start.threshold
    assert correction.after("f" * 64, tightened.level, [False] * 3) == start
    assert correction.after(None, None, [False] * 3) == tightened
    assert correction.after(bundle.id, 1.0, ()) == start, "no level opens beyond the promise"


def test_without_a_calibration_nothing_moves(tmp_path: Path) -> None:
    bundle = random_bundle(tmp_path / "bundle")
    assert Correction(bundle).after(None, None, [False] * 9) == GateLevel(bundle.id, 1.0, bundle.gate().threshold)


@pytest.mark.parametrize("gate", [
    {"level": 0.5}, {"model": "f" * 64}, {"model": "f" * 64, "level": 1.5}, {"closed": [1]},
    {"closed": [True] * 1001}, {"model": "x", "level": 0.5}, {"threshold": 0.1}])
def test_a_gate_that_is_none_is_refused_by_field(bundle: Bundle, client: TestClient, gate: dict[str, Any]) -> None:
    table = serving_table()
    row = rows(table, 1)[0]
    request = request_of(bundle, BundlePolicy(bundle, table).inputs(row, accounts(table, row)[0])) | {"gate": gate}
    answer = client.post("/v1/decide", json=request)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"][:2] == ["body", "gate"]
    batch = {"schema_hash": request.pop("schema_hash"), "rows": [request]}
    found = client.post("/v1/decide/batch", content=json.dumps(batch)).json()["rows"][0]["errors"]
    assert found[0]["loc"][:2] == ["body", "gate"]


@given(confidence=st.lists(st.floats(0, 1), min_size=1, max_size=201), level=st.floats(0, 1))
def test_the_threshold_is_the_higher_quantile(confidence: list[float], level: float) -> None:
    adaptive = AdaptiveConformal(np.array(confidence), 0.0, 0.5, 0.05)
    expected = 0.0 if level >= adaptive.level else float(np.quantile(confidence, 1.0 - level, method="higher"))
    assert adaptive.threshold_at(level) == max(expected, 0.0)
