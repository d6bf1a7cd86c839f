"""Engines run feature jobs: `local` here, others (`ray`) by the entry point group `algospace.engines`.

An engine does every job with `iter_blocks`, so the results are the same files; what differs is where and how many
at a time. A job that fails does not stop the others: its report carries the reason.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

from algospace.errors import AlgoSpaceError, ConfigError, InputError
from algospace.features.block_table import write_whole
from algospace.features.blocks import Block, BlocksReport, FeatureJob, drain, iter_blocks
from algospace.instruments import INSTRUMENTS, instrument
from algospace.marketdata import Catalog
from algospace.marketdata.catalog import MANIFEST as CATALOG_MANIFEST
from algospace.marketdata.source import locate
from algospace.marketdata.ticks import TickCatalog, looks_like_ticks
from algospace.marketdata.ticks.catalog import SUFFIX as TICKS_SUFFIX

ENGINE_GROUP = "algospace.engines"
SYNTHETIC_MANIFEST = "manifest.json"
_SUFFIXES = (".parquet", ".pq", ".csv", ".txt")

Say = Callable[[Block], None]


class Engine(Protocol):
    """Do the jobs, tell `say` of every block, return a report for each job, in the jobs' order."""

    def __call__(self, jobs: Sequence[FeatureJob], say: Say) -> list[BlocksReport]: ...


def run_jobs(jobs: Sequence[FeatureJob], engine: str = "local", say: Say | None = None) -> list[BlocksReport]:
    """Do the jobs; a report for each, `error` set where one failed. ConfigError if names or folders repeat."""
    for what, values in (("name", [job.name for job in jobs]), ("folder", [str(job.out) for job in jobs])):
        repeated = next((value for value in values if values.count(value) > 1), None)
        if repeated is not None:
            raise ConfigError(f"two jobs have the {what} '{repeated}'; give each its own")
    return find_engine(engine)(jobs, say or _silent)


def build_file(job: FeatureJob, path: Path, engine: str = "local",
               say: Say | None = None) -> tuple[BlocksReport, dict[str, Any]]:
    """One job into FILE.parquet and FILE.30m.parquet, never holding more than a block; (report, `write_whole`'s
    figures, empty if the job failed). The blocks lie in FILE.blocks until then, so that a killed run continues."""
    placed = replace(job, out=path.with_suffix(".blocks"))
    report = run_jobs([placed], engine, say)[0]
    if report.error is not None:
        return report, {}
    figures = write_whole(placed.out, path)
    shutil.rmtree(placed.out)
    return report, figures


def find_engine(name: str) -> Engine:
    """`local`, or an engine that an installed package registers; ConfigError names the known ones."""
    if name == "local":
        return run_local
    found = {entry.name: entry for entry in entry_points(group=ENGINE_GROUP)}
    if name not in found:
        known = ", ".join(["local", *sorted(found)])
        raise ConfigError(f"--engine {name}: no such engine is installed (there is: {known})")
    engine: Engine = found[name].load()
    return engine


def run_local(jobs: Sequence[FeatureJob], say: Say) -> list[BlocksReport]:
    """One job after another, in this process."""
    return [run_job(job, say) for job in jobs]


def run_job(job: FeatureJob, say: Say) -> BlocksReport:
    """One job, its failure as a report."""
    return drain(guarded(job), say)


def guarded(job: FeatureJob) -> Generator[Block, None, BlocksReport]:
    """`iter_blocks` that ends with a report whatever happens."""
    try:
        return (yield from iter_blocks(job))
    except AlgoSpaceError as error:
        return failed(job, str(error))
    except Exception as error:  # noqa: BLE001  one instrument's fault, whatever it is, must not cost the others
        return failed(job, f"{type(error).__name__}: {error}")


def failed(job: FeatureJob, reason: str) -> BlocksReport:
    """The report of a job that came to nothing; blocks that it finished stay on disk for the next run."""
    return BlocksReport(job.name, job.instrument.symbol, str(job.out), error=" ".join(reason.split()))


def failures(reports: Iterable[BlocksReport]) -> list[str]:
    """One line for each failed job; a run with any must end with a non-zero exit code."""
    return [f"{report.name}: {report.error}" for report in reports if report.error is not None]


