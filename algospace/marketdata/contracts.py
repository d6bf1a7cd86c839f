"""Futures contracts: names to codes, roll tables, and one contract a day where a file holds several at once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from algospace.calendars import trading_day
from algospace.errors import InputError
from algospace.instruments import Session
from algospace.types import BoolArray, FloatArray, Int32Array, IntArray

ROLL_TABLE = "contracts.csv"
_NAMES = ("contract", "contract_id", "symbol", "id")
_FIRST = ("first_ts_utc", "first_ts", "first", "start")
_LAST = ("last_ts_utc", "last_ts", "last", "end")
_MONTH_CODE = re.compile(r"([FGHJKMNQUVXZ])(\d{4}|\d{1,2})$")  # ESZ4, ESZ24, ESZ2024


def encode(column: pa.ChunkedArray) -> tuple[Int32Array, list[str]]:
    """(codes by first appearance, names) of a column of contract names; null is a contract named ''."""
    encoded = pc.fill_null(column, "").combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    return encoded.indices.to_numpy().astype(np.int32), [str(name) for name in encoded.dictionary.to_pylist()]


def from_roll_table(path: Path, ts_open: IntArray) -> tuple[Int32Array, list[str], int]:
    """(codes, names, rows that no contract covers) by a table of contract, first and last bar start (UTC).

    A row between two contracts belongs to the earlier one.
    """
    names, first, last = _read_roll_table(path)
    position = np.maximum(np.searchsorted(first, ts_open, side="right") - 1, 0)
    uncovered = int(((ts_open > last[position]) | (ts_open < first[position])).sum())
    used, codes = np.unique(position, return_inverse=True)
    return codes.astype(np.int32), [names[k] for k in used], uncovered


def _read_roll_table(path: Path) -> tuple[list[str], IntArray, IntArray]:
    try:
        table = pd.read_csv(path, dtype=str)
    except (OSError, ValueError) as error:
        raise InputError(path, f"not a readable roll table ({error})",
                         "give a CSV with contract, first, last") from None
    lower = {str(name).strip().lower(): name for name in table.columns}
    columns = []
    for known in (_NAMES, _FIRST, _LAST):
        name = next((lower[k] for k in known if k in lower), None)
        if name is None:
            raise InputError(path, f"a roll table needs a column {known[0]}", f"name one of: {', '.join(known)}",
                             row=1)
        columns.append(table[name])
    try:
        first, last = (pd.to_datetime(column, utc=True).dt.tz_localize(None).astype("datetime64[ns]")
                       for column in columns[1:])
    except ValueError as error:
        raise InputError(path, f"a time cannot be read ({error})", "write times as 2020-06-28 22:00:00") from None
    order = np.argsort(first.to_numpy(), kind="stable")
    return ([str(columns[0].iloc[k]) for k in order], first.to_numpy().astype(np.int64)[order],
            last.to_numpy().astype(np.int64)[order])


def overlapping(ts_open: IntArray, contract: Int32Array) -> int:
    """How many rows share their time with a row of another contract."""
    order = np.lexsort((contract, ts_open))
    ts, codes = ts_open[order], contract[order]
    return int(((ts[1:] == ts[:-1]) & (codes[1:] != codes[:-1])).sum())


def front_by_volume(ts_open: IntArray, contract: Int32Array, names: Sequence[str], volume: FloatArray,
                    session: Session) -> BoolArray:
    """Rows of the front contract: on each trading day the one with the most volume on the day before.

    Only contracts that expire after the current one can follow it (`expiry_ranks`); the first day takes the
    earliest contract that trades. Nothing of the day itself is used, so the choice could have been made live.
    """
    rank = expiry_ranks(names, ts_open, contract)[contract]
    days, day_index = np.unique(trading_day(ts_open, session.zone, session.day_start_hour), return_inverse=True)
    traded = np.zeros((days.size, len(names)))
    present = np.zeros((days.size, len(names)), np.bool_)
    np.add.at(traded, (day_index, rank), np.nan_to_num(volume))
    present[day_index, rank] = True
    front = np.zeros(days.size, np.int64)
    front[0] = int(np.argmax(present[0]))
    for day in range(1, days.size):
        current = front[day - 1]
        best = current + int(np.argmax(traded[day - 1, current:]))
        front[day] = best if present[day, best] else current
        if not present[day, front[day]]:  # the contract has expired
            later = np.flatnonzero(present[day, current:])
            front[day] = current + int(later[0]) if later.size else current
    return rank == front[day_index]


def expiry_ranks(names: Sequence[str], ts_open: IntArray, contract: Int32Array) -> IntArray:
    """Place of each contract in the order of expiry.

    Exchange codes end in a month letter and a year (ESZ4, ESH25), which do not sort as text across a year's end;
    a year of one digit is the first such year from the contract's first row on. Other names (202412) sort as text.
    """
    codes = [_MONTH_CODE.search(name.upper()) for name in names]
    keys: list[tuple[int, str, str]] = []
    for number, (name, code) in enumerate(zip(names, codes, strict=True)):
        if code is None:
            keys = [(0, "", name) for name in names]
            break
        rows = ts_open[contract == number]
        keys.append((_expiry_year(code[2], int(rows.min()) if rows.size else 0), code[1], name))
    ranks = np.empty(len(names), np.int64)
    ranks[sorted(range(len(names)), key=keys.__getitem__)] = np.arange(len(names))
    return ranks


def _expiry_year(digits: str, first_ts: int) -> int:
    if len(digits) == 4:
        return int(digits)
    first = int(np.datetime64(first_ts, "ns").astype("datetime64[Y]").astype(int)) + 1970
    cycle = 10 ** len(digits)
    return first + (int(digits) - first) % cycle
