"""`algospace data import`: bars or ticks of any supported file into a catalog."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from algospace.command_options import Json, Symbol, with_progress
from algospace.config import parse_config
from algospace.errors import ConfigError, InputError
from algospace.instruments import Instrument, instrument

if TYPE_CHECKING:  # compiled code is loaded only by the command that needs it
    from algospace.marketdata import ImportResult
    from algospace.marketdata.catalog import Written

_EXAMPLE = "Example: algospace data import prices.csv --instrument ES --zone America/Chicago --out market"
_KINDS = ("auto", "bars", "ticks")
_BARS_ONLY, _TICKS_ONLY = "bars only: ", "ticks only: "


def add_import_command(data_app: typer.Typer) -> None:
    """Attach `import` to the `data` group."""
    data_app.command("import", epilog=_EXAMPLE)(import_command)


def import_command(
    src: Annotated[Path, typer.Argument(help="CSV or Parquet file, or a folder of them.")],
    symbol: Symbol,
    out: Annotated[Path, typer.Option(help="Catalog folder; the instrument's months or days are merged into it.")],
    kind: Annotated[str, typer.Option(help="bars, ticks, or auto: told by the columns.")] = "auto",
    file_format: Annotated[str, typer.Option("--format", help="auto, csv, parquet or tradestation.")] = "auto",
    zone: Annotated[str | None, typer.Option(help="IANA zone of times without one.")] = None,
    columns: Annotated[list[str] | None, typer.Option(help="role=column, for example close=Last.")] = None,
    dates: Annotated[str, typer.Option(help="auto, day-first or month-first.")] = "auto",
    stamp: Annotated[str, typer.Option(help=_BARS_ONLY + "times are their open or close; auto decides.")] = "auto",
    width_s: Annotated[int | None, typer.Option(help=_BARS_ONLY + "width in seconds.")] = None,
    contracts: Annotated[Path | None, typer.Option(
        help=_BARS_ONLY + "roll table: contract, first_ts_utc, last_ts_utc.")] = None,
    front: Annotated[str, typer.Option(
        help=_BARS_ONLY + "one contract a day by volume, open_interest, expiry or dates; none.")] = "none",
    roll_days: Annotated[int | None, typer.Option(help="--front expiry: business days before it (5).")] = None,
    expiries: Annotated[Path | None, typer.Option(help="--front expiry: CSV of contract, expiry.")] = None,
    roll_dates: Annotated[Path | None, typer.Option(help="--front dates: CSV of contract, first_ts_utc.")] = None,
    open_interest: Annotated[Path | None, typer.Option(
        help="--front open_interest: CSV of date, contract, open_interest.")] = None,
    symbols: Annotated[list[str] | None, typer.Option(
        "--symbol", help=_TICKS_ONLY + "keep this symbol of the file; repeatable.")] = None,
    clock: Annotated[str, typer.Option(help=_TICKS_ONLY + "stamp by event or by receive time.")] = "event",
    max_disorder_ns: Annotated[int, typer.Option(help=_TICKS_ONLY + "how far back a time may go.")] = 0,
    settings: Annotated[list[str] | None, typer.Option(
        "--set", help=_TICKS_ONLY + "key=value of TickImportOptions, e.g. exclude_conditions=[].")] = None,
    overlap: Annotated[str, typer.Option(
        help=_TICKS_ONLY + "if another source holds the same times: refuse, replace or append.")] = "refuse",
    max_bad_fraction: Annotated[float, typer.Option(help="Share of rows that may break a rule.")] = 0.001,
    as_json: Json = False,
) -> None:
    """Import any supported file into a catalog, with a quality report and a quarantine."""
    from algospace.marketdata.options import parse_columns
    from algospace.marketdata.source import locate
    from algospace.marketdata.ticks import looks_like_quotes, looks_like_ticks

    spec = instrument(symbol)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file; name a folder with --out")
    if kind not in _KINDS:
        raise ConfigError(f"--kind {kind}: choose one of {', '.join(_KINDS)}")
    located = locate(src)
    common = {"format": file_format, "zone": zone, "columns": parse_columns(columns or ()), "dates": dates,
              "max_bad_fraction": max_bad_fraction}
    for_bars = {"stamp": stamp, "width_s": width_s, "contracts": contracts, "front": front, "roll_days": roll_days,
                "expiries": expiries, "roll_dates": roll_dates, "open_interest": open_interest}
    if kind == "ticks" or (kind == "auto" and looks_like_ticks(located)):
        _refuse(for_bars, "bars, and this is a source of ticks")
        for_ticks = {"symbols": symbols or [], "clock": clock, "max_disorder_ns": max_disorder_ns}
        _import_ticks(located, spec, common | for_ticks, settings or [], overlap, out, as_json)
        return
    if looks_like_quotes(located):
        raise InputError(located, "best bids and asks, for which there is no catalog",
                         "give the file to `algospace features` with --quotes")
    _refuse({"symbol": symbols, "clock": clock, "max_disorder_ns": max_disorder_ns, "set": settings,
             "overlap": overlap}, "ticks, and this is a source of bars")
    _import_bars(located, spec, common | for_bars, out, as_json)


_DEFAULTS: dict[str, Any] = {"stamp": "auto", "front": "none", "overlap": "refuse", "clock": "event",
                             "max_disorder_ns": 0}


def _refuse(options: dict[str, Any], what: str) -> None:
    """ConfigError for an option that was given and would not be read."""
    for name, value in options.items():
        if value != _DEFAULTS.get(name):
            raise ConfigError(f"--{name.replace('_', '-')} is for {what}; leave it out, or say --kind")


def _import_bars(src: Path, spec: Instrument, values: dict[str, Any], out: Path, as_json: bool) -> None:
    from algospace.marketdata import Catalog, ImportOptions, import_file

    options = parse_config(ImportOptions, values, source="data import")
    started = time.perf_counter()
    result = with_progress(lambda say: import_file(src, spec, options, say), as_json)
    written = Catalog(out).write_import(spec.symbol, result)
    _print_bars(result, written, out, time.perf_counter() - started, as_json)


def _import_ticks(src: Path, spec: Instrument, values: dict[str, Any], overrides: list[str], overlap: str,
                  out: Path, as_json: bool) -> None:
    from algospace.marketdata.ticks import TickCatalog, TickImportOptions, import_ticks

    if overlap not in ("refuse", "replace", "append"):
        raise ConfigError(f"--overlap {overlap}: choose refuse, replace or append")
    options = parse_config(TickImportOptions, values, overrides, source="data import")
    started = time.perf_counter()
    result = with_progress(lambda say: import_ticks(src, spec, options, say), as_json)
    written = TickCatalog(out).write_import(spec.symbol, result, overlap)  # type: ignore[arg-type]  # checked above
    if as_json:
        typer.echo(json.dumps({**result.report.to_dict(), "out": str(out), "days_written": written.days,
                               "ticks_added": written.added, "ticks_removed": written.removed}))
        return
    for line in result.report.lines():
        typer.echo(line)
    typer.echo(f"catalog  {out / spec.symbol}.ticks: {written.days} days written, {written.added} ticks added, "
               f"{written.removed} removed, {time.perf_counter() - started:.1f} s")


def _print_bars(result: ImportResult, written: Written, out: Path, seconds: float, as_json: bool) -> None:
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
