"""Generic CSV: any common separator, one time column or date and time of day, numbers with a decimal point.

Lines with another number of fields and unreadable numbers are kept for the quarantine, not skipped.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from algospace.errors import InputError
from algospace.marketdata.columns import FLAG_NAMES, resolve_columns
from algospace.marketdata.csv_text import blank_lines, check_text, column_names, read_strings
from algospace.marketdata.options import ImportOptions
from algospace.marketdata.raw import RawFile
from algospace.marketdata.schema import PRICES
from algospace.types import FloatArray


def read_csv(path: Path, options: ImportOptions) -> RawFile:
    """All rows of a CSV file (`.gz` too). InputError if it is empty, not text or lacks columns."""
    check_text(path)
    separator, names = column_names(path)
    roles, notes = resolve_columns(path, names, options.columns)
    if len(set(names)) != len(names):
        raise InputError(path, f"column names repeat: {', '.join(names)}", "give each column its own name", row=1)
    flag = next((name for name in names if name.lower() in FLAG_NAMES), None)
    wanted = list(dict.fromkeys([*roles.values(), *([flag] if flag else [])]))
    malformed: list[tuple[int, str]] = []
    table = read_strings(path, separator, names, wanted, malformed)
    row = np.delete(np.arange(2, 2 + table.num_rows + len(malformed)), [line - 2 for line, _ in malformed])
    blank = blank_lines(table)
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
