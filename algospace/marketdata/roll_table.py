"""The roll schedule and its file, `contracts.csv`: contract, first_ts_utc, last_ts_utc[, roll_ratio_to_next].

`roll_ratio_to_next` is (first open of the next contract) / (last close of this one): prices of the next contract
are DIVIDED by it to continue from this one. Multiplying doubles the jump instead of removing it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from algospace.errors import InputError
from algospace.files import write_text
from algospace.marketdata.side_tables import parse_times
from algospace.types import FloatArray, Int32Array, IntArray

NAME_NAMES = ("contract", "contract_id", "symbol", "id")
FIRST_NAMES = ("first_ts_utc", "first_ts", "first", "start")
LAST_NAMES = ("last_ts_utc", "last_ts", "last", "end")
RATIO_NAMES = ("roll_ratio_to_next", "ratio_to_next", "roll_ratio")
_DATE = r"\d{4}-\d{2}-\d{2}"


@dataclass(frozen=True)
class RollSchedule:
    """Which contract is the front, k of them in time order.

    first_ts int64 ns UTC: the front from then on (bars that start at or after it); last_ts: start of its last bar;
    ratio_to_next: next open / own close at the roll, NaN where unknown (always in the last entry).
    """

    contracts: tuple[str, ...]
    first_ts: IntArray
    last_ts: IntArray
    ratio_to_next: FloatArray

    def __len__(self) -> int:
        return len(self.contracts)

    def position_at(self, ts: IntArray) -> IntArray:
        """Entry in force at each instant; instants before the first belong to the first."""
        return np.maximum(np.searchsorted(self.first_ts, ts, side="right") - 1, 0).astype(np.int64)


def write_roll_table(path: Path | str, schedule: RollSchedule) -> None:
    """Write `schedule` as a CSV that `--contracts`, `--roll-dates` and `read_roll_table` read; atomic."""
    lines = ["contract,first_ts_utc,last_ts_utc,roll_ratio_to_next"]
    for k, name in enumerate(schedule.contracts):
        ratio = float(schedule.ratio_to_next[k])
        lines.append(f"{name},{_text(int(schedule.first_ts[k]))},{_text(int(schedule.last_ts[k]))},"
                     f"{'' if np.isnan(ratio) else repr(ratio)}")
    write_text(path, "\n".join(lines) + "\n")


def read_roll_table(path: Path | str) -> RollSchedule:
    """The schedule in a roll table. InputError names file, row and rule."""
    path = Path(path)
    frame = _read(path)
    first = _times(path, frame, FIRST_NAMES)
    last = _times(path, frame, LAST_NAMES)
    _require(path, last >= first, "last is before first", "exchange them")
    return _in_order(path, frame, first, last)


def from_roll_table(path: Path, ts_open: IntArray) -> tuple[Int32Array, list[str], int]:
    """(codes, names, rows that no contract covers) by a table of contract, first and last bar start (UTC), in any
    order. A row between two contracts belongs to the earlier one."""
    frame = _read(path)
    names = _column(path, frame, NAME_NAMES).str.strip().to_numpy()
    first, last = _times(path, frame, FIRST_NAMES), _times(path, frame, LAST_NAMES)
    order = np.argsort(first, kind="stable")
    names, first, last = names[order], first[order], last[order]
    position = np.maximum(np.searchsorted(first, ts_open, side="right") - 1, 0)
    uncovered = int(((ts_open > last[position]) | (ts_open < first[position])).sum())
    used, codes = np.unique(position, return_inverse=True)
    return codes.astype(np.int32), [str(names[k]) for k in used], uncovered


def read_roll_dates(path: Path, day_start: Callable[[IntArray], IntArray]) -> RollSchedule:
    """As `read_roll_table`, with last optional and plain dates that mean `day_start` of that trading day."""
    frame = _read(path)
    column = _column(path, frame, FIRST_NAMES)
    first = _times(path, frame, FIRST_NAMES)
    plain = column.str.strip().str.fullmatch(_DATE).to_numpy(np.bool_)
    days = first[plain].astype("datetime64[ns]").astype("datetime64[D]").astype(np.int64)
    first[plain] = day_start(days)
    return _in_order(path, frame, first, first.copy())


def _read(path: Path) -> pd.DataFrame:
    try:
        frame = pd.read_csv(path, dtype=str)
    except (OSError, ValueError) as error:
        raise InputError(path, f"not a readable roll table ({' '.join(str(error).split())})",
                         "give a CSV with contract, first_ts_utc, last_ts_utc") from None
    frame.columns = pd.Index([str(name).strip().lower() for name in frame.columns])
    if frame.empty:
        raise InputError(path, "a roll table without rows", "give one line for each contract")
    return frame


def _column(path: Path, frame: pd.DataFrame, known: tuple[str, ...]) -> pd.Series:
    name = next((k for k in known if k in frame), None)
    if name is None:
        raise InputError(path, f"a roll table needs a column {known[0]}", f"name one of: {', '.join(known)}",
                         row=1)
    _require(path, ~frame[name].isna().to_numpy(), f"{name} is empty", "fill it or drop the line")
    return frame[name]


def _times(path: Path, frame: pd.DataFrame, known: tuple[str, ...]) -> IntArray:
    return parse_times(path, _column(path, frame, known))


def _in_order(path: Path, frame: pd.DataFrame, first: IntArray, last: IntArray) -> RollSchedule:
    names = _column(path, frame, NAME_NAMES).str.strip().to_numpy()
    ratio = np.full(len(frame), np.nan)
    column = next((k for k in RATIO_NAMES if k in frame), None)
    if column is not None:
        ratio = pd.to_numeric(frame[column], errors="coerce").to_numpy(np.float64)
        stated = ~frame[column].isna().to_numpy()
        _require(path, ~stated | (np.isfinite(ratio) & (ratio > 0)), f"{column} is not a positive number",
                 "give new open / old close, or leave it empty")
    later = np.r_[True, first[1:] > first[:-1]]
    _require(path, later, "the contract does not begin after the one before it", "order the lines by time")
    ratio = ratio.copy()
    ratio[-1] = np.nan
    return RollSchedule(tuple(str(name) for name in names), first, last, ratio)


def _require(path: Path, fine: object, rule: str, fix: str) -> None:
    good = np.asarray(fine)
    if not good.all():
        raise InputError(path, rule, fix, row=int(np.argmin(good)) + 2)


def _text(ts: int) -> str:
    return pd.Timestamp(ts).isoformat(sep=" ")
