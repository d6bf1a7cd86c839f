"""From the options of an import to a roll rule, and the open interest of its files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from algospace.errors import InputError
from algospace.marketdata.options import ImportOptions
from algospace.marketdata.parquet_import import read_table
from algospace.marketdata.raw import RawFile
from algospace.marketdata.rolls import DatesRoll, ExpiryRoll, OpenInterestRoll, RollRule, VolumeRoll
from algospace.types import FloatArray

OPEN_INTEREST_NAMES = ("open_interest", "openinterest", "open interest", "oi")


def rule_of(options: ImportOptions) -> RollRule:
    """The rule that `front` names, with its own options."""
    if options.front == "open_interest":
        return OpenInterestRoll(table=options.open_interest)
    if options.front == "expiry":
        default = ExpiryRoll()
        return ExpiryRoll(days=default.days if options.roll_days is None else options.roll_days,
                          table=options.expiries)
    if options.front == "dates" and options.roll_dates is not None:
        return DatesRoll(table=options.roll_dates)
    return VolumeRoll()


def open_interest_column(files: Sequence[RawFile]) -> FloatArray | None:
    """Open interest of every row of Parquet files that all have such a column, else None (then give a table)."""
    parts = []
    for f in files:
        name = _column_name(f)
        if name is None:
            return None
        try:
            column = pc.cast(read_table(f.path, [name]).column(name), pa.float64(), safe=False)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise InputError(f.path, f"column '{name}' holds no numbers", "store it as numbers") from None
        parts.append(np.asarray(column.to_numpy(), np.float64))
    return np.concatenate(parts)


def _column_name(f: RawFile) -> str | None:
    if f.path.suffix.lower() not in (".parquet", ".pq"):
        return None
    with f.path.open("rb") as stream:
        names = pq.ParquetFile(stream).schema_arrow.names
    return next((name for name in names if name.lower() in OPEN_INTEREST_NAMES), None)
