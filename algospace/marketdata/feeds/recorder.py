"""Recordings: every tick with its receive time, in Parquet parts that are whole or absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from algospace.errors import InputError
from algospace.events import EventBus, NewTick, TimeAdvanced
from algospace.files import atomic_path
from algospace.kernel import Component
from algospace.types import MINUTE_NS, Ticks

_TIME = pa.timestamp("ns", tz="UTC")
RECORD_SCHEMA = pa.schema([
    ("ts", _TIME), ("price", pa.float64()), ("size", pa.float64()), ("contract", pa.int32()), ("ts_recv", _TIME),
    ("bid", pa.float64()), ("ask", pa.float64()), ("aggressor", pa.int8()),
])  # fmt: skip
_DTYPES: dict[str, Any] = {"ts": np.int64, "ts_recv": np.int64, "contract": np.int32, "aggressor": np.int8}


class Recorder(Component):
    """Writes the ticks of `symbol`, late and invalid ones too, to `folder`.

    A part is written every `rows` ticks, when `every_ns` have passed, and at shutdown. A part that cannot be
    written stays in memory and is tried again with the next; the failure is reported as any handler's is.
    """

    def __init__(self, symbol: str, folder: Path | str, rows: int = 1 << 16, every_ns: int = MINUTE_NS) -> None:
        self.symbol, self.folder = symbol, Path(folder)
        self._rows, self._every = rows, every_ns
        self._waiting: list[tuple[Any, ...]] = []
        self._write_at = rows
        self._written_until = 0
        self._part = 0

    def register(self, bus: EventBus) -> None:
        bus.subscribe(NewTick, self.on_tick, "recorder.on_tick")
        bus.subscribe(TimeAdvanced, self.on_time, "recorder.on_time")

    def connect(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._part = len(_parts(self.folder, self.symbol))

    def on_tick(self, tick: NewTick) -> None:
        """Keep one tick."""
        if tick.symbol != self.symbol:
            return
        # Converted here, so that a tick of the wrong types fails alone.
        self._waiting.append((int(tick.ts), float(tick.price), float(tick.size), int(tick.contract),
                              int(tick.ts_recv), float(tick.bid), float(tick.ask), int(tick.aggressor)))
        if len(self._waiting) >= self._write_at:
            self.flush()

    def on_time(self, event: TimeAdvanced) -> None:
        """Write what waits if the last part is old enough."""
        if self._waiting and event.now - self._written_until >= self._every:
            self._written_until = event.now
            self.flush()

    def flush(self) -> None:
        """Write what waits as one part."""
        if not self._waiting:
            return
        self._write_at = len(self._waiting) + self._rows  # if this fails, not again at the very next tick
        columns = zip(*self._waiting, strict=True)
        arrays = [pa.array(np.array(column, _DTYPES.get(field.name, np.float64)), field.type)
                  for field, column in zip(RECORD_SCHEMA, columns, strict=True)]  # fmt: skip
        with atomic_path(self.folder / f"{self.symbol}.{self._part:08d}.ticks.parquet") as part:
            pq.write_table(pa.Table.from_arrays(arrays, schema=RECORD_SCHEMA), part, compression="zstd")
        self._part += 1
        self._waiting = []
        self._write_at = self._rows

    def shutdown(self) -> None:
        self.flush()


def read_recording(folder: Path | str, symbol: str) -> Ticks:
    """All recorded ticks of `symbol`, in the order in which they were received."""
    parts = _parts(Path(folder), symbol)
    if not parts:
        raise InputError(folder, f"no recording of {symbol}", "give the folder that a Recorder wrote to")
    tables = []
    for part in parts:
        try:
            tables.append(pq.read_table(part, schema=RECORD_SCHEMA))
        except (pa.ArrowInvalid, OSError) as error:
            reason = " ".join(str(error).split())
            raise InputError(part, f"not a recording ({reason})", "restore the file from a copy") from None
    table = pa.concat_tables(tables)
    columns = {}
    for field in RECORD_SCHEMA:
        column = table[field.name]
        plain = column.cast(pa.int64()) if field.type == _TIME else column
        columns[field.name] = np.ascontiguousarray(plain.to_numpy())
    return Ticks(**columns)


def _parts(folder: Path, symbol: str) -> list[Path]:
    return sorted(folder.glob(f"{symbol}.*.ticks.parquet"))
