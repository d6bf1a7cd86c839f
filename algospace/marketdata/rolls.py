"""Rules that choose the front contract where a table holds several contracts at once.

    rows of several contracts -> choose_front(rule) -> RollSchedule -> front_rows -> one contract at a time

Every decision is taken at the start of a trading day from what was known before it, and never goes back to a
contract that expires earlier. A schedule has the form of `contracts.csv`, which the importer reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field

from algospace.calendars import trading_day, utc_offsets
from algospace.config import FrozenConfig
from algospace.errors import InputError
from algospace.instruments import Instrument, Session
from algospace.marketdata.contracts import expiry_ranks, follow_largest
from algospace.marketdata.expiries import business_days_before, expiry_days, known_expiry_days
from algospace.marketdata.roll_table import RollSchedule, read_roll_dates
from algospace.marketdata.side_tables import parse_dates, read_table
from algospace.types import DAY_NS, HOUR_NS, BoolArray, FloatArray, Int32Array, IntArray


class VolumeRoll(FrozenConfig):
    """The contract with the most volume on the trading day before."""


class OpenInterestRoll(FrozenConfig):
    """The contract with the most open interest as last published.

    The open interest of a trading day is published after that day has ended (CME: the next morning), so it is
    known `publication_days` trading days later: 1 means that the figure of Monday first decides on Wednesday,
    whose session begins on Tuesday evening. `table`: a CSV with date (trading day), contract, open_interest,
    instead of a column of the rows.
    """

    publication_days: int = Field(default=1, ge=0, le=10)
    table: Path | None = None


class ExpiryRoll(FrozenConfig):
    """The next contract from the trading day `days` business days before expiry on.

    5 is the exchange's own convention for equity index futures: eight calendar days before expiry, a Thursday, the
    next contract leads from the session on that begins in the evening (CME, equity index roll dates).
    `table`: a CSV with contract, expiry, instead of the rule of `expiries`.
    """

    days: int = Field(default=5, ge=0, le=60)
    table: Path | None = None


class DatesRoll(FrozenConfig):
    """Dates of one's own: a CSV with contract, first_ts_utc (`contracts.csv`); a plain date means the start of
    that trading day."""

    table: Path


RollRule = VolumeRoll | OpenInterestRoll | ExpiryRoll | DatesRoll


@dataclass(frozen=True)
class ContractRows:
    """Bars of several contracts as parallel arrays (n,), in any order.

    ts_open int64 ns UTC; contract int32 positions in `names`; volume and open_interest (as of the bar's close)
    where the data has them; open and close for the ratios of a roll.
    """

    ts_open: IntArray
    contract: Int32Array
    names: Sequence[str]
    volume: FloatArray | None = None
    open_interest: FloatArray | None = None
    open: FloatArray | None = None
    close: FloatArray | None = None

    def __len__(self) -> int:
        return int(self.ts_open.size)


def choose_front(rule: RollRule, rows: ContractRows, spec: Instrument, source: object = "rows") -> RollSchedule:
    """The schedule by which `rule` would have rolled.

    Each contract is the front from `first_ts` (the start of a trading day) on; `last_ts` is its last bar as front.
    InputError if the data lacks what the rule reads; ConfigError if no expiry is known.
    """
    if len(rows) == 0:
        raise InputError(source, "no rows", "give a table with at least one bar")
    if isinstance(rule, DatesRoll):
        return _with_last_bars(_by_dates(rule, rows, spec.session), rows)
    rank_of = expiry_ranks(rows.names, rows.ts_open, rows.contract)
    rank = rank_of[rows.contract]
    days, day_index = np.unique(
        trading_day(rows.ts_open, spec.session.zone, spec.session.day_start_hour), return_inverse=True)
    first = rank[rows.ts_open == rows.ts_open.min()]
    shape = (days.size, len(rows.names))
    if isinstance(rule, ExpiryRoll):
        expiry = expiry_days(rows.names, rows.ts_open, rows.contract, spec, rule.table)
        roll_day = np.empty(shape[1], np.int64)
        roll_day[rank_of] = business_days_before(expiry, rule.days)
        front = _before_expiry(days, roll_day, first, _seen_before(shape, day_index, rank))
    else:
        alive = _alive(rows, spec, rank_of, days)
        if isinstance(rule, VolumeRoll):
            size, delay = _daily_volume(rows, shape, day_index, rank, source), 1
        else:
            size, delay = _daily_open_interest(rule, rows, rank_of, days, day_index, source), 1
            delay += rule.publication_days
        front = follow_largest(size, int(first.min()), delay, alive)
    name_of = np.argsort(rank_of)
    change = np.flatnonzero(np.r_[True, front[1:] != front[:-1]])
    first_ts = day_starts(days[change], spec.session)
    first_ts[0] = rows.ts_open.min()
    schedule = RollSchedule(tuple(rows.names[name_of[k]] for k in front[change]), first_ts, first_ts.copy(),
                            np.full(change.size, np.nan))
    return _with_last_bars(schedule, rows)


def front_rows(schedule: RollSchedule, rows: ContractRows) -> BoolArray:
    """(n,) True for the rows of the contract that is the front at their time."""
    number = {name: position for position, name in enumerate(rows.names)}
    codes = np.array([number.get(name, -1) for name in schedule.contracts], np.int64)
    return codes[schedule.position_at(rows.ts_open)] == rows.contract


def day_starts(days: IntArray, session: Session) -> IntArray:
    """UTC ns at which each trading day (days since 1970) begins."""
    local = days.astype(np.int64) * DAY_NS - (24 - session.day_start_hour) % 24 * HOUR_NS
    starts, offsets = utc_offsets(session.zone)
    guess = local - offsets[np.searchsorted(starts, local, side="right") - 1]
    return local - offsets[np.searchsorted(starts, guess, side="right") - 1]


def _with_last_bars(schedule: RollSchedule, rows: ContractRows) -> RollSchedule:
    """`last_ts` of each contract: its last bar as front; its first instant if it has none."""
    kept = front_rows(schedule, rows)
    last = schedule.first_ts.copy()
    np.maximum.at(last, schedule.position_at(rows.ts_open[kept]), rows.ts_open[kept])
    return RollSchedule(schedule.contracts, schedule.first_ts, last, schedule.ratio_to_next)


def _seen_before(shape: tuple[int, int], day_index: IntArray, rank: IntArray) -> BoolArray:
    """(days, ranks) whether a contract had traded on an earlier day."""
    present = np.zeros(shape, np.bool_)
    present[day_index, rank] = True
    seen = np.zeros(shape, np.bool_)
    seen[1:] = np.logical_or.accumulate(present, axis=0)[:-1]
    return seen


def _before_expiry(days: IntArray, roll_day: IntArray, first: IntArray, seen: BoolArray) -> IntArray:
    """(days,) rank of the front: the earliest contract known by then whose roll day has not come."""
    open_at_first = first[roll_day[first] > days[0]]
    current = int((open_at_first if open_at_first.size else first).min())
    front = np.empty(days.size, np.int64)
    for day in range(days.size):
        if roll_day[current] <= days[day]:
            later = np.flatnonzero(seen[day, current:] & (roll_day[current:] > days[day]))
            current += int(later[0]) if later.size else 0
        front[day] = current
    return front


def _alive(rows: ContractRows, spec: Instrument, rank_of: IntArray, days: IntArray) -> BoolArray | None:
    """(days, ranks) whether a contract has not expired by the start of the day; None where no rule says so."""
    expiry = known_expiry_days(rows.names, rows.ts_open, rows.contract, spec)
    if expiry is None:
        return None
    by_rank = np.empty(expiry.size, np.int64)
    by_rank[rank_of] = expiry
    return by_rank[None, :] >= days[:, None]


def _daily_volume(rows: ContractRows, shape: tuple[int, int], day_index: IntArray, rank: IntArray,
                  source: object) -> FloatArray:
    if rows.volume is None:
        raise InputError(source, "rolling by volume needs a volume column", "roll by expiry or by dates")
    traded = np.zeros(shape)
    np.add.at(traded, (day_index, rank), np.nan_to_num(rows.volume))
    return traded


def _daily_open_interest(rule: OpenInterestRoll, rows: ContractRows, rank_of: IntArray, days: IntArray,
                         day_index: IntArray, source: object) -> FloatArray:
    """(days, ranks) open interest of each day, the last known one where a day has none, -1 before the first."""
    size = np.full((days.size, len(rows.names)), np.nan)
    if rule.table is not None:
        day, code, value = _open_interest_table(rule.table, rows.names)
        place = np.searchsorted(days, day, side="left")  # a holiday's figure counts for the next day that traded
        inside = place < days.size
        size[place[inside], rank_of[code[inside]]] = value[inside]
    elif rows.open_interest is None:
        raise InputError(source, "rolling by open interest needs an open_interest column",
                         "give --open-interest FILE with date, contract, open_interest")
    else:
        known = np.flatnonzero(np.isfinite(rows.open_interest))
        known = known[np.argsort(rows.ts_open[known], kind="stable")]  # the last one of a day stays
        size[day_index[known], rank_of[rows.contract[known]]] = rows.open_interest[known]
    for day_number in range(1, days.size):
        size[day_number] = np.where(np.isnan(size[day_number]), size[day_number - 1], size[day_number])
    return np.nan_to_num(size, nan=-1.0)


def _open_interest_table(path: Path, names: Sequence[str]) -> tuple[IntArray, IntArray, FloatArray]:
    """(trading days, contract codes, values) of the contracts in `names`, in the order of days."""
    frame = read_table(path, ("date", "contract", "open_interest"), "an open interest table")
    day = parse_dates(path, frame["date"])
    try:
        value = frame["open_interest"].to_numpy(np.float64)
    except ValueError as error:
        raise InputError(path, f"open_interest is not a number ({error})", "write plain numbers") from None
    if (bad := ~(np.isfinite(value) & (value >= 0))).any():
        raise InputError(path, "open_interest is negative or not finite", "correct it",
                         row=int(np.argmax(bad)) + 2)
    number = {name: code for code, name in enumerate(names)}
    code = np.array([number.get(name.strip(), -1) for name in frame["contract"]], np.int64)
    if (code < 0).all():
        raise InputError(path, f"none of its contracts is in the data ({names[0]} …)",
                         "name contracts as the data does")
    order = np.argsort(day, kind="stable")
    order = order[code[order] >= 0]
    return day[order], code[order], value[order]


def _by_dates(rule: DatesRoll, rows: ContractRows, session: Session) -> RollSchedule:
    schedule = read_roll_dates(rule.table, lambda days: day_starts(days, session))
    rank_of = expiry_ranks(rows.names, rows.ts_open, rows.contract)
    number = {name: code for code, name in enumerate(rows.names)}
    latest = -1
    for k, name in enumerate(schedule.contracts):
        if name in number and rank_of[number[name]] < latest:
            raise InputError(rule.table, f"rolls back to {name}, which expires before the contract it replaces",
                             "order the contracts by expiry", row=k + 2)
        latest = max(latest, int(rank_of[number[name]])) if name in number else latest
    if latest < 0:
        raise InputError(rule.table, f"none of its contracts is in the data ({rows.names[0]} …)",
                         "name contracts as the data does")
    if not front_rows(schedule, rows).any():
        raise InputError(rule.table, "no row of the data is of the contract that it names for its time",
                         "correct its dates, or give the contracts that the data has")
    return schedule
