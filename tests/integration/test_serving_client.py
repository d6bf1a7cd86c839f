"""The typed client: what it retries and what not, batches, and a stream that comes back without gaps."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from websockets.sync.server import Server, ServerConnection, serve

from serving.app import create_app
from serving.auth import StaticToken, token_digest
from serving.batch import BatchInputs
from serving.batch_arrow import table_of
from serving.client import AsyncClient, Client, ServiceRefusal, request_of
from serving.policy import BundlePolicy
from serving.service import AppSettings
from tests.serving_market import accounts, random_bundle, rows, serving_table

TOKEN = "a-token-of-enough-length"
ANSWER = {"verdict": "REJECT", "reason": "REJECTED", "direction": 0, "confidence": 0.5,
          "votes": {"strategic": [0.2, 0.6, 0.2]}, "uncertainty": {"std": 0.1}, "model": "m", "trace_id": "t",
          "proposal": {"contracts": 0.0, "stop_distance": 0.0, "target_distance": 0.0, "limit": "NONE"},
          "latency_ms": 0.4}


class Answers(httpx.MockTransport):
    """Gives one answer after another; an exception is a broken connection."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.seen: list[httpx.Request] = []
        self._answers = iter(answers)
        super().__init__(self._next)

    def _next(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return answer


def busy() -> httpx.Response:
    return httpx.Response(503, headers={"retry-after": "0"}, json={"detail": "busy"})


def client(transport: Answers, **more: Any) -> Client:
    return Client("http://service", TOKEN, transport=transport, **more)


def test_a_broken_connection_and_a_503_are_tried_again_as_the_same_request() -> None:
    transport = Answers(httpx.ConnectError("refused"), busy(), httpx.ReadError("reset"),
                        httpx.Response(200, json=ANSWER))
    answer = client(transport).decide({"seed": 1}, deadline_ms=50)
    assert (answer.verdict, answer.confidence) == ("REJECT", 0.5)
    keys = {request.headers["idempotency-key"] for request in transport.seen}
    assert (len(transport.seen), len(keys)) == (4, 1)
    assert transport.seen[0].headers["x-deadline-ms"] == "50"
    assert transport.seen[0].headers["authorization"] == f"Bearer {TOKEN}"
    again = Answers(httpx.Response(200, json=ANSWER), httpx.Response(200, json=ANSWER))
    both = client(again)
    both.decide({})
    both.decide({}, key="mine")
    assert again.seen[0].headers["idempotency-key"] not in (*keys, "mine")
    assert again.seen[1].headers["idempotency-key"] == "mine"


def test_nothing_else_is_tried_again() -> None:
    for status in (400, 401, 409, 422, 429, 500):
        transport = Answers(httpx.Response(status, json={"detail": "no"}, headers={"x-trace-id": "t"}))
        with pytest.raises(ServiceRefusal) as refused:
            client(transport).decide({})
        assert (refused.value.status, refused.value.detail, refused.value.trace_id) == (status, "no", "t")
    transport = Answers(httpx.ReadTimeout("slow"))
    with pytest.raises(httpx.ReadTimeout):
        client(transport).decide({})
    for giving_up, kind in ((busy, ServiceRefusal), (lambda: httpx.ConnectError("x"), httpx.ConnectError)):
        transport = Answers(*(giving_up() for _ in range(5)))
        with pytest.raises(kind):
            client(transport, tries=2).decide({})
        assert len(transport.seen) == 2


def test_the_asynchronous_client_asks_the_application(tmp_path: Path) -> None:
    bundle, table = random_bundle(tmp_path / "bundle"), serving_table()
    policy = BundlePolicy(bundle, table)
    wanted = [policy.inputs(row, account) for row in rows(table, 3) for account in accounts(table, row)]
    app = create_app(bundle, AppSettings(), StaticToken(token_digest(TOKEN)))

    async def play() -> None:
        async with AsyncClient("http://service", TOKEN, transport=httpx.ASGITransport(app)) as service:
            alone = [await service.decide(request_of(bundle, one)) for one in wanted]
            batch = table_of(BatchInputs.of(wanted, np.stack([one.regime for one in wanted])), bundle)
            together = await service.decide_batch(batch)
            assert together["reason"].to_pylist() == [one.reason for one in alone]
            assert together["confidence"].to_pylist() == pytest.approx([one.confidence for one in alone], abs=1e-6)
            assert (await service.get("/v1/health"))["decisions"] == 2 * len(wanted)
            with pytest.raises(ServiceRefusal, match="404"):
                await service.get("/v1/nothing")

    asyncio.run(play())


class Stream:
    """A service that breaks the stream off after every second event."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.events = [{"type": "delta", "seq": seq, "topic": "decision", "data": {}} for seq in range(1, 7)]

    def __call__(self, connection: ServerConnection) -> None:
        path = connection.request.path if connection.request else ""
        self.asked.append(path)
        first = 0
        if "seq=" in path:
            first = int(path.split("seq=")[1])
        else:
            connection.send(json.dumps({"type": "snapshot", "stream": "s1", "seq": 0, "state": {}}))
        for event in self.events[first:first + 2]:
            connection.send(json.dumps(event))
        connection.send(json.dumps({"type": "heartbeat", "seq": first + 2}))
        connection.socket.close()


@pytest.fixture
def streaming() -> Iterator[tuple[Stream, str]]:
    stream = Stream()
    server: Server = serve(stream, "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield stream, f"http://127.0.0.1:{server.socket.getsockname()[1]}"
    server.shutdown()
    thread.join(10)


def test_the_stream_comes_back_where_it_broke(streaming: tuple[Stream, str]) -> None:
    stream, url = streaming
    seen = []
    for message in Client(url, TOKEN).stream():
        seen.append(message["seq"])
        if len(seen) == 7:
            break
    assert seen == [0, 1, 2, 3, 4, 5, 6]
    assert stream.asked == ["/v1/stream", "/v1/stream?stream=s1&seq=2", "/v1/stream?stream=s1&seq=4"]

    async def play() -> list[int]:
        found = []
        async with AsyncClient(url, TOKEN) as service:
            async for message in service.stream():
                found.append(message["seq"])
                if len(found) == 7:
                    break
        return found

    assert asyncio.run(play()) == seen


def test_a_stream_waits_while_there_is_no_room() -> None:
    """HAProxy answers 503 while no replica is there, and a connection may break before it is a WebSocket."""
    asked: list[str] = []

    def busy(connection: ServerConnection, request: Any) -> Any:
        asked.append(request.path)
        if len(asked) % 3 == 1:
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "no server")
        if len(asked) % 3 == 2:
            connection.socket.close()
        return None

    def speak(connection: ServerConnection) -> None:
        connection.send(json.dumps({"type": "snapshot", "stream": "s1", "seq": 3, "state": {}}))
        connection.socket.close()

    server = serve(speak, "127.0.0.1", 0, process_request=busy)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.socket.getsockname()[1]}"

    async def play() -> list[int]:
        async with AsyncClient(url, TOKEN) as service:
            found = service.stream()
            return [(await anext(found))["seq"] for _ in range(2)]

    try:
        found = Client(url, TOKEN).stream()
        assert [next(found)["seq"] for _ in range(2)] == [3, 3]
        assert asyncio.run(play()) == [3, 3]
        assert asked == (["/v1/stream"] * 3 + ["/v1/stream?stream=s1&seq=3"] * 3) * 2
        with pytest.raises(ServiceRefusal, match="503"):
            next(Client(url, TOKEN).stream(follow=False))
    finally:
        server.shutdown()
        thread.join(10)


def test_a_stream_that_nobody_gives_ends(streaming: tuple[Stream, str]) -> None:
    from serving.deployment import free_port

    with pytest.raises(ConnectionError, match="in a row"):
        next(Client(f"http://127.0.0.1:{free_port()}", TOKEN, tries=2).stream())
