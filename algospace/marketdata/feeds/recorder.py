"""Recordings: every tick with its receive time, in Parquet parts that are whole or absent."""

from __future__ import annotations

from pathlib import Path
from struct import Struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import structlog

from algospace.errors import ConfigError, InputError
from algospace.events import EventBus, NewSourceBar, NewTick, TimeAdvanced
from algospace.files import atomic_path
from algospace.kernel import Component
from algospace.types import MINUTE_NS, Ticks

_LOG = structlog.get_logger(__name__)
_TIME = pa.timestamp("ns", tz="UTC")
RECORD_SCHEMA = pa.schema([
    ("ts", _TIME), ("price", pa.float64()), ("size", pa.float64()), ("contract", pa.int32()), ("ts_recv", _TIME),
    ("bid", pa.float64()), ("ask", pa.float64()), ("aggressor", pa.int8()),
])  # fmt: skip
# A waiting tick, in the order of NewTick; packing refuses whatever does not fit, as the bar generator does.
_TICK = np.dtype([("ts", "<i8"), ("price", "<f8"), ("size", "<f8"), ("contract", "<i4"), ("ts_recv", "<i8"),
                  ("bid", "<f8"), ("ask", "<f8"), ("aggressor", "i1")])  # fmt: skip
_pack_tick = Struct("<qddiqddb").pack
_SUFFIX = ".ticks.parquet"


class Recorder(Component):
    """Writes the ticks of `symbol`, late and invalid ones too, to `folder`.

    A part is written every `rows` ticks, when `every_ns` have passed, and at shutdown, behind the parts that the
    folder has: no part is ever replaced. A part that cannot be written stays in memory and is tried again with the
    next; the failure is reported as any handler's is. Source bars are not recorded; the log says so.
    """

    def __init__(self, symbol: str, folder: Path | str, rows: int = 1 << 16, every_ns: int = MINUTE_NS) -> None:
        if Path(symbol).name != symbol:
            raise ConfigError(f"recording of '{symbol}': the symbol names files; give one without a separator")
        self.symbol, self.folder = symbol, Path(folder)
        self._rows, self._every = rows, every_ns
        self._waiting = bytearray()  # records of _TICK
        self._write_at = rows
        self._written_until = 0
        self._part = 0

    def register(self, bus: EventBus) -> None:
        self._bus = bus
        bus.subscribe(NewTick, self.on_tick, "recorder.on_tick")
        bus.subscribe(NewSourceBar, self.on_source_bar, "recorder.on_source_bar")
        bus.subscribe(TimeAdvanced, self.on_time, "recorder.on_time")

    def connect(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._part = max(_parts(self.folder, self.symbol), default=-1) + 1

    def on_tick(self, tick: NewTick) -> None:
        """Keep one tick."""
        if tick.symbol != self.symbol:
            return
        self._waiting += _pack_tick(*tick[1:])  # here, so that a tick of the wrong types fails alone
        if len(self._waiting) >= self._write_at * _TICK.itemsize:
            self.flush()

    def on_source_bar(self, bar: NewSourceBar) -> None:
        """Say, once, that bars are not recorded."""
        if bar.symbol == self.symbol:
            _LOG.warning("source bars are not recorded, only ticks", symbol=self.symbol, folder=str(self.folder))
            self._bus.unsubscribe(NewSourceBar, self.on_source_bar)

    def on_time(self, event: TimeAdvanced) -> None:
        """Write what waits if the last part is old enough."""
        if self._waiting and event.now - self._written_until >= self._every:
            self._written_until = event.now
            self.flush()

    def flush(self) -> None:
        """Write what waits as one part."""
        if not self._waiting:
            return
        ticks = np.frombuffer(bytes(self._waiting), _TICK)
        self._write_at = ticks.size + self._rows  # if this fails, not again at the very next tick
        arrays = [pa.array(np.ascontiguousarray(ticks[field.name]), field.type) for field in RECORD_SCHEMA]
        while self._path.exists():  # another recorder may have written into the folder since
            self._part += 1
        with atomic_path(self._path) as part:
            pq.write_table(pa.Table.from_arrays(arrays, schema=RECORD_SCHEMA), part, compression="zstd")
        self._part += 1
        self._waiting.clear()
        self._write_at = self._rows

    @property
    def _path(self) -> Path:
        return self.folder / f"{self.symbol}.{self._part:08d}{_SUFFIX}"

    def shutdown(self) -> None:
        self.flush()


def read_recording(folder: Path | str, symbol: str) -> Ticks:
    """All recorded ticks of `symbol`, in the order in which they were received."""
    parts = _parts(Path(folder), symbol)
    if not parts:
        raise InputError(folder, f"no recording of {symbol}", "give the folder that a Recorder wrote to")
    tables = []
    for _, part in sorted(parts.items()):
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


def _parts(folder: Path, symbol: str) -> dict[int, Path]:
    """The parts of exactly this symbol (another one's name may begin with it), by number."""
    numbers = ((path.name.removeprefix(f"{symbol}.").removesuffix(_SUFFIX), path)
               for path in folder.glob(f"*{_SUFFIX}"))
    return {int(number): path for number, path in numbers if number.isdecimal()}
