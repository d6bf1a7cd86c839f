"""Features of a long history, block by block: memory is bounded by a month of bars, not by the history.

    FOLDER/2012-01.parquet       base rows of the month; `row_30m` counts from the first block on
    FOLDER/2012-01.30m.parquet   30-minute rows of the month
    FOLDER/2012-01.state         state of the stream after the month (zstd), from which the next one continues
    FOLDER/blocks.json           what it was built with, and rows, source digest and SHA-256 of every block

`blocks.json` is the first file of a folder, so that only a folder of our own is ever written to and tidied. A
block counts once `blocks.json` names it, and that file is replaced as a whole after the block's own files. So a
build that is killed anywhere continues after its last complete block, and the result is the same to the bit. The
next build of the same folder keeps all blocks up to the first one whose source has changed.

The state holds all that the indicators remember. All of it has a fixed size but for MLMI's stored points, which
grow with history by definition: 20 bytes for each crossing of its averages, and as much again for scratch, so that
the state of a month of NQ takes 0.2 MB and that of eleven years 0.6 MB (0.18 MB on disk).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

import algospace
from algospace.errors import ConfigError, InputError
from algospace.features.block_source import MonthlySource, SourceMonth, open_source
from algospace.features.config import FeatureConfig
from algospace.features.driver import FeatureStream
from algospace.features.indicator import Indicator
from algospace.features.store import PARQUET_OPTIONS, base_arrow, slow_arrow
from algospace.features.table import FeatureTable
from algospace.files import atomic_path, sha256_file, write_json
from algospace.instruments import Instrument
from algospace.marketdata.options import ImportOptions
from algospace.memory import release_unused
from algospace.types import MINUTE_NS

MANIFEST = "blocks.json"
LOCK = ".lock"
FORMAT = 1
_LOCK_WAIT_S = 20.0  # a killed run's workers may live on for a moment
_MINUTES_PER_DAY = 24 * 60
# A block's files, and unfinished files as `files.atomic_path` names them.
_BLOCK_FILE = r"\d{4}-\d{2}(\.30m\.parquet|\.parquet|\.state)"
_OURS = re.compile(rf"{_BLOCK_FILE}|\.({_BLOCK_FILE}|{re.escape(MANIFEST)})\..*\.part")


@dataclass(frozen=True)
class FeatureJob:
    """One instrument's features: from `source` (file, folder or catalog) into the folder `out`.

    name: how reports call it, one per job of a run (several jobs may share an instrument).
    options: how to import a source that is no catalog.
    """

    name: str
    instrument: Instrument
    source: Path
    out: Path
    config: FeatureConfig = field(default_factory=FeatureConfig)
    indicators: tuple[Indicator, ...] = ()
    options: ImportOptions | None = None


class Block(NamedTuple):
    """A finished block: number from 1 of total; `built` is False if an earlier run had built it."""

    name: str
    month: str
    number: int
    total: int
    rows: int
    built: bool


@dataclass(frozen=True)
class BlocksReport:
    """What a job came to. kept: blocks of an earlier run; notes: what was decided or found on the way; error: why
    it failed, in one line, or None. peak_bytes: peak memory of its process, with all that this did before.
    """

    name: str
    symbol: str
    folder: str
    blocks: int = 0
    kept: int = 0
    rows: int = 0
    rows_30m: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    notes: tuple[str, ...] = ()
    error: str | None = None


def build_blocks(
    source: Path | str | MonthlySource, instrument: Instrument, config: FeatureConfig | None = None,
    out_folder: Path | str = "features", indicators: Sequence[Indicator] = (),
    progress: Callable[[Block], None] | None = None, options: ImportOptions | None = None,
) -> BlocksReport:  # fmt: skip
    """Build or continue the partitioned feature table in `out_folder`; `progress` gets every block.

    Raises what reading the source raises, and InputError while another process builds in the folder.
    """
    opened = source if isinstance(source, MonthlySource) else None
    path = Path() if isinstance(source, MonthlySource) else Path(source)
    job = FeatureJob(instrument.symbol, instrument, path, Path(out_folder), config or FeatureConfig(),
                     tuple(indicators), options)  # fmt: skip
    return drain(iter_blocks(job, opened), progress or (lambda block: None))


def drain(steps: Generator[Block, None, BlocksReport], say: Callable[[Block], None]) -> BlocksReport:
    """Do a job to its end, telling of every block; its report."""
    while True:
        try:
            block = next(steps)
        except StopIteration as done:
            report: BlocksReport = done.value
            return report
        say(block)


def iter_blocks(job: FeatureJob, source: MonthlySource | None = None) -> Generator[Block, None, BlocksReport]:
    """Do a job block by block, kept ones included; the generator's value is the report."""
    started = time.perf_counter()
    source = source or open_source(job.source, job.instrument, job.options)
    if not source.months:
        raise InputError(job.source, "no bars", "give a source that holds some")
    config, note = fit_config(job.config, source.width_ns)
    stream = FeatureStream(job.instrument, config, source.width_ns, job.indicators)
    _require_ours(job.out)
    job.out.mkdir(parents=True, exist_ok=True)
    with _locked(job.out):
        plan = _resume(job, stream, source)
        manifest, kept = plan.manifest, len(plan.manifest["blocks"])
        for number, month in enumerate(source.months, 1):
            if number > kept:
                manifest["blocks"].append(_build_block(job.out, stream, month))
                manifest["complete"] = number == len(source.months)
                write_json(job.out / MANIFEST, manifest)
            rows = manifest["blocks"][number - 1]["rows"]
            yield Block(job.name, month.name, number, len(source.months), rows, number > kept)
        _sweep(job.out, manifest)
    release_unused()
    rows, slow = (sum(block[key] for block in manifest["blocks"]) for key in ("rows", "rows_30m"))
    return BlocksReport(job.name, job.instrument.symbol, str(job.out), len(source.months), kept, rows, slow,
                        time.perf_counter() - started, peak_bytes(), (*note, *plan.notes))  # fmt: skip


