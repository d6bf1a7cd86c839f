"""From files of best bids and asks to clean quotes, a quarantine and a quality report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from algospace.instruments import Instrument, instrument
from algospace.marketdata.quality import OUTLIER_Z
from algospace.marketdata.ticks.draft import (
    Draft,
    compare_clocks,
    filter_symbols,
    new_draft,
    read_numbers,
    read_times,
)
from algospace.marketdata.ticks.files import TradeFile, read_trade_files
from algospace.marketdata.ticks.options import SourceOptions
from algospace.marketdata.ticks.quality import TickQualityReport, gaps, iso_precise, off_grid
from algospace.marketdata.ticks.rules import judge_order, mark
from algospace.marketdata.ticks.source import check_limit, count_rules, digest, quarantine
from algospace.memory import release_unused
from algospace.types import SECOND_NS, BoolArray, Quotes

_ROLES = ("bid", "ask", "bid_size", "ask_size")


@dataclass(frozen=True)
class QuoteImportResult:
    """Clean quotes in the order in which they became known, the rows set aside, and the report."""

    quotes: Quotes
    quarantine: pa.Table
    report: TickQualityReport


def import_quotes(path: Path | str, symbol: str | Instrument, options: SourceOptions | None = None,
                  progress: Callable[[str], None] | None = None) -> QuoteImportResult:
    """Read best bids and asks from a CSV or Parquet file, or a folder of them, and apply every rule.

    Raises InputError when more than `max_bad_fraction` of the rows break a rule.
    """
    spec = symbol if isinstance(symbol, Instrument) else instrument(symbol)
    result = _import(Path(path), spec, options or SourceOptions(), progress)
    release_unused()
    return result


def _import(path: Path, spec: Instrument, options: SourceOptions,
            progress: Callable[[str], None] | None) -> QuoteImportResult:
    files = read_trade_files(path, options, True, progress)
    draft = new_draft(files)
    filter_symbols(files, draft, options.symbols, spec)
    read_numbers(files, draft, _ROLES, ("bid", "ask"))
    _stamp(files, draft, options, spec)
    _judge(draft, options)
    check_limit(files, draft.codes, draft.filtered, options.max_bad_fraction)
    good = (draft.codes == 0) & ~draft.filtered
    bid, ask, bid_size, ask_size = (draft.numbers[role][good] for role in _ROLES)
    quotes = Quotes(draft.ts[good], bid, ask, bid_size, ask_size, None if draft.recv is None else draft.recv[good])
    quotes = _as_received(quotes, draft)
    aside = quarantine(files, draft.codes, draft.filtered, draft.numbers)
    return QuoteImportResult(quotes, aside, _report(path, spec, files, draft, quotes))


def _stamp(files: Sequence[TradeFile], draft: Draft, options: SourceOptions, spec: Instrument) -> None:
    """Times of the quotes by the clock asked for; without an event time the receipt stamps them."""
    event, recv = read_times(files, draft, options, spec)
    if recv is not None:
        draft.recv = recv.ts if event is None else compare_clocks(draft, event.ts, recv.ts, SECOND_NS, False)
    if event is not None and options.clock == "event":
        draft.ts = event.ts
    elif draft.recv is not None:
        draft.ts = draft.recv


def _judge(draft: Draft, options: SourceOptions) -> None:
    """Finite and positive prices, sizes not negative, no crossed sides, in order of time."""
    bid, ask = draft.numbers["bid"], draft.numbers["ask"]
    mark(draft.codes, "non_finite", ~(np.isfinite(bid) & np.isfinite(ask)))
    for role in ("bid_size", "ask_size"):
        if role not in draft.numbers or np.isnan(draft.numbers[role]).all():
            draft.note(f"{role}: unknown")
            draft.numbers[role] = np.full(bid.size, np.nan)
            continue
        mark(draft.codes, "non_finite", ~np.isfinite(draft.numbers[role]))
        mark(draft.codes, "negative_size", draft.numbers[role] < 0)
    mark(draft.codes, "non_positive_price", np.minimum(bid, ask) <= 0)
    mark(draft.codes, "crossed", bid > ask)
    if options.now_ns is not None:
        mark(draft.codes, "from_the_future", draft.ts > options.now_ns)
    rows = np.flatnonzero(~draft.filtered)
    codes = draft.codes[rows]
    late = judge_order(draft.ts[rows], codes, options.max_disorder_ns, options.future_jump_ns)
    draft.reported["older_than_the_row_before"] = late
    draft.codes[rows] = codes


def _as_received(quotes: Quotes, draft: Draft) -> Quotes:
    """In the order of receipt, as a live feed delivers them: in a file sorted by event time one update that was
    received late, or stamped so, would otherwise make all that follow it late."""
    if quotes.ts_recv is None:
        return quotes
    draft.reported["received_out_of_order"] = int((np.diff(quotes.ts_recv) < 0).sum())
    order = np.argsort(quotes.ts_recv, kind="stable")
    return Quotes(quotes.ts[order], quotes.bid[order], quotes.ask[order], quotes.bid_size[order],
                  quotes.ask_size[order], quotes.ts_recv[order])


def _report(path: Path, spec: Instrument, files: Sequence[TradeFile], draft: Draft,
            quotes: Quotes) -> TickQualityReport:
    count, largest_gap = gaps(np.sort(quotes.ts), spec)
    spread = quotes.ask - quotes.bid
    wide = spread > OUTLIER_Z * max(float(np.median(spread)), spec.tick_size)
    counts = {"gaps_over_a_minute": count,
              "off_tick_grid": off_grid(quotes.bid, spec) + off_grid(quotes.ask, spec),
              "locked": int((spread == 0).sum()), "wide_spreads": int(wide.sum()),
              "unchanged": _unchanged(quotes), "blank_lines": sum(f.blank for f in files)}
    return TickQualityReport(
        source=path.name, symbol=spec.symbol, sha256=digest(files), kind="quotes", layout=files[0].layout.name,
        rows_in=draft.codes.size + sum(len(f.malformed) for f in files), rows_out=len(quotes),
        stamped_by=draft.stamped_by, zone=draft.zone, first=iso_precise(int(quotes.ts.min())),
        last=iso_precise(int(quotes.ts.max())), contracts=draft.contracts, filtered=draft.filters,
        quarantined=count_rules(draft.codes, draft.filtered, files), reported={**draft.reported, **counts},
        clock=draft.clock, largest_gap=largest_gap, guesses=draft.notes)


def _unchanged(quotes: Quotes) -> int:
    """Rows that repeat the quote before them."""
    same: BoolArray = np.ones(max(len(quotes) - 1, 0), np.bool_)
    for column in (quotes.bid, quotes.ask, quotes.bid_size, quotes.ask_size):
        same &= (column[1:] == column[:-1]) | (np.isnan(column[1:]) & np.isnan(column[:-1]))
    return int(same.sum())
