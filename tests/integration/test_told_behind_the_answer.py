"""Nobody waits for the stream, the log and the shadow: a decision is told once its answer is written."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.app import create_app
from serving.auth import StaticToken, token_digest
from serving.client import request_of
from serving.lifecycle import behind_the_answer
from serving.policy import BundlePolicy
from serving.service import AppSettings
from tests.serving_market import accounts, random_bundle, serving_table

TOKEN = "a-token-of-enough-length"


def test_the_answer_is_written_before_the_decision_is_told(tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, table = random_bundle(tmp_path / "bundle"), serving_table()
    row = int(np.flatnonzero(table.decision)[0])
    inputs = BundlePolicy(bundle, table).inputs(row, accounts(table, row)[0])
    body = json.dumps(request_of(bundle, inputs)).encode()
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
    headers = [(b"authorization", f"Bearer {TOKEN}".encode()), (b"content-type", b"application/json")]
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
             "path": "/v1/decide", "raw_path": b"/v1/decide", "query_string": b"", "root_path": "",
             "headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "state": {}}

    async def scene() -> None:
        await app(scope, receive, send)
        await asyncio.sleep(0)

    asyncio.run(scene())
    assert happened[:3] == ["http.response.start", "http.response.body", "decision"]


def test_without_a_loop_it_is_told_at_once() -> None:
    told: list[int] = []
    behind_the_answer(told.append, 1)
    assert told == [1]
