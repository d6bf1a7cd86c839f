"""`algospace features`: the feature table of one instrument, or tables of many, and the list of all columns."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from algospace.command_options import Json, Library, Own, with_progress
from algospace.config import load_config
from algospace.errors import ConfigError, InputError
from algospace.instruments import Instrument, instrument

if TYPE_CHECKING:  # compiled code is loaded only by the command that needs it
    from algospace.features import FeatureConfig, FeatureTable, Indicator
    from algospace.features.blocks import Block, FeatureJob
    from algospace.features.own import FrameIndicator
    from algospace.features.side_inputs import SideInputs

_OTHER_FORMATS = (".csv", ".txt", ".json", ".pq", ".feather", ".gz")
_WEEK_NS = 7 * 86_400 * 10**9
_EXAMPLE = "Example: algospace features market --instrument ES --out es.parquet --library rsi_14,adx_14"


def add_features_command(app: typer.Typer) -> None:
    """Attach `features` to `app`."""
    app.command("features", epilog=_EXAMPLE)(features_command)


def features_command(
    src: Annotated[Path | None, typer.Argument(help="Bars or ticks: a file, a folder, or a catalog.")] = None,
    symbols: Annotated[str, typer.Option("--instrument", help="Symbol, several with commas, or all.")] = "",
    out: Annotated[Path | None, typer.Option(
        help="FILE.parquet (30-minute rows in FILE.30m.parquet), or a folder for monthly blocks.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with feature settings.")] = None,
    library: Library = None,
    own: Own = None,
    relative: Annotated[list[str] | None, typer.Option(
        help="SYMBOL=SRC: strength, beta and correlation against another instrument; repeatable.")] = None,
    outside: Annotated[list[Path] | None, typer.Option(
        help="File of an outside series, joined as of publication; repeatable.")] = None,
    ticks: Annotated[Path | None, typer.Option(help="Trades, for order flow columns.")] = None,
    quotes: Annotated[Path | None, typer.Option(help="Best bids and asks, for order book columns.")] = None,
    engine: Annotated[str, typer.Option(help="local, or ray: many instruments at once.")] = "local",
    show: Annotated[bool, typer.Option("--list", help="Print every column that there is, and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Build feature tables: FILE.parquet of one instrument, or a folder of monthly blocks of one or many."""
    if show:
        print_columns(as_json)
        return
    if src is None or not symbols or out is None:
        missing = [name for name, given in (("SRC", src), ("--instrument", symbols), ("--out", out)) if not given]
        raise ConfigError(f"features needs {' and '.join(missing)} as well; or --list for all columns")
    if out.suffix.lower() in _OTHER_FORMATS and not out.is_dir():
        raise ConfigError(f"--out {out}: tables are Parquet; name a FILE.parquet, or a folder for monthly blocks")
    settings = _settings(config, library)
    sides = {"relative": relative or (), "outside": outside or (), "ticks": ticks, "quotes": quotes}
    if out.suffix == ".parquet" and not out.is_dir():
        _one_file(src, symbols, out, settings, own, sides, engine, as_json)
        return
    _refuse_sides(sides, "is for one instrument into FILE.parquet; monthly blocks do not take it yet")
    _blocks(src, symbols, out, settings, own, engine, as_json)


def _settings(config: Path | None, library: str | None) -> FeatureConfig:
    from algospace.config import parse_config
    from algospace.features import FeatureConfig

    settings = load_config(FeatureConfig, config) if config is not None else FeatureConfig()
    if library is None:
        return settings
    names = [name.strip() for name in library.split(",") if name.strip()]
    return parse_config(FeatureConfig, {**settings.model_dump(mode="json"), "library": names}, source="--library")


def _loaded(own: list[Path] | None) -> list[Indicator | FrameIndicator]:
    from algospace.features.own import load_indicator

    return [load_indicator(path) for path in own or ()]


def _one_file(src: Path, symbols: str, out: Path, settings: FeatureConfig, own: list[Path] | None,
              sides: dict[str, Any], engine: str, as_json: bool) -> None:
    from algospace.features import schema_hash, write_table
    from algospace.features.engines import build_file
    from algospace.features.own import step_indicators

    if "," in symbols or symbols.lower() == "all":
        raise ConfigError(f"--out {out}: one file holds one instrument; name a folder for several")
    started = time.perf_counter()
    spec = instrument(symbols)
    if engine == "local":
        table, notes = _table(src, spec, settings, _loaded(own), sides, as_json)
        write_table(table, out)
        figures = _counts(table, schema_hash(table))
    else:
        _refuse_sides(sides, "needs --engine local")
        job = _jobs(src, symbols, out, settings, step_indicators(_loaded(own)))[0]
        report, figures = build_file(job, out, engine, _progress())
        if report.error is not None:
            raise InputError(report.name, report.error, "correct it and run this again: it continues")
        notes = report.notes
    for note in notes:
        typer.echo(f"note               {note}", err=as_json)
    _print_summary({**_summary(figures), "seconds": round(time.perf_counter() - started, 2), "out": str(out)},
                   as_json)


