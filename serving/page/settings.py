"""Where the page and what it replays are found."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from algospace.config import FrozenConfig

BUILT = Path(__file__).parent / "static"
"""Where `make page` puts the page."""


class PageSettings(FrozenConfig):
    """`folder`: the built page. `replays`: a folder of runs; each `replay` folder below it, at most three levels
    down, can be replayed (`runs/quickstart/report/replay`). None: nothing can."""

    folder: str = BUILT.name
    replays: str | None = None
    max_rows: int = Field(default=20_000, ge=1, le=200_000)
    """Bars in one answer of `GET /v1/replay`."""

    @property
    def built(self) -> Path:
        """The folder of the built page; a relative one lies beside this module."""
        return BUILT.parent / self.folder