def plan_jobs(src: Path | str, instruments: str, out: Path | str,
              template: FeatureJob | None = None) -> list[FeatureJob]:
    """Jobs for `--instrument A[,B,...]|all` over `src`, each into its own folder below `out`.

    src: a catalog; or a folder that holds, for each instrument, a file or folder named after its symbol; or, for a
    single instrument, any file or folder that `read_source` takes. `all` takes every instrument that a catalog
    holds, or every entry of the folder that is named after a symbol or is a synthetic market (job names are then
    the entries' names). template: configuration, indicators and import options of every job.
    ConfigError or InputError if nothing is found.
    """
    located = locate(src)
    if not located.exists():
        raise InputError(located, "no such file or folder", "give a file, a folder of them, or a catalog")
    if instruments.strip().lower() == "all":
        found = _all_of(located)
        if not found and TickCatalog(located).symbols():
            raise InputError(located, "it holds ticks and no bars, and monthly blocks are built from bars",
                             "give one --instrument and FILE.parquet as --out")
        if not found:
            raise InputError(located, "no instruments to be told by their names",
                             "give a catalog, a folder with one entry per symbol, or name one with --instrument")
    else:
        symbols = list(dict.fromkeys(s.strip().upper() for s in instruments.split(",") if s.strip()))
        if not symbols:
            raise ConfigError("--instrument: name at least one, for example ES or ES,NQ or all")
        found = [(symbol, symbol, _source_of(located, symbol, len(symbols) == 1)) for symbol in symbols]
    return [_job(name, symbol, source, Path(out) / name, template) for name, symbol, source in found]


def _job(name: str, symbol: str, source: Path, out: Path, template: FeatureJob | None) -> FeatureJob:
    spec = instrument(symbol)
    if template is None:
        return FeatureJob(name, spec, source, out)
    return replace(template, name=name, instrument=spec, source=source, out=out)


def _is_catalog(path: Path) -> bool:
    return path.is_dir() and any(path.glob(f"*/{CATALOG_MANIFEST}"))


def _source_of(src: Path, symbol: str, alone: bool) -> Path:
    if _is_catalog(src) or (src / CATALOG_MANIFEST).is_file():
        return src
    own = next((entry for entry in _entries(src) if entry.stem.upper() == symbol), None)
    if own is not None:
        return own
    if symbol in TickCatalog(src).symbols() or (alone and looks_like_ticks(src)):
        raise InputError(src, f"holds ticks of {symbol} and no bars, and monthly blocks are built from bars",
                         "give FILE.parquet as --out and leave --engine out")
    if alone:
        return src
    raise InputError(src, f"no catalog, and no entry named after {symbol}",
                     f"put its bars into {symbol}/ or {symbol}.parquet there")


def _all_of(src: Path) -> list[tuple[str, str, Path]]:
    """(job name, symbol, source) of everything that can be told."""
    if _is_catalog(src):
        return [(symbol, symbol, src) for symbol in Catalog(src).symbols()]
    found = []
    for entry in _entries(src):
        symbol = entry.stem.upper() if entry.stem.upper() in INSTRUMENTS else _synthetic_symbol(entry)
        if symbol is not None:
            found.append((entry.stem, symbol, entry))
    return found


def _entries(src: Path) -> list[Path]:
    if not src.is_dir():
        return []
    return [entry for entry in sorted(src.iterdir())
            if not entry.name.startswith(".") and entry.suffix != TICKS_SUFFIX
            and (entry.is_dir() or entry.suffix.lower() in _SUFFIXES)]


def _synthetic_symbol(entry: Path) -> str | None:
    """The instrument of a market that `algospace data synth` wrote, or of a catalog in its own folder."""
    manifest = entry / SYNTHETIC_MANIFEST
    if not manifest.is_file():
        return None
    try:
        symbol = json.loads(manifest.read_text(encoding="utf-8"))["instrument"]
    except (ValueError, KeyError, TypeError):
        return None
    return str(symbol) if symbol in INSTRUMENTS else None


def _silent(block: Block) -> None:
    """Nobody listens."""
