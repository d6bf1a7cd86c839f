"""A long batch leaves the event loop to others: while it is read, and while its rows are told."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import numpy as np
import pytest

from serving.access import Refused
from serving.batch import BatchInputs
from serving.batch_arrow import MEDIA_TYPE, encode, table_of
from serving.bundle import Bundle
from serving.calls import Call
from serving.decider import DecisionInputs
from serving.reading import row_inputs
from serving.routes.described import example_row
from serving.schemas import DecideRow
from serving.service import AppSettings, Service
from serving.stream import Slow, StreamSettings
from tests.serving_market import random_bundle

JSON = "application/json"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return random_bundle(tmp_path_factory.mktemp("turns") / "bundle")


@pytest.fixture
def service(bundle: Bundle) -> Service:
    return Service(bundle, AppSettings(stream=StreamSettings(queue=64)))


def with_windows(bundle: Bundle, count: int) -> list[dict[str, Any]]:
    """Rows with a regime window each, all different."""
    row, spec = example_row(bundle), bundle.schema.regime
    del row["regime"]
    return [row | {"regime_window": np.full((spec.window, spec.width), n / count).tolist()} for n in range(count)]


def body_of(bundle: Bundle, rows: list[dict[str, Any]]) -> bytes:
    return json.dumps({"schema_hash": bundle.manifest.schema_hash, "rows": rows}).encode()


def test_a_large_batch_closes_no_client_that_reads(service: Service, bundle: Bundle) -> None:
    rows = [example_row(bundle) | {"trace_id": str(n)} for n in range(512)]
    body = body_of(bundle, rows)

    async def read(client: Any, found: list[str]) -> None:
        while len(found) < len(rows):
            for text in await client.next():
                await asyncio.sleep(0)  # as sending does
                message = json.loads(text)
                if message["type"] == "delta" and message["topic"] == "decision":
                    found.append(message["data"]["trace_id"])

    async def play() -> list[list[str]]:
        told: list[list[str]] = [[], [], []]
        clients = [service.hub.subscribe() for _ in told]
        lazy = service.hub.subscribe()
        readers = [asyncio.create_task(read(client, found)) for client, found in zip(clients, told, strict=True)]
        await lazy.next()
        await asyncio.sleep(0)
        await service.decide_batch(body, JSON, Call("t"))
        await asyncio.wait_for(asyncio.gather(*readers), 30)
        with pytest.raises(Slow):
            await lazy.next()
        for client in (*clients, lazy):
            client.close()
        return told

    assert asyncio.run(play()) == [[str(n) for n in range(512)]] * 3
    assert service.hub.slow_clients == 1


def test_a_burst_from_elsewhere_closes_no_client_that_has_read_everything(service: Service) -> None:
    async def play() -> int:
        client = service.hub.subscribe()
        await client.next()
        waiting = asyncio.create_task(client.next())
        await asyncio.sleep(0)
        for _ in range(200):
            service.hub.publish("latency", {"count": 1})
        found = len(await waiting)
        while found < 200:
            found += len(await client.next())
        client.close()
        return found

    assert asyncio.run(play()) == 200


@pytest.mark.parametrize("arrow", [False, True])
def test_rows_are_told_with_their_windows(service: Service, bundle: Bundle, arrow: bool,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    rows = with_windows(bundle, 3)
    inputs = [row_inputs(service.champion, DecideRow.model_validate(row)) for row in rows]
    told: list[DecisionInputs] = []
    monkeypatch.setattr(service.life, "decided", lambda model, inputs, *rest: told.append(inputs))
    if arrow:
        table = table_of(BatchInputs.of(inputs, np.stack([one.regime for one in inputs])), bundle)
        body, media_type = encode(table), MEDIA_TYPE
    else:
        body, media_type = body_of(bundle, [rows[0], {}, *rows[1:]]), JSON
    asyncio.run(service.decide_batch(body, media_type, Call("t")))
    assert [one.regime.tolist() for one in told] == [one.regime.tolist() for one in inputs]


@pytest.mark.parametrize("arrow", [False, True])
def test_others_get_their_turn_while_a_batch_is_read(service: Service, bundle: Bundle, arrow: bool,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    rows, decider = with_windows(bundle, 40), service.champion.decider
    inputs = [row_inputs(service.champion, DecideRow.model_validate(row)) for row in rows]
    regimes, runs = decider.regime_vector, []
    body, media_type = body_of(bundle, rows), JSON
    if arrow:
        body = encode(table_of(BatchInputs.of(inputs, np.stack([one.regime for one in inputs])), bundle))
        media_type = MEDIA_TYPE

    def slow(window: Any) -> Any:
        runs.append(turns)
        time.sleep(0.01)
        return regimes(window)

    monkeypatch.setattr(decider, "regime_vector", slow)
    turns = 0

    async def play(deadline_ms: float) -> None:
        nonlocal turns

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        try:
            await service.decide_batch(body, media_type, Call("t", deadline_ms=deadline_ms))
        finally:
            task.cancel()

    asyncio.run(play(60_000.0))
    assert len(set(runs[:40])) == 40, "some runs of the RDE had no turn of another between them"
    runs.clear()
    with pytest.raises(Refused, match="deadline"):
        asyncio.run(play(150.0))
    assert len(runs) < 40
