"""Futures contracts: names to codes, roll tables, and one contract a day where a file holds several at once."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from algospace.types import BoolArray, FloatArray, Int32Array, IntArray

ROLL_TABLE = "contracts.csv"
_MONTHS = "FGHJKMNQUVXZ"
_MONTH_DIGITS = re.compile(r"(\d{4})(\d{2})(?:\d{2})?")
_MONTH_CODE = re.compile(r"([FGHJKMNQUVXZ])(\d{4}|\d{1,2})$")  # ESZ4, ESZ24, ESZ2024


def encode(column: pa.ChunkedArray) -> tuple[Int32Array, list[str]]:
    """(codes by first appearance, names) of a column of contract names; null is a contract named ''."""
    encoded = pc.fill_null(column, "").combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    return encoded.indices.to_numpy().astype(np.int32), [str(name) for name in encoded.dictionary.to_pylist()]


def overlapping(ts_open: IntArray, contract: Int32Array) -> int:
    """How many rows share their time with a row of another contract."""
    order = np.lexsort((contract, ts_open))
    ts, codes = ts_open[order], contract[order]
    return int(((ts[1:] == ts[:-1]) & (codes[1:] != codes[:-1])).sum())


def follow_largest(size: FloatArray, first: int, delay: int, alive: BoolArray | None = None) -> IntArray:
    """(days,) rank of the front contract: the largest `size` (days, ranks) of `delay` days ago, never backwards.

    Among equals the present contract stays, then the earlier one wins. `first`: the front of the first day.
    `alive` (days, ranks): False from the day on which a contract is known to have expired.
    """
    front = np.full(size.shape[0], first, np.int64)
    for day in range(1, size.shape[0]):
        current = front[day - 1]
        known = size[max(day - delay, 0), current:].copy() if day >= delay else np.zeros(size.shape[1] - current)
        if alive is not None and alive[day, current:].any():
            known[~alive[day, current:]] = -np.inf
        front[day] = current + int(np.argmax(known))
    return front


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


def contract_month(name: str, first_ts: int) -> tuple[int, int] | None:
    """(year, month) that a contract's name states: ESZ4, ESZ24, ESZ2024, 202412 or 20241220; None for others.

    `first_ts`: of the contract's first row, which settles a year of one or two digits.
    """
    code = _MONTH_CODE.search(name.upper())
    if code is not None:
        return _expiry_year(code[2], first_ts), _MONTHS.index(code[1]) + 1
    digits = _MONTH_DIGITS.fullmatch(name)
    return (int(digits[1]), int(digits[2])) if digits and 1 <= int(digits[2]) <= len(_MONTHS) else None
