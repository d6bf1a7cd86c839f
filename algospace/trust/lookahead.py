"""Does any column know the future? Recompute on a cut history: no row known before the cut may change, to the bit.

The method is that of freqtrade's lookahead-analysis (freqtrade/optimize/analysis/lookahead.py), here for every row
before every cut rather than for the rows of trades, and with cuts at the places where mistakes hide. It finds
whatever changes with the future: shift(-1), centred windows, statistics of the whole sample, values filled
backwards, unfinished bars, memory outside an indicator's state. What an indicator reads from elsewhere than the
given bars cannot be cut; `trust.hidden` looks for that.

A look-ahead of k bars shows in the last k rows before a cut. One that happens in few rows (Fridays at eight, say)
is seen only if a cut falls right behind such a row; more cuts find more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from algospace.errors import UserError
from algospace.trust.cuts import Cut
from algospace.types import AnyArray, Bars, BoolArray, IntArray

LATE = "(row is late)"  # a row that appears only with data after its own time


@dataclass(frozen=True)
class Rows:
    """One group of columns: n rows, row i known from `ts_known[i]` (UTC ns) on, columns (n,) of any dtype."""

    ts_known: IntArray
    columns: Mapping[str, AnyArray]


Build = Callable[[Bars], Mapping[str, Rows]]
"""Everything that is computed of a history, by name of the group."""


@dataclass
class ColumnCheck:
    """What was found of one column. rows: distinct rows compared; comparisons: over all cuts; differing: distinct
    rows that changed; the first of them by time, and the cut that showed it; empty: it is NaN in every row, and
    being equal says nothing."""

    group: str
    column: str
    rows: int = 0
    comparisons: int = 0
    differing: int = 0
    first_row: int | None = None
    first_ts: int | None = None
    first_cut: str | None = None
    empty: bool = False

    @property
    def name(self) -> str:
        return f"{self.group}.{self.column}"

    @property
    def clean(self) -> bool:
        return self.differing == 0


@dataclass(frozen=True)
class LookaheadReport:
    """Every column's result; `live_events` pushed one by one; `hidden`: inputs that no cut can reach."""

    columns: tuple[ColumnCheck, ...]
    cuts: tuple[Cut, ...]
    source_rows: int
    live_events: int = 0
    hidden: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def leaking(self) -> list[str]:
        """Names of the columns that look ahead."""
        return [column.name for column in self.columns if not column.clean]

    @property
    def empty(self) -> list[str]:
        """Names of the columns without any value: nothing was shown of them."""
        return [column.name for column in self.columns if column.empty]

    @property
    def clean(self) -> bool:
        return not self.leaking and not self.hidden

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {**asdict(self), "leaking": self.leaking, "empty": self.empty, "clean": self.clean}

    def require_clean(self) -> None:
        """UserError with one line that names the columns, unless clean."""
        if self.leaking:
            raise UserError(f"look-ahead in {len(self.leaking)} columns: {', '.join(self.leaking)}; compute them "
                            f"from bars up to the row's own only")
        if self.hidden:
            raise UserError(f"cannot be cut: {'; '.join(self.hidden)}; keep it in the state, or bring it in as an "
                            f"outside series with its publication times")


@dataclass
class _Tally:
    """Collects differences over several comparisons with one whole."""

    whole: Mapping[str, Rows]
    checks: dict[tuple[str, str], ColumnCheck] = field(default_factory=dict)
    wrong: dict[tuple[str, str], BoolArray] = field(default_factory=dict)

    def compare(self, part: Mapping[str, Rows], known_until: int, start: Mapping[str, int], where: str) -> None:
        """`part`: rows from `start[group]` on, computed from data up to `known_until` (UTC ns)."""
        for group, rows in self.whole.items():
            first = start.get(group, 0)
            found = part.get(group, Rows(np.zeros(0, np.int64), {}))
            due = int(np.searchsorted(rows.ts_known, known_until, side="right"))
            n = min(found.ts_known.size, rows.ts_known.size - first)
            # rows labelled as known by then that are not there, and rows that the whole does not have
            late = np.zeros(max(due - first, 0), np.bool_)
            late[n:] = True
            self._count(group, LATE, first, late, rows, where)
            self._count(group, "(time)", first, found.ts_known[:n] != rows.ts_known[first:first + n], rows, where)
            for name, values in rows.columns.items():
                if name in found.columns:
                    differ = _differ(found.columns[name][:n], values[first:first + n])
                else:
                    differ = np.ones(n, np.bool_)
                self._count(group, name, first, differ, rows, where)

    def _count(self, group: str, name: str, first: int, differ: BoolArray, rows: Rows, where: str) -> None:
        key = group, name
        if key not in self.checks:
            values = rows.columns.get(name, rows.ts_known)
            empty = values.dtype.kind == "f" and bool(np.isnan(values).all())
            self.checks[key] = ColumnCheck(group, name, empty=empty)
        check = self.checks[key]
        check.rows = max(check.rows, first + differ.size if first == 0 else differ.size)
        check.comparisons += differ.size
        if not differ.any():
            return
        wrong = self.wrong.setdefault(key, np.zeros(rows.ts_known.size, np.bool_))
        wrong[first:first + differ.size] |= differ
        row = first + int(np.argmax(differ))
        if check.first_row is None or row < check.first_row:
            check.first_row, check.first_ts, check.first_cut = row, int(rows.ts_known[row]), where
        check.differing = int(wrong.sum())

    def result(self) -> tuple[ColumnCheck, ...]:
        internal = (LATE, "(time)")
        return tuple(check for check in self.checks.values() if check.column not in internal or not check.clean)


