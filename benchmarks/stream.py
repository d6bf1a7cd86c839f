"""The WebSocket decision stream on 127.0.0.1: from a decision's answer to its receipt at 1 and at 100 clients.

    python -m benchmarks.stream [--clients 1 100] [--rate 50] [--seconds 10]

One process asks decisions at a fixed rate and listens, so both ends share a clock. `delay`: from the time that the
service put into the event, when it was published behind the answer, to its receipt. `behind answer`: from the
arrival of the decision's own answer; negative where the stream is faster. Services: Ray Serve behind HAProxy, the
same application under plain uvicorn, and the peer, a bare Starlette application that sends each published text to
every socket. Aim on 2 idle cores: p99 of the delay < 3 ms at one client. Prints markdown and asserts nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from websockets.asyncio.client import connect

from benchmarks._load import Connection
from benchmarks.serving import SETTINGS, TOKEN, Bodies, ready
from serving.deployment import ServeSettings, free_port, start_service
from serving.stream import StreamSettings
from tests.serving_market import random_bundle

_START_TIMEOUT_S = 90.0
_GATHER_S = 2.0


async def listen(url: str, marks: dict[str, int], delays: list[float], joined: asyncio.Event) -> None:
    """Read the stream until cancelled; of decisions that are in `marks` note when they came."""
    address = url.replace("http", "ws") + "/v1/stream"
    async with connect(address, additional_headers={"Authorization": f"Bearer {TOKEN}"}, proxy=None, max_size=None,
                       compression=None) as socket:
        joined.set()
        async for text in socket:
            now = time.time_ns()
            message = json.loads(text)
            if message["type"] == "delta" and message["topic"] == "decision":
                delays.append((now - message["ts_ns"]) / 1e6)
                marks.setdefault(message["data"]["trace_id"], now)


async def play(url: str, bodies: list[bytes], clients: int, rate: float, seconds: float) -> dict[str, float]:
    """Milliseconds at `clients` at once, while decisions are asked at `rate`."""
    marks: dict[str, int] = {}
    first: list[float] = []
    all_delays = [first, *([] for _ in range(clients - 1))]
    joined = [asyncio.Event() for _ in range(clients)]
    tasks = [asyncio.create_task(listen(url, marks, delays, event))
             for delays, event in zip(all_delays, joined, strict=True)]
    everybody = asyncio.gather(*(event.wait() for event in joined))
    await asyncio.wait({everybody, *tasks}, timeout=_START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        if task.done():
            task.result()  # why nobody listens
    line = Connection(url, TOKEN)
    answered: dict[str, int] = {}
    started = time.perf_counter() + 0.1
    for number in range(round(rate * seconds)):
        await asyncio.sleep(max(0.0, started + number / rate - time.perf_counter()))
        status, body, _ = await line.ask("/v1/decide", bodies[number % len(bodies)], {}, 10.0)
        if status != 200:
            raise RuntimeError(f"{url} answered {status}: {body[:200]!r}")
        answered[json.loads(body)["trace_id"]] = time.time_ns()
    until = time.perf_counter() + _GATHER_S
    while min(map(len, all_delays)) < len(answered) and time.perf_counter() < until:
        await asyncio.sleep(0.01)
    line.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    behind = [(marks[trace] - at) / 1e6 for trace, at in answered.items() if trace in marks]
    every = [delay for delays in all_delays for delay in delays]
    if len(every) < clients * len(answered):
        raise RuntimeError(f"{clients * len(answered) - len(every)} events are missing")
    return {"clients": clients, "decisions": len(answered), **spread("delay", every),
            **spread("behind answer", behind)}


def spread(name: str, values: list[float]) -> dict[str, float]:
    """Median, 99th percentile and maximum, ms."""
    found = np.percentile(values, [50, 99, 100])
    labels = ("p50", "p99", "max")
    return {f"{name} {label}": round(float(value), 2) for label, value in zip(labels, found, strict=True)}


@contextmanager
def under_uvicorn(*arguments: str) -> Iterator[str]:
    """A service in a process of its own; its address."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", *arguments, "--uvicorn", str(port)])
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + _START_TIMEOUT_S
        while not ready(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{arguments[0]} did not start")
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(10)


def serve_peer(port: int) -> None:
    """The least that could be called a stream: no numbers, no snapshot, no slow clients, no tokens."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route, WebSocketRoute
    from starlette.websockets import WebSocket

    sockets: set[WebSocket] = set()
    counted = 0

    async def stream(socket: WebSocket) -> None:
        await socket.accept()
        sockets.add(socket)
        try:
            while (await socket.receive())["type"] != "websocket.disconnect":
                pass
        finally:
            sockets.discard(socket)

    async def publish(text: str) -> None:
        for socket in tuple(sockets):
            await socket.send_text(text)

    async def decide(request: Request) -> Response:
        nonlocal counted
        await request.body()
        counted += 1
        data: dict[str, Any] = {"trace_id": str(counted)}
        text = json.dumps({"type": "delta", "topic": "decision", "ts_ns": time.time_ns(), "data": data})
        asyncio.get_running_loop().call_soon(lambda: waiting.add(asyncio.ensure_future(publish(text))))
        return Response(json.dumps(data), media_type="application/json")

    async def is_ready(_: Request) -> Response:
        return Response("{}")

    waiting: set[asyncio.Future[None]] = set()
    app = Starlette(routes=[Route("/v1/decide", decide, methods=["POST"]), Route("/v1/ready", is_ready),
                            WebSocketRoute("/v1/stream", stream)])
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", access_log=False,
                ws_per_message_deflate=False)


def main() -> None:
    """Measure all, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 100])
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--uvicorn", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.uvicorn:
        serve_peer(options.uvicorn)
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        bundle = random_bundle(Path(folder) / "bundle")
        bodies = Bodies(bundle).single

        def measure(name: str, url: str) -> None:
            asyncio.run(play(url, bodies, 1, options.rate, 1.0))  # warm
            rows.extend({"service": name} | asyncio.run(play(url, bodies, count, options.rate, options.seconds))
                        for count in options.clients)

        app = SETTINGS.model_copy(update={"stream": StreamSettings(max_clients=2 * max(options.clients))})
        with start_service(bundle.directory, TOKEN,
                           settings=ServeSettings(app=app)) as service:
            measure("Ray Serve, HAProxy", service.url)
        with under_uvicorn("benchmarks.serving", "--bundle", str(bundle.directory)) as url:
            measure("uvicorn", url)
        with under_uvicorn("benchmarks.stream") as url:
            measure("bare Starlette", url)
    for cells in (rows[0], ["---"] * len(rows[0]), *(row.values() for row in rows)):
        print(f"| {' | '.join(map(str, cells))} |")
    print(f"\nms; {options.rate:g} decisions/s for {options.seconds:g} s, load average {os.getloadavg()[0]:.1f} "
          f"on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
