"""Rows of all files of a source while they are filtered and judged: what imports of ticks and of quotes share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from algospace.errors import InputError
from algospace.instruments import Instrument
from algospace.marketdata.ticks.clock import ClockOffset, Instants, corrected, estimate_offset, read_instants
from algospace.marketdata.ticks.files import TradeFile, codes_of, floats
from algospace.marketdata.ticks.options import SourceOptions
from algospace.marketdata.ticks.rules import mark
from algospace.marketdata.ticks.symbols import choose_symbols
from algospace.marketdata.timestamps import NO_TIME
from algospace.types import AnyArray, BoolArray, FloatArray, Int8Array, Int32Array, IntArray

_FIXED_POINT = 1e9
_LEAST_RAW = 1e6  # a tenth of a cent in billionths; prices in points are not whole millions
_UNDEFINED = 2.0**63  # Databento's mark for "no price", 2^63 - 1, as float64


@dataclass
class Draft:
    """n rows: times, numbers by role, whether filtered, and codes (0 for rows that break no rule so far).

    filters counts filtered rows by reason; conditions, reported and notes go into the report.
    """

    ts: IntArray
    recv: IntArray | None
    numbers: dict[str, FloatArray]
    filtered: BoolArray
    codes: AnyArray
    symbol: Int32Array
    contracts: list[str] = field(default_factory=list)
    aggressor: Int8Array | None = None
    filters: dict[str, int] = field(default_factory=dict)
    conditions: dict[str, int] = field(default_factory=dict)
    reported: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    clock: ClockOffset | None = None
    stamped_by: str = "event"
    zone: str = "UTC"

    def leave_out(self, reason: str, rows: BoolArray) -> None:
        """Filter rows; one that was filtered before keeps its first reason."""
        fresh = rows & ~self.filtered
        count = int(fresh.sum())
        if count:
            self.filters[reason] = self.filters.get(reason, 0) + count
            self.filtered |= fresh

    def note(self, text: str) -> None:
        """Say something once."""
        if text not in self.notes:
            self.notes.append(text)


def new_draft(files: Sequence[TradeFile]) -> Draft:
    """A draft of all rows, nothing filtered or judged."""
    n = sum(len(f) for f in files)
    draft = Draft(ts=np.zeros(0, np.int64), recv=None, numbers={}, filtered=np.zeros(n, np.bool_),
                  codes=np.zeros(n, np.uint8), symbol=np.zeros(n, np.int32))
    for f in files:
        for text in f.layout.notes:
            draft.note(text)
    return draft


def role_codes(files: Sequence[TradeFile], role: str) -> tuple[IntArray, list[str]]:
    """(number of each row's text over all files, -1 where missing; the distinct texts)."""
    parts: list[IntArray] = []
    texts: dict[str, int] = {}
    for f in files:
        if role not in f.columns:
            parts.append(np.full(len(f), -1, np.int64))
            continue
        numbers, names = codes_of(f.columns[role])
        lookup = np.array([texts.setdefault(name, len(texts)) for name in names] + [-1], np.int64)
        parts.append(lookup[numbers])
    return np.concatenate(parts), list(texts)


def filter_symbols(files: Sequence[TradeFile], draft: Draft, symbols: Sequence[str], spec: Instrument) -> None:
    """Keep the symbols asked for, or each file's outright contract; the kept ones become contract codes."""
    found: dict[str, int] = {}
    start = 0
    for f in files:
        part = slice(start, start + len(f))
        start += len(f)
        if "symbol" not in f.columns or len(f) == 0:
            continue
        numbers, names = codes_of(f.columns["symbol"])
        unfiltered = np.where(draft.filtered[part], -1, numbers)
        reasons = choose_symbols(f.path, unfiltered, names, symbols, spec, draft.notes)
        mark(draft.codes[part], "missing_symbol", numbers < 0)
        lookup = np.zeros(len(names) + 1, np.int32)
        for k, name in enumerate(names):
            if reasons.get(name) == "":
                lookup[k] = found.setdefault(name.strip(), len(found))
            elif name in reasons:
                rows = np.zeros(draft.filtered.size, np.bool_)
                rows[part] = numbers == k
                draft.leave_out(reasons[name], rows)
        draft.symbol[part] = lookup[numbers]
    draft.contracts = list(found)


def read_numbers(files: Sequence[TradeFile], draft: Draft, roles: Sequence[str], needed: Sequence[str]) -> None:
    """Columns of numbers over all files, NaN where a file lacks one that is not needed; prices in points."""
    for f in files:
        for role in needed:
            if role not in f.columns:
                raise InputError(f.path, f"no {role} column, unlike the files before", "import it alone")
    for role in roles:
        if any(role in f.columns for f in files):
            draft.numbers[role] = np.concatenate([
                _number(f, role, draft) if role in f.columns else np.full(len(f), np.nan) for f in files])


def _number(file: TradeFile, role: str, draft: Draft) -> FloatArray:
    """A column as float64; Databento's raw prices, which are whole numbers of billionths, in points.

    Its CSV files have them as digits, and a table that has been through floats as floats, so values decide.
    """
    values = floats(file, role)
    if role not in ("price", "bid", "ask") or not file.layout.is_databento:
        return values
    values = np.where(values >= _UNDEFINED, np.nan, values)
    known = values[np.isfinite(values)]
    if known.size and np.median(known) >= _LEAST_RAW and np.mean(known == np.floor(known)) > 0.5:
        draft.note("prices: whole numbers, read as multiples of 1e-9 (Databento's fixed point)")
        values = values / _FIXED_POINT
    return values


def read_times(files: Sequence[TradeFile], draft: Draft, options: SourceOptions,
               spec: Instrument) -> tuple[Instants | None, Instants | None]:
    """(event times, receive times), each None where the files have none; unreadable ones are marked."""
    has_event = [("ts" in f.columns) or ("date" in f.columns) for f in files]
    has_recv = ["ts_recv" in f.columns for f in files]
    if any(has_event) != all(has_event):
        raise InputError(files[has_event.index(False)].path, "no event time, unlike other files of the folder",
                         "import it alone")
    event = read_instants(files, "ts", options, spec) if all(has_event) else None
    recv = read_instants(files, "ts_recv", options, spec) if all(has_recv) else None
    if any(has_recv) and recv is None:
        draft.note("ts_recv: not in every file, so left out")
    if event is None and recv is None:
        raise InputError(files[0].path, "no column of times in every file", "import the files one by one")
    if options.clock == "receive" and recv is None:
        raise InputError(files[0].path, "no receive time, but --clock receive asks for it", "leave --clock out")
    if recv is not None and options.clock_offset_ns:
        recv = replace(recv, ts=np.where(recv.ts == NO_TIME, NO_TIME, recv.ts - options.clock_offset_ns))
        draft.note(f"clock: receive times moved by {-options.clock_offset_ns / 1e9:+.4f} s, as asked")
    for times in (event, recv):
        if times is not None:
            _mark_times(times, draft)
    if event is None:
        draft.note("clock: no event time, so stamped by receive time")
    draft.stamped_by = options.clock if event is not None else "receive"
    draft.zone = event.zone if event is not None else recv.zone if recv is not None else "UTC"
    return event, recv


def _mark_times(times: Instants, draft: Draft) -> None:
    mark(draft.codes, "swapped_day_month", times.swapped)
    mark(draft.codes, "nonexistent_local_time", times.nonexistent)
    mark(draft.codes, "unreadable_time", times.ts == NO_TIME)
    for text in times.notes:
        draft.note(text)
    counts = {"ambiguous_local_times": times.ambiguous, "rows_with_utc_offset": times.written_offsets}
    for name, count in counts.items():
        if count:
            draft.reported[name] = draft.reported.get(name, 0) + count


def compare_clocks(draft: Draft, event: IntArray, recv: IntArray, tolerance_ns: int, correct: bool) -> IntArray:
    """Estimate the clock offset, mark rows later than their receipt allows; receive times, corrected if asked."""
    kept = ~draft.filtered
    draft.clock = estimate_offset(event[kept], recv[kept])
    if draft.clock is None:
        return recv
    both = (event != NO_TIME) & (recv != NO_TIME)
    late = np.zeros(event.size, np.bool_)
    late[both] = event[both] - recv[both] > tolerance_ns - draft.clock.offset_ns
    mark(draft.codes, "from_the_future", late)
    if not correct or draft.clock.offset_ns == 0:
        return recv
    moved = np.where(recv == NO_TIME, NO_TIME, recv - draft.clock.offset_ns)
    draft.clock = corrected(draft.clock)
    return moved
