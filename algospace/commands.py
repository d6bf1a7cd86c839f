"""Sub-commands that need neither torch nor Ray: `data` and `features`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from algospace.config import load_config, parse_config
from algospace.errors import ConfigError
from algospace.instruments import Instrument, instrument
from algospace.types import Bars

if TYPE_CHECKING:  # compiled code is loaded only by the command that needs it
    from algospace.features import FeatureConfig, FeatureTable
    from algospace.marketdata import ImportResult
    from algospace.marketdata.catalog import Written

ENGINE_GROUP = "algospace.engines"
_WEEK_NS = 7 * 86_400 * 10**9

_IMPORT_EXAMPLE = "Example: algospace data import prices.csv --instrument ES --zone America/Chicago --out market"
_FEATURES_EXAMPLE = "Example: algospace features market --instrument ES --out es.parquet"

Json = Annotated[bool, typer.Option("--json", help="Print a JSON object instead of text.")]
Symbol = Annotated[str, typer.Option("--instrument", help="Symbol, for example ES.")]


def register(app: typer.Typer) -> None:
    """Add this package's commands to `app`."""
    from algospace.marketdata.synthetic_commands import add_synth_command

    data_app = typer.Typer(no_args_is_help=True, help="Import market data and make synthetic markets.")
    data_app.command("import", epilog=_IMPORT_EXAMPLE)(import_command)
    add_synth_command(data_app)
    app.add_typer(data_app, name="data")
    app.command("features", epilog=_FEATURES_EXAMPLE)(features_command)


def import_command(
    src: Annotated[Path, typer.Argument(help="CSV or Parquet file, or a folder of them.")],
    symbol: Symbol,
    out: Annotated[Path, typer.Option(help="Catalog folder; the instrument's months are merged into it.")],
    file_format: Annotated[str, typer.Option("--format", help="auto, csv, parquet or tradestation.")] = "auto",
    zone: Annotated[str | None, typer.Option(help="IANA zone of times without one.")] = None,
    columns: Annotated[list[str] | None, typer.Option(help="role=column, for example close=Last.")] = None,
    dates: Annotated[str, typer.Option(help="auto, day-first or month-first.")] = "auto",
    stamp: Annotated[str, typer.Option(help="Times are the bars' open or close; auto decides.")] = "auto",
    width_s: Annotated[int | None, typer.Option(help="Bar width in seconds.")] = None,
    contracts: Annotated[Path | None, typer.Option(help="Roll table: contract, first_ts_utc, last_ts_utc")] = None,
    front: Annotated[str, typer.Option(help="volume: one contract a day where a file holds several.")] = "none",
    max_bad_fraction: Annotated[float, typer.Option(help="Share of rows that may break a rule.")] = 0.001,
    as_json: Json = False,
) -> None:
    """Import any supported file into a catalog, with a quality report and a quarantine."""
    from algospace.marketdata import Catalog, ImportOptions, import_file
    from algospace.marketdata.options import parse_columns
    from algospace.marketdata.source import locate

    spec = instrument(symbol)
    values = {"format": file_format, "zone": zone, "columns": parse_columns(columns or ()), "dates": dates,
              "stamp": stamp, "width_s": width_s, "contracts": str(contracts) if contracts else None,
              "front": front, "max_bad_fraction": max_bad_fraction}
    options = parse_config(ImportOptions, values, source="data import")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file; name a folder with --out")
    started = time.perf_counter()
    result = with_progress(lambda say: import_file(locate(src), spec, options, say), as_json)
    written = Catalog(out).write_import(spec.symbol, result)
    _print_import(result, written, out, time.perf_counter() - started, as_json)


