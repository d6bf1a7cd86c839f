"""From files of trades to clean ticks, a quarantine and a quality report.

    files -> columns by role -> filters (message, symbol, condition) -> UTC times, clock offset -> rules -> ticks
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from algospace.instruments import Instrument, instrument
from algospace.marketdata.ticks.draft import (
    Draft,
    compare_clocks,
    filter_symbols,
    new_draft,
    read_numbers,
    read_times,
)
from algospace.marketdata.ticks.files import TradeFile, integers, read_trade_files
from algospace.marketdata.ticks.filters import filter_actions, filter_conditions, filter_flags
from algospace.marketdata.ticks.options import TickImportOptions
from algospace.marketdata.ticks.quality import TickQualityReport, inspect_ticks, iso_precise, outliers
from algospace.marketdata.ticks.rules import judge_order, mark, repeated_ids, repeated_messages
from algospace.marketdata.ticks.sides import read_aggressor
from algospace.marketdata.ticks.source import check_limit, count_rules, digest, place, quarantine
from algospace.memory import release_unused
from algospace.types import AnyArray, BoolArray, IntArray, Ticks


@dataclass(frozen=True)
class TickImportResult:
    """Clean ticks, the names of their contract codes (empty if the data names none), the rows set aside, and the
    report."""

    ticks: Ticks
    contracts: list[str]
    quarantine: pa.Table
    report: TickQualityReport


def import_ticks(path: Path | str, symbol: str | Instrument, options: TickImportOptions | None = None,
                 progress: Callable[[str], None] | None = None) -> TickImportResult:
    """Read trades from a CSV or Parquet file, or a folder of them, and apply filters and rules.

    Raises InputError (exit code 2) when more than `max_bad_fraction` of the rows that were asked for break a rule,
    or when it is not clear which symbol is meant; `progress` gets each file's name.
    """
    spec = symbol if isinstance(symbol, Instrument) else instrument(symbol)
    result = _import(Path(path), spec, options or TickImportOptions(), progress)
    release_unused()
    return result


def _import(path: Path, spec: Instrument, options: TickImportOptions,
            progress: Callable[[str], None] | None) -> TickImportResult:
    files = read_trade_files(path, options, False, progress)
    draft = new_draft(files)
    filter_actions(files, draft)
    filter_symbols(files, draft, options.symbols, spec)
    filter_conditions(files, draft, options)
    filter_flags(files, draft, options)
    read_numbers(files, draft, ("price", "size", "bid", "ask"), ("price",))
    draft.aggressor = read_aggressor(files, draft.notes, draft.reported)
    _stamp(files, draft, options, spec)
    _judge(files, draft, options)
    check_limit(files, draft.codes, draft.filtered, options.max_bad_fraction)
    good = (draft.codes == 0) & ~draft.filtered
    ticks = _ticks(draft, good)
    aside = quarantine(files, draft.codes, draft.filtered, draft.numbers)
    return TickImportResult(ticks, draft.contracts, aside, _report(path, spec, files, draft, ticks, good))


def _stamp(files: Sequence[TradeFile], draft: Draft, options: TickImportOptions, spec: Instrument) -> None:
    """Times of the ticks by the clock asked for; without an event time the receipt stamps them."""
    event, recv = read_times(files, draft, options, spec)
    if event is not None and recv is not None:
        draft.recv = compare_clocks(draft, event.ts, recv.ts, options.future_tolerance_ns, options.correct_clock)
        draft.ts = event.ts if options.clock == "event" else draft.recv
    elif event is not None:
        draft.ts = event.ts
    elif recv is not None:
        draft.ts = draft.recv = recv.ts


def _judge(files: Sequence[TradeFile], draft: Draft, options: TickImportOptions) -> None:
    """Rules on values, then those on time and identity, among the rows that were asked for.

    A size that no row knows is unknown, one that single rows lack breaks a rule; quotes that a trade lacks are
    unknown.
    """
    if "size" not in draft.numbers:
        draft.note("size: no such column, so unknown")
        draft.numbers["size"] = np.full(draft.codes.size, np.nan)
    price, size = draft.numbers["price"], draft.numbers["size"]
    mark(draft.codes, "non_finite", ~np.isfinite(price))
    if not np.isnan(size[~draft.filtered]).all():
        mark(draft.codes, "non_finite", ~np.isfinite(size))
    mark(draft.codes, "non_positive_price", price <= 0)
    mark(draft.codes, "negative_size", size < 0)
    if options.now_ns is not None:
        mark(draft.codes, "from_the_future", draft.ts > options.now_ns)
    rows = np.flatnonzero(~draft.filtered)
    codes = draft.codes[rows]
    mark(codes, "duplicate", _repeated(files, draft, rows, codes))
    late = judge_order(draft.ts[rows], codes, options.max_disorder_ns, options.future_jump_ns)
    draft.reported["older_than_the_row_before"] = late
    draft.codes[rows] = codes


def _repeated(files: Sequence[TradeFile], draft: Draft, rows: IntArray, codes: AnyArray) -> BoolArray:
    """Rows that came before, by trade id or by message number, where all files have one."""
    repeated = np.zeros(rows.size, np.bool_)
    good = np.flatnonzero(codes == 0)
    at = rows[good]
    symbol = draft.symbol[at].astype(np.int64)
    if all("trade_id" in f.columns for f in files):
        repeated[good] = repeated_ids(symbol, np.concatenate([integers(f, "trade_id") for f in files])[at])
    elif all("sequence" in f.columns for f in files):
        values = [draft.numbers["price"][at], draft.numbers["size"][at]]
        sequence = np.concatenate([integers(f, "sequence") for f in files])[at]
        repeated[good] = repeated_messages(symbol, sequence, draft.ts[at], values)
    return repeated


def _ticks(draft: Draft, good: BoolArray) -> Ticks:
    optional: dict[str, AnyArray] = {}
    for name in ("bid", "ask"):
        if name in draft.numbers:
            quote = draft.numbers[name][good]
            optional[name] = np.where(np.isfinite(quote) & (quote > 0), quote, np.nan)
    if draft.aggressor is not None:
        optional["aggressor"] = draft.aggressor[good]
    if draft.recv is not None:
        optional["ts_recv"] = draft.recv[good]
    if draft.contracts:
        optional["contract"] = draft.symbol[good]
    return Ticks(draft.ts[good], draft.numbers["price"][good], draft.numbers["size"][good], **optional)


def _report(path: Path, spec: Instrument, files: Sequence[TradeFile], draft: Draft, ticks: Ticks,
            good: BoolArray) -> TickQualityReport:
    counts, largest_gap = inspect_ticks(ticks, spec)
    counts["outliers"], worst = outliers(ticks, spec)
    counts["blank_lines"] = sum(f.blank for f in files)
    at = np.flatnonzero(good)
    named = []
    for k, median in worst:
        file, row = place(files, int(at[k]))
        named.append({"ts": iso_precise(int(ticks.ts[k])), "price": float(ticks.price[k]), "local_median": median,
                      "file": file, "row": row})
    return TickQualityReport(
        source=path.name, symbol=spec.symbol, sha256=digest(files), kind="ticks", layout=files[0].layout.name,
        rows_in=draft.codes.size + sum(len(f.malformed) for f in files), rows_out=len(ticks),
        stamped_by=draft.stamped_by, zone=draft.zone, first=iso_precise(int(ticks.ts[0])),
        last=iso_precise(int(ticks.ts[-1])), contracts=draft.contracts, filtered=draft.filters,
        quarantined=count_rules(draft.codes, draft.filtered, files), reported={**draft.reported, **counts},
        conditions=draft.conditions, clock=draft.clock, largest_gap=largest_gap, largest_outliers=named,
        guesses=draft.notes)
