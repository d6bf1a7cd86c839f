"""What must hold before a position is opened: alone, in a batch and as Arrow the same answer, and what is refused
costs no pass of the model."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from algospace.execution.decision import Reason
from algospace.execution.preconditions import FORBIDDING
from algospace.types import MINUTE_NS
from serving.app import create_app
from serving.auth import StaticToken, token_digest
from serving.batch import BatchInputs
from serving.batch_arrow import MEDIA_TYPE, encode, table_of
from serving.bundle import Bundle
from serving.client import request_of, row_of
from serving.conditions import PreconditionsSettings, Watch
from serving.decider import DecisionInputs
from serving.kill_switch import SwitchState
from serving.limits import LimitsSettings
from serving.policy import BundlePolicy
from serving.service import AppSettings, Service
from tests.serving_market import accounts, random_bundle, rows, serving_table

TOKEN = "a-token-of-enough-length"
OPEN_NS = 1_789_999_200_000_000_000   # Monday 2026-09-21, 14:00 UTC: a CME trading hour
CLOSED_NS = OPEN_NS + 2 * 24 * 3600 * 10**9 + 7 * 3600 * 10**9 + 30 * MINUTE_NS  # a daily break, 21:30 UTC
SECOND = 10**9


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return random_bundle(tmp_path_factory.mktemp("conditions") / "bundle")


@pytest.fixture(scope="module")
def wanted(bundle: Bundle) -> list[DecisionInputs]:
    """Decisions of every account, whose regime is given as a window: a window costs a run of the RDE."""
    table = serving_table()
    policy = BundlePolicy(bundle, table)
    found = []
    for row in rows(table, 6):
        slow, width = int(table.row_30m[row]), table.schema.regime.window
        window = np.ascontiguousarray(table.regime[slow - width + 1:slow + 1])
        found += [dataclasses.replace(policy.inputs(row, account), regime=window)
                  for account in accounts(table, row)]
    return found


class Clock:
    now = OPEN_NS


@pytest.fixture(scope="module")
def client(bundle: Bundle) -> TestClient:
    app = create_app(bundle, AppSettings(
        preconditions=PreconditionsSettings(max_age_s=60.0, trading_hours=True),
        service=LimitsSettings(deadline_ms=60_000, batch_pass_rows=5)), StaticToken(token_digest(TOKEN)))
    client = TestClient(app, headers={"Authorization": f"Bearer {TOKEN}"})
    service = service_of(client)
    service.watch._now_ns = lambda: Clock.now
    service.champion.decider.heads._bias[3, 2] = 0.5  # random weights never want to close
    return client


def service_of(client: TestClient) -> Service:
    found: Service = client.app.state.service  # type: ignore[attr-defined]
    return found


def at(one: DecisionInputs, ts_close_ns: int | None) -> DecisionInputs:
    return dataclasses.replace(one, market=dataclasses.replace(one.market, ts_close_ns=ts_close_ns))


def alone(client: TestClient, bundle: Bundle, asked: list[DecisionInputs]) -> list[dict[str, Any]]:
    answers = [client.post("/v1/decide", json=request_of(bundle, one)) for one in asked]
    assert {answer.status_code for answer in answers} == {200}
    return [answer.json() for answer in answers]


def batch(client: TestClient, bundle: Bundle, asked: list[DecisionInputs]) -> list[dict[str, Any]]:
    body = {"schema_hash": bundle.manifest.schema_hash, "rows": [row_of(one) for one in asked]}
    answer = client.post("/v1/decide/batch", json=body).json()
    assert answer["decided"] == len(asked)
    found: list[dict[str, Any]] = answer["rows"]
    return found


def arrow(client: TestClient, bundle: Bundle, asked: list[DecisionInputs]) -> list[dict[str, Any]]:
    table = table_of(BatchInputs.of(asked, np.stack([one.regime for one in asked])), bundle)
    answer = client.post("/v1/decide/batch", content=encode(table), headers={"content-type": MEDIA_TYPE})
    found: list[dict[str, Any]] = pa.ipc.open_stream(answer.content).read_all().to_pylist()
    return found


def closes(one: DecisionInputs, team: dict[str, Any]) -> bool:
    """Whether the team's answer closes the position, to turn it round or not."""
    held = float(one.account["position"])
    return held != 0.0 and (team["reason"] == "CLOSE" or (
        team["reason"] == "EXECUTE" and held * team["direction"] < 0.0))


def killed(service: Service, thrown: bool) -> None:
    service.kill.state = SwitchState(thrown=thrown)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(thrown=st.booleans(), closed=st.booleans(),
       ages=st.lists(st.sampled_from([0, 59, 60, 61, -59, -61, 10**6]), min_size=24, max_size=24))
