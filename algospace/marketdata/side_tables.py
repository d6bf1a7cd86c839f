"""CSV tables beside market data (rolls, expiries, open interest, weights): read as text, checked row by row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from algospace.errors import InputError
from algospace.types import IntArray

# what int64 nanoseconds can hold, in whole years
_FIRST_TIME, _END_TIME = pd.Timestamp("1678-01-01", tz="UTC"), pd.Timestamp("2262-01-01", tz="UTC")


def read_table(path: Path, columns: Sequence[str], what: str) -> pd.DataFrame:
    """A CSV as text with the given columns; InputError in one line."""
    try:
        frame = pd.read_csv(path, dtype=str)
    except (OSError, ValueError) as error:
        raise InputError(path, f"not a readable table ({' '.join(str(error).split())})",
                         f"give a CSV with {', '.join(columns)}") from None
    frame.columns = pd.Index([str(name).strip().lower() for name in frame.columns])
    missing = [name for name in columns if name not in frame]
    if missing:
        raise InputError(path, f"{what} needs a column {missing[0]} (found: {', '.join(frame.columns)})",
                         f"give a CSV with {', '.join(columns)}", row=1)
    holes = frame[list(columns)].isna().any(axis=1).to_numpy()
    if holes.any():
        raise InputError(path, "an empty field", "fill it or drop the line", row=int(np.argmax(holes)) + 2)
    if frame.empty:
        raise InputError(path, "no rows", f"give a CSV with {', '.join(columns)}")
    return frame


def parse_dates(path: Path, column: pd.Series) -> IntArray:
    """Days since 1970 of ISO dates; InputError names the first row that is none."""
    parsed = pd.to_datetime(column, format="%Y-%m-%d", errors="coerce")
    bad = parsed.isna().to_numpy()
    if bad.any():
        row = int(np.argmax(bad))
        raise InputError(path, f"'{column.iloc[row]}' is no date", "write dates as 2024-12-20", row=row + 2)
    return parsed.to_numpy().astype("datetime64[D]").astype(np.int64)


def parse_times(path: Path, column: pd.Series) -> IntArray:
    """UTC ns of ISO times, UTC where none says otherwise; InputError names the first row that is none, or lies
    beyond int64 nanoseconds (9999-12-31 would wrap)."""
    parsed = pd.to_datetime(column, utc=True, format="ISO8601", errors="coerce")
    good = ((parsed >= _FIRST_TIME) & (parsed < _END_TIME)).to_numpy()
    if not good.all():
        row = int(np.argmin(good))
        raise InputError(path, f"'{column.iloc[row]}' is no time between 1678 and 2261",
                         "write times as 2020-06-28 22:00:00", row=row + 2)
    return parsed.dt.tz_localize(None).to_numpy().astype("datetime64[ns]").astype(np.int64)
