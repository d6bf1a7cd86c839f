"""The kill switch's state, and the file in which it outlives the service.

Several processes may share the file, also of services that share nothing else: each obeys the one that throws it,
and none writes over what is further than its own state. Re-arming is learnt of elsewhere, never from a file: what
an old file says must not undo a kill.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from algospace.files import atomic_path
from serving.security.guarded_files import locked


@dataclass(frozen=True)
class SwitchState:
    """The switch after `revision` changes: who changed it last, why and when (ns UTC)."""

    thrown: bool = False
    revision: int = 0
    user: str = ""
    why: str = ""
    at_ns: int = 0

    def beats(self, other: SwitchState) -> bool:
        """Whether this is what counts if both are known."""
        return (self.revision, self.thrown) > (other.revision, other.thrown)

    def throws(self, other: SwitchState) -> bool:
        """Whether whoever is in the state `other` obeys this, found in the file: it is further, or it was thrown
        later by somebody who had not heard of a re-arming."""
        return self.thrown and (self.beats(other) or (not other.thrown and self.at_ns > other.at_ns))


def read_state(file: Path) -> SwitchState:
    """What is latched in `file`; thrown if it cannot be read: nobody knows that it is not."""
    try:
        return found_in(file)
    except OSError as error:
        return SwitchState(True, why=f"{file} cannot be read ({error})", at_ns=time.time_ns())


def found_in(file: Path) -> SwitchState:
    """What `file` says; thrown, when it was written, if it makes no sense. OSError if it does not open."""
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        return SwitchState()
    try:
        state = SwitchState(**json.loads(text))
        if [type(value) for value in asdict(state).values()] != [bool, int, str, str, int]:
            raise TypeError("a value is of another type")
        return state
    except (ValueError, TypeError, RecursionError) as error:
        return SwitchState(True, why=f"{file} cannot be read ({error})", at_ns=file.stat().st_mtime_ns)


def exchange(file: Path, mine: SwitchState) -> SwitchState:
    """What `file` says after `mine` has been written to it, if that counts for more; looked at again once nobody
    else is writing."""
    found = found_in(file)
    if found.throws(mine) or not mine.beats(found):
        return found
    with ExitStack() as alone:
        with suppress(OSError):  # a file system that knows no locks is no reason not to latch
            alone.enter_context(locked(file))
        found = found_in(file)
        if found.throws(mine) or not mine.beats(found):
            return found
        _write(file, mine)
    return mine


def _write(file: Path, state: SwitchState) -> None:
    """Whole, and on the disk: a machine that loses its power right after still knows of it."""
    with atomic_path(file) as part, part.open("w", encoding="utf-8") as stream:
        json.dump(asdict(state), stream, indent=2, sort_keys=True)
        stream.flush()
        os.fsync(stream.fileno())
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
