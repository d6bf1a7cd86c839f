"""Files of trades or quotes to Arrow columns by role, in the file's order, before any rule is applied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from algospace.errors import InputError
from algospace.marketdata.csv_text import blank_lines, check_text, column_names, read_strings
from algospace.marketdata.ticks.layouts import Layout, names_of_quotes, names_of_trades, resolve_layout
from algospace.marketdata.ticks.options import SourceOptions
from algospace.types import FloatArray, IntArray

_KINDS = {".csv": "csv", ".txt": "csv", ".gz": "csv", ".parquet": "parquet", ".pq": "parquet"}
_NOT_TICKS = {"quarantine.parquet", "truth.parquet", "contracts.csv"}
_CODES = ("symbol", "condition", "action", "aggressor", "flag", "buyer_is_maker")  # few distinct values
_CODE_TYPES = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null)
NO_INTEGER = np.iinfo(np.int64).min


@dataclass(frozen=True)
class TradeFile:
    """The rows of one file: row is the 1-based row in the file (a CSV's header is row 1), columns role -> Arrow
    column; malformed (row, text) lines with another number of fields; blank empty lines."""

    path: Path
    row: IntArray
    columns: dict[str, pa.ChunkedArray]
    layout: Layout
    malformed: list[tuple[int, str]] = field(default_factory=list)
    blank: int = 0

    def __len__(self) -> int:
        return int(self.row.size)


def find_source_files(path: Path) -> list[Path]:
    """The file itself, or a folder's data files in the order of their names (Parquet only, if it has some)."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(path, "no such file or folder", "give a CSV or Parquet file, or a folder of them")
    found = sorted(p for p in path.iterdir() if p.suffix.lower() in _KINDS and p.is_file()
                   and p.name not in _NOT_TICKS and not p.name.startswith("."))
    parquet = [p for p in found if _KINDS[p.suffix.lower()] == "parquet"]
    if not found:
        raise InputError(path, "a folder without CSV or Parquet files", "give a file, or a folder that holds some")
    return parquet or found


def read_trade_files(path: Path, options: SourceOptions, quotes: bool,
                     progress: Callable[[str], None] | None) -> list[TradeFile]:
    """Every file of a source. InputError if one is empty, damaged or lacks columns."""
    files = []
    for one in find_source_files(path):
        if progress is not None:
            progress(one.name)
        read = _read_parquet if _kind(one, options) == "parquet" else _read_csv
        files.append(read(one, options, quotes))
    return files


def _kind(path: Path, options: SourceOptions) -> str:
    kind = _KINDS.get(path.suffix.lower(), "") if options.format == "auto" else options.format
    if not kind:
        raise InputError(path, f"unknown kind of file '{path.suffix}'", "say --format csv or --format parquet")
    return kind


def looks_like_ticks(path: Path | str) -> bool:
    """Whether a file, or the first file of a folder, holds trades and not bars; False if that cannot be told."""
    return names_of_trades(_known_names(Path(path)))


def looks_like_quotes(path: Path | str) -> bool:
    """Whether a file, or the first file of a folder, holds best bids and asks and neither trades nor bars."""
    return names_of_quotes(_known_names(Path(path)))


def _known_names(path: Path) -> list[str]:
    """Column names; none where the file is unreadable, which its importer then explains."""
    try:
        first = find_source_files(path)[0]
        kind = _KINDS.get(first.suffix.lower(), "")
        return column_names(first)[1] if kind == "csv" else _parquet_schema(first).names if kind else []
    except InputError:
        return []


def _parquet_schema(path: Path) -> pa.Schema:
    try:
        with path.open("rb") as stream:
            schema = pq.ParquetFile(stream).schema_arrow
            _ = schema.names  # decodes them
            return schema
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> InputError:
    if path.is_file() and path.stat().st_size == 0:
        return InputError(path, "the file is empty", "get the file again")
    return InputError(path, f"not a readable Parquet file ({' '.join(str(error).split())[:160]})",
                      "it is truncated or of another format; get it again")


def _read_parquet(path: Path, options: SourceOptions, quotes: bool) -> TradeFile:
    schema = _parquet_schema(path)
    _unique(path, schema.names)
    layout = resolve_layout(path, schema.names, options.columns, quotes)
    _drop_no_codes(path, layout, schema, options)
    coded = [layout.roles[role] for role in _CODES if role in layout.roles
             and schema.field(layout.roles[role]).type in (pa.string(), pa.large_string())]
    try:
        # opened by us: pyarrow would take a path with '=' in its folders for a partitioned data set
        with path.open("rb") as stream:
            table = pq.ParquetFile(stream, read_dictionary=coded).read(columns=list(layout.roles.values()))
        for column in table.columns:
            column.validate(full=True)  # text that is no UTF-8
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None
    return _file(path, layout, table, np.arange(1, table.num_rows + 1), [], 0)


def _drop_no_codes(path: Path, layout: Layout, schema: pa.Schema, options: SourceOptions) -> None:
    """Forget guessed roles whose column cannot hold codes; InputError where the caller named the column."""
    for role in _CODES:
        kind = schema.field(layout.roles[role]).type if role in layout.roles else pa.string()
        inner = kind.value_type if pa.types.is_dictionary(kind) else kind
        if is_text(inner) or any(fits(inner) for fits in _CODE_TYPES):
            continue
        if role in options.columns:
            raise InputError(path, f"column '{layout.roles[role]}' holds {kind}, no codes",
                             f"name another with --columns {role}=…")
        layout.notes.append(f"ignored column: {layout.roles.pop(role)} ({kind}, no {role})")


def _read_csv(path: Path, options: SourceOptions, quotes: bool) -> TradeFile:
    check_text(path)
    separator, names = column_names(path)
    _unique(path, names)
    layout = resolve_layout(path, names, options.columns, quotes)
    if separator != ",":
        layout.notes.append(f"separator: {separator!r}")
    malformed: list[tuple[int, str]] = []
    table = read_strings(path, separator, names, list(layout.roles.values()), malformed)
    row = np.delete(np.arange(2, 2 + table.num_rows + len(malformed)), [line - 2 for line, _ in malformed])
    blank = blank_lines(table)
    if blank.any():
        table, row = table.filter(pa.array(~blank)), row[~blank]
    return _file(path, layout, table, row, malformed, int(blank.sum()))


def _file(path: Path, layout: Layout, table: pa.Table, row: IntArray, malformed: list[tuple[int, str]],
          blank: int) -> TradeFile:
    if row.size + len(malformed) == 0:
        raise InputError(path, "no data rows", "give a file with at least one row")
    columns = {role: table.column(name) for role, name in layout.roles.items()}
    return TradeFile(path, row, columns, layout, malformed, blank)


def _unique(path: Path, names: Sequence[str]) -> None:
    if len(set(names)) != len(names):
        raise InputError(path, f"column names repeat: {', '.join(names)}", "give each column its own name", row=1)


def floats(file: TradeFile, role: str) -> FloatArray:
    """A column as float64; NaN where a cell is no number. InputError if the column cannot hold numbers."""
    column = file.columns[role]
    kind = column.type
    if is_text(kind):
        return _floats_of_text(decoded(column))
    if pa.types.is_null(kind):
        return np.full(len(file), np.nan)
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise InputError(file.path, f"column '{file.layout.roles[role]}' holds {kind}, not numbers",
                         f"name the column of the {role} with --columns {role}=…")
    return np.array(pc.cast(column, pa.float64(), safe=False).to_numpy(), np.float64)


def _floats_of_text(column: pa.ChunkedArray) -> FloatArray:
    try:
        return np.array(pc.cast(column, pa.float64()).to_numpy(), np.float64)
    except pa.ArrowInvalid:  # some text is not a number: only that row becomes NaN
        return pd.to_numeric(pd.Series(column.to_pandas()), errors="coerce").to_numpy(np.float64)


def integers(file: TradeFile, role: str) -> IntArray:
    """A column as int64; NO_INTEGER where a cell is no whole number."""
    column = file.columns[role]
    if is_text(column.type):
        column = whole_numbers(decoded(column))
    if pa.types.is_integer(column.type):
        return np.array(_int64(column).fill_null(NO_INTEGER).to_numpy(), np.int64)
    values = floats(file, role)
    whole = np.isfinite(values) & (np.abs(np.where(np.isfinite(values), values, 0)) < 2**53)
    return np.where(whole, np.where(whole, values, 0).astype(np.int64), NO_INTEGER)


def whole_numbers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Texts to int64, exactly; null where a text is no whole number of up to 18 digits."""
    trimmed = pc.utf8_ltrim(pc.utf8_trim_whitespace(column), characters="+")  # Arrow reads no plus sign
    is_whole = pc.match_substring_regex(trimmed, r"^-?\d{1,18}$|^[01]\d{18}$")
    return pc.cast(pc.if_else(is_whole, trimmed, pa.scalar(None, trimmed.type)), pa.int64())


def _int64(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Integers of any width; those beyond int64 (the vendors' mark for 'undefined') become null."""
    if column.type == pa.uint64():
        limit = pa.scalar(np.iinfo(np.int64).max, pa.uint64())
        column = pc.if_else(pc.greater_equal(column, limit), pa.scalar(None, pa.uint64()), column)
    return pc.cast(column, pa.int64())


def is_text(kind: pa.DataType) -> bool:
    """Text, dictionary-encoded or not."""
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(inner) or pa.types.is_large_string(inner))


def decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A dictionary-encoded column as its values, others as they are."""
    return pc.cast(column, column.type.value_type) if pa.types.is_dictionary(column.type) else column


def instants(file: TradeFile, role: str) -> pa.ChunkedArray:
    """A column of times in a form of which no cell can overflow: timestamps, integers, floats or texts."""
    column = decoded(file.columns[role])
    kind = column.type
    if pa.types.is_integer(kind):
        return _int64(column)
    if pa.types.is_date(kind):
        kind = pa.timestamp("s" if pa.types.is_date32(kind) else "ms")
        column = pc.cast(column, kind)
    if pa.types.is_timestamp(kind):
        limit = {"s": 9_000_000_000, "ms": 9 * 10**12, "us": 9 * 10**15}.get(kind.unit)
        if limit is not None:
            ticks = pc.cast(column, pa.int64())
            inside = pc.and_(pc.less(ticks, limit), pc.greater(ticks, -limit))
            column = pc.if_else(inside, column, pa.scalar(None, kind))
        return column
    if pa.types.is_floating(kind):
        return column
    if pa.types.is_null(kind):
        return pc.cast(column, pa.large_string())
    if not is_text(kind):
        raise InputError(file.path, f"column '{file.layout.roles[role]}' holds {kind}, not times",
                         f"name the column of the times with --columns {role}=…")
    texts = pc.cast(column, pa.large_string())
    return _epoch_texts(texts)


def _epoch_texts(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Texts that are epoch numbers become int64 exactly (through float64 they would lose nanoseconds)."""
    sample = [text.strip() for text in texts.slice(0, 100).to_pylist() if text]
    whole = [text for text in sample if text.isdigit() and (len(text) in (10, 11, 13) or len(text) > 14)]
    return whole_numbers(texts) if len(whole) > len(sample) // 2 else texts


def codes_of(column: pa.ChunkedArray) -> tuple[IntArray, list[str]]:
    """(number of each row's text, -1 for a missing one; the distinct texts) of a column with few values."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    merged = column.unify_dictionaries().combine_chunks()
    if isinstance(merged, pa.ChunkedArray):
        if merged.num_chunks == 0:
            return np.zeros(0, np.int64), []
        merged = pa.concat_arrays(merged.chunks)
    numbers = pc.cast(merged.indices, pa.int64()).fill_null(-1).to_numpy()
    texts = [None if text is None else str(text).lower() if isinstance(text, bool) else str(text)
             for text in merged.dictionary.to_pylist()]
    missing = np.array([text is None or not text.strip() for text in texts] + [True])
    return np.where(missing[numbers], -1, numbers), [text or "" for text in texts]
