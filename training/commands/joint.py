"""`algospace train` of a configuration with several markets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from algospace.errors import ConfigError

if TYPE_CHECKING:
    from training.config import RunConfig


def train_jointly(config: RunConfig, run_dir: Path, phases: Sequence[str], console: Console) -> dict[str, Any]:
    """Train on all markets; returns the folder, bundle, scores and report of every instrument."""
    from training.config import PHASES
    from training.joint import run_joint

    if tuple(phases) != PHASES:
        raise ConfigError(f"several markets are trained in one go, got --phases {','.join(phases)}; leave it out")
    done = run_joint(config, run_dir, console)
    for name, run in done.items():
        console.print(f"{name}: {run.report_path}")
        for line in run.report.get("verdict", []):
            console.print(f"  {line}")
    return {"run_dir": str(run_dir), "markets": {
        name: {"bundle": str(run.bundle.directory), "unit": run.unit, "report": str(run.report_path)}
        for name, run in done.items()}}
