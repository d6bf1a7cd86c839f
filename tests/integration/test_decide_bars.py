"""Decisions from raw bars are answered as all others are: key, deadline, trace, figures, stream, faults."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from jsonschema import Draft202012Validator

from algospace.instruments import AROUND_THE_CLOCK, Session
from algospace.marketdata.catalog import Catalog
from algospace.marketdata.synthetic import generate, scenario_named
from algospace.types import Bars
from serving.aliases import ModelRef
from serving.app import create_app
from serving.auth import StaticToken, token_digest
from serving.bundle import Bundle
from serving.client import AsyncClient, Client
from serving.conditions import PreconditionsSettings, Watch
from serving.feature_state import FeatureSettings, FeatureStates
from serving.kill_switch import SwitchState
from serving.schemas import BarsResponse
from serving.service import AppSettings, Service
from tests.feature_bundle import bars_bundle

TOKEN = "a-token-of-enough-length"
BARS, HELD = 4000, 3940
ACCOUNT = {"position": 0.0, "equity": 100_000.0, "day_start": 100_000.0}
PATH = "/v1/decide/bars"


@pytest.fixture(scope="module")
def bars() -> Bars:
    return generate(scenario_named("easy"), 701, BARS).bars


@pytest.fixture(scope="module")
def bundle(bars: Bars, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bars_bundle(bars, tmp_path_factory.mktemp("bundle") / "bundle")


@pytest.fixture(scope="module")
def settings(bars: Bars, tmp_path_factory: pytest.TempPathFactory) -> AppSettings:
    folder = tmp_path_factory.mktemp("catalog")
    Catalog(folder).write("SYNTH", bars.slice(0, HELD))
    return AppSettings(features=FeatureSettings(catalog=folder))


@pytest.fixture(scope="module")
def app(bundle: Bundle, settings: AppSettings) -> Any:
    return create_app(bundle, settings, StaticToken(token_digest(TOKEN)))


@pytest.fixture
def client(app: Any) -> TestClient:
    client = TestClient(app, headers={"Authorization": f"Bearer {TOKEN}"})
    client.get("/v1/state").raise_for_status()  # builds the first state, behind no deadline
    return client


@pytest.fixture
def service(app: Any) -> Service:
    found: Service = app.state.service
    return found


def bar(bars: Bars, n: int) -> dict[str, Any]:
    return {"ts_open": int(bars.ts_open[n]), **{name: float(getattr(bars, name)[n])
                                                for name in ("open", "high", "low", "close", "volume")}}


@pytest.fixture
def body(client: TestClient, bars: Bars) -> dict[str, Any]:
    return {"state_id": client.get("/v1/state").json()["state_id"], "account": ACCOUNT, "seed": 5,
            "bars": [bar(bars, n) for n in range(HELD, BARS)]}


def test_another_schemas_champion_decides_on_no_features_of_ours(bundle: Bundle, settings: AppSettings, bars: Bars,
                                                                 tmp_path: Path) -> None:
    """A deployment of another bundle makes it everybody's champion while the old replicas still answer."""
    app = create_app(bundle, settings, StaticToken(token_digest(TOKEN)))
    client, service = TestClient(app, headers={"Authorization": f"Bearer {TOKEN}"}), app.state.service
    asked = {"state_id": client.get("/v1/state").json()["state_id"], "account": ACCOUNT,
             "bars": [bar(bars, n) for n in range(HELD, BARS)]}
    assert client.post(PATH, json=asked).status_code == 200
    other = bars_bundle(bars.slice(0, 3000), tmp_path / "other", seed=2)
    ref = ModelRef(other.id, str(other.directory), "config")
    asyncio.run(service.life.follow(service.life.aliases.promote(ref)))
    answer = client.post(PATH, json=asked)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "another schema" in answer.json()["detail"]


