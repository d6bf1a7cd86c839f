"""One instrument's features from everything that a command may be given: bars or ticks, and inputs beside them.

    market   bars, or ticks, of the instrument itself
    sides    other instruments, outside series, trades and quotes, each as columns of the base rows

A side input that shares no time with the rows is refused: its columns would be empty, and nobody would notice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from algospace.errors import ConfigError, InputError
from algospace.features.blocks import fit_config
from algospace.features.book import BOOK_VERSION, book_columns
from algospace.features.checks import check_width
from algospace.features.config import FeatureConfig
from algospace.features.driver import build_from_ticks
from algospace.features.flow import FLOW_VERSION, flow_columns
from algospace.features.indicator import Indicator
from algospace.features.outside import OutsideConfig, OutsideSeries, load_outside, outside_columns, outside_version
from algospace.features.own import FrameIndicator, build_with_own, step_indicators
from algospace.features.relative import RelativeConfig, relative_columns, relative_version
from algospace.features.table import FeatureTable
from algospace.instruments import Instrument, instrument
from algospace.marketdata import read_source
from algospace.marketdata.quality import iso
from algospace.marketdata.source import locate
from algospace.marketdata.ticks import (
    QuoteImportOptions,
    TickCatalog,
    import_quotes,
    import_ticks,
    looks_like_ticks,
)
from algospace.types import MINUTE_NS, Bars, FloatArray, IntArray, Quotes, Ticks

Columns = dict[str, FloatArray]
_MAX_AGE_MINUTES = 4 * 24 * 60  # a daily series over a long weekend is not stale

_FAR = 1.25  # medians of two sources of one instrument over the same time differ by far less


@dataclass(frozen=True)
class Market:
    """The instrument's own data, bars or ticks, and the settings that fit it.

    clock_offset_ns: of the ticks' receive clock, 0 where unknown.
    """

    config: FeatureConfig
    bars: Bars | None = None
    ticks: Ticks | None = None
    clock_offset_ns: int = 0
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.bars if self.bars is not None else self.ticks or ())


class SideInput(Protocol):
    """Makes further columns of a table; InputError where it has nothing to say about any of its rows.

    source: what to name in an error.
    """

    @property
    def source(self) -> Path | str:
        """The file, folder or catalog that it was read from."""

    def columns(self, table: FeatureTable, width_ns: int) -> tuple[Columns, str]:
        """(columns (n,), what they mean) for `FeatureTable.with_columns`; width_ns of a base bar."""


@dataclass(frozen=True)
class RelativeInput:
    """Bars of other instruments by lower-case symbol, and where they came from."""

    others: dict[str, Bars]
    sources: dict[str, Path]

    @property
    def source(self) -> str:
        """All of them."""
        return ", ".join(f"--relative {name.upper()}={path}" for name, path in self.sources.items())

    def columns(self, table: FeatureTable, width_ns: int) -> tuple[Columns, str]:
        """Strength, beta, correlation and lead against each."""
        for name, bars in self.others.items():
            _require_shared(table, self.sources[name], f"bars of {name.upper()}", bars.ts_open + bars.width_ns)
        minutes = width_ns // MINUTE_NS
        config = RelativeConfig(base_minutes=minutes, max_age_bars=max(_MAX_AGE_MINUTES // minutes, 1))
        return relative_columns(table, self.others, config), relative_version(self.others, config)


@dataclass(frozen=True)
class OutsideInput:
    """An outside series and its file."""

    series: OutsideSeries
    source: Path

    def columns(self, table: FeatureTable, width_ns: int) -> tuple[Columns, str]:
        """As of the publications by each close."""
        config = OutsideConfig()
        first = int(self.series.published.min())
        if len(table) and first > table.ts_close[-1]:
            raise InputError(self.source, f"its first publication is of {iso(first)}, after the last row "
                                          f"({iso(int(table.ts_close[-1]))})", "give a series of the same time")
        return outside_columns(self.series, table.ts_close, config), outside_version(self.series.keys, config)


@dataclass(frozen=True)
class FlowInput:
    """Trades and where they came from."""

    ticks: Ticks
    spec: Instrument
    source: Path

    def columns(self, table: FeatureTable, width_ns: int) -> tuple[Columns, str]:
        """Order flow over each bar."""
        _require_shared(table, self.source, "trades", self.ticks.ts)
        _require_same_market(table, self.source, self.ticks.ts, self.ticks.price)
        columns = flow_columns(self.ticks, table.ts_close, width_ns, self.spec)
        known = ",".join(name for name in self.ticks.columns() if np.size(getattr(self.ticks, name)))
        return columns, f"flow:{FLOW_VERSION}:{known}"


@dataclass(frozen=True)
class BookInput:
    """Best bids and asks and where they came from."""

    quotes: Quotes
    spec: Instrument
    source: Path

    def columns(self, table: FeatureTable, width_ns: int) -> tuple[Columns, str]:
        """The book as of what had been received by each close."""
        known = self.quotes.ts if self.quotes.ts_recv is None else self.quotes.ts_recv
        _require_shared(table, self.source, "quotes", known)
        _require_same_market(table, self.source, known, self.quotes.bid)
        return book_columns(self.quotes, table.ts_close, width_ns, self.spec), f"book:{BOOK_VERSION}"


@dataclass(frozen=True)
class SideInputs:
    """What else is there, in the order of its columns."""

    inputs: tuple[SideInput, ...]
    notes: tuple[str, ...] = ()


def read_market(src: Path, spec: Instrument, config: FeatureConfig) -> Market:
    """Bars or ticks at `src`; ticks where the source holds nothing else. Base bars are as wide as the source's
    where those are wider, as in monthly blocks; ConfigError where they do not fit."""
    located = locate(src)
    if _holds_only_ticks(located, spec):
        ticks, offset, notes = read_ticks(located, spec)
        return Market(config, ticks=ticks, clock_offset_ns=offset, notes=notes)
    bars = read_source(src, spec)
    fitted, found = fit_config(config, bars.width_ns)
    check_width(bars.width_ns, fitted.base_minutes * MINUTE_NS)
    return Market(fitted, bars, notes=tuple(found))


def read_sides(
    market: Market, src: Path, spec: Instrument, relative: Sequence[str] = (), outside: Sequence[Path] = (),
    ticks: Path | None = None, quotes: Path | None = None,
) -> SideInputs:
    """Read what the options of `algospace features` name; `src` is where `market` came from."""
    inputs: list[SideInput] = []
    notes: list[str] = []
    if relative:
        inputs.append(_read_relative(relative, spec))
    for path in outside:
        series = load_outside(locate(path))
        inputs.append(OutsideInput(series, path))
        notes += series.notes
    offset = market.clock_offset_ns
    if ticks is not None:
        if market.ticks is not None:
            raise ConfigError(f"--ticks {ticks}: {src} holds ticks itself; leave --ticks out")
        flow, offset, found = read_ticks(locate(ticks), spec)
        inputs.append(FlowInput(flow, spec, ticks))
        notes += found
    elif market.ticks is not None:
        inputs.append(FlowInput(market.ticks, spec, src))
    if quotes is not None:
        book, line = _read_quotes(locate(quotes), spec, offset)
        inputs.append(BookInput(book, spec, quotes))
        notes.append(line)
    return SideInputs(tuple(inputs), tuple(notes))


def build_with_sides(market: Market, spec: Instrument, own: Sequence[Indicator | FrameIndicator],
                     sides: SideInputs) -> FeatureTable:
    """The feature table with own indicators and the columns of all side inputs."""
    config = market.config
    if market.bars is not None:
        table = build_with_own(market.bars, spec, config, own)
    elif market.ticks is not None:
        table = build_from_ticks(market.ticks, spec, config, step_indicators(own))
    else:
        raise ValueError("a market has bars or ticks")
    for side in sides.inputs:
        columns, version = side.columns(table, config.base_minutes * MINUTE_NS)
        taken = sorted(columns.keys() & table.base.keys())
        if taken:
            raise InputError(side.source, f"its column '{taken[0]}' exists already in the table",
                             "rename it, or leave one of the two out")
        table = table.with_columns(columns, version) if columns else table
    return table


def _require_shared(table: FeatureTable, source: Path, what: str, ts: IntArray) -> None:
    """InputError if the times (n,) and the rows have no time in common."""
    if len(table) == 0:
        return
    first, last = int(ts.min()), int(ts.max())
    if last < table.ts_close[0] or first > table.ts_close[-1]:
        rows = f"{iso(int(table.ts_close[0]))} to {iso(int(table.ts_close[-1]))}"
        raise InputError(source, f"{what} from {iso(first)} to {iso(last)}, but the rows are from {rows}",
                         "give data of the same time")


def _require_same_market(table: FeatureTable, source: Path, ts: IntArray, price: FloatArray) -> None:
    """InputError if the prices (n,) are far from the rows' own unadjusted closes of the same time."""
    rows = (table.ts_close >= ts.min()) & (table.ts_close <= ts.max())
    if not rows.any():  # all within one bar
        return
    close = float(np.median(table.base["close"][rows] / table.base["roll_factor"][rows]))
    own = float(np.median(price))
    if not close / _FAR < own < close * _FAR:
        raise InputError(source, f"its prices are about {own:g}, those of {table.symbol} about {close:g} at that "
                                 "time", "give data of the same instrument")


