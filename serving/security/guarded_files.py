"""Small files that decide who gets in: checked before they are believed, written whole, re-read on a change."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import structlog

from algospace.errors import ConfigError

_LOG = structlog.get_logger("serving.security")
SECRET, PUBLIC = 0o600, 0o644
_LARGEST = 16 * 2**20

T = TypeVar("T")


def read_guarded(path: Path, what: str, mode: int, fix: str) -> bytes:
    """The bytes of a file that others may not write (PUBLIC) or not even read (SECRET); ConfigError otherwise."""
    forbidden = 0o077 if mode == SECRET else 0o022
    try:
        with open(path, "rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST:
                raise ConfigError(f"{path}: no {what}; {fix}")
            if status.st_mode & forbidden:
                found = stat.S_IMODE(status.st_mode)
                raise ConfigError(f"{path}: others may {'read' if mode == SECRET else 'change'} this {what} "
                                  f"(mode {found:04o}); chmod {mode:o} it")
            return stream.read()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such {what}; {fix}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the {what} ({error.strerror}); {fix}") from None


def read_guarded_json(path: Path, what: str, mode: int, fix: str) -> dict[str, Any]:
    """`read_guarded` of a JSON object."""
    raw = read_guarded(path, what, mode, fix)
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: the {what} is damaged; {fix}")
    return value


def write_guarded(path: Path, data: bytes, mode: int) -> None:
    """Replace `path` by `data` with `mode`, whole or not at all, on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")  # mode 0600
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            os.fchmod(stream.fileno(), mode)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    sync_directory(path.parent)


def sync_directory(folder: Path) -> None:
    """Make a new or renamed file of `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_guarded_json(path: Path, value: dict[str, Any], mode: int) -> None:
    """`write_guarded` of a JSON object."""
    write_guarded(path, (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode(), mode)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time changes `path`; readers need no lock, since files are replaced whole."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(path.parent / f".{path.name}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


class Watched(Generic[T]):
    """What `read(path)` makes of a file, made anew when the file changes.

    The first reading raises what `read` raises. Later a file that is gone or damaged leaves the last good value in
    place, with a line in the log: a damaged file must not let anyone in, nor lock everyone out.
    """

    def __init__(self, path: Path, read: Callable[[Path], T], every_seconds: float,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._read, self._every, self._clock = path, read, every_seconds, clock
        self._seen = self._told = self._signature()
        self._value = read(path)
        self._due = clock() + every_seconds
        self.generation = 0
        """Counts the changes."""

    def value(self) -> T:
        """The current value; looks at the file at most every `every_seconds`."""
        now = self._clock()
        if now >= self._due:
            self._due = now + self._every
            self._refresh()
        return self._value

    def _refresh(self) -> None:
        signature = self._signature()
        if signature == self._seen:
            return
        if not signature:
            self._kept(signature, f"{self._path} is gone; what it last held stays in force")
            return
        try:
            value = self._read(self._path)
        except ConfigError as error:  # the file's fault, or the machine's, which passes: it is read again
            self._kept(signature, str(error))
            return
        if self._signature() != signature:  # changed or taken away while it was read: the next look reads again
            return
        self._seen, self._value = signature, value
        self.generation += 1

    def _kept(self, signature: tuple[int, ...], fault: str) -> None:
        """One line for every state of the file."""
        if signature != self._told:
            self._told = signature
            _LOG.error("security_file_kept", error=fault)

    def _signature(self) -> tuple[int, ...]:
        try:
            status = self._path.stat()
        except OSError:
            return ()
        return status.st_mtime_ns, status.st_size, status.st_ino, status.st_mode
