"""Sub-command `walk-forward`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def walk_forward(
    config: Annotated[Path, typer.Option("--config", help="YAML file, e.g. configs/walk/nq.yaml")],
    out: Annotated[Path, typer.Option("--out", help="folder for everything; finished windows in it are reused")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.path=value ...")] = None,
    windows: Annotated[int | None, typer.Option("--windows", min=1, help="how many; default: the file's")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the document as JSON")] = False,
) -> None:
    """Train, calibrate and test on window after window of recorded bars, and judge all tests joined.

    Example: algospace walk-forward --config configs/walk/nq.yaml --windows 5 --out runs/walk-nq
    """
    from algospace.config import load_config
    from training.walk_forward import WalkForwardRun
    from training.walk_forward.runner import walk_forward as run_walk_forward

    changes = [*(overrides or []), *([] if windows is None else [f"walk_forward.windows={windows}"])]
    console = Console(stderr=as_json)
    document = run_walk_forward(load_config(WalkForwardRun, config, changes), out, console)
    if as_json:
        typer.echo(json.dumps(document, indent=2))
        return
    for line in document["verdict"]:
        console.print(f"  {line}")
