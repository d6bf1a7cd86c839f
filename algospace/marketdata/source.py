"""One way in for everything that reads bars: a file, a folder of files, or a catalog."""

from __future__ import annotations

import os
from pathlib import Path

from algospace.errors import InputError
from algospace.instruments import Instrument, instrument
from algospace.marketdata.catalog import Catalog, find_catalog
from algospace.marketdata.importers import import_file
from algospace.marketdata.options import ImportOptions
from algospace.types import Bars

DATA_ROOT_VARIABLE = "ALGOSPACE_DATA"


def locate(path: Path | str) -> Path:
    """`path`, or the same path below ALGOSPACE_DATA where only that exists."""
    path = Path(path)
    root = os.environ.get(DATA_ROOT_VARIABLE)
    if root and not path.is_absolute() and not path.exists() and (Path(root) / path).exists():
        return Path(root) / path
    return path


def read_source(path: Path | str, symbol: str | Instrument, options: ImportOptions | None = None) -> Bars:
    """Clean bars of one instrument from a CSV or Parquet file, a folder of them, or a catalog.

    A catalog was checked when it was written; anything else passes the import rules here.
    Raises ConfigError (unknown instrument) and InputError (file, row, rule, what to do).
    """
    spec = symbol if isinstance(symbol, Instrument) else instrument(symbol)
    located = locate(path)
    root = find_catalog(located, spec.symbol)
    if root is not None:
        return Catalog(root).read(spec.symbol)
    if located.is_dir() and any(located.glob("*.ticks/ticks.json")):
        raise InputError(located, f"the catalog holds ticks, but no bars of {spec.symbol}",
                         "give a source of bars, or import them first")
    return import_file(located, spec, options).bars
