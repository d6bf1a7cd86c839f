"""Generic Parquet: the same roles as CSV, with typed times."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from algospace.errors import InputError
from algospace.marketdata.columns import FLAG_NAMES, resolve_columns
from algospace.marketdata.options import ImportOptions
from algospace.marketdata.raw import RawFile
from algospace.marketdata.schema import PRICES
from algospace.types import FloatArray


def read_parquet(path: Path, options: ImportOptions) -> RawFile:
    """All rows of a Parquet file. InputError if it is empty, damaged or lacks columns."""
    table, roles, notes, flag = _read(path, options)
    if table.num_rows == 0:
        raise InputError(path, "no data rows", "give a file with at least one bar")
    if "time" in roles:
        time = table.column(roles["time"])
    else:
        time = pc.binary_join_element_wise(_texts(path, table, roles["date"]), _texts(path, table, roles["clock"]),
                                           " ")
    return RawFile(
        path=path, row=np.arange(1, table.num_rows + 1), time=time,
        prices={role: _numbers(path, table, roles[role]) for role in PRICES},
        volume=_numbers(path, table, roles["volume"]) if "volume" in roles else None,
        contract=_texts(path, table, roles["contract"]) if "contract" in roles else None,
        flagged=int(pc.sum(pc.cast(table.column(flag), pa.int64())).as_py() or 0) if flag else 0,
        notes=notes, time_column=roles.get("time", roles.get("date", "")))


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """A Parquet file, whole; InputError in one line if it is empty, truncated or of another kind."""
    try:
        if path.stat().st_size == 0:
            raise InputError(path, "the file is empty", "get the file again")
        # opened by us: pyarrow would take a path with '=' in its folders for a partitioned data set
        with path.open("rb") as stream:
            return pq.ParquetFile(stream).read(columns=columns)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(path, f"not a readable Parquet file ({' '.join(str(error).split())[:160]})",
                         "it is truncated or of another format; get it again") from None


def _read(path: Path, options: ImportOptions) -> tuple[pa.Table, dict[str, str], list[str], str | None]:
    try:
        with path.open("rb") as stream:
            schema = pq.ParquetFile(stream).schema_arrow if path.stat().st_size else None
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        schema = None
    if schema is None:
        read_table(path)  # raises the clear line
        raise InputError(path, "not a readable Parquet file", "get it again")
    roles, notes = resolve_columns(path, schema.names, options.columns)
    flag = next((name for name in schema.names if name.lower() in FLAG_NAMES), None)
    wanted = list(dict.fromkeys([*roles.values(), *([flag] if flag else [])]))
    return read_table(path, wanted), roles, notes, flag


def _numbers(path: Path, table: pa.Table, name: str) -> FloatArray:
    try:
        column = pc.cast(table.column(name), pa.float64(), safe=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        kind = table.schema.field(name).type
        raise InputError(path, f"column '{name}' holds {kind}, not numbers", "store it as numbers") from None
    return np.array(column.to_numpy(), np.float64)


def _texts(path: Path, table: pa.Table, name: str) -> pa.ChunkedArray:
    column = table.column(name)
    if pa.types.is_dictionary(column.type):
        column = pc.cast(column, column.type.value_type)
    try:
        return pc.cast(column, pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise InputError(path, f"column '{name}' holds {column.type}, not text", "store it as text") from None
