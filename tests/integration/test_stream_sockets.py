"""A hundred users at once on the page's stream: real WebSockets, through the whole application under uvicorn."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect

from serving.app import create_app
from serving.client import request_of
from serving.policy import BundlePolicy
from serving.service import AppSettings
from tests.page_browser import Server, Table
from tests.serving_market import accounts, random_bundle, rows, serving_table

USERS, EVENTS, DECISIONS = 100, 150, 10
VIEWER, TRADER = ({"Authorization": f"Bearer {role}-token-long-enough"} for role in ("viewer", "trader"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    bundle = random_bundle(tmp_path_factory.mktemp("sockets") / "bundle")
    made = Server(create_app(bundle, AppSettings(), Table()))
    made.start()
    yield made
    made.stop()


async def read_until(socket: ClientConnection, last: dict[str, Any]) -> list[dict[str, Any]]:
    """Messages up to the event that `last` is the data of, heartbeats left out."""
    seen: list[dict[str, Any]] = []
    while not seen or seen[-1].get("data") != last:
        message = json.loads(await socket.recv())
        if message["type"] != "heartbeat":
            seen.append(message)
    return seen


def test_a_hundred_sockets_get_every_event_in_order_while_the_service_decides(server: Server) -> None:
    service = server.app.state.service
    bundle, table = service.champion.bundle, serving_table()
    policy, last = BundlePolicy(bundle, table), {"n": EVENTS}
    bodies = [request_of(bundle, policy.inputs(row, accounts(table, row)[0])) for row in rows(table, DECISIONS)]
    address = f"ws://127.0.0.1:{server.port}/v1/stream"

    async def decide() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=server.url, headers=TRADER) as client:
            return [await client.post("/v1/decide", json=body) for body in bodies]

    async def play() -> tuple[list[list[dict[str, Any]]], list[httpx.Response]]:
        sockets = await asyncio.gather(*(connect(address, additional_headers=VIEWER, open_timeout=60)
                                         for _ in range(USERS)))
        snapshots = [json.loads(await socket.recv()) for socket in sockets]
        assert {(s["type"], s["seq"]) for s in snapshots} == {("snapshot", service.hub.log.seq)}
        assert len(service.hub.clients) == USERS
        readers = [asyncio.create_task(read_until(socket, last)) for socket in sockets]
        deciding = asyncio.create_task(decide())
        for n in range(1, EVENTS):
            service.hub.publish("trade", {"n": n})
            await asyncio.sleep(0.002)
        answers = await deciding
        await asyncio.sleep(0.1)  # the last decision is told behind its answer
        service.hub.publish("trade", last)
        async with asyncio.timeout(60):
            seen = await asyncio.gather(*readers)
        for socket in sockets:
            await socket.close()
        async with asyncio.timeout(30):
            while service.hub.clients:  # the server notices that they have left
                await asyncio.sleep(0.02)
        return seen, answers

    first = service.hub.log.seq + 1
    seen, answers = asyncio.run(play())
    told = [{"type": "delta", "seq": e.seq, "topic": e.topic, "ts_ns": e.ts_ns, "data": e.data}
            for e in service.hub.log.after(first - 1, 10_000)]
    sent = json.loads(json.dumps(told))  # tuples are lists on the wire
    assert [event["seq"] for event in sent] == list(range(first, first + len(sent)))
    assert [event["data"]["n"] for event in sent if event["topic"] == "trade"] == list(range(1, EVENTS + 1))
    assert [answer.status_code for answer in answers] == [200] * DECISIONS
    assert [event["data"]["trace_id"] for event in sent if event["topic"] == "decision"] == [
        answer.json()["trace_id"] for answer in answers]
    assert len(seen) == USERS
    for messages in seen:
        assert messages == sent
    assert service.hub.slow_clients == 0
