"""Command group `tracking`: what a run's history still needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from algospace.config import parse_config, read_yaml
from algospace.errors import AlgoSpaceError, ConfigError

tracking = typer.Typer(no_args_is_help=True, help="The history of runs in MLflow.")


class TrackingError(AlgoSpaceError):
    """MLflow cannot be reached; nothing was lost."""


def _kept_settings(folder: Path) -> dict[str, Any] | None:
    """The section `tracking` of a run, a walk-forward, a sweep or an evaluation."""
    from training.tracking import TRACKING

    for name, sections in (("config.yaml", ()), ("plan.json", ("base",)), (TRACKING, ())):
        if (folder / name).is_file():
            values = read_yaml(folder / name)  # JSON is YAML
            for section in sections:
                values = values[section]
            return dict(values.get("tracking", {}))
    return None


@tracking.command("upload")
def upload(
    run_dir: Annotated[Path, typer.Argument(help="folder of a run, a sweep, a walk-forward or an evaluation")],
    uri: Annotated[str | None, typer.Option("--uri", help="MLflow store; default: the run's own setting")] = None,
) -> None:
    """Upload the history that a run kept in its folder while MLflow could not be reached; again is harmless.

    Example: algospace tracking upload runs/es --uri http://mlflow:5000
    """
    from training.tracking import SPOOL, TrackingConfig, replay_spool
    from training.tracking_store import FAULTS

    spool = run_dir / SPOOL
    kept = _kept_settings(run_dir)
    if kept is None and not spool.is_file():
        raise ConfigError(f"{run_dir}: not a run's folder (no config.yaml); give the folder of a run")
    if kept is None and uri is None:  # an evaluation of an earlier version kept no settings
        raise ConfigError(f"{run_dir}: no configuration here says where its history belongs; give its store with "
                          f"--uri")
    settings = parse_config(TrackingConfig, {**(kept or {}), **({} if uri is None else {"uri": uri})},
                            source=str(run_dir))
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
