"""The service's log: JSON lines, decisions sampled by their trace, no secret in any of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.cli import log_to_stderr
from serving.app import create_app
from serving.auth import StaticToken, token_digest
from serving.decider import DecisionInputs
from serving.logs import LogSettings, configure_logs, is_sampled, log_decision
from serving.routes.described import example_row
from serving.service import AppSettings
from tests.serving_market import random_bundle

DECISION: dict[str, Any] = {
    "trace_id": "t" * 32, "instrument": "ES", "verdict": "REJECT", "reason": "LOW_CONFIDENCE", "direction": 1,
    "confidence": 0.123456789, "model": "ab" * 32, "latency_ms": 1.23456, "votes": {}, "proposal": {}}


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def lines(capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    captured = capfd.readouterr()
    assert captured.out == ""
    return [json.loads(line) for line in captured.err.splitlines()]


def test_a_decision_is_one_line_of_json_with_its_trace(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logs(LogSettings(decisions=1.0))
    log_decision(LogSettings(decisions=1.0), DECISION)
    (line,) = lines(capfd)
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "decision", "level": "info", "trace_id": "t" * 32, "instrument": "ES",
                    "verdict": "REJECT", "reason": "LOW_CONFIDENCE", "direction": 1, "confidence": 0.123457,
                    "model": "ab" * 6, "latency_ms": 1.235}


def test_orders_are_always_logged_unless_nothing_is(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logs(LogSettings())
    for share, expected in ((0.0, 0), (1e-9, 1)):
        log_decision(LogSettings(decisions=share), DECISION | {"verdict": "EXECUTE"})
        assert len(lines(capfd)) == expected


@pytest.mark.parametrize("share", [0.01, 0.25, 0.9])
def test_the_sample_has_its_size_whatever_the_ids_are(share: float) -> None:
    for ids in ([f"row-{n}" for n in range(20_000)], [f"{n:032x}" for n in range(20_000)]):
        assert sum(is_sampled(name, share) for name in ids) / len(ids) == pytest.approx(share, abs=0.012)


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_holds_the_smaller_ones_sample(trace_id: str, one: float, other: float) -> None:
    less, more = sorted((one, other))
    assert is_sampled(trace_id, more) or not is_sampled(trace_id, less)


@pytest.mark.parametrize("fields", [
    {"token": "hunter2-hunter2"}, {"authorization": "Bearer hunter2-hunter2"}, {"api_key": "hunter2-hunter2"},
    {"error": "refused 'Bearer hunter2-hunter2.x'"}, {"url": "eyJhunter2.eyJhunter2.hunter2"},
    {"inner": {"deep": {"password": "hunter2"}}}, {"many": [{"client_secret": "hunter2"}]},
    {"key": "-----BEGIN PRIVATE KEY-----"},
])
def test_secrets_are_blotted_out(capfd: pytest.CaptureFixture[str], fields: dict[str, Any]) -> None:
    configure_logs(LogSettings())
    structlog.get_logger().warning("something", **fields)
    text = capfd.readouterr().err
    assert "***" in text
    assert "hunter2" not in text
    assert "BEGIN" not in text


def test_levels_tracebacks_and_long_texts(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logs(LogSettings(level="warning"))
    log = structlog.get_logger()
    log.info("not shown")
    try:
        raise ValueError("what went wrong")
    except ValueError:
        log.exception("failed", body="x" * 100_000)
    (line,) = lines(capfd)
    assert len(line["body"]) == 2000
    assert "what went wrong" in json.dumps(line)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    bundle = random_bundle(tmp_path_factory.mktemp("logs") / "bundle")
    app = create_app(bundle, AppSettings(), StaticToken(token_digest("a-token-of-enough-length")))
    decider = app.state.service.champion.decider
    decider.decide = decider.decide_batch = failing
    return TestClient(app, headers={"Authorization": "Bearer a-token-of-enough-length"})


def failing(inputs: Any) -> Any:
    account = inputs.account if isinstance(inputs, DecisionInputs) else inputs.accounts[0]
    equity = float(account["equity"])
    return equity / 0.0


@pytest.mark.parametrize("how", ["json", "console", "command line"])
@pytest.mark.parametrize("path", ["/v1/decide", "/v1/decide/batch"])
def test_a_failing_decisions_log_holds_nothing_of_the_body(client: TestClient, path: str, how: Any,
                                                           capfd: pytest.CaptureFixture[str]) -> None:
    if how == "command line":
        structlog.reset_defaults()
        log_to_stderr()
    else:
        configure_logs(LogSettings(format=how))
    bundle = client.app.state.service.champion.bundle  # type: ignore[attr-defined]
    row = example_row(bundle)
    row["account"] |= {"equity": 987654.321, "day_start": 987655.125}
    row["market"] |= {"close": 4321.625}
    row["strategic"][0][0] = 0.71828125
    row["seed"] = 42424242
    schema = {"schema_hash": bundle.manifest.schema_hash}
    body = row | schema if path == "/v1/decide" else schema | {"rows": [row]}
    assert client.post(path, json=body).status_code == 500
    captured = capfd.readouterr()
    text = captured.err + captured.out
    assert "decision_failed" in text
    assert "ZeroDivisionError" in text
    for value in ("987654", "987655", "4321.6", "71828", "42424242", "day_start", "a-token-of"):
        assert value not in text, value
