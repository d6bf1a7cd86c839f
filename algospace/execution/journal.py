"""The journal is the truth: decisions, orders and fills, written ahead of what they describe.

A line of a journal file is `crc32 (8 hex digits) SPACE JSON LF`; the JSON is the array of records of one `append`,
the CRC covers its text. `append` returns after fdatasync, into space that was filled with zeros beforehand (a sync
then writes no file size: its slowest hundredth takes 1 ms, not 10). A crash can tear only the last line: opening
cuts it off and reports how many bytes went. A bad line with good ones after it is damage, not a crash, and is
refused.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from algospace.errors import InputError, InternalError, UserError

_RESERVE_BYTES = 1 << 18
_LOG = logging.getLogger(__name__)


class Opened(NamedTuple):
    """A session starts flat with `equity` at the close of base row `row`; the costs it trades at."""

    session: str
    symbol: str
    row: int
    ts: int
    equity: float
    price: float
    day: int
    tick: float
    multiplier: float
    commission: float
    slippage: float  # points
    infer: int


class Decided(NamedTuple):
    """What the policy answered at the close of row `row`, and the hard limit that changed it."""

    row: int
    ts: int
    reason: str
    direction: int
    confidence: float | None
    contracts: float
    stop_distance: float
    target_distance: float
    limit: str
    votes: dict[str, tuple[float, float, float]]
    uncertainty: dict[str, float]


class Ordered(NamedTuple):
    """An order about to be sent: signed position wanted, bracket distances in points."""

    row: int
    ts: int
    order_id: str
    want: float
    stop_distance: float
    target_distance: float


class Filled(NamedTuple):
    """A fill in base row `row`: signed contracts, price, commission, FillCause name, roll factor (1: none).

    `order_id` is the order that opened the position or, for cause ORDER, caused the fill.
    """

    row: int
    ts: int
    order_id: str
    quantity: float
    price: float
    commission: float
    cause: str
    roll: float


class Marked(NamedTuple):
    """A trading day begins in row `row`: the mark and the peak of equity at the close before it."""

    row: int
    ts: int
    day: int
    price: float
    peak: float


Record = Opened | Decided | Ordered | Filled | Marked
_KINDS: dict[str, Any] = {kind.__name__.lower(): kind for kind in (Opened, Decided, Ordered, Filled, Marked)}


class Journal(Protocol):
    """An append-only list of records; `append` returns when they are safe."""

    def append(self, *records: Record) -> None: ...

    def __iter__(self) -> Iterator[Record]: ...

    def __len__(self) -> int: ...


class MemoryJournal:
    """A journal for backtests: safe as long as the process lives."""

    def __init__(self) -> None:
        self._records: list[Record] = []

    def append(self, *records: Record) -> None:
        self._records.extend(records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)


def encode(records: Sequence[Record]) -> bytes:
    """One line of a journal file."""
    body = [{"kind": type(record).__name__.lower(), **record._asdict()} for record in records]
    text = json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
    return b"%08x %b\n" % (zlib.crc32(text), text)


def decode(line: bytes) -> list[Record] | None:
    """The records of a line without its LF, or None if the line is not whole."""
    checksum, _, text = line.partition(b" ")
    if not text or checksum != b"%08x" % zlib.crc32(text):
        return None
    return [_record(body) for body in json.loads(text)]


def _record(body: dict[str, Any]) -> Record:
    kind = body.pop("kind")
    if kind == "decided":
        body["votes"] = {agent: tuple(p) for agent, p in body["votes"].items()}
    record: Record = _KINDS[kind](**body)
    return record


class FileJournal:
    """A journal on disk with one writer. `torn_bytes` is what was cut from the tail on opening."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        created = not self.path.exists()
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._lock()
            self._records, self._end, self.torn_bytes = self._read()
        except BaseException:
            os.close(self._file)
            raise
        if self.torn_bytes:
            _LOG.warning("%s: cut %d bytes of a torn last record", self.path, self.torn_bytes)
        os.ftruncate(self._file, self._end)
        os.fsync(self._file)
        self._reserved = self._end
        if created:
            _sync_directory(self.path.parent)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{self.path}: another session writes this journal; stop it first") from None

    def _read(self) -> tuple[list[Record], int, int]:
        """(records, length of the whole lines at the front, length of what follows but for reserved zeros)."""
        data = self.path.read_bytes().rstrip(b"\0")
        records: list[Record] = []
        whole = 0
        for number, line in enumerate(data.split(b"\n"), 1):
            decoded = decode(line) if whole + len(line) < len(data) else None
            if decoded is None:
                self._refuse_damage(data[whole + len(line) + 1:], number)
                break
            records.extend(decoded)
            whole += len(line) + 1
        return records, whole, len(data) - whole

    def _refuse_damage(self, rest: bytes, number: int) -> None:
        if any(decode(line) is not None for line in rest.split(b"\n")):
            raise InputError(self.path, "the record is damaged but later ones are whole",
                             "restore the journal from a copy; it is not a torn tail", row=number)

    def append(self, *records: Record) -> None:
        """Write and sync all records or none; OSError, with the file as it was, if the disk refuses."""
        line = encode(records)
        try:
            if self._end + len(line) > self._reserved:
                self._reserve(self._end + len(line) + _RESERVE_BYTES)
            _write_all(self._file, line, self._end)
            os.fdatasync(self._file)
        except OSError:
            os.ftruncate(self._file, self._end)
            self._reserved = self._end
            raise
        self._end += len(line)
        self._records.extend(records)

    def _reserve(self, size: int) -> None:
        """Zeros, not holes: a first write into a hole changes the file's metadata, which costs a slower sync."""
        _write_all(self._file, bytes(size - self._reserved), self._reserved)
        os.fsync(self._file)
        self._reserved = size

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def close(self) -> None:
        """Give back the reserved space, release the file and its lock."""
        os.ftruncate(self._file, self._end)
        os.close(self._file)


class ResumingJournal:
    """Continue a deterministic session that died: what the journal already holds is compared, not written again.

    The session runs again from its start; InternalError if it departs from what was recorded.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._recorded = list(journal)
        self._seen = 0

    def append(self, *records: Record) -> None:
        known = self._recorded[self._seen: self._seen + len(records)]
        for old, new in zip(known, records, strict=False):
            if old != new:
                raise InternalError(f"the resumed session departs from its journal at record {self._seen}: "
                                    f"recorded {old}, now {new}; bundle or data differ from the first run")
        self._seen += len(records)
        if len(known) < len(records):
            self._journal.append(*records[len(known):])

    def __iter__(self) -> Iterator[Record]:
        return iter(self._journal)

    def __len__(self) -> int:
        return len(self._journal)


def _write_all(handle: int, data: bytes, offset: int) -> None:
    written = os.pwrite(handle, data, offset)
    if written != len(data):
        raise OSError(errno.ENOSPC, f"wrote {written} of {len(data)} bytes of a journal record")


def _sync_directory(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
