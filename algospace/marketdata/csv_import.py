"""Generic CSV: any common separator, one time column or date and time of day, numbers with a decimal point.

Lines with another number of fields and unreadable numbers are kept for the quarantine, not skipped.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from algospace.errors import InputError
from algospace.marketdata.columns import FLAG_NAMES, resolve_columns
from algospace.marketdata.options import ImportOptions
from algospace.marketdata.raw import RawFile
from algospace.marketdata.schema import PRICES
from algospace.types import FloatArray

_SEPARATORS = ",;\t|"


def read_csv(path: Path, options: ImportOptions) -> RawFile:
    """All rows of a CSV file (`.gz` too). InputError if it is empty, not text or lacks columns."""
    header = _header_line(path)
    separator = max(_SEPARATORS, key=header.count)
    names = next(csv.reader([header], delimiter=separator))
    roles, notes = resolve_columns(path, names, options.columns)
    if len(set(names)) != len(names):
        raise InputError(path, f"column names repeat: {', '.join(names)}", "give each column its own name", row=1)
    flag = next((name for name in names if name.lower() in FLAG_NAMES), None)
    wanted = list(dict.fromkeys([*roles.values(), *([flag] if flag else [])]))
    malformed: list[tuple[int, str]] = []
    table = _read_strings(path, separator, names, wanted, malformed)
    row = np.delete(np.arange(2, 2 + table.num_rows + len(malformed)), [line - 2 for line, _ in malformed])
    blank = _blank_lines(table)
    if blank.any():
        table, row = table.filter(pa.array(~blank)), row[~blank]
    if table.num_rows + len(malformed) == 0:
        raise InputError(path, "no data rows", "give a file with at least one bar")
    if table.num_rows == 0:
        raise InputError(path, "every line has another number of fields than the header", "correct the file",
                         row=malformed[0][0])
    if separator != ",":
        notes.insert(0, f"separator: {separator!r}")
    return RawFile(
        path=path, row=row, time=_time_text(table, roles),
        prices={role: _numbers(table.column(roles[role])) for role in PRICES},
        volume=_numbers(table.column(roles["volume"])) if "volume" in roles else None,
        contract=table.column(roles["contract"]) if "contract" in roles else None,
        flagged=_flag_count(table.column(flag)) if flag else 0, malformed=malformed, blank=int(blank.sum()),
        notes=notes, time_column=roles.get("time", roles.get("date", "")))


def _header_line(path: Path) -> str:
    opener: Callable[..., object] = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as stream:  # type: ignore[attr-defined]
            header = str(stream.readline(1 << 16)).strip("\r\n")
    except UnicodeDecodeError:
        raise InputError(path, "not UTF-8 text", "save it as UTF-8 CSV, or give a Parquet file") from None
    except (OSError, EOFError) as error:
        raise InputError(path, f"cannot be read ({error})", "check the file") from None
    if not header.strip():
        raise InputError(path, "the file is empty" if path.stat().st_size == 0 else "the first line is empty",
                         "the first line must name the columns", row=None if path.stat().st_size == 0 else 1)
    return header


def _read_strings(path: Path, separator: str, names: list[str], wanted: list[str],
                  malformed: list[tuple[int, str]]) -> pa.Table:
    """The wanted columns as strings; lines with another number of fields go to `malformed`."""
    def keep(row: pacsv.InvalidRow) -> str:
        malformed.append((row.number, row.text))
        return "skip"

    try:
        return pacsv.read_csv(
            path,
            read_options=pacsv.ReadOptions(use_threads=False, column_names=names, skip_rows=1),  # row numbers
            parse_options=pacsv.ParseOptions(delimiter=separator, ignore_empty_lines=False,
                                             invalid_row_handler=keep),
            convert_options=pacsv.ConvertOptions(include_columns=wanted, strings_can_be_null=True,
                                                 null_values=[""],
                                                 column_types=dict.fromkeys(wanted, pa.string())))
    except (pa.ArrowInvalid, OSError) as error:
        if "Empty CSV file" in str(error):
            raise InputError(path, "no data rows", "give a file with at least one bar") from None
        raise InputError(path, f"not a readable CSV ({' '.join(str(error).split())[:160]})",
                         "correct the file") from None


def _blank_lines(table: pa.Table) -> np.ndarray:
    blank = np.ones(table.num_rows, np.bool_)
    for column in table.columns:
        blank &= np.asarray(column.is_null())
    return blank


def _time_text(table: pa.Table, roles: dict[str, str]) -> pa.ChunkedArray:
    if "time" in roles:
        return table.column(roles["time"])
    return pc.binary_join_element_wise(table.column(roles["date"]), table.column(roles["clock"]), " ")


def _numbers(column: pa.ChunkedArray) -> FloatArray:
    try:
        return np.ascontiguousarray(pc.cast(column, pa.float64()).to_numpy(), dtype=np.float64)
    except pa.ArrowInvalid:  # some text is not a number: only that row becomes NaN
        return pd.to_numeric(pd.Series(column.to_pandas()), errors="coerce").to_numpy(np.float64)


def _flag_count(column: pa.ChunkedArray) -> int:
    values = pc.utf8_lower(column.fill_null("")).to_pylist()
    return sum(value.strip() in ("1", "true", "yes") for value in values)
