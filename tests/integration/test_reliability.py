"""The service while replicas die, models change, too much is asked, and callers misbehave."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks.reliability import Questions, main, questions
from serving.deployment import free_port
from tests.serving_market import random_bundle

pytestmark = pytest.mark.slow
TOKEN = "a-token-of-enough-length"
_HUNDRED_MB = 100_000_000


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
    process: subprocess.Popen[bytes]

    def is_sound(self) -> None:
        """It lives, and answers what the policy decides."""
        assert self.process.poll() is None, "the service has died"
        request = urllib.request.Request(f"{self.url}/v1/decide", data=self.asked.bodies[0], headers={
            "Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert self.asked.judge(0, json.loads(answer.read())) is None

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=30)

    def memory_mb(self) -> float:
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.split("VmRSS:")[1].split()[0]) / 1024


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
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


def test_thousands_of_sockets_are_borne(target: Target) -> None:
    """10,000, or what the limit of open files allows to both sides."""
    count = min(10_000, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 500)

    async def crowd() -> tuple[int, float]:
        lines = []
        for _ in range(count):
            with contextlib.suppress(OSError):
                lines.append(await asyncio.wait_for(asyncio.open_connection(target.host, target.port), 20))
        began = time.perf_counter()
        await asyncio.to_thread(target.is_sound)
        seconds = time.perf_counter() - began
        for _, writer in lines:
            writer.close()
        return len(lines), seconds

    opened, seconds = asyncio.run(crowd())
    assert opened >= min(count, 4000)
    assert seconds < 5
    target.is_sound()
