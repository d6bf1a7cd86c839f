"""Sub-commands `check lookahead` and `check warmup`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from algospace.config import load_config
from algospace.errors import ConfigError
from algospace.instruments import Instrument, instrument
from algospace.types import MINUTE_NS, Bars

if TYPE_CHECKING:  # compiled code is loaded only by the command that needs it
    from algospace.features import FeatureConfig, Indicator
    from algospace.features.own import FrameIndicator

_LOOKAHEAD_EXAMPLE = "Example: algospace check lookahead market --instrument NQ --indicator my_indicator.py"
_WARMUP_EXAMPLE = "Example: algospace check warmup market --instrument NQ --references 6"
_PIPE_WIDTH = 200

Source = Annotated[Path, typer.Argument(help="CSV or Parquet file, a folder of them, or a catalog.")]
Symbol = Annotated[str, typer.Option("--instrument", help="Symbol, for example NQ.")]
Config = Annotated[Path | None, typer.Option(help="YAML file with feature settings.")]
Files = Annotated[list[Path] | None, typer.Option("--indicator", help="File of an own indicator; repeatable.")]
Library = Annotated[str | None, typer.Option(help="Columns of the general library, with commas, or all.")]
Start = Annotated[str | None, typer.Option(help="First day or time (UTC) of the data to use.")]
End = Annotated[str | None, typer.Option(help="Day or time (UTC) before which the data ends.")]
Json = Annotated[bool, typer.Option("--json", help="Print a JSON object instead of text.")]
Out = Annotated[Path | None, typer.Option(help="Write the report as JSON to this file, too.")]


def add_check_commands(app: typer.Typer) -> None:
    """Add `check` with its sub-commands to `app`."""
    check = typer.Typer(no_args_is_help=True, help="Check feature columns: what they know, what they need.")
    check.command("lookahead", epilog=_LOOKAHEAD_EXAMPLE)(lookahead_command)
    check.command("warmup", epilog=_WARMUP_EXAMPLE)(warmup_command)
    app.add_typer(check, name="check")


def lookahead_command(
    src: Source, symbol: Symbol, config: Config = None, indicators: Files = None, library: Library = None,
    cuts: Annotated[int, typer.Option(min=1, help="Cuts, half of them even, half at nasty places.")] = 20,
    start: Start = None, end: End = None, as_json: Json = False, out: Out = None,
) -> None:
    """Recompute every column on cut histories and live: none may know the future. Exit code 2 if one does."""
    from algospace.trust import Features, inspect_features
    from algospace.trust.report import print_lookahead

    bars, settings, loaded = _read(src, symbol, config, indicators, library, start, end)
    features = Features(instrument(symbol), settings, loaded)
    with _status(f"{cuts} cuts of {len(bars)} bars", as_json):
        report = inspect_features(features, bars, cuts)
    _write(report.to_dict(), as_json, out)
    if not as_json:
        print_lookahead(report, _console())
    report.require_clean()


def warmup_command(
    src: Source, symbol: Symbol, config: Config = None, indicators: Files = None, library: Library = None,
    references: Annotated[int, typer.Option(min=1, help="Reference times in the last third of the data.")] = 6,
    start: Start = None, end: End = None, as_json: Json = False, out: Out = None,
) -> None:
    """How far every column still moves with the length of its warm-up, against the full history."""
    from algospace.trust import Features, check_warmup
    from algospace.trust.report import print_warmup

    bars, settings, loaded = _read(src, symbol, config, indicators, library, start, end)
    with _status(f"warm-ups before {references} times in {len(bars)} bars", as_json):
        report = check_warmup(Features(instrument(symbol), settings, loaded).table, bars, references)
    _write(report.to_dict(), as_json, out)
    if not as_json:
        print_warmup(report, _console())


def _read(
    src: Path, symbol: str, config: Path | None, files: Sequence[Path] | None, library: str | None,
    start: str | None, end: str | None,
) -> tuple[Bars, FeatureConfig, list[Indicator | FrameIndicator]]:
    from algospace.features import FeatureConfig
    from algospace.features.blocks import fit_config
    from algospace.features.checks import check_width
    from algospace.features.own import load_indicator
    from algospace.marketdata import read_source

    spec = instrument(symbol)
    settings = load_config(FeatureConfig, config) if config is not None else FeatureConfig()
    loaded = [*(load_indicator(path) for path in files or ()), *library_indicators(library, spec)]
    bounds = _time(start, "--start"), _time(end, "--end")
    bars = read_source(src, spec)
    settings, notes = fit_config(settings, bars.width_ns)  # as `features` does
    for note in notes:
        typer.echo(f"note     {note}", err=True)
    check_width(bars.width_ns, settings.base_minutes * MINUTE_NS)
    return between(bars, *bounds), settings, loaded


def library_indicators(names: str | None, spec: Instrument) -> list[Indicator]:
    """The named columns of the general library, or all; ConfigError if one does not exist."""
    if names is None:
        return []
    from algospace.features.library import library_indicator

    wanted = None if names == "all" else [name.strip() for name in names.split(",")]
    return [library_indicator(wanted, spec)]


def between(bars: Bars, start_ns: int | None, end_ns: int | None) -> Bars:
    """The bars in [start, end); ConfigError if there are none."""
    first = 0 if start_ns is None else int(bars.ts_open.searchsorted(start_ns))
    last = len(bars) if end_ns is None else int(bars.ts_open.searchsorted(end_ns))
    if first >= last:
        raise ConfigError("no bars between --start and --end; widen the range")
    return bars.slice(first, last)


def _time(text: str | None, option: str) -> int | None:
    import pandas as pd

    if text is None:
        return None
    try:
        stamp = pd.Timestamp(text)
    except ValueError:
        raise ConfigError(f"{option} {text}: not a time; give for example 2020-03-01") from None
    return int((stamp.tz_localize("UTC") if stamp.tzinfo is None else stamp).as_unit("ns").value)


def _write(report: dict[str, Any], as_json: bool, out: Path | None) -> None:
    from algospace.files import write_json

    if out is not None:
        write_json(out, report)
    if as_json:
        typer.echo(json.dumps(report, allow_nan=False))


def _console() -> Console:
    """Standard output; wide where nobody's window sets the width, so that a file or pipe gets whole names."""
    console = Console()
    return console if console.is_terminal else Console(width=_PIPE_WIDTH)


def _status(text: str, quiet: bool) -> Any:
    from contextlib import nullcontext

    return nullcontext() if quiet else Console(stderr=True).status(text)
