"""Every client of the stream sees each number exactly once and in order, whatever disconnects."""

from __future__ import annotations

import asyncio
import copy
import json
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from serving.stream import Client, EventLog, Slow, StreamHub, StreamSettings
from serving.stream_state import Event

SETTINGS = StreamSettings(ring=16, queue=8, recent=5, heartbeat_s=60.0)
CLIENTS = 3


@dataclass
class Reader:
    """What a client knows: where it stands, and its connection, if it has one."""

    stream: str | None = None
    seq: int | None = None
    client: Client | None = None
    snapshots: int = 0

    def take(self, text: str) -> None:
        message = json.loads(text)
        if message["type"] == "snapshot":
            assert self.stream != message["stream"] or self.seq is None or message["seq"] > self.seq
            self.stream, self.seq = message["stream"], message["seq"]
            self.snapshots += 1
            last = [d["n"] for d in message["state"]["decisions"]]
            assert last == list(range(max(1, self.seq - SETTINGS.recent + 1), self.seq + 1))
        else:
            assert message["type"] == "delta"
            assert self.seq is not None
            assert message["seq"] == self.seq + 1
            assert message["data"]["n"] == message["seq"]
            self.seq = message["seq"]


def publish(hub: StreamHub, remote: EventLog | None, count: int) -> None:
    for _ in range(count):
        n = (remote or hub.log).seq + 1
        data = {"n": n, "instrument": "ES", "price": 1.0}
        if remote is None:
            assert hub.publish("decision", data) == n
        else:
            event = remote.append("decision", 0, data)
            hub.receive([event, event])  # told twice, taken once


async def play(steps: list[tuple[str, int, int]], shared: bool) -> None:
    hub, readers = StreamHub(SETTINGS), [Reader() for _ in range(CLIENTS)]
    remote = EventLog(SETTINGS) if shared else None
    if remote is not None:
        hub.forward_to(lambda *_: None)
        hub.begin_at(remote.stream, remote.seq, copy.deepcopy(remote.state), [])
    for what, who, count in steps:
        reader = readers[who]
        if what == "publish":
            publish(hub, remote, count)
            await asyncio.sleep(0)
        elif what == "join":
            await join(hub, reader)
        elif what == "leave" and reader.client is not None:
            reader.client.close()
            reader.client = None
        elif what == "read" and reader.client is not None:
            await read(hub, reader)
    for reader in readers:
        await join(hub, reader)
        while reader.seq != hub.log.seq:
            await read(hub, reader)
            await join(hub, reader)


async def join(hub: StreamHub, reader: Reader) -> None:
    if reader.client is None:
        reader.client = hub.subscribe(reader.stream, reader.seq)
        resumable = reader.seq is not None and hub.log.holds_after(reader.seq)
        before = reader.snapshots
        if reader.seq != hub.log.seq:
            await read(hub, reader)
        assert reader.snapshots == before + (not resumable)


async def read(hub: StreamHub, reader: Reader) -> None:
    assert reader.client is not None
    if reader.seq == hub.log.seq and not reader.client.slow.done():
        return  # would wait
    try:
        for text in await asyncio.wait_for(reader.client.next(), 60.0):
            reader.take(text)
    except Slow:
        assert hub.log.seq - (reader.seq or 0) > SETTINGS.queue
        reader.client.close()
        reader.client = None


STEPS = st.lists(st.tuples(st.sampled_from(["publish", "publish", "join", "leave", "read"]),
                           st.integers(0, CLIENTS - 1), st.integers(1, 12)), max_size=40)


@settings(max_examples=60, deadline=None)
@given(steps=STEPS, shared=st.booleans())
def test_each_number_once_and_in_order(steps: list[tuple[str, int, int]], shared: bool) -> None:
    asyncio.run(play(steps, shared))


@settings(max_examples=30, deadline=None)
@given(before=st.integers(0, 40), after=st.integers(0, 40))
def test_a_log_continued_elsewhere_is_the_same_log(before: int, after: int) -> None:
    def data(n: int) -> dict[str, Any]:
        return {"n": n, "instrument": "ES", "price": float(n)}

    first, second = EventLog(SETTINGS), EventLog(SETTINGS)
    for n in range(before):
        first.append("decision", n, data(n))
    kept = first.after(first.first - 1, SETTINGS.ring)
    second.begin_at(first.stream, first.seq, first.state, kept)
    assert (second.seq, second.first) == (first.seq, first.first)
    state = StreamHub(SETTINGS)
    for n in range(after):
        second.append("decision", n, data(n))
    state.begin_at(second.stream, second.seq, second.state, second.after(second.first - 1, SETTINGS.ring))
    assert state.log.holds_after(second.seq)
    assert [e.seq for e in state.log.after(state.log.first - 1, 99)] == list(range(second.first, second.seq + 1))
    assert all(isinstance(e, Event) for e in state.log.after(0, 0))
