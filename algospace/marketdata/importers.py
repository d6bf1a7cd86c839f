"""From any supported file or folder to clean bars, a quarantine and a quality report.

    files -> rows as they are -> UTC times -> rules -> clean bars | quarantine -> report
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from algospace.errors import InputError
from algospace.files import sha256_file
from algospace.instruments import Instrument, instrument
from algospace.marketdata import contracts as contracts_module
from algospace.marketdata.continuous import check_ratios
from algospace.marketdata.csv_import import read_csv
from algospace.marketdata.options import ImportOptions
from algospace.marketdata.parquet_import import read_parquet
from algospace.marketdata.quality import (
    FIX,
    MEANING,
    RULES,
    QualityReport,
    first_bad,
    inspect,
    iso,
    judge_order,
    judge_rows,
)
from algospace.marketdata.raw import RawFile
from algospace.marketdata.roll_options import open_interest_column, rule_of
from algospace.marketdata.roll_table import from_roll_table, read_roll_table
from algospace.marketdata.rolls import ContractRows, choose_front, front_rows
from algospace.marketdata.schema import PRICES
from algospace.marketdata.times import Times, resolve_times
from algospace.marketdata.timestamps import NO_TIME
from algospace.marketdata.tradestation import looks_like_tradestation, read_tradestation
from algospace.memory import release_unused
from algospace.types import AnyArray, Bars, BoolArray, FloatArray, Int32Array

QUARANTINE_SCHEMA = pa.schema([
    ("source", pa.string()), ("row", pa.int64()), ("rule", pa.string()), ("time", pa.string()),
    ("open", pa.float64()), ("high", pa.float64()), ("low", pa.float64()), ("close", pa.float64()),
    ("volume", pa.float64()), ("contract", pa.string()), ("line", pa.string()),
])
_SUFFIXES = {".csv": "csv", ".txt": "csv", ".gz": "csv", ".parquet": "parquet", ".pq": "parquet"}
_LISTED = 1  # roll ratios that a note spells out
_NOT_BARS = {"truth.parquet", "quarantine.parquet", contracts_module.ROLL_TABLE}


@dataclass(frozen=True)
class ImportResult:
    """Clean bars, the names of their contract codes (empty if unknown), the rows set aside, and the report."""

    bars: Bars
    contracts: list[str]
    quarantine: pa.Table
    report: QualityReport


def import_file(path: Path | str, symbol: str | Instrument, options: ImportOptions | None = None,
                progress: Callable[[str], None] | None = None) -> ImportResult:
    """Read a CSV or Parquet file, or a folder of them, and apply every rule.

    Raises InputError when more than `max_bad_fraction` of the rows break a rule; `progress` gets each file's name.
    """
    spec = symbol if isinstance(symbol, Instrument) else instrument(symbol)
    result = _import(Path(path), spec, options or ImportOptions(), progress)
    release_unused()  # eleven years of features fit in 1 GB only if nothing lingers
    return result


def _import(path: Path, spec: Instrument, options: ImportOptions,
            progress: Callable[[str], None] | None) -> ImportResult:
    files = _read_all(find_files(path), options, progress)
    times = resolve_times(files, options, spec)
    prices = {name: np.concatenate([f.prices.pop(name) for f in files]) for name in PRICES}  # frees each
    volume = _volume(files)
    codes = judge_rows(times, prices, volume)
    contract, names, notes = _contracts(files, times, options, path)
    notes += _left_out(path, files)
    other = _not_front(files, times, codes, contract, names, volume, options, spec)
    _judge_order(times, codes, other)
    good = (codes == 0) & ~other
    _check_limit(files, codes, times, contract, good, options)
    quarantine = _quarantine(files, prices, volume, contract, names, codes)
    bars = _clean(times, prices, volume, contract, good)
    has_volume = volume is not None
    files, times = _without_rows(files, times)
    del prices, volume, contract, good
    notes += _ratio_notes(path, options, bars, names)
    report = _report(path, spec, files, times, codes, bars, names, has_volume, notes)
    report.reported["other_contracts"] = int(other.sum())
    return ImportResult(bars, names, quarantine, report)


def find_files(path: Path) -> list[Path]:
    """The file itself, or a folder's bar files in the order of their names."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(path, "no such file or folder",
                         "give a CSV or Parquet file, a folder of them, or a catalog")
    found = sorted(p for p in path.iterdir()
                   if p.suffix.lower() in _SUFFIXES and p.name not in _NOT_BARS and not p.name.startswith("."))
    parquet = [p for p in found if _SUFFIXES[p.suffix.lower()] == "parquet"]
    if not found:
        raise InputError(path, "a folder without CSV or Parquet files", "give a file, or a folder that holds some")
    return parquet or found


