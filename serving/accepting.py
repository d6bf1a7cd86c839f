"""Several new connections in one iteration of the event loop.

uvloop accepts one in each, however many wait (asyncio's own loop accepts them all). Where an iteration holds some
decisions or some dozens of refusals, hundreds of connections that come at once would wait for seconds, behind
callers who are already connected, before they could even be told that there is no room. So a server listens on its
socket several times.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

_TIMES = 16


class Listeners(asyncio.AbstractServer):
    """Servers of one socket, as one."""

    def __init__(self, servers: list[asyncio.AbstractServer]) -> None:
        self._servers = servers

    def close(self) -> None:
        """Listen no more."""
        for server in self._servers:
            server.close()

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """The loop of them all."""
        return self._servers[0].get_loop()

    def is_serving(self) -> bool:
        """Whether connections are accepted."""
        return self._servers[0].is_serving()

    async def start_serving(self) -> None:
        """Accept connections from now on."""
        for server in self._servers:
            await server.start_serving()

    async def serve_forever(self) -> None:
        """Accept connections until cancelled."""
        await asyncio.gather(*(server.serve_forever() for server in self._servers))

    async def wait_closed(self) -> None:
        """Wait for the end of all connections, once closed."""
        for server in self._servers:
            await server.wait_closed()


def accept_many(loop: asyncio.AbstractEventLoop) -> None:
    """From now on servers that `loop` makes of TCP sockets accept several connections in one iteration."""
    make = loop.create_server

    async def create_server(protocol_factory: Callable[[], asyncio.BaseProtocol], *args: Any,
                            sock: socket.socket | None = None, **options: Any) -> asyncio.AbstractServer:
        if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
            return await make(protocol_factory, *args, sock=sock, **options)
        servers: list[asyncio.AbstractServer] = []
        waiting: list[socket.socket] = []
        try:
            waiting += (sock.dup() for _ in range(_TIMES - 1))
            while waiting:
                servers.append(await make(protocol_factory, sock=waiting[-1], **options))
                waiting.pop()  # its server closes it
            servers.append(await make(protocol_factory, sock=sock, **options))
        except BaseException:  # the caller's own socket stays as it was
            for server in servers:
                server.close()
            for one in waiting:
                one.close()
            raise
        return Listeners(servers)

    loop.create_server = create_server  # type: ignore[method-assign,assignment]
