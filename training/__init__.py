"""Training on Ray: MAPPO, the phases rde -> mrms -> core, tracking, backtests, the quickstart."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.complete import CompletedRun

__all__ = ["train"]


def train(config_file: Path | str, overrides: Iterable[str] = (),
          run_dir: Path | str | None = None) -> CompletedRun:
    """All phases, bundle and backtest of one configuration: what `algospace train` does.

    Example: `training.train("configs/train/es.yaml", ["seed=3"])`. Finished phases in `run_dir` (default
    runs/<name>) are reused.
    """
    from rich.console import Console

    from algospace.config import load_config  # imported here: `import training` stays light in Ray's workers
    from training.complete import complete_run
    from training.config import RunConfig
    from training.pipeline import run_pipeline

    config, console = load_config(RunConfig, config_file, overrides), Console()
    result = run_pipeline(config, Path(run_dir or Path("runs") / config.name), console=console)
    return complete_run(config, result, console)
