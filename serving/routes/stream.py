"""WS /v1/stream: a snapshot or the missed deltas, then every delta, by number."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI, WebSocket, WebSocketDisconnect

from serving.service import Service
from serving.stream import SLOW, Client, Slow

PROTOCOL = "algospace"
"""The subprotocol that is answered to browsers, which carry their token in a second one."""
_POLICY = 1008
_SLOW_REASON = "too far behind: come back with the stream's id and the last number seen"
_MOST_DIGITS = 18


def add_routes(app: FastAPI, service: Service) -> None:
    """Add the stream."""

    @app.websocket("/v1/stream")
    async def stream(websocket: WebSocket, stream: str | None = None, seq: str | None = None) -> None:
        offered = websocket.scope.get("subprotocols", [])
        await websocket.accept(PROTOCOL if PROTOCOL in offered else None)
        seq = seq or ""
        number = int(seq) if seq.isascii() and seq.isdigit() and len(seq) <= _MOST_DIGITS else None
        try:
            client = service.hub.subscribe(stream, number)
        except Slow:
            await websocket.close(SLOW, "too many clients: come back later")
            return
        try:
            code, reason = await _serve(websocket, client)
        finally:
            client.close()
        if code is not None:
            await _close(websocket, code, reason)


async def _serve(websocket: WebSocket, client: Client) -> tuple[int | None, str]:
    """Send until the client leaves (code None), is too slow, or says what it should not."""
    tasks: list[asyncio.Future[Any]] = [asyncio.ensure_future(_send(websocket, client)),
                                        asyncio.ensure_future(_listen(websocket))]
    sender, listener = tasks
    try:
        await asyncio.wait({*tasks, client.slow}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
    await asyncio.wait(tasks)
    # an error of ours is not a client that left: result() raises it
    talked = not listener.cancelled() and listener.result()
    if not sender.cancelled():
        sender.result()
    if client.slow.done():
        return SLOW, _SLOW_REASON
    return (_POLICY, "the stream only speaks; send nothing") if talked else (None, "")


async def _send(websocket: WebSocket, client: Client) -> None:
    try:
        while True:
            for text in await client.next():
                await websocket.send_text(text)
    except (Slow, WebSocketDisconnect):
        return


async def _listen(websocket: WebSocket) -> bool:
    """True if the client said something, False when it has left."""
    message = await websocket.receive()
    return bool(message["type"] == "websocket.receive")


async def _close(websocket: WebSocket, code: int, reason: str) -> None:
    try:
        await websocket.close(code, reason)
    except (WebSocketDisconnect, RuntimeError):
        return  # it has left meanwhile

