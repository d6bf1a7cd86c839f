"""Files are written whole or not at all: to a temporary name beside the target, then renamed."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_HERE, _EXCHANGE = -100, 2  # AT_FDCWD, RENAME_EXCHANGE


@contextmanager
def _parent_of(target: Path) -> Iterator[Path]:
    """The folder of `target`, made if it is missing; what was made goes again if the block fails before anybody
    puts something there."""
    missing = [folder for folder in target.parents if not folder.exists()]  # the deepest first
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield target.parent
    except BaseException:
        for folder in missing:
            with suppress(OSError):  # somebody has put something there
                folder.rmdir()
        raise


@contextmanager
def atomic_path(target: Path | str) -> Iterator[Path]:
    """Yield a temporary path in the target's folder; rename it to `target` if the block succeeds."""
    target = Path(target)
    with _parent_of(target) as folder:
        handle, name = tempfile.mkstemp(dir=folder, prefix=f".{target.name}.", suffix=".part")
        os.close(handle)
        part = Path(name)
        try:
            yield part
            part.chmod(0o644)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def atomic_directory(target: Path | str) -> Iterator[Path]:
    """Yield a temporary folder; it replaces `target` if the block succeeds. There is one of both at any moment,
    where the file system can exchange two names (those of Linux can)."""
    target = Path(target)
    with _parent_of(target) as folder:
        part = Path(tempfile.mkdtemp(dir=folder, prefix=f".{target.name}.", suffix=".part"))
        try:
            yield part
            part.chmod(0o755)
            if not target.exists():
                part.replace(target)
            elif not _exchanged(part, target):
                old = part.with_suffix(".old")
                target.replace(old)
                part.replace(target)
                shutil.rmtree(old)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _exchanged(one: Path, other: Path) -> bool:
    """Whether the names of two folders have been exchanged, in one step (renameat2 of Linux)."""
    if other.is_symlink() or not other.is_dir():
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):  # another system
        return False
    done: int = rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), ctypes.c_uint(_EXCHANGE))
    return done == 0


def write_text(target: Path | str, text: str) -> None:
    """Atomic UTF-8 text file."""
    with atomic_path(target) as part:
        part.write_text(text, encoding="utf-8")


def write_json(target: Path | str, value: Any) -> None:
    """Atomic JSON file, sorted keys, NaN refused."""
    write_text(target, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def sha256_file(path: Path | str) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
