"""Commands `train`, `backtest`, `export`, `select` and `quickstart`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from algospace.errors import ConfigError
from training.commands.joint import train_jointly

RUNS = Path("runs")


def train(
    config: Annotated[Path, typer.Option("--config", help="YAML file, e.g. configs/train/nq.yaml")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.path=value ...")] = None,
    phases: Annotated[str, typer.Option("--phases", help="comma-separated, in order")] = "rde,mrms,core",
    run_dir: Annotated[Path | None, typer.Option("--run-dir", help="default: runs/<name>")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
) -> None:
    """Train the phases, then bundle and backtest. Finished phases are reused, interrupted ones resumed.

    Example: algospace train --config configs/quickstart.yaml core.mappo.env_steps=1000000
    """
    from algospace.config import load_config
    from training.complete import complete_run
    from training.config import PHASES, RunConfig
    from training.pipeline import run_pipeline, stale_phase

    console = Console(stderr=as_json)
    resolved = load_config(RunConfig, config, overrides or [])
    folder = run_dir or RUNS / resolved.name
    names = tuple(name.strip() for name in phases.split(",") if name.strip())
    if resolved.markets:
        figures = train_jointly(resolved, folder, names, console)
        if as_json:
            typer.echo(json.dumps(figures, indent=2))
        return
    if "RAY_JOB_ID" in os.environ or "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        console.print(f"this job writes to {folder.resolve()} on its node; choose with --run-dir")
    result = run_pipeline(resolved, folder, names, console)
    summary: dict[str, Any] = {"run_dir": str(folder), "mlflow_run_id": result.mlflow_run_id,
                               "phases": {name: phase["metrics"] for name, phase in result.phases.items()}}
    stale = stale_phase(resolved, result.dataset, folder)
    if stale is not None:
        console.print(f"no bundle yet: it needs all of {', '.join(PHASES)}, and '{stale}' has not finished with "
                      f"this configuration and these experts; finished phases are in {folder}")
    else:
        done = complete_run(resolved, result, console)
        summary |= {"bundle": str(done.bundle.directory), "unit": done.unit, "report": str(done.report_path)}
        console.print(f"report: {done.report_path}")
        for line in done.report.get("verdict", []):
            console.print(f"  {line}")
    if as_json:
        typer.echo(json.dumps(summary, indent=2))


def backtest(
    bundle: Annotated[Path, typer.Option("--bundle", help="a bundle's folder")],
    data: Annotated[Path, typer.Option("--data", help="bars: file, folder or catalog")],
    out: Annotated[Path, typer.Option("--out", help="folder for report.html and report.json")],
    start: Annotated[str | None, typer.Option("--start", help="first date, ISO, UTC")] = None,
    stop: Annotated[str | None, typer.Option("--stop", help="date after the last, ISO, UTC")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="of the dropout masks and the random baseline")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print the report as JSON")] = False,
) -> None:
    """Run a bundle over recorded bars, beside every baseline.

    Example: algospace backtest --bundle runs/nq/bundle --data nq.csv --out runs/check
    """
    from serving.bundle import load_bundle
    from training.backtest import backtest_bars

    console = Console(stderr=as_json)
    loaded = load_bundle(bundle)
    document = backtest_bars(loaded, data, out, start=start, stop=stop, seed=seed)
    if as_json:
        typer.echo(json.dumps(document, indent=2))
        return
    console.print(f"report: {out / 'report.html'}")
    for line in document.get("verdict", []):
        console.print(f"  {line}")


def export(
    out: Annotated[Path | None, typer.Option("--out", help="folder of the new bundle")] = None,
    checkpoint: Annotated[Path | None, typer.Option("--checkpoint", help="a run's folder")] = None,
    run: Annotated[str | None, typer.Option("--run", help="an MLflow run id of a run below ./runs")] = None,
    backend: Annotated[str, typer.Option("--backend", help="onnx; tensorrt[-rtx]: engines too")] = "onnx",
    bundle_dir: Annotated[Path | None, typer.Option("--bundle", help="build engines of this bundle")] = None,
    capability: Annotated[str | None, typer.Option("--compute-capability", help="e.g. 8.9,12.0; by default the "
                                                                                "GPU's")] = None,
    precision: Annotated[str, typer.Option("--precision", help="of the engines: fp32 or fp16")] = "fp32",
    engines: Annotated[Path | None, typer.Option("--engines", help="folder of built engines; default: the user's "
                                                                   "cache")] = None,
) -> None:
    """Write a calibrated bundle from a finished run, or build a bundle's engines.

    Example: algospace export --checkpoint runs/quickstart --out bundle
    Example: algospace export --bundle bundle --backend tensorrt-rtx --compute-capability 8.9,12.0
    """
    from algospace.config import load_config
    from serving.bundle import load_bundle
    from serving.engine_commands import export_engines, wanted_builds

    if bundle_dir is not None:
        if (out, checkpoint, run) != (None, None, None) or backend == "onnx":
            raise ConfigError("--bundle builds engines of a bundle that is there: give --backend tensorrt-rtx or "
                              "tensorrt, and none of --out, --checkpoint and --run")
        export_engines(load_bundle(bundle_dir), backend, capability, precision, engines)
        return
    from training.bundling import build_bundle
    from training.config import RunConfig
    from training.dataset import open_dataset
    from training.pipeline import stale_phase

    if out is None or (checkpoint is None) == (run is None):
        raise ConfigError("give --out and exactly one of --checkpoint and --run")
    if backend != "onnx":
        wanted_builds(backend, capability, precision)  # refused now, not after minutes of calibration
    folder = checkpoint if checkpoint is not None else _find_run(str(run))
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"{folder}: not a run's folder (no config.yaml); give the folder of a finished run")
    config = load_config(RunConfig, folder / "config.yaml")
    dataset = open_dataset(folder)
    stale = stale_phase(config, dataset, folder)
    if stale is not None:
        raise ConfigError(f"{folder}: phase '{stale}' has not finished with this run's configuration and experts; "
                          f"run `algospace train --config {folder / 'config.yaml'} --run-dir {folder}` first")
    bundle, gate = build_bundle(config, folder, dataset, out)
    typer.echo(f"bundle {bundle.id[:12]} in {out}: threshold {gate['threshold']:.3f}, "
               f"promise {'kept' if gate['promise_kept'] else 'not kept: nothing passes'}")
    if backend != "onnx":
        export_engines(bundle, backend, capability, precision, engines)


def _find_run(run_id: str) -> Path:
    for document in RUNS.glob("*/run.json"):
        if json.loads(document.read_text())["mlflow_run_id"] == run_id:
            return document.parent
    raise ConfigError(f"no run with MLflow id '{run_id}' below {RUNS}/; give its folder with --checkpoint")


def select(
    features: Annotated[Path, typer.Argument(help="of `algospace features`: FILE.parquet, or a folder of blocks")],
    train_end: Annotated[str, typer.Option("--train-end", help="last day of training (UTC), ISO")],
    out: Annotated[Path, typer.Option("--out", help="FILE.json for the selection")],
    overrides: Annotated[list[str] | None, typer.Option("--set", help="key=value, e.g. keep=20")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the selection as JSON")] = False,
) -> None:
    """Select feature columns on the training split: correlation, purged importance, principal components.

    Example: algospace select es.parquet --train-end 2025-06-30 --out selection.json --set keep=20
    """
    import pandas as pd

    from algospace.config import parse_config
    from algospace.features import read_table
    from algospace.features.block_table import read_blocks
    from training.selection import SelectionConfig, select_features

    settings = parse_config(SelectionConfig, {}, overrides or [], source="select")
    try:
        day = pd.Timestamp(train_end)
        end = (day.tz_localize("UTC") if day.tz is None else day.tz_convert("UTC")) + pd.Timedelta(days=1)
    except ValueError:
        raise ConfigError(f"--train-end {train_end}: not a date; write it as 2025-06-30") from None
    console = Console(stderr=True)
    table = read_blocks(features) if features.is_dir() else read_table(features)
    with console.status(f"selecting among {len(table.base)} columns"):
        found = select_features(table, end.as_unit("ns").value - 1, settings)
    found.save(out)
    if as_json:
        typer.echo(out.read_text(encoding="utf-8"))
        return
    typer.echo(f"rows     {found.rows} of the training split, rank correlation on held-out folds "
               + " ".join(f"{value:+.3f}" for value in found.rank_correlation))
    for name in found.kept:
        score = found.importance[name]
        typer.echo(f"kept     {name:<24} {score.mean:.4f} ± {score.error:.4f}")
    typer.echo(f"dropped  {len(found.dropped)} columns, reasons in {out}")
    typer.echo(f"pca      {len(found.components)} components: {100 * sum(found.explained):.1f} % of the variance")


def quickstart(
    overrides: Annotated[list[str] | None, typer.Argument(help="key.path=value ...")] = None,
    run_dir: Annotated[Path, typer.Option("--run-dir", help="where everything is written")] = RUNS / "quickstart",
    config: Annotated[Path | None, typer.Option("--config", help="default: the packaged quickstart.yaml")] = None,
) -> None:
    """The main job: synthetic market to served decision, in minutes.

    Example: algospace quickstart
    """
    from training.quickstart import run_quickstart

    run_quickstart(run_dir, config, overrides or [])
