"""Checkpoints of a training: numbered, whole or not at all, the newest good one is found again.

    checkpoint/000040/{rllib/, history.json, files.json}
    checkpoint/000060/...                                  the KEPT newest stay

A folder appears under its number only when it is complete (one rename), and names the SHA-256 of every file in it;
what a crash, a full disk or a torn write leaves behind is therefore never taken for a checkpoint.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from algospace.files import atomic_directory, sha256_file, write_json

KEPT = 2
_FILES, _HISTORY, _RLLIB = "files.json", "history.json", "rllib"
History = list[dict[str, Any]]


class CheckpointWarning(UserWarning):
    """A checkpoint could not be written or read; the message says which one counts."""


@dataclass(frozen=True)
class Checkpoint:
    """A good checkpoint: RLlib's folder and the figures of every iteration before it."""

    rllib: Path
    history: History


def save_checkpoint(folder: Path, history: History, write: Callable[[Path], None]) -> bool:
    """Write checkpoint number len(history): `write` fills RLlib's folder. False, with a warning, if the disk or
    the file system refuses; the checkpoints before it are intact then."""
    target = folder / f"{len(history):06d}"
    try:
        with atomic_directory(target) as part:
            write(part / _RLLIB)
            write_json(part / _HISTORY, history)
            write_json(part / _FILES, {str(path.relative_to(part)): sha256_file(path)
                                       for path in sorted(part.rglob("*")) if path.is_file()})
    except OSError as error:
        last = _numbered(folder)
        kept = f"{last[-1]} is intact" if last else "there is none before it"
        warnings.warn(f"checkpoint {target} could not be written ({error.strerror or error}); {kept}; training "
                      f"goes on and tries again after the next iteration: make room", CheckpointWarning,
                      stacklevel=2)
        return False
    written = _numbered(folder)
    good = [path for path in written if path.name <= target.name]  # one with a higher number was passed over
    for old in (*good[:-KEPT], *written[len(good):], *folder.glob(".*.part")):  # and parts are of killed writers
        shutil.rmtree(old, ignore_errors=True)
    return True


def last_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint whose files are those that were written; a damaged one is passed over, with a
    warning."""
    for path in reversed(_numbered(folder)):
        damage = _damage(path)
        if damage is None:
            return Checkpoint(path / _RLLIB, list(json.loads((path / _HISTORY).read_text())))
        warnings.warn(f"{path}: {damage}; the checkpoint before it is used, if there is one", CheckpointWarning,
                      stacklevel=2)
    return None


def _numbered(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first; unfinished ones have other names."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name.isdecimal())


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint; None if nothing is."""
    try:
        files: dict[str, str] = json.loads((path / _FILES).read_text())
        changed = [name for name, digest in files.items() if sha256_file(path / name) != digest]
    except (OSError, ValueError) as error:
        return f"not a whole checkpoint ({error})"
    return f"{changed[0]} is not what was written" if changed else None
