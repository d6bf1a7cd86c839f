"""Operations that MLflow has not taken yet: one JSON line each, in a file of the run folder.

A run may add lines while `algospace tracking upload` takes others away, so whoever changes the file holds the lock
beside it. A line counts when its newline is there.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from algospace.files import atomic_path

Record = dict[str, Any]


class Spool:
    """The file at `path`; it exists only while something waits in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._unwritten: list[bytes] = []

    def add(self, record: Record) -> None:
        """Append an operation. OSError where the disk refuses: it stays in memory and is written with the next."""
        self._unwritten.append(_line(record))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked(), self.path.open("a+b", buffering=0) as stream:
            end = stream.seek(0, os.SEEK_END)
            text = b"".join(self._unwritten)
            if end and os.pread(stream.fileno(), 1, end - 1) != b"\n":  # a killed process left half a line
                text = b"\n" + text
            try:
                while text:
                    text = text[stream.write(text) or 0:]
            except OSError:
                with suppress(OSError):
                    stream.truncate(end)
                raise
        self._unwritten.clear()

    def lines(self) -> list[bytes]:
        """Every line, in the order in which they were added."""
        return self.path.read_bytes().splitlines(keepends=True) if self.path.is_file() else []

    def settle(self, taken: list[bytes], kept: list[Record]) -> None:
        """`taken`, the first lines of the file, are dealt with except for `kept`; later lines stay."""
        with self._locked():
            present = self.lines()
            if present[: len(taken)] != taken:  # somebody else has dealt with them
                return
            left = [*map(_line, kept), *present[len(taken):]]
            if not left:
                self.path.unlink(missing_ok=True)
                return
            with atomic_path(self.path) as part:
                part.write_bytes(b"".join(left))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def parsed(lines: list[bytes]) -> list[Record]:
    """The operations of lines; those that are not whole are left out."""
    records = []
    for line in lines:
        with suppress(ValueError):
            records.append(dict(json.loads(line)))
    return records


def _line(record: Record) -> bytes:
    return json.dumps(record).encode() + b"\n"
