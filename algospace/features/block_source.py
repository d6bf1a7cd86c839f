"""A source of bars as months in order, each with a digest, read one at a time.

A catalog is read month by month and never as a whole. Any other source has rules that look across its files
(order, duplicates, rolls), so it is imported whole first and cut into months afterwards: import what does not fit
into memory into a catalog.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from algospace.instruments import Instrument
from algospace.marketdata import Catalog, ImportOptions, import_file
from algospace.marketdata.catalog import find_catalog
from algospace.marketdata.source import locate
from algospace.types import Bars


class SourceMonth(NamedTuple):
    """One block: its name (2012-01), a SHA-256 that changes with its bars, and the way to them."""

    name: str
    digest: str
    read: Callable[[], Bars]


class MonthlySource(NamedTuple):
    """Months in time order; width of the bars in ns; names of the contract codes, if known."""

    width_ns: int
    contracts: list[str]
    months: list[SourceMonth]


def open_source(path: Path | str, instrument: Instrument, options: ImportOptions | None = None) -> MonthlySource:
    """The months of a catalog, or of a file or folder that passes the import rules."""
    located = locate(path)
    root = find_catalog(located, instrument.symbol)
    if root is not None:
        return _catalog_months(Catalog(root), instrument.symbol)
    imported = import_file(located, instrument, options)
    return months_of_bars(imported.bars, imported.contracts)


def months_of_bars(bars: Bars, contracts: list[str] | None = None) -> MonthlySource:
    """Bars in memory as months."""
    month = bars.ts_open.astype("datetime64[ns]").astype("datetime64[M]")
    starts = np.flatnonzero(np.r_[True, month[1:] != month[:-1]]) if len(bars) else np.zeros(0, np.int64)
    stops = np.r_[starts[1:], len(bars)]
    parts = [(str(month[i]), bars.slice(i, j)) for i, j in zip(starts.tolist(), stops.tolist(), strict=False)]
    months = [SourceMonth(name, _digest(part), partial(_same, part)) for name, part in parts]
    return MonthlySource(bars.width_ns, list(contracts or ()), months)


def _catalog_months(catalog: Catalog, symbol: str) -> MonthlySource:
    manifest = catalog.manifest(symbol)
    months = [SourceMonth(month, entry["sha256"], partial(catalog.read_month, symbol, month, manifest))
              for month, entry in sorted(manifest["months"].items())]
    return MonthlySource(int(manifest["width_ns"]), [str(name) for name in manifest["contracts"]], months)


def _same(bars: Bars) -> Bars:
    return bars


def _digest(bars: Bars) -> str:
    found = hashlib.sha256()
    for name in ("ts_open", "open", "high", "low", "close", "volume", "contract"):
        found.update(np.ascontiguousarray(getattr(bars, name)).data)
    return found.hexdigest()
