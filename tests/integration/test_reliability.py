"""The service while replicas die, models change, too much is asked, and callers misbehave."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from websockets.sync.client import connect

from benchmarks.reliability import Questions, main, questions
from serving.deployment import free_port
from tests.integration.test_serving_cluster import command
from tests.serving_market import random_bundle

pytestmark = pytest.mark.slow
TOKEN = "a-token-of-enough-length"
_HUNDRED_MB = 100_000_000
_CROWD = 10_000
_FILES = _CROWD + 1_000


@pytest.mark.parametrize("scenario", [
    ("kill", "--seconds", "40", "--every", "12", "--rate", "60"),
    ("switch", "--seconds", "40", "--switch-every", "6", "--rate", "60"),
    ("overload", "--seconds", "15"),
], ids=lambda words: words[0])
def test_promises_hold_under_load(scenario: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    """The short forms of benchmarks.reliability, each in a process of its own."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.reliability", *scenario], text=True, timeout=400,
                          capture_output=True, check=False,
                          env=os.environ | {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"})
    with capfd.disabled():
        print(f"\n{done.stdout.strip()}")
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


def test_an_unknown_scenario_is_refused() -> None:
    with pytest.raises(SystemExit):
        main(["nothing"])


class Target(NamedTuple):
    url: str
    host: str
    port: int
    asked: Questions
    process: subprocess.Popen[Any]

    def is_sound(self) -> None:
        """It lives, and answers a new caller what the policy decides."""
        assert self.process.poll() is None, "the service has died"
        request = urllib.request.Request(f"{self.url}/v1/decide", data=self.asked.bodies[0], headers={
            "Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=40) as answer:
            assert self.asked.judge(0, json.loads(answer.read())) is None

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=30)

    def memory_mb(self) -> float:
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.split("VmRSS:")[1].split()[0]) / 1024


@pytest.fixture(scope="module")
def files() -> Iterator[None]:
    """Room for the crowd in this process and in those that it starts, as far as the hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory, files: None) -> Iterator[Target]:
    """The application under plain uvicorn: no proxy in front that would take the blows."""
    bundle = random_bundle(tmp_path_factory.mktemp("faults") / "bundle")
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.serving", "--uvicorn", str(port),
                                "--bundle", str(bundle.directory)])
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/v1/ready", timeout=2):
                break
            time.sleep(0.2)
        yield Target(url, "127.0.0.1", port, questions([bundle], 4), process)
    finally:
        process.kill()
        process.wait()


def head(length: str, *more: str) -> bytes:
    return "\r\n".join(["POST /v1/decide HTTP/1.1", "Host: x", f"Authorization: Bearer {TOKEN}",
                        "Content-Type: application/json", length, *more, "", ""]).encode()


def status_of(line: socket.socket) -> int:
    return int(line.recv(4096).split()[1])


def test_a_body_of_100_mb_is_refused_before_it_is_read(target: Target) -> None:
    before = target.memory_mb()
    with target.connect() as line:
        line.sendall(head(f"Content-Length: {_HUNDRED_MB}"))
        assert status_of(line) == 413
        with contextlib.suppress(OSError):
            for _ in range(100):
                line.sendall(b" " * 1_000_000)
    with target.connect() as line:  # in chunks, without a length
        line.sendall(head("Transfer-Encoding: chunked"))
        with contextlib.suppress(OSError):
            for _ in range(100):
                line.sendall(b"f4240\r\n" + b" " * 1_000_000 + b"\r\n")
        with contextlib.suppress(ConnectionError):
            assert status_of(line) == 413
    assert target.memory_mb() < before + 50
    target.is_sound()


def test_a_client_that_sends_slowly_is_cut_off_and_holds_nobody_up(target: Target) -> None:
    with target.connect() as line:
        line.sendall(head("Content-Length: 1000") + b"{")
        began = time.monotonic()
        target.is_sound()
        line.settimeout(30)
        assert status_of(line) == 408
        assert 5 < time.monotonic() - began < 25
    target.is_sound()


@pytest.mark.parametrize("frame", [
    b"\xff" * 64, b"\x81\x7f" + b"\xff" * 8, b"\x81\x05hello",
    b"\xc1\x80\x00\x00\x00\x00", b"\x8f\x80\x00\x00\x00\x00",
    b"\x81\xfe\xff\xff\x00\x00\x00\x00" + b"x" * 65535, b"\x81\x82\x00\x00\x00\x00\xff\xfe", os.urandom(4096), b"",
], ids=["ones", "length", "unmasked", "reserved", "opcode", "long", "not-utf8", "random", "gone"])
def test_malformed_websocket_frames_close_one_socket_only(target: Target, frame: bytes) -> None:
    with target.connect() as line:
        line.sendall("\r\n".join([
            "GET /v1/stream HTTP/1.1", "Host: x", "Connection: Upgrade", "Upgrade: websocket",
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}", "Sec-WebSocket-Version: 13",
            f"Authorization: Bearer {TOKEN}", "", ""]).encode())
        assert line.recv(4096).startswith(b"HTTP/1.1 101")
        if frame:
            line.sendall(frame)
            line.settimeout(20)
            with contextlib.suppress(ConnectionError):
                while line.recv(65536):
                    pass
    target.is_sound()


@pytest.mark.parametrize("text", [
    b"\x00" * 2000, b"GET / HTTP/9.9\r\n\r\n", b"GET /" + b"a" * 200_000,
    b"POST /v1/decide HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n"])
def test_requests_that_are_none_are_refused(target: Target, text: bytes) -> None:
    with target.connect() as line, contextlib.suppress(ConnectionError):
        line.sendall(text)
        line.shutdown(socket.SHUT_WR)
        line.settimeout(20)
        assert b" 500 " not in line.recv(4096).split(b"\r\n")[0]
    target.is_sound()


@pytest.fixture(scope="module")
def behind_haproxy(tmp_path_factory: pytest.TempPathFactory, files: None) -> Iterator[Target]:
    """The service as it is started, with its proxy in front."""
    bundle = random_bundle(tmp_path_factory.mktemp("crowd") / "bundle")
    process = command("serve", "--bundle", bundle.directory, "--json", "--seconds", "600", ALGOSPACE_TOKEN=TOKEN)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        pytest.fail(f"the service did not start: {process.communicate()[1][-2000:]}")
    url = json.loads(line)["url"]
    yield Target(url, "127.0.0.1", urlsplit(url).port or 0, questions([bundle], 4), process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)


Lines = list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]


async def crowd(target: Target, meanwhile: Callable[[Lines], Awaitable[None]]) -> int:
    """Open 10,000 sockets that say nothing, and keep them during `meanwhile`; how many were accepted.

    TimeoutError if one is neither accepted nor refused within a minute.
    """
    async def one() -> None:
        with contextlib.suppress(ConnectionError):
            lines.append(await asyncio.wait_for(asyncio.open_connection(target.host, target.port), 60))

    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < _FILES:
        pytest.skip(f"{_CROWD:,} sockets take {_FILES:,} open files; the hard limit (ulimit -Hn) is lower")
    lines: Lines = []
    try:
        for _ in range(0, _CROWD, 500):
            await asyncio.gather(*(one() for _ in range(500)))
        await meanwhile(lines)
        return len(lines)
    finally:
        for _, writer in lines:
            writer.close()


def report(capfd: pytest.CaptureFixture[str], record: Callable[[str, object], None], where: str,
           **figures: float) -> None:
    for name, value in figures.items():
        record(name, value)
    with capfd.disabled():
        print(f"\n{where}, {_CROWD:,} silent sockets: " + ", ".join(f"{k} {v:g}" for k, v in figures.items()))


def test_ten_thousand_silent_sockets_hold_nobody_up(
        target: Target, capfd: pytest.CaptureFixture[str], record_property: Callable[[str, object], None]) -> None:
    seconds = []

    async def meanwhile(lines: Lines) -> None:
        began = time.perf_counter()
        await asyncio.to_thread(target.is_sound)
        seconds.append(time.perf_counter() - began)

    accepted = asyncio.run(crowd(target, meanwhile))
    report(capfd, record_property, "uvicorn", accepted=accepted, refused=_CROWD - accepted,
           new_caller_s=round(seconds[0], 3))
    assert seconds[0] < 5
    target.is_sound()


def test_ten_thousand_silent_sockets_are_closed_by_haproxy_and_harm_nobody_meanwhile(
        behind_haproxy: Target, capfd: pytest.CaptureFixture[str],
        record_property: Callable[[str, object], None]) -> None:
    """It holds as many as its open files allow and lets the others wait; who says nothing for 10 s has to go."""
    target, figures = behind_haproxy, {}
    caller = http.client.HTTPConnection(target.host, target.port, timeout=40)

    def ask_again() -> None:
        caller.request("POST", "/v1/decide", target.asked.bodies[0], {
            "Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"})
        assert target.asked.judge(0, json.loads(caller.getresponse().read())) is None

    def timed(call: Callable[[], None]) -> float:
        began = time.perf_counter()
        call()
        return round(time.perf_counter() - began, 3)

    async def meanwhile(lines: Lines) -> None:
        figures["caller_s"] = await asyncio.to_thread(timed, ask_again)
        figures["new_caller_s"] = await asyncio.to_thread(timed, target.is_sound)
        ends = await asyncio.wait_for(asyncio.gather(*(reader.read() for reader, _ in lines)), 60)
        figures["closed"] = sum(not end or end.split()[1] == b"408" for end in ends)

    ask_again()
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with connect(target.url.replace("http", "ws") + "/v1/stream", additional_headers=headers) as watcher:
        figures["accepted"] = accepted = asyncio.run(crowd(target, meanwhile))
        report(capfd, record_property, "behind HAProxy", refused=_CROWD - accepted, **figures)
        assert figures["closed"] == accepted
        assert figures["caller_s"] < 5
        assert figures["new_caller_s"] < 30
        with contextlib.suppress(TimeoutError):
            while True:  # what came during the crowd
                watcher.recv(timeout=0.01)
        assert watcher.recv(timeout=20)  # it said nothing either, and still hears
    target.is_sound()
