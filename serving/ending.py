"""How a service ends: Serve without a word, HAProxy for certain."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_TIMEOUT_S = 20.0
_ROUNDS = 5


@contextmanager
def sigterm_exits() -> Iterator[None]:
    """Ray starts in here. From now on SIGTERM raises SystemExit, so that what is started is ended, unless the
    program has a handler of its own. Ray would put one in front that aborts the process three seconds later."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda sign, _: sys.exit(128 + sign))
    mine = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, mine)


def shut_serve() -> None:
    """End Serve, and what this process knows of it.

    Serve's own `shutdown` waits for an answer of the controller, which ends without giving one: Ray tells the user
    that a task has failed. Told not to answer, it ends in silence.
    """
    import ray
    from ray import serve
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
    from ray.serve.context import _check_cached_client_alive

    def gone() -> bool:
        try:
            ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
        except ValueError:
            return True
        return False

    client, _ = _check_cached_client_alive()
    if client is not None:
        client.shutdown_cached_handles()
        with suppress(ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):  # `shutdown` below sees to it
            ray.get(client._controller.graceful_shutdown.remote(wait=False), timeout=_TIMEOUT_S)
            until(gone, _TIMEOUT_S)
    serve.shutdown()  # forgets the client; ends a controller that is still there


def haproxy_processes(scratch: Path) -> Iterator[int]:
    """Processes that were started with a file of `scratch` on their command line."""
    needle = str(scratch).encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and needle in _command_line(int(entry.name)):
            yield int(entry.name)


def ray_processes(scratch: Path) -> Iterator[int]:
    """Ray's processes that were started in an environment which names `scratch`. Nobody else knows those of a Ray
    that was interrupted while it started them; and its agents outlive a raylet that ends while they start."""
    needle = str(scratch).encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and needle in _read(entry / "environ"):
            line = _command_line(int(entry.name))
            if line.startswith(b"ray::") or b"/ray/" in line:
                yield int(entry.name)


def _command_line(pid: int) -> bytes:
    return _read(Path(f"/proc/{pid}/cmdline"))


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


def end_process(pid: int) -> None:
    """End one of our own HAProxy processes that outlived its manager: politely, then not."""
    line = _command_line(pid)
    if not line:
        return
    for sign, seconds in ((signal.SIGTERM, 2.0), (signal.SIGKILL, _TIMEOUT_S)):
        try:
            os.kill(pid, sign)
        except ProcessLookupError:
            return
        if until(lambda: _command_line(pid) != line, seconds):
            return


def end_all(processes: Callable[[], Iterator[int]]) -> None:
    """End processes of which one may start another meanwhile."""
    for _ in range(_ROUNDS):
        found = list(processes())
        if not found:
            return
        for pid in found:
            end_process(pid)


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait for `condition`; whether it came within the seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