def _left_out(path: Path, files: Sequence[RawFile]) -> list[str]:
    """A note that names the CSV files of a folder whose Parquet files were read."""
    read = {f.path for f in files}
    other = sorted(p.name for p in path.iterdir() if p not in read and p.suffix.lower() in _SUFFIXES
                   and p.name not in _NOT_BARS and not p.name.startswith(".")) if path.is_dir() else []
    return [f"not read, because the folder has Parquet files: {', '.join(other)}"] if other else []


def _read_all(paths: Sequence[Path], options: ImportOptions,
              progress: Callable[[str], None] | None) -> list[RawFile]:
    files = []
    for path in paths:
        if progress is not None:
            progress(path.name)
        files.append(_read_one(path, options))
    return files


def _read_one(path: Path, options: ImportOptions) -> RawFile:
    kind = options.format
    if kind == "auto":
        guess = _SUFFIXES.get(path.suffix.lower())
        if guess is None:
            raise InputError(path, f"unknown kind of file '{path.suffix}'", "say --format csv or --format parquet")
        kind = "parquet" if guess == "parquet" else "csv"
        if kind == "csv" and looks_like_tradestation(path):
            kind = "tradestation"
    if kind == "parquet":
        return read_parquet(path, options)
    return read_tradestation(path, options) if kind == "tradestation" else read_csv(path, options)


def _volume(files: Sequence[RawFile]) -> FloatArray | None:
    """One array over all files; None where no file knows a volume."""
    if all(f.volume is None or not np.isfinite(f.volume).any() for f in files):
        return None
    for f in files:
        if f.volume is None:
            raise InputError(f.path, "no volume column, while other files of the folder have one",
                             "import it alone")
    return np.concatenate([f.volume for f in files if f.volume is not None])


def _contracts(files: Sequence[RawFile], times: Times, options: ImportOptions,
               source: Path) -> tuple[Int32Array, list[str], list[str]]:
    """(codes, names, notes): the roll table asked for, else the file's column, else a roll table beside it."""
    table = options.contracts
    columns = [f.contract for f in files if f.contract is not None]
    if table is None and len(columns) == len(files):
        codes, names = contracts_module.encode(pa.chunked_array([chunk for c in columns for chunk in c.chunks]))
        return codes, names, []
    if table is None:
        beside = (source if source.is_dir() else source.parent) / contracts_module.ROLL_TABLE
        table = beside if beside.is_file() else None
    n = times.ts_open.size
    if table is None:
        return np.zeros(n, np.int32), [], []
    if not table.is_file():
        raise InputError(table, "no such roll table", "give a CSV with contract, first_ts_utc, last_ts_utc")
    known = times.ts_open != NO_TIME
    codes = np.zeros(n, np.int32)
    codes[known], names, uncovered = from_roll_table(table, times.ts_open[known])
    return codes, names, [f"contracts: by {table.name}, {uncovered} rows between contracts"]


