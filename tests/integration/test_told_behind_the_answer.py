"""Nobody waits for the stream, the log and the shadow: a decision is told once its answer is written."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog

from algospace.errors import InternalError
from serving.access import Refused
from serving.app import create_app
from serving.auth import StaticToken, token_digest
from serving.batch import BatchInputs
from serving.batch_arrow import MEDIA_TYPE, encode, table_of
from serving.calls import Call
from serving.client import request_of, row_of
from serving.policy import BundlePolicy
from serving.service import AppSettings
from serving.stream import StreamHub, StreamSettings
from serving.telling import Telling, behind_the_answer
from tests.serving_market import accounts, random_bundle, serving_table

TOKEN = "a-token-of-enough-length"


@pytest.mark.parametrize("batch", [False, True], ids=["alone", "batch"])
def test_the_answer_is_written_before_the_decision_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                           batch: bool) -> None:
    bundle, table = random_bundle(tmp_path / "bundle"), serving_table()
    row = int(np.flatnonzero(table.decision)[0])
    inputs = BundlePolicy(bundle, table).inputs(row, accounts(table, row)[0])
    asked = request_of(bundle, inputs)
    if batch:
        asked = {"schema_hash": asked.pop("schema_hash"), "rows": [asked]}
    body = json.dumps(asked).encode()
    app = create_app(bundle, AppSettings(), StaticToken(token_digest(TOKEN)))
    hub, happened = app.state.service.hub, []
    publish = hub.publish

    def told(topic: str, data: dict[str, Any]) -> int:
        happened.append(topic)
        return int(publish(topic, data))

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        happened.append(message["type"])

    monkeypatch.setattr(hub, "publish", told)
    path = "/v1/decide/batch" if batch else "/v1/decide"
    headers = [(b"authorization", f"Bearer {TOKEN}".encode()), (b"content-type", b"application/json")]
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
             "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
             "headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "state": {}}

    async def scene() -> None:
        await app(scope, receive, send)
        assert happened == ["http.response.start", "http.response.body"]
        await asyncio.sleep(0)

    asyncio.run(scene())
    assert happened[:3] == ["http.response.start", "http.response.body", "decision"]


def test_without_a_loop_it_is_told_at_once() -> None:
    told: list[int] = []
    behind_the_answer(told.append, 1)
    assert told == [1]


def rows_of(count: int) -> Iterator[Any]:
    return iter([(None, None, str(number)) for number in range(count)])


def test_a_batch_waits_while_several_are_being_told_but_not_beyond_its_deadline() -> None:
    async def play() -> None:
        hub = StreamHub(StreamSettings(queue=8))
        reader = hub.subscribe()
        await reader.next()
        telling, told = Telling(hub), []

        def tell(_: Any, __: Any, trace_id: str) -> None:
            told.append(trace_id)
            hub.publish("latency", {"count": 1})

        for _ in range(4):
            telling.begin(rows_of(2), tell)
        with pytest.raises(Refused, match="deadline"):
            await telling.room(Call("t", deadline_ms=0.0))
        await telling.room(Call("t", deadline_ms=30_000.0))
        assert {"0", "1"} == set(told)
        await telling.end()
        assert len(told) == 8

    asyncio.run(play())


def test_what_is_left_is_told_when_the_loop_ends_and_a_failure_is_logged() -> None:
    told: list[str] = []

    def tell(_: Any, __: Any, trace_id: str) -> None:
        if trace_id == "7":
            raise InternalError("the seventh cannot be told")
        told.append(trace_id)

    async def ended(count: int) -> None:
        telling = Telling(StreamHub(StreamSettings(queue=4)))  # one at a time
        telling.begin(rows_of(count), tell)
        await asyncio.sleep(0)

    asyncio.run(ended(6))
    assert told == list("012345")
    told.clear()
    with structlog.testing.capture_logs() as logged:
        asyncio.run(ended(9))
    assert told == list("0123456")
    assert [(line["event"], line["error"]) for line in logged] == [("batch_not_told", "InternalError")]


def test_an_application_that_ends_tells_what_is_left(tmp_path: Path) -> None:
    """Even to a client of the stream that does not read; nobody waits for that for long."""
    told: list[str] = []
    app = create_app(random_bundle(tmp_path / "bundle"), AppSettings(), StaticToken(token_digest(TOKEN)))

    async def play() -> None:
        async with app.router.lifespan_context(app):
            app.state.service.telling.begin(rows_of(500), lambda _, __, trace_id: told.append(trace_id))
        assert len(told) == 500

    asyncio.run(play())


@pytest.mark.parametrize("arrow", [False, True])
def test_the_stream_says_where_the_gates_of_a_batch_stand(tmp_path: Path, arrow: bool) -> None:
    bundle, table = random_bundle(tmp_path / "bundle"), serving_table()
    app = create_app(bundle, AppSettings(), StaticToken(token_digest(TOKEN)))
    row = int(np.flatnonzero(table.decision)[0])
    inputs = BundlePolicy(bundle, table).inputs(row, accounts(table, row)[0])
    gate = app.state.service.champion.correction.after(None, None, ())
    asked = [replace(inputs, gate=one) for one in ((gate, gate) if arrow else (gate, None))]
    body, media_type = json.dumps({"schema_hash": bundle.manifest.schema_hash,
                                   "rows": [row_of(one) for one in asked]}).encode(), "application/json"
    if arrow:
        body = encode(table_of(BatchInputs.of(asked, np.stack([one.regime for one in asked])), bundle))
        media_type = MEDIA_TYPE
    asyncio.run(app.state.service.decide_batch(body, media_type, Call("t")))
    told = [event.data["gate"] for event in app.state.service.hub.log.state.decisions]
    assert told == [None if one.gate is None else gate._asdict() for one in asked]