def check_lookahead(build: Build, bars: Bars, cuts: Iterable[Cut | int]) -> LookaheadReport:
    """Build on the whole and on each cut history and compare every column of all rows known before the cut.

    Built twice on the whole first: what differs there keeps something outside its inputs ("again"). A cut history
    that the builder refuses although it takes the whole is left out and noted; UserError if it refuses all.
    """
    whole = build(bars)
    tally = _Tally(whole)
    end = int(bars.ts_open[-1]) + bars.width_ns
    tally.compare(build(bars), end, {}, "again on the whole")
    done: list[Cut] = []
    notes: list[str] = []
    for cut in cuts:
        place = cut if isinstance(cut, Cut) else Cut(int(cut), "given")
        known_until = int(bars.ts_open[place.rows - 1]) + bars.width_ns
        try:
            part = build(bars.slice(0, place.rows))
        except UserError as error:
            notes.append(f"not checked at row {place.rows} ({place.reason}): {error}")
            continue
        tally.compare(part, known_until, {}, f"{place.reason}, row {place.rows}")
        done.append(place)
    if notes and not done:
        raise UserError(f"no cut could be computed; {notes[0]}")
    return LookaheadReport(tally.result(), tuple(done), len(bars), notes=tuple(notes))


Live = Callable[[Bars, int, int], tuple[Mapping[str, Rows], Mapping[str, int]]]
"""(bars, start, stop) -> the rows that a stream emits while rows start..stop are pushed one by one (the history
before them is its warm-up), and per group the number of the first of these rows."""


def check_live(
    live: Live, whole: Mapping[str, Rows], bars: Bars, stretches: Sequence[tuple[int, int]]
) -> tuple[tuple[ColumnCheck, ...], int]:
    """Event by event over each stretch against `whole`, the columns of the same bars built as history:
    (what was found per column, events pushed)."""
    tally = _Tally(whole)
    events = 0
    for start, stop in stretches:
        part, first = live(bars, start, stop)
        known_until = int(bars.ts_open[stop - 1]) + bars.width_ns
        tally.compare(part, known_until, first, f"live, rows {start} to {stop}")
        events += stop - start
    return tally.result(), events


def merge(report: LookaheadReport, live: Sequence[ColumnCheck], events: int, hidden: Sequence[str] = (),
          notes: Sequence[str] = ()) -> LookaheadReport:
    """One report of the cuts and of the live twin."""
    merged = {check.name: check for check in report.columns}
    for check in live:
        known = merged.get(check.name)
        if known is None:
            merged[check.name] = check
        else:
            known.comparisons += check.comparisons
            if not check.clean and (known.first_row is None or (check.first_row or 0) < known.first_row):
                known.first_row, known.first_ts, known.first_cut = check.first_row, check.first_ts, check.first_cut
            known.differing = max(known.differing, check.differing)
    return LookaheadReport(tuple(merged.values()), report.cuts, report.source_rows, events, tuple(hidden),
                           (*report.notes, *notes))


def _differ(a: AnyArray, b: AnyArray) -> BoolArray:
    """Bitwise, so that NaN equals NaN and 0.0 is not -0.0; another dtype differs everywhere."""
    if a.dtype != b.dtype:
        return np.ones(a.size, np.bool_)
    if a.dtype.kind != "f":
        return np.asarray(a != b, np.bool_)
    bits = np.dtype(f"i{a.dtype.itemsize}")
    return np.asarray(np.ascontiguousarray(a).view(bits) != np.ascontiguousarray(b).view(bits), np.bool_)
