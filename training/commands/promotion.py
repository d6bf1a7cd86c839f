"""Command `promote`: a checked bundle becomes champion."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer


def promote(
    run_dir: Annotated[Path, typer.Argument(help="folder of a finished run")],
    evaluation: Annotated[Path | None, typer.Option(
        "--evaluation", help="folder of `algospace evaluate`, with and without --control; default: RUN/evaluation")
    ] = None,
    alias: Annotated[str, typer.Option("--alias", help="what the registry will call it")] = "champion",
    as_json: Annotated[bool, typer.Option("--json", help="print the checks as JSON")] = False,
) -> None:
    """Point a registry alias at a run's bundle, if every check passes; the checks are kept with the version.

    Example: algospace promote runs/best --evaluation runs/best-evaluation
    """
    from training.promotion import MODEL, promote

    found = promote(run_dir, evaluation, alias)
    if as_json:
        typer.echo(json.dumps(asdict(found) | {"promoted": found.promoted}, indent=2))
    else:
        for check in found.checks:
            typer.echo(f"{'passed' if check.passed else 'FAILED'}  {check.name:<16} {check.found}")
        moved, stayed = f"is now models:/{MODEL}@{alias}", f"stays as it is; '{alias}' did not move"
        outcome = moved if found.promoted else stayed
        typer.echo(f"version {found.version} {outcome}")
    if not found.promoted:
        raise typer.Exit(1)
