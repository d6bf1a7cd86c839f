"""Which recordings a service offers, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import structlog

from algospace.errors import InputError
from serving.page.recording import DESCRIPTION, describe, read_recording

_LOG = structlog.get_logger("serving.page")
_LEVELS = 4
FOLDER = "replay"


class Replays:
    """The recordings below `root`. A name is only ever looked up among those found there, never made a path."""

    def __init__(self, root: Path | None) -> None:
        self._root = root

    def found(self) -> dict[str, Path]:
        """Name -> folder; the name is the way down from the root without the last `replay`."""
        if self._root is None or not self._root.is_dir():
            return {}
        folders: dict[str, Path] = {}
        for depth in range(_LEVELS):
            for path in sorted(self._root.glob("/".join(["*"] * depth + [FOLDER, DESCRIPTION]))):
                folder = path.parent
                folders[folder.parent.relative_to(self._root).as_posix()] = folder
        return folders

    def listed(self) -> list[dict[str, Any]]:
        """What each recording is, the newest first; damaged ones are logged and left out."""
        items = []
        for name, folder in self.found().items():
            try:
                items.append((folder.stat().st_mtime, {"name": name, **describe(folder)}))
            except (InputError, OSError) as error:
                _LOG.warning("recording_left_out", name=name, error=str(error))
        return [item for _, item in sorted(items, key=lambda pair: -pair[0])]

    def read(self, name: str, start: int, count: int) -> dict[str, Any] | None:
        """See read_recording; None if there is none of that name."""
        folder = self.found().get(name)
        return None if folder is None else {"name": name, **read_recording(folder, start, count)}
