"""What the readers hand over: the file's own columns, before any rule was applied."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from algospace.types import FloatArray, IntArray


@dataclass(frozen=True)
class RawFile:
    """The rows of one file, in the file's order.

    row: 1-based row in the file (the header of a CSV is row 1); time: Arrow strings, integers or timestamps;
    prices: role -> float64, NaN where the file has no readable number; volume: None without such a column;
    contract: Arrow strings or None; flagged: rows that the vendor itself marks as doubtful;
    malformed: (row, text) of lines that have another number of fields; blank: empty lines.
    """

    path: Path
    row: IntArray
    time: pa.ChunkedArray
    prices: dict[str, FloatArray]
    volume: FloatArray | None
    contract: pa.ChunkedArray | None
    flagged: int = 0
    malformed: list[tuple[int, str]] = field(default_factory=list)
    blank: int = 0
    notes: list[str] = field(default_factory=list)
    time_column: str = ""

    def __len__(self) -> int:
        return int(self.row.size)