def test_the_same_answer_alone_in_a_batch_and_as_arrow(
        client: TestClient, bundle: Bundle, wanted: list[DecisionInputs], thrown: bool, closed: bool,
        ages: list[int]) -> None:
    service = service_of(client)
    killed(service, False)
    Clock.now = OPEN_NS
    free = alone(client, bundle, [at(one, OPEN_NS) for one in wanted])
    Clock.now = CLOSED_NS if closed else OPEN_NS
    killed(service, thrown)
    asked = [at(one, Clock.now - age * SECOND) for one, age in zip(wanted, ages, strict=True)]
    single, together, table = (ask(client, bundle, asked) for ask in (alone, batch, arrow))
    for place, (one, age) in enumerate(zip(asked, ages, strict=True)):
        why = ("KILL_SWITCH" if thrown else "STALE_DATA" if abs(age) > 60 else
               "OUT_OF_SESSION" if closed else None)
        held, team = float(one.account["position"]) != 0.0, free[place]
        reason = team["reason"] if why is None else "CLOSE" if closes(one, team) else why
        answers = single[place], together[place], table[place]
        assert [a["reason"] for a in answers] == [reason] * 3
        assert [a["direction"] for a in answers] == [0 if why and not held else team["direction"]] * 3
        confidence = 0.0 if why and not held else team["confidence"]
        assert [a["confidence"] for a in answers] == pytest.approx([confidence] * 3, abs=1e-6)
        assert single[place]["proposal"] == together[place]["proposal"]
        assert {a["verdict"] for a in answers} == {reason if reason in ("EXECUTE", "CLOSE") else "REJECT"}


def test_some_positions_are_closed_while_the_switch_is_thrown(client: TestClient, bundle: Bundle,
                                                              wanted: list[DecisionInputs]) -> None:
    """Else the property above would say nothing of it."""
    Clock.now = OPEN_NS
    service = service_of(client)
    killed(service, False)
    free = alone(client, bundle, [at(one, OPEN_NS) for one in wanted])
    killed(service, True)
    found = alone(client, bundle, [at(one, OPEN_NS) for one in wanted])
    assert {"EXECUTE", "CLOSE"} <= {answer["reason"] for answer in free}
    assert {answer["reason"] for answer in found} == {"CLOSE", "KILL_SWITCH"}


@pytest.mark.parametrize(("thrown", "now", "age", "reason"), [
    (True, OPEN_NS, 0, "KILL_SWITCH"), (False, OPEN_NS, 61, "STALE_DATA"),
    (False, CLOSED_NS, 0, "OUT_OF_SESSION")])
def test_what_is_refused_costs_no_pass_of_the_model(client: TestClient, bundle: Bundle,
                                                    wanted: list[DecisionInputs], monkeypatch: pytest.MonkeyPatch,
                                                    thrown: bool, now: int, age: int, reason: str) -> None:
    service = service_of(client)
    killed(service, thrown)
    Clock.now = now
    offered: list[Any] = []

    class Shadow:
        failures, error = 0, None

        def offer(self, *offer: Any) -> None:
            offered.append(offer)

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("the model was asked")

    monkeypatch.setattr(service.life, "_runner", Shadow())
    decider = service.champion.decider
    monkeypatch.setattr(decider.backend, "infer", never)
    monkeypatch.setattr(decider.heads, "votes", never)
    monkeypatch.setattr(decider, "_regimes", type(decider._regimes)())  # no regime is remembered either
    flat = [at(one, now - age * SECOND) for one in wanted if one.account["position"] == 0.0]
    service.hub.log.state.decisions.clear()
    for ask in (alone, batch, arrow):
        assert {answer["reason"] for answer in ask(client, bundle, flat)} == {reason}
    told = [event.data for event in service.hub.log.state.decisions]
    assert {data["reason"] for data in told} == {reason}
    assert len(told) == 3 * len(flat)
    assert {data["regime"] for data in told} == {None}
    assert offered == []  # the shadow knows no conditions: it would disagree
    killed(service, False)