def test_a_key_is_answered_once_and_bars_are_never_taken_twice(
        client: TestClient, service: Service, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    reached: list[str] = []
    advance = FeatureStates.advance

    def counted(self: FeatureStates, state: Any, given: Bars) -> Any:
        reached.append(state.id)
        return advance(self, state, given)

    monkeypatch.setattr(FeatureStates, "advance", counted)
    key = {"Idempotency-Key": "bars-1"}
    before = service.decisions
    first = client.post(PATH, json=body, headers=key)
    assert first.status_code == 200
    assert first.json()["decision"] is not None
    again = client.post(PATH, json=body, headers=key)
    assert again.headers["idempotent-replayed"] == "true"
    assert again.content == first.content  # latency and trace id too: the stored answer
    assert again.headers["x-trace-id"] == first.headers["x-trace-id"]
    assert (len(reached), service.decisions) == (1, before + 1)
    assert client.post(PATH, json=body | {"seed": 6}, headers=key).status_code == 409
    # without a key: worked on again, and the state is the same one
    unkeyed = client.post(PATH, json=body)
    assert len(reached) == 2
    assert unkeyed.json()["state_id"] == first.json()["state_id"]
    # the bars of a state are behind it: taking them once more is refused
    twice = client.post(PATH, json=body | {"state_id": first.json()["state_id"]})
    assert twice.status_code == 422
    assert "the state holds all until" in twice.json()["detail"][0]["msg"]


def test_both_clients_decide_from_bars(app: Any, client: TestClient, body: dict[str, Any]) -> None:
    expected = client.post(PATH, json=body).json()

    async def play() -> list[BarsResponse]:
        async with AsyncClient("http://service", TOKEN, transport=httpx.ASGITransport(app)) as theirs:
            first = await theirs.decide_bars(body, key="both")
            return [first, await theirs.decide_bars(body, key="both")]

    class Through(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            answer = client.post(request.url.path, content=request.read(), headers=dict(request.headers))
            return httpx.Response(answer.status_code, content=answer.content)

    for found in (*asyncio.run(play()), Client("http://service", TOKEN, transport=Through()).decide_bars(body)):
        assert found.decision is not None
        assert (found.state_id, found.decision.reason, found.decision.confidence) == (
            expected["state_id"], expected["decision"]["reason"], expected["decision"]["confidence"])


def test_past_its_deadline_no_decision_is_given_and_a_retry_succeeds(
        client: TestClient, service: Service, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    go, advance = threading.Event(), FeatureStates.advance

    def slow(self: FeatureStates, state: Any, given: Bars) -> Any:
        assert go.wait(60)
        return advance(self, state, given)

    monkeypatch.setattr(FeatureStates, "advance", slow)
    key, before = {"Idempotency-Key": "slow"}, service.decisions
    began = time.monotonic()
    late = client.post(PATH, json=body, headers=key | {"x-deadline-ms": "100"})
    assert time.monotonic() - began < 5.0  # it did not wait for the thread
    assert (late.status_code, late.headers["retry-after"]) == (503, "1")
    assert "deadline of 100 ms" in late.json()["detail"]
    assert service.decisions == before
    go.set()
    assert client.post(PATH, json=body, headers=key).status_code == 200  # the key is free again
    old = client.post(PATH, json=body, headers={"x-request-start": f"{(time.time() - 5) * 1e3:.0f}"})
    assert old.status_code == 503
    assert "waited" in old.json()["detail"]


def test_a_repetition_while_the_first_is_worked_on_gets_the_same_answer(
        client: TestClient, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go, advance = threading.Event(), threading.Event(), FeatureStates.advance

    def slow(self: FeatureStates, state: Any, given: Bars) -> Any:
        begun.set()
        assert go.wait(60)
        return advance(self, state, given)

    monkeypatch.setattr(FeatureStates, "advance", slow)
    headers = {"Idempotency-Key": "twins", "x-deadline-ms": "60000"}
    answers: list[Any] = []

    def ask() -> None:
        answers.append(client.post(PATH, json=body, headers=headers))

    with client:  # one event loop for both requests
        both = [threading.Thread(target=ask), threading.Thread(target=ask)]
        both[0].start()
        assert begun.wait(60)
        both[1].start()
        time.sleep(0.2)
        assert not answers
        go.set()
        for one in both:
            one.join(60)
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].content == answers[1].content  # latency and trace id, too
    assert sorted("idempotent-replayed" in answer.headers for answer in answers) == [False, True]


def test_trace_figures_stream_and_shadow_are_told(client: TestClient, service: Service, body: dict[str, Any],
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    offered: list[Any] = []

    class Shadow:
        failures, error = 0, None

        def offer(self, *offer: Any) -> None:
            offered.append(offer)

    monkeypatch.setattr(service.life, "_runner", Shadow())
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"

    def decisions() -> float:
        text = client.get("/v1/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in text if line.startswith("algospace_decisions_total"))

    before, told = decisions(), len(service.hub.log.state.decisions)
    answer = client.post(PATH, json=body, headers={"traceparent": f"00-{trace}-00f067aa0ba902b7-01"})
    assert answer.headers["x-trace-id"] == trace
    assert answer.headers["traceparent"].startswith(f"00-{trace}-")
    assert answer.json()["decision"]["trace_id"] == trace
    assert decisions() == before + 1
    event = service.hub.log.state.decisions[-1].data
    assert len(service.hub.log.state.decisions) == told + 1
    assert (event["trace_id"], event["reason"]) == (trace, answer.json()["decision"]["reason"])
    assert [offer[3] for offer in offered] == [trace]
    own = client.post(PATH, json=body | {"trace_id": "mine"})
    assert own.headers["x-trace-id"] == own.json()["decision"]["trace_id"] == "mine"


def test_the_body_has_a_limit_a_type_and_one_form_of_faults(client: TestClient, settings: AppSettings,
                                                            service: Service, body: dict[str, Any],
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    long = client.post(PATH, content=b" " * (settings.max_body_bytes + 1))
    assert long.status_code == 413
    assert client.post(PATH, content=b"{}", headers={"content-type": "text/csv"}).status_code == 415
    assert client.post(PATH, json=body, headers={"Idempotency-Key": "x" * 129}).status_code == 400
    assert client.post(PATH, json=body, headers={"x-deadline-ms": "soon"}).status_code == 400
    monkeypatch.setattr(service.life, "last_failure", "behind")
    assert client.post(PATH, json=body).status_code == 503  # another replica would answer otherwise
    monkeypatch.setattr(service.life, "last_failure", None)
    monkeypatch.setattr(service.champion.decider, "decide", lambda inputs: 1 / 0)
    fault = client.post(PATH, json=body)
    assert (fault.status_code, "log" in fault.json()["detail"]) == (500, True)


def test_the_description_holds_for_an_answer(client: TestClient, body: dict[str, Any]) -> None:
    document = client.get("/v1/openapi.json").json()
    operation = document["paths"][PATH]["post"]
    assert {item["name"] for item in operation["parameters"]} == {"Idempotency-Key", "x-deadline-ms",
                                                                 "x-request-start", "traceparent"}

    def fits(reference: dict[str, Any], value: Any) -> None:
        Draft202012Validator({**reference, "components": document["components"]}).validate(value)

    asked = operation["requestBody"]["content"]["application/json"]
    given = operation["responses"]["200"]["content"]["application/json"]
    fits(asked["schema"], body)
    fits(given["schema"], client.post(PATH, json=body).json())
    for content in (asked, given):
        fits(content["schema"], content["examples"]["one"]["value"])


def test_a_row_that_is_no_decision_point_says_why(tmp_path: Path, bars: Bars, bundle: Bundle) -> None:
    Catalog(tmp_path).write("SYNTH", bars.slice(0, 10))
    app = create_app(bundle, AppSettings(features=FeatureSettings(catalog=tmp_path)),
                     StaticToken(token_digest(TOKEN)))
    client = TestClient(app, headers={"Authorization": f"Bearer {TOKEN}"})
    state = client.get("/v1/state").json()
    answer = client.post(PATH, json={"state_id": state["state_id"], "bars": [bar(bars, 10)], "account": ACCOUNT})
    assert answer.status_code == 200
    assert answer.json()["decision"] is None
    assert "no decision point" in answer.json()["why"]
    assert answer.json()["through_ns"] == int(bars.ts_open[10]) + bars.width_ns
    assert app.state.service.decisions == 0


def test_what_forbids_opening_forbids_it_here_and_the_state_goes_on(
        client: TestClient, service: Service, body: dict[str, Any], bars: Bars,
        monkeypatch: pytest.MonkeyPatch) -> None:
    free = client.post(PATH, json=body).json()
    closed_ns = free["row_ts_close_ns"]

    def under(session: Any = None, now_ns: int = closed_ns, **settings: Any) -> dict[str, Any]:
        monkeypatch.setattr(service, "watch", Watch(
            PreconditionsSettings(**settings), session or service.champion.bundle.instrument.session,
            lambda: service.kill.thrown, lambda: now_ns))
        found: dict[str, Any] = client.post(PATH, json=body).json()
        assert (found["state_id"], found["row_ts_close_ns"]) == (free["state_id"], closed_ns)
        return found

    minute = 60 * 10**9
    assert under(max_age_s=60.0)["decision"]["reason"] == free["decision"]["reason"]
    assert under(max_age_s=60.0, now_ns=closed_ns + 2 * minute)["decision"]["reason"] == "STALE_DATA"
    assert under(trading_hours=True, session=AROUND_THE_CLOCK)["decision"]["reason"] == free["decision"]["reason"]
    days = {"Mon": "Tue-Tue", "Tue": "Wed-Wed"}  # any week that has no such day
    today = time.strftime("%a", time.gmtime(closed_ns / 1e9))
    never = Session("UTC", "00:00", "24:00", days.get(today, "Mon-Mon"), 0, 1)
    assert under(trading_hours=True, session=never)["decision"]["reason"] == "OUT_OF_SESSION"
    monkeypatch.setattr(service.kill, "state", SwitchState(True, 1, "ann", "odd fills"))
    monkeypatch.setattr(service.champion.decider, "decide", lambda inputs: 1 / 0)  # the model is not asked
    killed = under()["decision"]
    assert (killed["verdict"], killed["reason"], killed["direction"]) == ("REJECT", "KILL_SWITCH", 0)
    assert service.hub.log.state.decisions[-1].data["reason"] == "KILL_SWITCH"
