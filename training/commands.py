"""Sub-commands of training: `train`, `tune`, `backtest`, `quickstart`."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add this package's commands to `app`."""
