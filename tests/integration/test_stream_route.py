"""WS /v1/stream: snapshot, deltas, resume, heartbeats, many clients, and what a slow one is told."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import ValidationError
from starlette.websockets import WebSocketDisconnect

from algospace.errors import InternalError
from serving.client import request_of
from serving.policy import BundlePolicy
from serving.routes import stream
from serving.service import AppSettings, Service
from serving.stream import Slow, StreamHub, StreamSettings
from tests.serving_market import accounts, random_bundle, rows, serving_table

QUICK = StreamSettings(ring=64, queue=32, recent=10, heartbeat_s=0.2)


def app_of(hub: StreamHub) -> FastAPI:
    """The stream alone, without the guard, which is tested elsewhere."""
    app = FastAPI()
    stream.add_routes(app, SimpleNamespace(hub=hub))  # type: ignore[arg-type]
    return app


def decision(n: int) -> dict[str, Any]:
    return {"n": n, "instrument": "ES", "price": 1.0, "regime": [0.5]}


@pytest.fixture
def client() -> Iterator[TestClient]:
    hub = StreamHub(QUICK)
    with TestClient(app_of(hub)) as made:
        made.hub = hub  # type: ignore[attr-defined]
        yield made


def test_a_snapshot_then_every_delta(client: TestClient) -> None:
    hub: StreamHub = client.hub  # type: ignore[attr-defined]
    for n in range(1, 15):
        hub.publish("decision", decision(n))
    hub.publish("latency", {"p50_ms": 1.0})
    with client.websocket_connect("/v1/stream") as socket:
        first = socket.receive_json()
        assert (first["type"], first["stream"], first["seq"]) == ("snapshot", hub.log.stream, 15)
        assert set(first["state"]) == {"model", "decisions", "regime", "shadow", "latency", "kill"}
        assert [d["n"] for d in first["state"]["decisions"]] == list(range(5, 15))
        assert first["state"]["regime"] == [0.5]
        assert first["state"]["latency"] == {"p50_ms": 1.0}
        before = time.time_ns()
        hub.publish("trade", {"side": "long"})
        delta = next(m for m in iter(socket.receive_json, None) if m["type"] == "delta")
        assert before <= delta.pop("ts_ns") <= time.time_ns()
        assert delta == {"type": "delta", "seq": 16, "topic": "trade", "data": {"side": "long"}}


def test_an_idle_client_hears_the_heart(client: TestClient) -> None:
    with client.websocket_connect("/v1/stream") as socket:
        socket.receive_json()
        assert [socket.receive_json() for _ in range(2)] == [{"type": "heartbeat", "seq": 0}] * 2


def test_there_is_one_heart_however_often_the_only_client_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    beats: list[float] = []
    beat = StreamHub._beat
    monkeypatch.setattr(StreamHub, "_beat", lambda hub, loop: (beats.append(time.monotonic()), beat(hub, loop)))

    async def play() -> None:
        hub = StreamHub(QUICK)
        client = hub.subscribe()
        for _ in range(20):
            client.close()
            client = hub.subscribe()
        await asyncio.sleep(5.5 * QUICK.heartbeat_s)
        assert 1 <= len(beats) <= 5
        client.close()
        await asyncio.sleep(1.5 * QUICK.heartbeat_s)
        beats.clear()
        await asyncio.sleep(1.5 * QUICK.heartbeat_s)
        assert not beats  # nobody listens
        hub.subscribe()
        await asyncio.sleep(1.5 * QUICK.heartbeat_s)
        assert beats

    asyncio.run(play())


def test_a_client_resumes_where_it_stopped(client: TestClient) -> None:
    hub: StreamHub = client.hub  # type: ignore[attr-defined]
    for n in range(1, 51):
        hub.publish("decision", decision(n))
    with client.websocket_connect(f"/v1/stream?stream={hub.log.stream}&seq=20") as socket:
        assert [socket.receive_json()["seq"] for _ in range(30)] == list(range(21, 51))
    for query in ("?stream=another&seq=20", f"?stream={hub.log.stream}&seq=99", f"?stream={hub.log.stream}",
                  f"?stream={hub.log.stream}&seq=-1", f"?stream={hub.log.stream}&seq=x", "?seq=20",
                  f"?stream={hub.log.stream}&seq={'9' * 40}"):
        with client.websocket_connect(f"/v1/stream{query}") as socket:
            assert socket.receive_json()["type"] == "snapshot"
    for n in range(51, 100):
        hub.publish("decision", decision(n))
    with client.websocket_connect(f"/v1/stream?stream={hub.log.stream}&seq=20") as socket:
        assert socket.receive_json()["type"] == "snapshot"  # 21 is not kept any more


def test_a_client_that_talks_is_sent_away(client: TestClient) -> None:
    with client.websocket_connect("/v1/stream", subprotocols=["algospace", "bearer.x"]) as socket:
        assert socket.accepted_subprotocol == "algospace"
        socket.receive_json()
        socket.send_text("hello")
        with pytest.raises(WebSocketDisconnect) as closed:
            list(itertools.islice(iter(socket.receive_json, None), 100))
    assert closed.value.code == 1008
    assert not client.hub.clients  # type: ignore[attr-defined]


def test_a_slow_client_is_closed_and_resumes() -> None:
    """Over ASGI directly: a client whose socket takes nothing after the first message."""
    sent: list[dict[str, Any]] = []

    async def play() -> StreamHub:
        hub = StreamHub(QUICK)
        blocked, gone = asyncio.Event(), asyncio.Event()

        async def receive() -> dict[str, Any]:
            if not sent:
                return {"type": "websocket.connect"}
            await gone.wait()
            return {"type": "websocket.disconnect", "code": 1006}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)
            if len(sent) == 4:
                blocked.set()
                await asyncio.Event().wait()  # the peer reads no more

        scope = {"type": "websocket", "path": "/v1/stream", "query_string": b"", "headers": [],
                 "subprotocols": [], "root_path": "", "state": {}}
        served = asyncio.ensure_future(app_of(hub)(scope, receive, send))
        n = 0
        while not served.done():
            n += 1
            hub.publish("decision", decision(n))
            await asyncio.sleep(0)
            assert n < 200
        await served
        assert blocked.is_set()
        return hub

    hub = asyncio.run(play())
    assert sent[-1]["type"] == "websocket.close"
    assert sent[-1]["code"] == 1013
    assert hub.slow_clients == 1
    assert not hub.clients
    last = json.loads(sent[2]["text"])["seq"]
    assert hub.log.holds_after(last)


def test_a_hundred_clients_at_once() -> None:
    async def reader(hub: StreamHub, last: int) -> list[int]:
        client, seen = hub.subscribe(), []
        while not seen or seen[-1] < last:
            seen += [json.loads(text)["seq"] for text in await client.next()]
        client.close()
        return seen

    async def play() -> None:
        counts: list[int] = []
        hub = StreamHub(StreamSettings())
        hub.on_clients = counts.append
        tasks = [asyncio.ensure_future(reader(hub, 300)) for _ in range(100)]
        for n in range(1, 301):
            hub.publish("decision", decision(n))
            if n % 7 == 0:
                await asyncio.sleep(0)
        for seen in await asyncio.gather(*tasks):
            assert seen == list(range(seen[0], 301))
        assert max(counts) == 100
        assert counts[-1] == 0

    asyncio.run(play())


def test_there_is_room_for_so_many_clients() -> None:
    async def play() -> None:
        hub = StreamHub(StreamSettings(max_clients=2))
        first, _ = hub.subscribe(), hub.subscribe()
        with pytest.raises(Slow):
            hub.subscribe()
        first.close()
        hub.subscribe()

    asyncio.run(play())


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InternalError, match="no topic 'gossip'"):
        StreamHub(QUICK).publish("gossip", {})
    with pytest.raises(ValidationError, match="longer than ring"):
        StreamSettings(ring=10, queue=11)


def test_publishing_is_cheap_and_behind_the_answer(tmp_path: Path) -> None:
    """CPU time, so that a busy machine does not matter; with a hundred clients that wait."""
    service = Service(random_bundle(tmp_path / "bundle"), AppSettings())
    table = serving_table()
    policy = BundlePolicy(service.champion.bundle, table)
    row = rows(table)[0]
    last = int(table.row_30m[row]) + 1
    window = table.regime[last - table.schema.regime.window:last]  # the dearer form of a request
    vector = policy.inputs(row, accounts(table, row)[1]).regime.tolist()
    inputs = dataclasses.replace(policy.inputs(row, accounts(table, row)[1]), regime=window)
    status, answer = service.answer(request_of(service.champion.bundle, inputs, "t-1"))
    assert status == 200
    (told,) = [e for e in service.hub.log.after(0, 99) if e.topic == "decision"]
    shared = set(answer) - {"proposal", "votes"}
    assert {name: told.data[name] for name in shared} == {name: answer[name] for name in shared}
    assert told.data["price"] == inputs.market.close
    assert told.data["regime"] == pytest.approx(vector, abs=1e-5)
    assert json.loads(told.text)["data"]["votes"] == answer["votes"]

    async def play() -> float:
        clients = [service.hub.subscribe() for _ in range(100)]
        decision_, model = policy.decide(row, accounts(table, row)[1]), service.champion
        best = float("inf")
        for _ in range(20):
            started = time.thread_time_ns()
            for _ in range(50):
                service.life.decided(model, inputs, decision_, "t", 1.0)
            best = min(best, (time.thread_time_ns() - started) / 50)
            await asyncio.sleep(0)
        for client in clients:
            client.close()
        return best

    nanoseconds = asyncio.run(play())
    print(f"publishing a decision: {nanoseconds / 1000:.1f} us")
    assert nanoseconds < 50_000