def _holds_only_ticks(path: Path, spec: Instrument) -> bool:
    """Whether `path` is a file of ticks, or a catalog that holds ticks of the instrument and no bars of it."""
    if path.is_dir() and spec.symbol in TickCatalog(path).symbols():
        return not (path / spec.symbol).is_dir()
    return looks_like_ticks(path)


def read_ticks(path: Path, spec: Instrument) -> tuple[Ticks, int, tuple[str, ...]]:
    """(ticks, offset of their receive clock in ns, notes)."""
    catalog = TickCatalog(path)
    if path.is_dir() and spec.symbol in catalog.symbols():
        return catalog.read(spec.symbol), catalog.clock_offset_ns(spec.symbol), ()
    if path.is_dir() and catalog.symbols():
        raise catalog.lacks(spec.symbol)
    result = import_ticks(path, spec)
    report = result.report
    notes = [f"ticks: {report.rows_out} of {report.rows_in}, {report.filtered_rows} left out, {report.bad_rows} "
             "set aside"]
    offset = report.clock.offset_ns if report.clock is not None else 0
    if report.clock is not None and offset:
        notes.append(report.clock.line())
    return result.ticks, offset, tuple(notes)


def _read_quotes(path: Path, spec: Instrument, offset_ns: int) -> tuple[Quotes, str]:
    """(quotes, their receive times set right by the offset of the trades' receive clock; a note)."""
    result = import_quotes(path, spec, QuoteImportOptions(clock_offset_ns=offset_ns))
    line = f"quotes: {len(result.quotes)} updates, {result.report.bad_rows} set aside"
    if offset_ns:
        line += f", receive times moved by {-offset_ns / 1e9:+.3f} s, as those of the trades are off"
    return result.quotes, line


def _read_relative(texts: Sequence[str], spec: Instrument) -> RelativeInput:
    others: dict[str, Bars] = {}
    sources: dict[str, Path] = {}
    for text in texts:
        symbol, separator, path = (part.strip() for part in text.partition("="))
        if not separator or not symbol or not path:
            raise ConfigError(f"--relative {text}: expected SYMBOL=SRC, for example NQ=market")
        name = symbol.lower()
        if name in others or name == spec.symbol.lower():
            found = "given twice" if name in others else "the table itself"
            raise ConfigError(f"--relative {text}: {symbol} is {found}; name every other instrument once")
        others[name], sources[name] = read_source(path, instrument(symbol)), Path(path)
    return RelativeInput(others, sources)