def with_progress(work: Callable[[Callable[[str], None]], Any], quiet: bool) -> Any:
    """Run `work(say)` under a spinner on the terminal; `say(name)` shows what is being read."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        return work(lambda name: None)
    with console.status("reading") as status:
        return work(lambda name: status.update(f"reading {name}"))


def _print_import(result: ImportResult, written: Written, out: Path, seconds: float, as_json: bool) -> None:
    from algospace.marketdata.stretches import attention

    report = result.report
    if as_json:
        typer.echo(json.dumps({**report.to_dict(), "out": str(out), "months_written": written.months,
                               "rows_added": written.added, "rows_replaced": written.replaced}))
        return
    for guess in report.guesses:
        typer.echo(f"guessed  {guess}")
    typer.echo(f"bars     {report.rows_out} of {report.rows_in} rows, {report.first_bar} to {report.last_bar}")
    broken = ", ".join(f"{rule} {count}" for rule, count in report.quarantined.items())
    typer.echo(f"bad rows {report.bad_rows}{' in quarantine: ' + broken if broken else ''}")
    kept = ", ".join(f"{name} {count}" for name, count in report.reported.items() if count)
    typer.echo(f"noticed  {kept or 'nothing'}")
    for line in attention(report.stretches):
        typer.echo(f"look at  {line}")
    typer.echo(f"catalog  {out / report.symbol}: {written.months} months written, {written.added} bars added, "
               f"{written.replaced} replaced, {seconds:.1f} s")


def features_command(
    src: Annotated[Path, typer.Argument(help="CSV or Parquet file, a folder of them, or a catalog.")],
    symbol: Symbol,
    out: Annotated[Path, typer.Option(help="FILE.parquet; the 30-minute rows go to FILE.30m.parquet beside it.")],
    config: Annotated[Path | None, typer.Option(help="YAML file with feature settings.")] = None,
    engine: Annotated[str, typer.Option(help="local, or ray where it is installed.")] = "local",
    as_json: Json = False,
) -> None:
    """Build the feature table of one instrument."""
    from algospace.features import FeatureConfig, schema_hash, write_table
    from algospace.marketdata import read_source
    from algospace.memory import release_unused

    spec = instrument(symbol)
    if out.suffix != ".parquet" or out.is_dir():
        raise ConfigError(f"--out {out}: name a file that ends in .parquet")
    settings = load_config(FeatureConfig, config) if config is not None else FeatureConfig()
    build = find_engine(engine)
    started = time.perf_counter()
    bars = with_progress(lambda say: read_source(src, spec), as_json)
    _check_width(bars, settings)
    with nullcontext() if as_json else Console(stderr=True).status(f"features of {len(bars)} bars"):
        table = build(bars, spec, settings)
        del bars  # the writer needs the memory
        release_unused()
        write_table(table, out)
    _print_features(table, schema_hash(table), out, time.perf_counter() - started, as_json)


def find_engine(name: str) -> Callable[[Bars, Instrument, FeatureConfig], FeatureTable]:
    """`local`, or an engine that an installed package registers under the entry point group ENGINE_GROUP."""
    if name == "local":
        from algospace.features import build

        return build
    found = {entry.name: entry for entry in entry_points(group=ENGINE_GROUP)}
    if name not in found:
        known = ", ".join(["local", *sorted(found)])
        raise ConfigError(f"--engine {name}: no such engine is installed (there is: {known})")
    engine: Callable[[Bars, Instrument, FeatureConfig], FeatureTable] = found[name].load()
    return engine


def _check_width(bars: Bars, settings: FeatureConfig) -> None:
    base_ns = settings.base_minutes * 60 * 10**9
    if base_ns % bars.width_ns:
        raise ConfigError(f"the source has {bars.width_ns // 10**9} s bars, which do not fill base bars of "
                          f"{settings.base_minutes} min; set base_minutes in --config to a multiple of the width")


def _print_features(table: FeatureTable, digest: str, out: Path, seconds: float, as_json: bool) -> None:
    found = int((table.base["synergy_type"] > 0).sum())
    span = int(table.ts_close[-1] - table.ts_close[0]) if len(table) else 0
    weekly = found * _WEEK_NS / span if span else 0.0
    summary = {"rows": len(table), "rows_30m": int(table.ts_close_30m.size), "columns": len(table.base),
               "synergies": found, "synergies_per_week": round(weekly, 3), "schema": digest,
               "seconds": round(seconds, 2), "out": str(out)}
    typer.echo(json.dumps(summary) if as_json else "\n".join(f"{k:<18} {v}" for k, v in summary.items()))
