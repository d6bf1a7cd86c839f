"""CSV files of any kind as text: header, lines, fields; shared by bars, ticks and quotes."""

from __future__ import annotations

import codecs
import csv
import gzip
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

from algospace.errors import InputError

_SEPARATORS = ",;\t|"
_PART = 1 << 22  # bytes decoded at a time


def column_names(path: Path) -> tuple[str, list[str]]:
    """(separator, column names) by the first line."""
    try:
        header = header_line(path)
        separator = max(_SEPARATORS, key=header.count)
        return separator, next(csv.reader([header], delimiter=separator))
    except (csv.Error, zlib.error) as error:
        raise InputError(path, f"its first line cannot be read ({error})", "the first line must name the columns",
                         row=1) from None


def check_text(path: Path) -> None:
    """InputError naming the line if a file is no UTF-8: Arrow would lose malformed lines that it cannot decode."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    line = 1
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            while part := stream.read(_PART):
                decoder.decode(part)
                line += part.count(b"\n")
            part = b""
            decoder.decode(part, final=True)
    except UnicodeDecodeError as error:
        raise InputError(path, "not UTF-8 text", "save it as UTF-8 CSV, or give a Parquet file",
                         row=line + part[:error.start].count(b"\n")) from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(path, f"cannot be read ({error})", "get the file again") from None


def header_line(path: Path) -> str:
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


def read_strings(path: Path, separator: str, names: list[str], wanted: list[str],
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


def blank_lines(table: pa.Table) -> np.ndarray:
    blank = np.ones(table.num_rows, np.bool_)
    for column in table.columns:
        blank &= np.asarray(column.is_null())
    return blank
