"""What imports of ticks and of quotes share: the limit of bad rows, the quarantine, the digest."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from algospace.errors import InputError
from algospace.files import sha256_file
from algospace.marketdata.quality import first_bad
from algospace.marketdata.ticks.files import TradeFile, decoded
from algospace.marketdata.ticks.rules import FIX, MEANING, RULES
from algospace.types import AnyArray, BoolArray, FloatArray

_NUMBERS = ("price", "size", "bid", "ask", "bid_size", "ask_size")
QUARANTINE_SCHEMA = pa.schema([
    ("source", pa.string()), ("row", pa.int64()), ("rule", pa.string()), ("time", pa.string()),
    *((name, pa.float64()) for name in _NUMBERS), ("symbol", pa.string()), ("line", pa.string())])


def check_limit(files: Sequence[TradeFile], codes: AnyArray, filtered: BoolArray, max_bad_fraction: float) -> None:
    """InputError naming the first bad row when too many of the rows that were asked for break a rule, or when
    no good row is left."""
    malformed = sum(len(f.malformed) for f in files)
    bad = int(((codes != 0) & ~filtered).sum()) + malformed
    total = int((~filtered).sum()) + malformed
    left = total - bad
    if left and bad <= max_bad_fraction * total:
        return
    if bad == 0:
        raise InputError(files[0].path, f"no row is left: all {codes.size} were filtered",
                         "choose other --symbol or condition filters")
    file, row, rule = first_bad(files, (codes != 0) & ~filtered, codes, RULES)
    share = f"{bad} of {total} rows ({100 * bad / total:.3g} %, allowed {100 * max_bad_fraction:.3g} %)"
    raise InputError(file, f"{MEANING[rule]} (rule {rule}; {share} break a rule)",
                     f"{FIX.get(rule, 'correct the file')}, or allow more with --max-bad-fraction", row=row)


def quarantine(files: Sequence[TradeFile], codes: AnyArray, filtered: BoolArray,
               numbers: dict[str, FloatArray]) -> pa.Table:
    """The rows set aside, with file, row, rule and what they held."""
    tables, start = [], 0
    for f in files:
        part = slice(start, start + len(f))
        bad = np.flatnonzero((codes[part] != 0) & ~filtered[part])
        take = pa.array(bad)
        time = f.columns.get("ts", f.columns.get("ts_recv", f.columns.get("clock")))
        columns = {
            "source": pa.array([f.path.name] * bad.size, pa.string()), "row": pa.array(f.row[bad]),
            "rule": pa.array(np.array(RULES, dtype=object)[codes[part][bad]], pa.string()),
            "time": _texts(time, take), "symbol": _texts(f.columns.get("symbol"), take),
            **{name: pa.array(values[part][bad]) for name, values in numbers.items()}}
        tables.append(_table(columns, bad.size))
        if f.malformed:
            rows, texts = zip(*f.malformed, strict=True)
            columns = {"source": pa.array([f.path.name] * len(rows), pa.string()),
                       "row": pa.array(rows, pa.int64()),
                       "rule": pa.array(["malformed_line"] * len(rows), pa.string()),
                       "line": pa.array(texts, pa.string())}
            tables.append(_table(columns, len(rows)))
        start += len(f)
    return pa.concat_tables(tables)


def _table(columns: dict[str, pa.Array], rows: int) -> pa.Table:
    return pa.Table.from_arrays([columns.get(f.name, pa.nulls(rows, f.type)) for f in QUARANTINE_SCHEMA],
                                schema=QUARANTINE_SCHEMA)


def _texts(column: pa.ChunkedArray | None, take: pa.Array) -> pa.Array:
    if column is None:
        return pa.nulls(len(take), pa.string())
    rows = decoded(column.take(take))
    if pa.types.is_timestamp(rows.type):  # as numbers: formatting would need a known zone and range
        rows = pc.cast(rows, pa.int64())
    return pa.array([None if value is None else str(value) for value in rows.to_pylist()], pa.string())


def digest(files: Sequence[TradeFile]) -> str:
    """SHA-256 of the file, or of the files' digests."""
    if len(files) == 1:
        return sha256_file(files[0].path)
    return hashlib.sha256("".join(sha256_file(f.path) for f in files).encode()).hexdigest()


def count_rules(codes: AnyArray, filtered: BoolArray, files: Sequence[TradeFile]) -> dict[str, int]:
    """Rows in quarantine by rule."""
    counts = np.bincount(codes[~filtered], minlength=len(RULES))
    counts[RULES.index("malformed_line")] += sum(len(f.malformed) for f in files)
    return {rule: int(counts[i]) for i, rule in enumerate(RULES) if i and counts[i]}


def place(files: Sequence[TradeFile], index: int) -> tuple[str, int]:
    """(file name, row in it) of a row of all files together."""
    for f in files:
        if index < len(f):
            return f.path.name, int(f.row[index])
        index -= len(f)
    raise IndexError(index)