def _ratio_notes(source: Path, options: ImportOptions, bars: Bars, names: Sequence[str]) -> list[str]:
    """What the bars say of the roll ratios that a roll table states."""
    beside = (source if source.is_dir() else source.parent) / contracts_module.ROLL_TABLE
    table = options.contracts or (beside if beside.is_file() else None)
    if table is None or not names:
        return []
    try:
        schedule = read_roll_table(table)
    except InputError as error:  # what the import needs of it has been read already
        return [f"roll ratios: not checked, {error}"]
    stated = int(np.isfinite(schedule.ratio_to_next).sum())
    wrong = check_ratios(schedule, bars, names) if stated else []
    listed = "; ".join(str(mismatch) for mismatch in wrong[:_LISTED])
    return [f"roll ratios of {table.name}: {len(wrong)} of {stated} differ from the bars'"
            + (f": {listed}{' …' if len(wrong) > _LISTED else ''}" if wrong else "")] if stated else []


def _not_front(files: Sequence[RawFile], times: Times, codes: AnyArray, contract: Int32Array, names: Sequence[str],
               volume: FloatArray | None, options: ImportOptions, spec: Instrument) -> BoolArray:
    """Rows of other contracts than the front one, if the caller wants one contract a day."""
    other = np.zeros(codes.size, np.bool_)
    valid = codes == 0
    if options.front == "none" or len(names) < 2 or not valid.any():
        return other
    interest = open_interest_column(files) if options.front == "open_interest" else None
    rows = ContractRows(times.ts_open[valid], contract[valid], names, None if volume is None else volume[valid],
                        None if interest is None else interest[valid])
    schedule = choose_front(rule_of(options), rows, spec, files[0].path)
    other[valid] = ~front_rows(schedule, rows)
    return other


def _judge_order(times: Times, codes: AnyArray, other: BoolArray) -> None:
    if not other.any():
        judge_order(times.ts_open, times.local, codes)
        return
    kept = np.flatnonzero(~other)
    part = codes[kept]
    judge_order(times.ts_open[kept], times.local[kept], part)
    codes[kept] = part


def _check_limit(files: Sequence[RawFile], codes: AnyArray, times: Times, contract: Int32Array, good: BoolArray,
                 options: ImportOptions) -> None:
    """InputError naming the first bad row when too many rows break a rule."""
    malformed = sum(len(f.malformed) for f in files)
    bad, total = int((codes != 0).sum()) + malformed, codes.size + malformed
    if bad == 0 or (bad <= options.max_bad_fraction * total and good.any()):
        return
    timed = times.ts_open != NO_TIME
    several = contracts_module.overlapping(times.ts_open[timed], contract[timed]) if contract.any() else 0
    if several > options.max_bad_fraction * total and options.front == "none":
        raise InputError(files[0].path, f"several contracts at the same time ({several} of {total} rows)",
                         "choose one contract a day with --front volume (or open_interest, expiry, dates), or "
                         "give a file with one contract")
    file, row, rule = first_bad(files, codes != 0, codes, RULES)
    if rule in ("disorder", "duplicate_time"):
        _require_following(files, times)
    share = f"{bad} of {total} rows ({100 * bad / total:.3g} %, allowed {100 * options.max_bad_fraction:.3g} %)"
    raise InputError(file, f"{MEANING[rule]} (rule {rule}; {share} break a rule)",
                     f"{FIX.get(rule, 'correct the file')}, or allow more with --max-bad-fraction", row=row)


def _require_following(files: Sequence[RawFile], times: Times) -> None:
    """InputError if a file of a folder begins before the one before it ends: then they are not one series."""
    start, before = 0, NO_TIME
    for number, f in enumerate(files):
        own = times.ts_open[start:start + len(f)]
        own = own[own != NO_TIME]
        start += len(f)
        if own.size == 0:
            continue
        if before != NO_TIME and own.min() <= before:
            rule = f"it begins at {iso(int(own.min()))}, before {files[number - 1].path.name} ends"
            raise InputError(f.path, rule, "the files of a folder must be one instrument, in the order of their "
                                           "names; import this one alone")
        before = int(own.max())


