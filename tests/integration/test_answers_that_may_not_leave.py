"""An answer that opens a position leaves only while one may be opened: not by a repeated key, not while the kill
switch is thrown on the way, not from the first pass of a long batch."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from algospace.types import MINUTE_NS
from serving.app import create_app
from serving.auth import StaticToken, token_digest
from serving.batch import BatchInputs
from serving.batch_arrow import MEDIA_TYPE, encode, table_of
from serving.bundle import Bundle
from serving.calls import Call
from serving.client import request_of, row_of
from serving.conditions import PreconditionsSettings
from serving.decider import DecisionInputs
from serving.kill_switch import SwitchState
from serving.limits import LimitsSettings
from serving.policy import BundlePolicy
from serving.service import AppSettings, Service
from tests.serving_market import accounts, random_bundle, rows, serving_table

TOKEN = "a-token-of-enough-length"
OPEN_NS = 1_789_999_200_000_000_000   # Monday 2026-09-21, 14:00 UTC: a CME trading hour
CLOSED_NS = OPEN_NS + 7 * 3600 * 10**9 + MINUTE_NS  # the same day's break
SECOND = 10**9
KEY = {"Idempotency-Key": "mine"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return random_bundle(tmp_path_factory.mktemp("leave") / "bundle")


@pytest.fixture(scope="module")
def opening(bundle: Bundle) -> list[DecisionInputs]:
    """Flat accounts for which the team says EXECUTE."""
    table = serving_table()
    policy, service = BundlePolicy(bundle, table), Service(bundle, AppSettings())
    asked = [policy.inputs(row, accounts(table, row)[0]) for row in rows(table, 40)]
    found = [one for one in asked if service.answer(request_of(bundle, one))[1]["reason"] == "EXECUTE"]
    assert len(found) >= 2
    return found


class Clock:
    def __init__(self) -> None:
        self.now = OPEN_NS


def served(bundle: Bundle, max_age_s: float | None = 60.0, **limits: Any) -> tuple[FastAPI, Clock]:
    app = create_app(bundle, AppSettings(
        preconditions=PreconditionsSettings(max_age_s=max_age_s, trading_hours=True),
        service=LimitsSettings(deadline_ms=60_000, **limits)), StaticToken(token_digest(TOKEN)))
    clock = Clock()
    app.state.service.watch._now_ns = lambda: clock.now
    return app, clock


def client_of(app: FastAPI) -> TestClient:
    return TestClient(app, headers={"Authorization": f"Bearer {TOKEN}"})


def at(one: DecisionInputs, ts_close_ns: int) -> DecisionInputs:
    return dataclasses.replace(one, market=dataclasses.replace(one.market, ts_close_ns=ts_close_ns))


def body_of(bundle: Bundle, asked: list[DecisionInputs]) -> bytes:
    rows_ = [row_of(one) for one in asked]
    return json.dumps({"schema_hash": bundle.manifest.schema_hash, "rows": rows_}).encode()


def said(answer: Any) -> tuple[int, str | None, str | None]:
    """(status, reason, was it repeated?)"""
    return answer.status_code, answer.json().get("reason"), answer.headers.get("idempotent-replayed")


@pytest.mark.parametrize(("max_age_s", "later", "why"), [(60.0, OPEN_NS + 61 * SECOND, "STALE_DATA"),
                                                         (None, CLOSED_NS, "OUT_OF_SESSION")])
def test_a_repeated_key_gives_no_execute_that_would_not_be_given_now(
        bundle: Bundle, opening: list[DecisionInputs], max_age_s: float | None, later: int, why: str) -> None:
    app, clock = served(bundle, max_age_s)
    client, body = client_of(app), request_of(bundle, at(opening[0], OPEN_NS))
    found = [said(client.post("/v1/decide", json=body, headers=KEY)) for _ in range(2)]
    clock.now = later
    found += [said(client.post("/v1/decide", json=body, headers=KEY)) for _ in range(2)]
    assert found == [(200, "EXECUTE", None), (200, "EXECUTE", "true"), (200, why, None), (200, why, "true")]
    other = client.post("/v1/decide", json=body | {"seed": 99}, headers=KEY)
    assert other.status_code == 409


def test_what_opens_nothing_is_repeated_however_old_its_bar_is(bundle: Bundle,
                                                               opening: list[DecisionInputs]) -> None:
    app, clock = served(bundle)
    client, body = client_of(app), request_of(bundle, at(opening[0], OPEN_NS))
    clock.now = OPEN_NS + 61 * SECOND
    assert said(client.post("/v1/decide", json=body, headers=KEY)) == (200, "STALE_DATA", None)
    clock.now += 300 * SECOND
    assert said(client.post("/v1/decide", json=body, headers=KEY)) == (200, "STALE_DATA", "true")


@pytest.mark.parametrize("arrow", [False, True])
def test_a_repeated_batch_opens_nothing_on_a_bar_that_has_grown_old(bundle: Bundle, opening: list[DecisionInputs],
                                                                    arrow: bool) -> None:
    app, clock = served(bundle)
    client = client_of(app)
    asked = [at(opening[0], OPEN_NS), at(opening[1], OPEN_NS + 30 * SECOND)]
    content = body_of(bundle, asked)
    if arrow:
        content = encode(table_of(BatchInputs.of(asked, np.stack([one.regime for one in asked])), bundle))
    headers = KEY | {"content-type": MEDIA_TYPE if arrow else "application/json"}

    def reasons() -> tuple[list[str], str | None]:
        answer = client.post("/v1/decide/batch", content=content, headers=headers)
        assert answer.status_code == 200
        replayed = answer.headers.get("idempotent-replayed")
        if arrow:
            return pa.ipc.open_stream(answer.content).read_all()["reason"].to_pylist(), replayed
        return [row["reason"] for row in answer.json()["rows"]], replayed

    found = []
    for seconds in (30, 61, 62, 91, 92):
        clock.now = OPEN_NS + seconds * SECOND
        found.append(reasons())
    assert found == [(["EXECUTE", "EXECUTE"], None), (["STALE_DATA", "EXECUTE"], None),
                     (["STALE_DATA", "EXECUTE"], "true"), (["STALE_DATA", "STALE_DATA"], None),
                     (["STALE_DATA", "STALE_DATA"], "true")]


def asked_raw(app: FastAPI, body: bytes, before_body: Callable[[], None] = lambda: None) -> tuple[int, Any]:
    """POST /v1/decide with KEY; `before_body` is called when the body is asked for."""
    messages: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        before_body()
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        messages.append(message)

    headers = [(b"authorization", f"Bearer {TOKEN}".encode()), (b"content-type", b"application/json"),
               (b"idempotency-key", b"mine")]
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
             "path": "/v1/decide", "raw_path": b"/v1/decide", "query_string": b"", "root_path": "",
             "headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "state": {}}
    asyncio.run(app(scope, receive, send))  # type: ignore[arg-type]
    return messages[0]["status"], json.loads(messages[1]["body"])


def thrown(service: Service) -> None:
    service.kill.state = SwitchState(True, service.kill.state.revision + 1, "ann", "odd fills")


def test_a_switch_thrown_while_the_body_comes_is_obeyed(bundle: Bundle, opening: list[DecisionInputs]) -> None:
    app, _ = served(bundle)
    body = json.dumps(request_of(bundle, at(opening[0], OPEN_NS))).encode()
    assert asked_raw(app, body)[1]["reason"] == "EXECUTE"
    status, answer = asked_raw(app, body, lambda: thrown(app.state.service))
    assert (status, answer["reason"]) == (200, "KILL_SWITCH")


@pytest.mark.parametrize("when", ["settle", "replay", "work"])
def test_a_switch_thrown_on_the_way_keeps_the_answer_here_and_the_key_good(
        bundle: Bundle, opening: list[DecisionInputs], monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    app, _ = served(bundle)
    service = app.state.service
    body = json.dumps(request_of(bundle, at(opening[0], OPEN_NS))).encode()
    if when == "replay":  # there is an answer to repeat
        assert asked_raw(app, body)[1]["reason"] == "EXECUTE"
    owner, name = (service, "decide") if when == "work" else (service.idempotency, "settle")
    plain = getattr(owner, name)

    def sync(*given: Any) -> Any:
        answer = plain(*given)
        thrown(service)
        return answer

    async def awaited(*given: Any) -> Any:
        answer = await plain(*given)
        thrown(service)
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, sync if when == "work" else awaited)
        status, answer = asked_raw(app, body)
    assert (status, "kill switch was changed" in answer["detail"]) == (503, True)
    assert asked_raw(app, body)[1]["reason"] == "KILL_SWITCH"
    service.kill.state = SwitchState(False, service.kill.state.revision + 1)
    assert asked_raw(app, body)[1]["reason"] == "EXECUTE"


def test_a_bar_that_grows_old_while_the_answer_is_kept_opens_nothing(
        bundle: Bundle, opening: list[DecisionInputs], monkeypatch: pytest.MonkeyPatch) -> None:
    app, clock = served(bundle)
    body = json.dumps(request_of(bundle, at(opening[0], OPEN_NS))).encode()
    settle = app.state.service.idempotency.settle

    async def slow(*given: Any) -> Any:
        clock.now = OPEN_NS + 61 * SECOND
        return await settle(*given)

    monkeypatch.setattr(app.state.service.idempotency, "settle", slow)
    assert asked_raw(app, body)[0] == 503
    assert asked_raw(app, body)[1]["reason"] == "STALE_DATA"


def test_a_decision_whose_caller_has_gone_is_told_as_it_may_be_repeated(
        bundle: Bundle, opening: list[DecisionInputs], monkeypatch: pytest.MonkeyPatch) -> None:
    app, _ = served(bundle)
    service = app.state.service
    body = json.dumps(request_of(bundle, at(opening[0], OPEN_NS))).encode()
    settle, before = service.idempotency.settle, service.decisions

    async def gone(*given: Any) -> Any:
        await settle(*given)
        raise asyncio.CancelledError

    with monkeypatch.context() as patch:
        patch.setattr(service.idempotency, "settle", gone)
        with pytest.raises(asyncio.CancelledError):
            asked_raw(app, body)
    assert service.decisions == before + 1
    assert asked_raw(app, body)[1]["reason"] == "EXECUTE"
    assert service.decisions == before + 1  # the stored answer, told already


def test_a_switch_thrown_between_two_passes_counts_for_the_first_rows_too(
        bundle: Bundle, opening: list[DecisionInputs], monkeypatch: pytest.MonkeyPatch) -> None:
    app, _ = served(bundle, batch_pass_rows=2)
    service = app.state.service
    held = dataclasses.replace(opening[0], account=accounts(serving_table(), rows(serving_table(), 1)[0])[1])
    asked = [at(one, OPEN_NS) for one in (opening[0], held, opening[1], opening[0])]
    body = body_of(bundle, asked)
    decider, passes = service.champion.decider, []
    decide_batch = decider.decide_batch

    def spied(inputs: BatchInputs, *more: Any) -> Any:
        passes.append(len(inputs))
        decided = decide_batch(inputs, *more)
        if len(passes) == 1:
            thrown(service)
        return decided

    monkeypatch.setattr(decider, "decide_batch", spied)
    answer = json.loads(bytes(asyncio.run(service.decide_batch(body, "application/json", Call("t"))).body))
    assert passes == [2]
    refused = [row for place, row in enumerate(answer["rows"]) if place != 1]
    assert [row["reason"] for row in refused] == ["KILL_SWITCH"] * 3
    assert [(row["verdict"], row["confidence"], row["direction"]) for row in refused] == [("REJECT", 0.0, 0)] * 3
    assert answer["rows"][1]["reason"] in ("KILL_SWITCH", "CLOSE")


def test_a_position_that_the_team_turns_round_is_closed_while_the_switch_is_thrown(bundle: Bundle) -> None:
    """Alone, in a batch and as Arrow; it was refused whole, and kept."""
    app, _ = served(bundle)
    client, table = client_of(app), serving_table()
    policy = BundlePolicy(bundle, table)
    asked = [at(policy.inputs(row, account), OPEN_NS) for row in rows(table, 20)
             for account in accounts(table, row)]

    def decided(one: DecisionInputs) -> tuple[str, int, float]:
        answer = client.post("/v1/decide", json=request_of(bundle, one)).json()
        return answer["reason"], answer["direction"], answer["confidence"]

    teams = [decided(one) for one in asked]
    thrown(app.state.service)
    expected, turned = [], 0
    for one, (reason, direction, _) in zip(asked, teams, strict=True):
        turns = reason == "EXECUTE" and float(one.account["position"]) * direction < 0.0
        closes = turns or (reason == "CLOSE" and float(one.account["position"]) != 0.0)
        expected.append("CLOSE" if closes else "KILL_SWITCH")
        turned += turns
    assert turned > 5
    assert [decided(one)[0] for one in asked] == expected
    answer = client.post("/v1/decide/batch", content=body_of(bundle, asked)).json()
    assert [row["reason"] for row in answer["rows"]] == expected
    sent = encode(table_of(BatchInputs.of(asked, np.stack([one.regime for one in asked])), bundle))
    got = client.post("/v1/decide/batch", content=sent, headers={"content-type": MEDIA_TYPE}).content
    assert pa.ipc.open_stream(got).read_all()["reason"].to_pylist() == expected
