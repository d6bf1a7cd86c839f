"""`algospace data augment`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from algospace.config import parse_config, read_yaml
from algospace.errors import ConfigError, InputError
from algospace.instruments import instrument
from algospace.types import Bars, IntArray

if TYPE_CHECKING:  # compiled code is loaded only by the command that needs it
    from algospace.analysis.similarity import SimilarityReport
    from algospace.marketdata.augmentation import AugmentationConfig

_EXAMPLE = ("Example: algospace data augment market --instrument ES --operators block_bootstrap,noise --seed 1 "
            "--out runs/es-augmented")
_MARK = "augmentation"  # of our manifests


def add_augment_command(data_app: typer.Typer) -> None:
    """Attach `augment` to the `data` group."""
    data_app.command("augment", epilog=_EXAMPLE)(augment_command)


def augment_command(
    src: Annotated[Path, typer.Argument(help="CSV or Parquet file, a folder of them, or a catalog.")],
    symbol: Annotated[str, typer.Option("--instrument", help="Symbol, for example ES.")],
    out: Annotated[Path, typer.Option(help="Folder to write bars.parquet and manifest.json.")],
    operators: Annotated[str | None, typer.Option(help="In order: noise, magnitude_warp, time_warp, "
                                                       "block_bootstrap, regime_resample, inject.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bars.")] = 0,
    config: Annotated[Path | None, typer.Option(help="YAML file with augmentation settings.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="A setting, for example noise.scale=0.2")] = None,
    labels: Annotated[Path | None, typer.Option(help="Parquet file with ts_close and regime per bar, such as "
                                                     "truth.parquet, for regime_resample.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object instead of text.")] = False,
) -> None:
    """Write bars changed by augmentation operators, with the score of what they kept of the market."""
    from algospace.analysis.similarity import similarity
    from algospace.marketdata.augmentation import augment
    from algospace.marketdata.source import read_source

    spec = instrument(symbol)
    settings = _settings(operators, config, option or [], spec.tick_size)
    if labels is None and "regime_resample" in settings.operators:
        raise ConfigError("regime_resample needs a regime label for every bar; give them with --labels FILE")
    _require_replaceable(out)
    bars = read_source(src, spec)
    changed = augment(bars, settings, seed, _regimes(labels, bars) if labels else None)
    report = similarity(bars, changed)
    _write(bars, changed, settings, seed, spec.symbol, report, out)
    _print(len(bars), len(changed), settings, report, out, as_json)


def _settings(operators: str | None, config: Path | None, options: list[str],
              tick_size: float) -> AugmentationConfig:
    """Settings of the file under those of the command line; prices are rounded to the instrument's grid."""
    from algospace.marketdata.augmentation import AugmentationConfig

    values: dict[str, Any] = {"tick_size": tick_size} | (read_yaml(config) if config else {})
    if operators is not None:
        values["operators"] = [name.strip() for name in operators.split(",") if name.strip()]
    if "operators" not in values:
        raise ConfigError("name what to do: --operators noise,block_bootstrap or `operators` in --config")
    return parse_config(AugmentationConfig, values, options, source=str(config or "data augment"))


def _require_replaceable(out: Path) -> None:
    """A folder is replaced only if it is empty or an earlier augmentation."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file; name a folder")
    if out.is_dir() and any(out.iterdir()):
        manifest = out / "manifest.json"
        if not manifest.is_file() or f'"{_MARK}"' not in manifest.read_text(encoding="utf-8"):
            raise ConfigError(f"{out}: the folder holds something else; name a new one")


def _regimes(path: Path, bars: Bars) -> IntArray:
    """The label whose bar covers each bar; -1 where none does."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=["ts_close", "regime"])
    except (OSError, pa.ArrowException) as error:
        raise InputError(path, f"no labels: {' '.join(str(error).split())}",
                         "give a Parquet file with the columns ts_close and regime") from None
    ts_close = table.column("ts_close").cast(pa.int64()).to_numpy()
    regime = np.asarray(table.column("regime").to_numpy(), np.int64)
    if ts_close.size < 2 or (np.diff(ts_close) <= 0).any():
        raise InputError(path, "labels are not in time order", "sort them by ts_close")
    width = int(np.diff(ts_close).min())  # a label covers (ts_close - width, ts_close]
    end = bars.ts_open + bars.width_ns
    row = np.minimum(np.searchsorted(ts_close, end), ts_close.size - 1)
    covered = (ts_close[row] >= end) & (ts_close[row] - width < end)
    if not covered.any():
        raise InputError(path, "no label belongs to any of the bars", "give the labels of this very history")
    return np.where(covered, regime[row], -1)


def _write(bars: Bars, changed: Bars, settings: AugmentationConfig, seed: int, symbol: str,
           report: SimilarityReport, out: Path) -> None:
    import pyarrow.parquet as pq

    import algospace
    from algospace.files import atomic_directory, sha256_file, write_json
    from algospace.marketdata.schema import bars_to_table

    codes = int(changed.contract.max(initial=0)) + 1
    names = [f"{symbol}-{code}" for code in range(codes)] if codes > 1 else []
    with atomic_directory(out) as part:
        pq.write_table(bars_to_table(changed, names), part / "bars.parquet", compression="zstd")
        write_json(part / "manifest.json", {
            "algospace": algospace.__version__, "instrument": symbol, "seed": seed, "source_rows": len(bars),
            "rows": len(changed), "width_ns": changed.width_ns, _MARK: settings.model_dump(mode="json"),
            "config_sha256": settings.digest(), "similarity": report.to_dict(),
            "files": {"bars.parquet": sha256_file(part / "bars.parquet")},
        })


def _print(rows_in: int, rows_out: int, settings: AugmentationConfig, report: SimilarityReport, out: Path,
           as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"rows_in": rows_in, "rows": rows_out, "operators": settings.operators,
                               "similarity": report.to_dict(), "out": str(out)}))
        return
    typer.echo(f"bars        {rows_out} of {rows_in} after {', '.join(settings.operators)}, in {out}")
    typer.echo(f"similarity  {report.overall:.3f} (1 is the source itself)")
    for name, value in report.components.items():
        typer.echo(f"  {name:<16} {value:.3f}")
