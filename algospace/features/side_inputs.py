"""One instrument's features from everything that a command may be given: bars or ticks, and inputs beside them.

    market   bars, or ticks, of the instrument itself
    sides    other instruments, outside series, trades and quotes, each as columns of the base rows
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from algospace.errors import ConfigError
from algospace.features.checks import check_width
from algospace.features.config import FeatureConfig
from algospace.features.driver import build_from_ticks
from algospace.features.flow import flow_columns
from algospace.features.indicator import Indicator
from algospace.features.outside import OutsideConfig, load_outside, outside_columns, outside_version
from algospace.features.own import FrameIndicator, build_with_own, step_indicators
from algospace.features.relative import RelativeConfig, relative_columns, relative_version
from algospace.features.table import FeatureTable
from algospace.instruments import Instrument, instrument
from algospace.marketdata import read_source
from algospace.marketdata.source import locate
from algospace.marketdata.ticks import (
    QuoteImportOptions,
    TickCatalog,
    import_quotes,
    import_ticks,
    looks_like_ticks,
)
from algospace.types import MINUTE_NS, Bars, FloatArray, Ticks

Columns = dict[str, FloatArray]


@dataclass(frozen=True)
class Market:
    """The instrument's own data: bars or ticks. clock_offset_ns: of the ticks' receive clock, 0 where unknown."""

    bars: Bars | None
    ticks: Ticks | None
    clock_offset_ns: int = 0
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.bars if self.bars is not None else self.ticks or ())


@dataclass(frozen=True)
class SideInputs:
    """What else is there: makers of (columns, version) for a table, in order."""

    makers: tuple[Callable[[FeatureTable, int], tuple[Columns, str]], ...]
    notes: tuple[str, ...] = ()


def read_market(src: Path, spec: Instrument, config: FeatureConfig) -> Market:
    """Bars or ticks at `src`; ticks where the source holds nothing else. ConfigError where bars do not fit."""
    located = locate(src)
    if _tick_catalog(located, spec) is not None or looks_like_ticks(located):
        ticks, offset, notes = _read_ticks(located, spec)
        return Market(None, ticks, offset, notes)
    bars = read_source(src, spec)
    if config.base_minutes * MINUTE_NS % bars.width_ns:
        raise ConfigError(f"the source has {bars.width_ns // 10**9} s bars, which do not fill base bars of "
                          f"{config.base_minutes} min; set base_minutes in --config to a multiple of the width")
    check_width(bars.width_ns, config.base_minutes * MINUTE_NS)
    return Market(bars, None)


def read_sides(
    market: Market, spec: Instrument, relative: Sequence[str] | None = None, outside: Sequence[Path] | None = None,
    ticks: Path | None = None, quotes: Path | None = None,
) -> SideInputs:
    """Read what the options of `algospace features` name."""
    makers: list[Callable[[FeatureTable, int], tuple[Columns, str]]] = []
    notes: list[str] = []
    if relative:
        makers.append(_relative([_pair(text) for text in relative]))
    makers += [_outside(path) for path in outside or ()]
    offset, flow = market.clock_offset_ns, market.ticks
    if ticks is not None:
        flow, offset, found = _read_ticks(locate(ticks), spec)
        notes += found
    if flow is not None:
        makers.append(_flow(flow, spec))
    if quotes is not None:
        from algospace.features.book import book_columns

        result = import_quotes(locate(quotes), spec, QuoteImportOptions(clock_offset_ns=offset))
        notes.append(f"quotes: {len(result.quotes)} updates, {result.report.bad_rows} set aside, receive clock "
                     f"{offset / 1e9:+.3f} s against the exchange's")
        makers.append(lambda table, width: (book_columns(result.quotes, table.ts_close, width), "book:1"))
    return SideInputs(tuple(makers), tuple(notes))


def build_with_sides(market: Market, spec: Instrument, config: FeatureConfig,
                     own: Sequence[Indicator | FrameIndicator], sides: SideInputs) -> FeatureTable:
    """The feature table with own indicators and the columns of all side inputs."""
    if market.bars is not None:
        table = build_with_own(market.bars, spec, config, own)
    elif market.ticks is not None:
        table = build_from_ticks(market.ticks, spec, config, step_indicators(own))
    else:
        raise ValueError("a market has bars or ticks")
    for make in sides.makers:
        columns, version = make(table, config.base_minutes * MINUTE_NS)
        table = table.with_columns(columns, version) if columns else table
    return table


def _tick_catalog(path: Path, spec: Instrument) -> TickCatalog | None:
    """A catalog that holds ticks of the instrument and no bars of it."""
    if not path.is_dir() or (path / spec.symbol).is_dir():
        return None
    catalog = TickCatalog(path)
    return catalog if spec.symbol in catalog.symbols() else None


def _read_ticks(path: Path, spec: Instrument) -> tuple[Ticks, int, tuple[str, ...]]:
    """(ticks, offset of their receive clock in ns, notes)."""
    catalog = TickCatalog(path) if path.is_dir() else None
    if catalog is not None and spec.symbol in catalog.symbols():
        return catalog.read(spec.symbol), 0, ()
    result = import_ticks(path, spec)
    report = result.report
    offset = report.clock.offset_ns if report.clock is not None else 0
    notes = [f"ticks: {report.rows_out} of {report.rows_in}, {report.filtered_rows} left out, {report.bad_rows} "
             "set aside"]
    if report.clock is not None and offset:
        notes.append(report.clock.line())
    return result.ticks, offset, tuple(notes)


def _pair(text: str) -> tuple[str, Path]:
    symbol, separator, path = text.partition("=")
    if not separator or not symbol or not path:
        raise ConfigError(f"--relative {text}: expected SYMBOL=SRC, for example NQ=market")
    return symbol.strip(), Path(path.strip())


def _relative(pairs: Sequence[tuple[str, Path]]) -> Any:
    others = {symbol.lower(): read_source(path, instrument(symbol)) for symbol, path in pairs}

    def make(table: FeatureTable, width_ns: int) -> tuple[Columns, str]:
        config = RelativeConfig(base_minutes=width_ns // MINUTE_NS)
        return relative_columns(table, others, config), relative_version(others, config)

    return make


def _outside(path: Path) -> Any:
    series, config = load_outside(locate(path)), OutsideConfig()
    return lambda table, width: (outside_columns(series, table.ts_close, config),
                                 outside_version(series.keys, config))  # fmt: skip


def _flow(ticks: Ticks, spec: Instrument) -> Any:
    def make(table: FeatureTable, width_ns: int) -> tuple[Columns, str]:
        columns = flow_columns(ticks, table.ts_close, width_ns, spec)
        known = ",".join(name for name in ticks.columns() if np.size(getattr(ticks, name)))
        return columns, f"flow:1:{known}"

    return make
