"""`algospace data bars`: bars of any frames from ticks, with order flow and library columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from algospace.command_options import Json, Library, Symbol, with_progress
from algospace.errors import ConfigError
from algospace.files import atomic_directory
from algospace.instruments import instrument

if TYPE_CHECKING:  # compiled code is loaded only by the command that needs it
    import pyarrow as pa

    from algospace.features.bar_frames import BarSeries
    from algospace.instruments import Instrument

_EXAMPLE = "Example: algospace data bars market --instrument NQ --frames 1m,5m,tick:500,volume:2000 --out bars"
_MANIFEST = "bars.json"


def add_bars_command(data_app: typer.Typer) -> None:
    """Attach `bars` to the `data` group."""
    data_app.command("bars", epilog=_EXAMPLE)(bars_command)


def bars_command(
    src: Annotated[Path, typer.Argument(help="Ticks: a file, a folder of them, or a catalog.")],
    symbol: Symbol,
    frames: Annotated[str, typer.Option(help="With commas: 30s, 5m, 1h, tick:500, volume:2000, dollar:1e6.")],
    out: Annotated[Path, typer.Option(help="Folder for one FRAME.parquet each; an earlier one is replaced.")],
    library: Library = None,
    as_json: Json = False,
) -> None:
    """Bars by the clock, by ticks, volume or dollars from the same ticks, in one pass; prices roll-adjusted."""
    import pyarrow.parquet as pq

    from algospace.features.bar_frames import BarFrame
    from algospace.features.flow_bars import with_flow
    from algospace.features.side_inputs import read_ticks
    from algospace.features.tick_bars import build_bars
    from algospace.files import write_json
    from algospace.marketdata.source import locate

    spec = instrument(symbol)
    wanted = {text: BarFrame.parse(text, spec.multiplier) for text in
              dict.fromkeys(part.strip() for part in frames.split(",") if part.strip())}
    if not wanted:
        raise ConfigError("--frames: name at least one, for example 5m or tick:500")
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / _MANIFEST).is_file())):
        raise ConfigError(f"--out {out}: holds something else; name a new folder")
    ticks, _, notes = with_progress(lambda say: read_ticks(locate(src), spec), as_json)
    made = build_bars(ticks, list(wanted.values()))
    summary = []
    with atomic_directory(out) as part:
        for (text, frame), series in zip(wanted.items(), made.values(), strict=True):
            whole = with_flow(ticks, series, spec)
            name = f"{text.replace(':', '-')}.parquet"
            pq.write_table(_table(whole, spec, library), part / name, compression="zstd")
            summary.append({"frame": frame.name, "file": name, "bars": len(whole), "late": whole.late,
                            "invalid": whole.invalid, "flow_columns": len(whole.flow)})
        write_json(part / _MANIFEST, {"instrument": spec.symbol, "ticks": len(ticks), "frames": summary})
    if as_json:
        typer.echo(json.dumps({"ticks": len(ticks), "frames": summary, "out": str(out), "notes": list(notes)}))
        return
    for note in notes:
        typer.echo(f"note     {note}")
    for entry in summary:
        typer.echo(f"{entry['frame']:<16} {entry['bars']} bars, {entry['flow_columns']} flow columns, late "
                   f"{entry['late']}, invalid {entry['invalid']}, {out / str(entry['file'])}")


def _table(series: BarSeries, spec: Instrument, library: str | None) -> pa.Table:
    """Times, prices, volume, count, roll factor, flow and library columns of one series."""
    import pyarrow as pa

    stamp = pa.timestamp("ns", tz="UTC")
    columns = {"ts_open": pa.array(series.ts_open, stamp), "ts_close": pa.array(series.ts_close, stamp)}
    columns |= {name: getattr(series, name) for name in ("open", "high", "low", "close", "volume", "count")}
    columns |= {"roll_factor": series.factor, **series.flow}
    if library is not None:
        from algospace.features.library import compute
        from algospace.types import Bars

        bars = Bars(series.ts_open, series.open, series.high, series.low, series.close, series.volume,
                    max(series.frame.width_ns, 1))
        names = None if library == "all" else [name.strip() for name in library.split(",") if name.strip()]
        columns |= {name: values for name, values in compute(bars, names, spec, series.ts_close).items()
                    if name not in columns}
    return pa.table(columns)