def _clean(times: Times, prices: dict[str, FloatArray], volume: FloatArray | None, contract: Int32Array,
           good: BoolArray) -> Bars:
    known = volume if volume is not None else np.full(good.size, np.nan)
    if good.all():
        return Bars(ts_open=times.ts_open, **prices, volume=known, width_ns=times.width_ns, contract=contract)
    return Bars(ts_open=times.ts_open[good], **{name: prices[name][good] for name in PRICES}, volume=known[good],
                width_ns=times.width_ns, contract=contract[good])


def _without_rows(files: Sequence[RawFile], times: Times) -> tuple[list[RawFile], Times]:
    """What the report needs of both: the checks of the clean bars then have the columns' memory for themselves."""
    none, no_time = np.zeros(0, np.int64), pa.chunked_array([], pa.string())
    return ([replace(f, row=none, time=no_time, volume=None, contract=None) for f in files],
            replace(times, ts_open=none, local=none, swapped=none != 0, nonexistent=none != 0))


def _report(path: Path, spec: Instrument, files: Sequence[RawFile], times: Times, codes: AnyArray, bars: Bars,
            names: Sequence[str], has_volume: bool, notes: list[str]) -> QualityReport:
    counts = np.bincount(codes, minlength=len(RULES))
    counts[RULES.index("malformed_line")] += sum(len(f.malformed) for f in files)
    found = inspect(bars, spec, has_volume)
    reported = found.counts | {
        "flagged_by_vendor": sum(f.flagged for f in files), "blank_lines": sum(f.blank for f in files),
        "ambiguous_local_times": times.ambiguous}
    if times.ambiguous:
        notes = [*notes, f"{times.ambiguous} local times occur twice at a clock change: the earlier instant is "
                         "taken unless it is not later than the row before"]
    return QualityReport(
        source=path.name, symbol=spec.symbol, sha256=_digest(files), rows_in=int(counts.sum()), rows_out=len(bars),
        width_s=bars.width_ns / 1e9, zone=times.zone, first_bar=iso(int(bars.ts_open[0])),
        last_bar=iso(int(bars.ts_open[-1])), contracts=len(names),
        quarantined={rule: int(counts[i]) for i, rule in enumerate(RULES) if i and counts[i]},
        reported=reported, largest_gap=found.largest_gap, largest_outliers=found.largest_outliers,
        guesses=[*files[0].notes, *times.notes, *notes], places=found.places, stretches=found.stretches)


def _digest(files: Sequence[RawFile]) -> str:
    if len(files) == 1:
        return sha256_file(files[0].path)
    return hashlib.sha256("".join(sha256_file(f.path) for f in files).encode()).hexdigest()


def _quarantine(files: Sequence[RawFile], prices: dict[str, FloatArray], volume: FloatArray | None,
                contract: Int32Array, names: Sequence[str], codes: AnyArray) -> pa.Table:
    """The rows set aside, with file, row and rule."""
    rows: list[dict[str, object]] = []
    start = 0
    for f in files:
        for k in np.flatnonzero(codes[start:start + len(f)]):
            i = start + int(k)
            rows.append({"source": f.path.name, "row": int(f.row[k]), "rule": RULES[codes[i]],
                         "time": _text(f.time[int(k)]), **{n: float(prices[n][i]) for n in PRICES},
                         "volume": None if volume is None else float(volume[i]),
                         "contract": names[contract[i]] if names else None})
        rows += [{"source": f.path.name, "row": row, "rule": "malformed_line", "line": text}
                 for row, text in f.malformed]
        start += len(f)
    return pa.Table.from_pylist(rows, schema=QUARANTINE_SCHEMA)


def _text(time: pa.Scalar) -> str:
    """A time as it stands in the file; a timestamp outside the years 1 to 9999 as its number."""
    try:
        return str(time.as_py())
    except (OverflowError, ValueError):
        return str(time.value)