def test_a_repeated_key_gets_no_answer_from_before_the_switch_was_thrown(
        client: TestClient, bundle: Bundle, wanted: list[DecisionInputs]) -> None:
    service = service_of(client)
    killed(service, False)
    Clock.now = OPEN_NS
    flat = [at(one, OPEN_NS) for one in wanted if one.account["position"] == 0.0]
    bodies = [request_of(bundle, one) for one in flat]

    def asked(body: dict[str, Any]) -> tuple[str, str | None]:
        answer = client.post("/v1/decide", json=body, headers={"Idempotency-Key": "mine"})
        return answer.json()["reason"], answer.headers.get("idempotent-replayed")

    body = next(body for body in bodies if client.post("/v1/decide", json=body).json()["reason"] == "EXECUTE")
    assert [asked(body), asked(body)] == [("EXECUTE", None), ("EXECUTE", "true")]
    service.kill.adopt(SwitchState(True, 1, "ann", "odd fills"))
    assert [asked(body), asked(body)] == [("KILL_SWITCH", None), ("KILL_SWITCH", "true")]
    service.kill.adopt(SwitchState(False, 2, "bob", "right again"))
    assert asked(body) == ("EXECUTE", None)


def test_features_of_another_schema_are_refused_for_that_reason(client: TestClient, bundle: Bundle,
                                                                wanted: list[DecisionInputs]) -> None:
    def counted() -> float:
        (line,) = (line for line in client.get("/v1/metrics").text.splitlines()
                   if line.startswith("algospace_decisions_total") and "SCHEMA_MISMATCH" in line)
        return float(line.rsplit(" ", 1)[1])

    body = request_of(bundle, at(wanted[0], OPEN_NS)) | {"schema_hash": "0" * 64}
    rows_ = {"schema_hash": "0" * 64, "rows": [row_of(wanted[0])]}
    for path, asked in (("/v1/decide", body), ("/v1/decide/batch", rows_)):
        before = counted()
        answer = client.post(path, json=asked)
        assert answer.status_code == 409
        assert (answer.json()["verdict"], answer.json()["reason"]) == ("REJECT", "SCHEMA_MISMATCH")
        assert answer.json()["detail"][0]["loc"] == ["body", "schema_hash"]
        assert counted() == before + 1


def test_a_request_says_when_its_bar_closed_where_that_matters(client: TestClient, bundle: Bundle,
                                                               wanted: list[DecisionInputs]) -> None:
    killed(service_of(client), False)
    Clock.now = OPEN_NS
    untold = at(wanted[0], None)
    answer = client.post("/v1/decide", json=request_of(bundle, untold))
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "market", "ts_close_ns"]
    mixed = [row_of(untold), row_of(at(wanted[0], OPEN_NS))]
    both = client.post("/v1/decide/batch", json={"schema_hash": bundle.manifest.schema_hash, "rows": mixed}).json()
    assert both["decided"] == 1
    assert both["rows"][0]["errors"][0]["loc"] == ["body", "market", "ts_close_ns"]
    table = table_of(BatchInputs.of([untold], untold.regime[None]), bundle)
    lacking = client.post("/v1/decide/batch", content=encode(table), headers={"content-type": MEDIA_TYPE})
    assert lacking.status_code == 422
    assert "ts_close_ns" in lacking.json()["detail"][0]["msg"]
    negative = table_of(BatchInputs.of([at(wanted[0], OPEN_NS)], untold.regime[None]), bundle)
    place = negative.schema.get_field_index("ts_close_ns")
    negative = negative.set_column(place, negative.schema.field(place), pa.array([-1], pa.int64()))
    found = client.post("/v1/decide/batch", content=encode(negative), headers={"content-type": MEDIA_TYPE})
    assert "out of range" in pa.ipc.open_stream(found.content).read_all()["error"][0].as_py()


def test_by_default_a_replay_is_decided_however_old_it_is(bundle: Bundle, wanted: list[DecisionInputs]) -> None:
    service = Service(bundle, AppSettings())
    for told in (None, 1, OPEN_NS):
        one = at(wanted[0], told)
        assert service.watch.ruling(told) is None
        assert Reason(service.answer(request_of(bundle, one))[1]["reason"]) not in FORBIDDING


def test_trading_hours_are_the_instruments(bundle: Bundle) -> None:
    """CME in September, UTC: Sunday 22:00 to Friday 21:00, an hour's break at 21:00."""
    now = [0]
    watch = Watch(PreconditionsSettings(trading_hours=True), bundle.instrument.session, lambda: False,
                  lambda: now[0])
    monday = OPEN_NS - 14 * 3600 * SECOND
    for day, hour, minute, is_open in ((0, 0, 0, True), (0, 20, 59, True), (0, 21, 0, False), (0, 21, 59, False),
                                       (0, 22, 0, True), (4, 20, 59, True), (4, 21, 0, False), (4, 22, 30, False),
                                       (5, 12, 0, False), (6, 21, 59, False), (6, 22, 0, True)):
        now[0] = monday + ((day * 24 + hour) * 60 + minute) * MINUTE_NS
        found = watch.ruling(None)
        assert (found is None) == is_open, time.ctime(now[0] / 1e9)
        assert found is None or found.why is Reason.OUT_OF_SESSION