def _refuse_sides(sides: dict[str, Any], why: str) -> None:
    """ConfigError for the first input beside the bars that was given."""
    for name, value in sides.items():
        if value:
            raise ConfigError(f"--{name} {why}")


def _table(src: Path, spec: Instrument, settings: FeatureConfig, own: list[Indicator | FrameIndicator],
           sides: dict[str, Any], quiet: bool) -> tuple[FeatureTable, tuple[str, ...]]:
    """(table, notes); the sources' memory is free again when it returns, since the writer needs it."""
    from algospace.features.side_inputs import build_with_sides, read_market, read_sides
    from algospace.memory import release_unused

    market = with_progress(lambda say: read_market(src, spec, settings), quiet)
    inputs: SideInputs = with_progress(lambda say: read_sides(market, src, spec, **sides), quiet)
    with nullcontext() if quiet else Console(stderr=True).status(f"features of {len(market)} rows"):
        table = build_with_sides(market, spec, own, inputs)
    release_unused()
    return table, (*market.notes, *inputs.notes)


def _counts(table: FeatureTable, digest: str) -> dict[str, Any]:
    first, last = (int(table.ts_close[0]), int(table.ts_close[-1])) if len(table) else (None, None)
    synergies = int((table.base["synergy_type"] > 0).sum())
    return {"rows": len(table), "rows_30m": int(table.ts_close_30m.size), "columns": len(table.base),
            "synergies": synergies, "first": first, "last": last, "schema": digest}


def _summary(counts: dict[str, Any]) -> dict[str, Any]:
    span = (counts["last"] or 0) - (counts["first"] or 0)
    weekly = counts["synergies"] * _WEEK_NS / span if span else 0.0
    kept = {name: counts[name] for name in ("rows", "rows_30m", "columns", "synergies")}
    return {**kept, "synergies_per_week": round(weekly, 3), "schema": counts["schema"]}


def _print_summary(summary: dict[str, Any], as_json: bool) -> None:
    typer.echo(json.dumps(summary) if as_json else "\n".join(f"{k:<18} {v}" for k, v in summary.items()))


def _jobs(src: Path, symbols: str, out: Path, settings: FeatureConfig, indicators: list[Indicator]
          ) -> list[FeatureJob]:
    from algospace.features.blocks import FeatureJob
    from algospace.features.engines import plan_jobs

    template = FeatureJob("", instrument("ES"), src, out, settings, tuple(indicators))
    return plan_jobs(src, symbols, out, template)


def _blocks(src: Path, symbols: str, out: Path, settings: FeatureConfig, own: list[Path] | None, engine: str,
            as_json: bool) -> None:
    """Monthly blocks of every instrument, one folder each. InputError at the end if one failed."""
    from algospace.features.own import step_indicators

    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file; name a folder, or FILE.parquet for one instrument")
    _run(_jobs(src, symbols, out, settings, step_indicators(_loaded(own))), engine, as_json)


def _progress() -> Callable[[Block], None]:
    """Tells a person at the terminal of every block that is built."""
    console = Console(stderr=True)

    def say(block: Block) -> None:
        if block.built and console.is_terminal:
            console.print(f"{block.name} {block.month}: block {block.number} of {block.total}, {block.rows} rows",
                          highlight=False)

    return say


def _run(jobs: list[FeatureJob], engine: str, as_json: bool) -> None:
    from dataclasses import asdict

    from algospace.features.engines import failures, run_jobs

    reports = run_jobs(jobs, engine, _progress())
    if as_json:
        typer.echo(json.dumps([asdict(report) for report in reports]))
    for report in reports if not as_json else ():
        for note in report.notes:
            typer.echo(f"{report.name}: {note}")
        if report.error is None:
            typer.echo(f"{report.name}: {report.rows} rows in {report.blocks} blocks ({report.kept} kept), "
                       f"{report.seconds:.1f} s, {report.folder}")
    failed = failures(reports)
    if failed:
        raise InputError(f"{len(failed)} of {len(reports)} instruments", "; ".join(failed),
                         "the others are complete; correct these and run it again")


def print_columns(as_json: bool) -> None:
    """Name, formula, unit, warm-up and source of every column."""
    from dataclasses import asdict

    from algospace.features.library import describe, describe_built_in

    groups = {"built in, always there": describe_built_in(), "general library, by --library": describe()}
    if as_json:
        typer.echo(json.dumps({name: [asdict(c) for c in columns] for name, columns in groups.items()}))
        return
    for title, columns in groups.items():
        typer.echo(f"{title} ({len(columns)}): column, warm-up, unit, formula, source")
        for column in columns:
            bars = f"{column.warm_up}" if column.clock == "base" else f"{column.warm_up} x 30m"
            typer.echo(f"  {column.name:<22} {bars:>9}  {column.unit:<20} {column.formula}; {column.source}")
