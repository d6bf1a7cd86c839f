"""The audit log: who did what, one JSON line each, chained by SHA-256 so that no line can be altered unseen.

    {"seq":7,"previous":"<hash of line 6>","time":"...","event":"login","user":"ann",...,"hash":"<SHA-256>"}

`hash` is of the line's bytes before `,"hash"`; they hold the hash of the line before. What remains possible to
someone who can write the file, making the whole chain anew or cutting its end, shows against a hash noted
elsewhere (`algospace audit verify --holds HASH`).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from algospace.errors import ConfigError
from serving.security.guarded_files import sync_directory

AUDIT = "audit.jsonl"
FIRST = "0" * 64
"""`previous` of the first line."""
_LOG = structlog.get_logger("serving.security")
_TAIL = re.compile(rb'(.*),"hash":"([0-9a-f]{64})"\}', re.S)
_LONGEST_TEXT = 1000
_BLOCK = 65_536
_MOST_WAITING = 1000
_OWN = frozenset({"seq", "previous", "time", "hash"})


def _hash(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _encode(seq: int, previous: str, when: float, fields: dict[str, Any]) -> tuple[bytes, str]:
    """(a line with its newline, its hash)."""
    clash = _OWN & set(fields)
    if clash:
        raise ValueError(f"the log writes {sorted(clash)} itself")
    time_text = datetime.fromtimestamp(when, UTC).isoformat(timespec="milliseconds")
    short = {name: value[:_LONGEST_TEXT] if isinstance(value, str) else value for name, value in fields.items()}
    body = json.dumps({"seq": seq, "previous": previous, "time": time_text} | short, separators=(",", ":"))[:-1]
    raw = body.encode()
    digest = _hash(raw)
    return raw + f',"hash":"{digest}"}}\n'.encode(), digest


def _decode(line: bytes) -> dict[str, Any] | None:
    """The values of a line without its newline; None if it was altered."""
    match = _TAIL.fullmatch(line)
    if match is None or _hash(match[1]) != match[2].decode():
        return None
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(values, dict) and isinstance(values.get("seq"), int) and "previous" in values
    return values if whole else None


@dataclass(frozen=True)
class Verdict:
    """`lines` good lines from the start, the last with hash `head`; `fault` says what is wrong behind them."""

    lines: int
    head: str
    fault: str | None
    held: bool
    """Whether the hash asked for was among them."""


def verify(path: Path, holds: str | None = None) -> Verdict:
    """Walk the chain to the first line that is altered, missing, misplaced or cut; ConfigError without a file."""
    seq, previous, held = 0, FIRST, holds is None
    try:
        with open(path, "rb") as stream:
            for line in stream:
                fault = _fault(line, seq, previous)
                if fault:
                    return Verdict(seq, previous, f"line {seq + 1}: {fault}", held)
                seq, previous = seq + 1, json.loads(line)["hash"]
                held = held or previous == holds
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the audit log ({error.strerror}); name its folder") from None
    return Verdict(seq, previous, None, held)


def _fault(line: bytes, seq: int, previous: str) -> str | None:
    if not line.endswith(b"\n"):
        return "cut off; it was never acknowledged if the machine stopped while writing it"
    values = _decode(line[:-1])
    if values is None:
        return "altered"
    if values["seq"] != seq:
        return f"number {seq} expected, {values['seq']} found: lines are missing or in another order"
    if values["previous"] != previous:
        return "does not follow from the line before: one of them was put in"
    return None


class AuditLog:
    """Appends to the log. Several processes may: each takes the file's lock and goes on from its last line.

    A cut last line, of a machine that stopped while writing, is replaced by a line that says so. Where the file
    was moved away or deleted, a new one is begun, whose line `log_replaced` names the last hash of the old one.
    ConfigError if the last line was altered: nothing is written behind it.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path, self._clock = path, clock
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._size, self._seq, self._head = 0, 0, FIRST
        self._handle = self._open()
        with self._exclusive():
            pass
        self._waiting: deque[dict[str, Any]] = deque()
        self._lost = 0
        self._writer: threading.Thread | None = None

    def _open(self) -> int:
        path = self.path
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        new = not path.exists()
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise ConfigError(f"{path}: not a file; name a folder for the audit log")
        if new:
            sync_directory(path.parent)
        return handle

    def append(self, *events: dict[str, Any]) -> None:
        """Write events; they are on the disk when this returns. OSError if that fails."""
        with self._exclusive():
            self._write(events)

    def note(self, **event: Any) -> None:
        """Write an event soon, without waiting for the disk; when too many wait, they are counted instead."""
        with self._lock:
            if len(self._waiting) >= _MOST_WAITING:
                self._lost += 1
                return
            self._waiting.append(event)
            if self._writer is None:
                self._writer = threading.Thread(target=self._drain, name="audit")  # ends by itself, also at exit
                self._writer.start()

    def flush(self) -> None:
        """Wait until what was noted is written."""
        with self._lock:
            writer = self._writer
        if writer is not None:
            writer.join()

    def _drain(self) -> None:
        while True:
            with self._lock:
                events = list(self._waiting)
                self._waiting.clear()
                if self._lost:
                    events.append({"event": "not_logged", "count": self._lost})
                    self._lost = 0
                if not events:
                    self._writer = None
                    return
            try:
                self.append(*events)
            except (OSError, ConfigError) as error:  # a full disk: the service goes on, its own log says so
                _LOG.error("audit_failed", error=str(error), events=len(events))

    def _write(self, events: tuple[dict[str, Any], ...]) -> None:
        lines, seq, head = [], self._seq, self._head
        for event in events:
            line, head = _encode(seq, head, self._clock(), event)
            lines.append(line)
            seq += 1
        data = b"".join(lines)
        written = 0
        while written < len(data):
            written += os.write(self._handle, data[written:])
        os.fsync(self._handle)
        self._size, self._seq, self._head = self._size + len(data), seq, head

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """The lock of this process's threads and the file's of all processes, then the state of the last line."""
        with self._writing:
            try:
                before = self._lock_present_file()
                self._catch_up()
                if before is not None:
                    self._write(({"event": "log_replaced", "lines": before[0], "head": before[1]},))
                yield
            finally:
                fcntl.flock(self._handle, fcntl.LOCK_UN)

    def _lock_present_file(self) -> tuple[int, str] | None:
        """Take the lock of the file that has the name now. Where that is another one than before: lines and last
        hash of that one."""
        before: tuple[int, str] | None = None
        while True:
            fcntl.flock(self._handle, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._handle), os.stat(self.path)):
                    return before
            before = before or (self._seq, self._head)
            fcntl.flock(self._handle, fcntl.LOCK_UN)
            old, self._handle = self._handle, self._open()
            os.close(old)
            self._size, self._seq, self._head = 0, 0, FIRST

    def _catch_up(self) -> None:
        """Go on from the last line, which another process may have written."""
        size = os.fstat(self._handle).st_size
        if size == self._size:
            return
        if size < self._size:
            raise ConfigError(f"{self.path}: the audit log has become shorter; see 'algospace audit verify'")
        tail = self._tail(size)
        cut = tail[tail.rfind(b"\n") + 1:]
        whole = tail[:len(tail) - len(cut)]
        self._seq, self._head = self._last(whole)
        self._size = size
        if cut:
            os.ftruncate(self._handle, size - len(cut))
            self._size -= len(cut)
            self._write(({"event": "cut_line_replaced", "bytes": len(cut), "sha256": _hash(cut)},))

    def _last(self, whole: bytes) -> tuple[int, str]:
        """(number of the next line, hash of the last) of lines that end in a newline."""
        if not whole:
            return 0, FIRST
        values = _decode(whole[whole.rfind(b"\n", 0, -1) + 1:-1])
        if values is None:
            raise ConfigError(f"{self.path}: the last line was altered; see 'algospace audit verify', then move "
                              "the file away")
        return values["seq"] + 1, values["hash"]

    def _tail(self, size: int) -> bytes:
        """The end of the file, with at least one whole line behind a newline, or all of it."""
        length = _BLOCK
        while True:
            start = max(0, size - length)
            tail = os.pread(self._handle, size - start, start)
            if start == 0 or tail.count(b"\n") >= 2:
                return tail
            length *= 2


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The values of every whole line, as they are: `verify` tells whether they can be believed."""
    with open(path, "rb") as stream:
        for line in stream:
            yield json.loads(line)
