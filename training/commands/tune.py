"""Command `tune`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

RUNS = Path("runs")


def tune(
    config: Annotated[Path, typer.Option("--config", help="YAML file, e.g. configs/tune/quickstart.yaml")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value of the sweep, e.g. trials=16")] = None,
    run_dir: Annotated[Path | None, typer.Option("--run-dir", help="default: runs/<name>")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
) -> None:
    """Search a run's configuration: best by validation score. A stopped sweep goes on where it was.

    Example: algospace tune --config configs/tune/quickstart.yaml
    """
    from training.sweep.config import load_tune

    console = Console(stderr=as_json)
    settings, base = load_tune(config, overrides or [])
    folder = run_dir or RUNS / settings.name
    from training.tune import SweepStopped, run_sweep  # loads Ray: a wrong key is said before

    try:
        result = run_sweep(settings, base, folder, console)
    except SweepStopped as stopped:
        console.print(str(stopped), markup=False, highlight=False)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(json.dumps({
            "run_dir": str(result.folder), "best": result.best_id, "best_score": result.best_score,
            "best_config": str(result.best_config), "tried": result.tried, "mlflow_run_id": result.mlflow_run_id,
            "trials": list(result.trials)}, indent=2))
        return
    console.print(_table(result.trials, list(settings.space)))
    console.print(f"best of {result.tried}: validation score {result.best_score:.4f}; train it with")
    console.print(f"  algospace train --config {result.best_config}", soft_wrap=True, highlight=False)


def _table(trials: tuple[dict[str, Any], ...], keys: list[str]) -> Table:
    """One row per trial, the best last rung first."""
    table = Table(title="Trials by validation score")
    for name in ("trial", "state", "rungs", "score", *keys):
        table.add_column(name, overflow="fold")

    def score(trial: dict[str, Any]) -> float:
        return float(trial["rungs"][-1]["validation_score"]) if trial["rungs"] else float("-inf")

    for trial in sorted(trials, key=lambda t: (t["state"] == "finished", score(t)), reverse=True):
        values = [trial["changes"][key] for key in keys]
        table.add_row(str(trial["number"]), trial["state"], str(len(trial["rungs"])), f"{score(trial):+.4f}",
                      *(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values))
    return table
