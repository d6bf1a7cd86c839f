"""Sub-commands that need neither torch nor Ray: `data` and `features`."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add this package's commands to `app`."""
