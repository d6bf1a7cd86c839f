"""Command group `tracking`: what a run's history still needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from algospace.errors import AlgoSpaceError, ConfigError

tracking = typer.Typer(no_args_is_help=True, help="The history of runs in MLflow.")


class TrackingError(AlgoSpaceError):
    """MLflow cannot be reached; nothing was lost."""


@tracking.command("upload")
def upload(
    run_dir: Annotated[Path, typer.Argument(help="a run's folder")],
    uri: Annotated[str | None, typer.Option("--uri", help="MLflow store; default: the run's own setting")] = None,
) -> None:
    """Upload the history that a run kept in its folder while MLflow could not be reached; again is harmless.

    Example: algospace tracking upload runs/es --uri http://mlflow:5000
    """
    from algospace.config import load_config
    from training.config import RunConfig
    from training.tracking import SPOOL, replay_spool
    from training.tracking_store import FAULTS

    config = run_dir / "config.yaml"
    if not config.is_file():
        raise ConfigError(f"{run_dir}: not a run's folder (no config.yaml); give the folder of a run")
    settings = load_config(RunConfig, config).tracking
    if uri is not None:
        settings = settings.model_copy(update={"uri": uri})
    spool = run_dir / SPOOL
    if not spool.is_file():
        typer.echo(f"{run_dir}: nothing waits to be uploaded")
        return
    try:
        count = replay_spool(run_dir, settings)
    except FAULTS as error:
        store, reason = settings.uri or run_dir / "mlflow.db", " ".join(str(error).split())[:300]
        raise TrackingError(f"MLflow at {store}: {reason}; the rest stays in {spool}: try again later") from None
    left = len(spool.read_text(encoding="utf-8").splitlines()) if spool.is_file() else 0
    typer.echo(f"{run_dir}: {count} operations uploaded"
               + (f", {left} refused and kept in {spool}" if left else ""))