def fit_config(config: FeatureConfig, width_ns: int) -> tuple[FeatureConfig, list[str]]:
    """The configuration, or, for bars wider than its base bars, one with base bars of that width and slow bars in
    the same ratio (the nearest smaller one that divides a day), with a note that says so."""
    if width_ns <= config.base_minutes * MINUTE_NS:
        return config, []
    width = width_ns // MINUTE_NS
    if width_ns % MINUTE_NS or 60 % width:
        raise ConfigError(f"bars of {width_ns / MINUTE_NS:g} minutes do not divide an hour; import narrower bars")
    wanted = width * (config.slow_minutes // config.base_minutes)
    fitting = max(m for m in range(width, wanted + 1, width) if _MINUTES_PER_DAY % m == 0)
    # the whole configuration is validated again, its rules across fields included
    fitted = FeatureConfig.model_validate({**config.model_dump(), "base_minutes": width, "slow_minutes": fitting})
    return fitted, [f"the source has {width}-minute bars: base bars of {width} and slow bars of {fitting} minutes "
                    f"instead of {config.base_minutes} and {config.slow_minutes}"]  # fmt: skip


def read_manifest(folder: Path | str) -> dict[str, Any]:
    """`blocks.json`; InputError if the folder has none or it is of another format."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise InputError(folder, f"no partitioned feature table here (no {MANIFEST})", "build it first")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        known = manifest["format"] == FORMAT
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise InputError(path, f"not a manifest of format {FORMAT}", "build the folder again")
    return manifest


def block_files(month: str) -> tuple[str, str, str]:
    """Names of a block's base rows, 30-minute rows and state."""
    return f"{month}.parquet", f"{month}.30m.parquet", f"{month}.state"


def peak_bytes() -> int:
    """Peak resident memory of this process (Linux; 0 where the system does not say)."""
    status = Path("/proc/self/status")
    # ru_maxrss would also count what the process inherited from its parent before exec
    lines = status.read_text(encoding="ascii").splitlines() if status.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


class _Plan(NamedTuple):
    manifest: dict[str, Any]
    notes: list[str]


def _resume(job: FeatureJob, stream: FeatureStream, source: MonthlySource) -> _Plan:
    """Keep the blocks that are still right and bring `stream` to the state after them."""
    fresh = _new_manifest(stream, job.instrument, source)
    if not (job.out / MANIFEST).is_file():
        write_json(job.out / MANIFEST, fresh)
        return _Plan(fresh, [])
    held = read_manifest(job.out)
    kept, notes = _still_right(job.out, held, fresh, source.months)
    manifest = {**fresh, "blocks": held["blocks"][:kept], "complete": kept == len(source.months)}
    if manifest != held:
        write_json(job.out / MANIFEST, manifest)
    _sweep(job.out, manifest)
    if kept and not manifest["complete"]:
        last = manifest["blocks"][-1]
        packed = (job.out / block_files(last["month"])[2]).read_bytes()
        stream.restore(pa.decompress(packed, last["state_bytes"], codec="zstd", asbytes=True))
    return _Plan(manifest, notes)


def _require_ours(folder: Path) -> None:
    """InputError if the folder holds something, but no manifest: blocks are named as a catalog's months, say, and
    must never replace them. The lock and an unfinished manifest are what a build killed at its start leaves."""
    if not folder.is_dir() or (folder / MANIFEST).is_file():
        return
    for path in folder.iterdir():
        if path.name not in (LOCK, MANIFEST) and not path.name.startswith(f".{MANIFEST}."):
            raise InputError(folder, f"it holds other files ({path.name}) and no feature blocks",
                             "name a new or empty folder")  # fmt: skip


def _new_manifest(stream: FeatureStream, instrument: Instrument, source: MonthlySource) -> dict[str, Any]:
    return {
        "format": FORMAT, "algospace": algospace.__version__, "code": _code_digest(), "symbol": instrument.symbol,
        "instrument": hashlib.sha256(repr(instrument).encode()).hexdigest(), "config": stream.digest,
        "settings": stream.config.model_dump(mode="json"), "width_ns": source.width_ns,
        "base": list(stream.base_columns), "slow": list(stream.slow_columns), "contracts": source.contracts,
        "complete": False, "blocks": [],
    }  # fmt: skip


@cache
def _code_digest() -> str:
    """Of the package's source, so that blocks of two versions of an indicator never stand in one table."""
    found = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()


def _still_right(folder: Path, held: dict[str, Any], fresh: dict[str, Any],
                 months: list[SourceMonth]) -> tuple[int, list[str]]:
    """(how many of the held blocks can be kept, what was found)."""
    for key, meaning in (("algospace", "version of AlgoSpace"), ("code", "code of the features"),
                         ("instrument", "instrument"), ("base", "columns"), ("config", "configuration"),
                         ("width_ns", "width of the source's bars")):  # fmt: skip
        if held.get(key) != fresh[key]:
            return 0, [f"the {meaning} has changed: built anew"]
    names = held["contracts"]
    if fresh["contracts"][:len(names)] != names:
        return 0, ["the source's contracts have changed: built anew"]
    for kept, block in enumerate(held["blocks"]):
        if kept == len(months) or block["month"] != months[kept].name:
            return kept, [f"the source no longer has {block['month']} at its place: rebuilt from there on"]
        if block["source"] != months[kept].digest:
            return kept, [f"the source of {block['month']} has changed: rebuilt from there on"]
        damaged = next((name for name, digest in block["files"].items()
                        if not (folder / name).is_file() or sha256_file(folder / name) != digest), None)
        if damaged is not None:
            return kept, [f"{damaged} is missing or damaged: rebuilt from {block['month']} on"]
    return len(held["blocks"]), []


def _build_block(folder: Path, stream: FeatureStream, month: SourceMonth) -> dict[str, Any]:
    """Extend the stream by a month and write its files; the block's entry in the manifest."""
    table = stream.extend(month.read())
    names = block_files(month.name)
    for name, rows in zip(names, (base_arrow(table), slow_arrow(table)), strict=False):
        with atomic_path(folder / name) as part:
            pq.write_table(rows, part, **PARQUET_OPTIONS)
    state = stream.snapshot()
    with atomic_path(folder / names[2]) as part:
        part.write_bytes(pa.compress(state, codec="zstd", asbytes=True))
    return {"month": month.name, "source": month.digest, "rows": len(table), "state_bytes": len(state),
            "rows_30m": int(table.ts_close_30m.size), **_span(table),
            "files": {name: sha256_file(folder / name) for name in names}}  # fmt: skip


def _span(table: FeatureTable) -> dict[str, int | None]:
    first, last = (table.ts_close[0], table.ts_close[-1]) if len(table) else (None, None)
    return {"first": None if first is None else int(first), "last": None if last is None else int(last)}


def _sweep(folder: Path, manifest: dict[str, Any]) -> None:
    """Remove what a killed build or dropped blocks left behind."""
    known = {name for block in manifest["blocks"] for name in block["files"]}
    for path in folder.iterdir():
        if path.name not in known and _OURS.fullmatch(path.name):
            path.unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One builder per folder. The lock ends with its process, however that ends; the file names the process."""
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        deadline = time.monotonic() + _LOCK_WAIT_S
        while not _try_lock(handle):
            if time.monotonic() > deadline:
                holder = os.pread(handle, 32, 0).decode("ascii", "replace") or "unknown"
                raise InputError(folder, f"process {holder} is building features here",
                                 "wait for it to end, or choose another folder")  # fmt: skip
            time.sleep(0.1)
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
