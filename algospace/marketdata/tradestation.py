"""TradeStation chart exports: one `Timestamp,Open,High,Low,Close,Volume` header, dates day-first.

A file that went through a spreadsheet holds two formats in one column, `29/06/2020 01:00:00` and `1/7/2020 1:00`
(day-first both); times are the wall clock of the computer that exported, which the file does not name. The zone
is found by the trading hours of the instrument, or given with `--zone`.
"""

from __future__ import annotations

import re
from pathlib import Path

from algospace.marketdata.csv_import import read_csv
from algospace.marketdata.options import ImportOptions
from algospace.marketdata.raw import RawFile

HEADER = "Timestamp,Open,High,Low,Close,Volume"
_DATED = re.compile(r"\d{1,2}/\d{1,2}/\d{4} \d{1,2}:\d{2}(:\d{2})?,")


def looks_like_tradestation(path: Path) -> bool:
    """Whether the header and the first row have the vendor's layout."""
    if path.suffix == ".gz":
        return False
    with path.open("rb") as stream:
        header, row = stream.readline(4096), stream.readline(4096)
    text = header.decode("utf-8", "replace").strip().replace('"', "").lstrip("\ufeff")
    return text == HEADER and _DATED.match(row.decode("utf-8", "replace")) is not None


def read_tradestation(path: Path, options: ImportOptions) -> RawFile:
    """The CSV reader's rows, with the vendor's layout noted."""
    file = read_csv(path, options)
    file.notes.insert(0, "format: TradeStation")
    return file
