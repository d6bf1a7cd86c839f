"""The checks' reports as tables on a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table

from algospace.trust.lookahead import LATE, ColumnCheck, LookaheadReport
from algospace.trust.warmup import WarmupReport
from algospace.types import SECOND_NS


def utc(ts: int | None) -> str:
    """A time for people; empty for None."""
    return "" if ts is None else f"{datetime.fromtimestamp(ts // SECOND_NS, UTC):%Y-%m-%d %H:%M}"


def print_lookahead(report: LookaheadReport, console: Console) -> None:
    """One line per column, those that look ahead first."""
    table = Table("column", "rows", "compared", "differ", "first row", "at (UTC)", "shown by the cut", "verdict")
    for check in sorted(report.columns, key=lambda c: c.clean):
        first = "" if check.first_row is None else str(check.first_row)
        table.add_row(check.name, str(check.rows), str(check.comparisons), str(check.differing), first,
                      utc(check.first_ts), check.first_cut or "", verdict(check))
    console.print(table)
    reasons = ", ".join(f"{reason} {count}" for reason, count in _counted(cut.reason for cut in report.cuts))
    console.print(f"cuts     {len(report.cuts)} of {report.source_rows} source bars ({reasons})", highlight=False)
    console.print(f"live     {report.live_events} source bars pushed one by one", highlight=False)
    for note in report.notes:
        console.print(f"note     {note}", highlight=False, markup=False)
    for hidden in report.hidden:
        console.print(f"hidden   {hidden}", highlight=False, markup=False)
    if report.empty:
        names = ", ".join(report.empty)
        console.print(f"empty    no values in this data, so nothing shown: {names}", highlight=False,
                      soft_wrap=True)
    compared = sum(check.comparisons for check in report.columns)
    console.print(f"result   {len(report.columns)} columns, {compared} values compared, "
                  f"{len(report.leaking)} columns look ahead", highlight=False)


def verdict(check: ColumnCheck) -> str:
    """In words."""
    if check.clean:
        return "no values" if check.empty else "clean"
    return "comes late" if check.column == LATE else "LOOKS AHEAD"


def print_warmup(report: WarmupReport, console: Console) -> None:
    """One line per column, those that need most first."""
    lengths = [name for name, count in zip(report.lengths, report.references, strict=True) if count]
    table = Table("column", *(f"{name}: max (median)" for name in lengths),
                  *(f"for {tolerance:g}" for tolerance in report.tolerances), "")
    for column in sorted(report.columns, key=lambda c: -_order(c.maximum)):
        cells = [f"{column.maximum[i]:.1e} ({column.median[i]:.0e})" for i, count in enumerate(report.references)
                 if count]
        needed = [length or "more" for length in column.needed]
        table.add_row(column.column, *cells, *needed, column.kind)
    console.print(table)
    for name, count in zip(report.lengths, report.references, strict=True):
        tested = f"{count} reference times" if count else "not tested: the history is too short"
        console.print(f"{name:<9} {tested}", highlight=False)
    for kind, names in report.named().items():
        console.print(f"{kind}: {', '.join(names)}", highlight=False, soft_wrap=True)


def _order(maximum: tuple[float, ...]) -> float:
    return max((value for value in maximum if value == value), default=0.0)


def _counted(names: Iterable[str]) -> list[tuple[str, int]]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return list(counts.items())
