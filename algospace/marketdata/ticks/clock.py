"""Times of trades and quotes: what their columns mean in UTC, and how far the receive clock is off.

The rules of the bar importer (`marketdata.times`) with one difference: ticks may share an instant, so that in the
hour that a clock change repeats an equal local time does not move to the later instant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from algospace.errors import InputError
from algospace.instruments import Instrument
from algospace.marketdata.options import ImportOptions
from algospace.marketdata.raw import RawFile
from algospace.marketdata.ticks.files import TradeFile, decoded, instants
from algospace.marketdata.ticks.options import SourceOptions
from algospace.marketdata.times import read_clock, zone_and_stamp
from algospace.marketdata.timestamps import NO_TIME, to_utc
from algospace.types import MINUTE_NS, BoolArray, IntArray

_ZONE_TOKENS = {"ny": "America/New_York", "nyc": "America/New_York", "et": "America/New_York",
                "est": "America/New_York", "eastern": "America/New_York", "chicago": "America/Chicago",
                "ct": "America/Chicago", "cst": "America/Chicago", "central": "America/Chicago",
                "london": "Europe/London", "berlin": "Europe/Berlin", "tokyo": "Asia/Tokyo"}
_LOW_QUANTILE = 0.001


@dataclass(frozen=True)
class Instants:
    """Per source row: ts (UTC ns, NO_TIME if none), and why a row has none; ambiguous counts local times that
    occur twice, written_offsets the rows that carry their own UTC offset while others do not."""

    ts: IntArray
    swapped: BoolArray
    nonexistent: BoolArray
    ambiguous: int
    written_offsets: int
    zone: str
    notes: list[str]


def read_instants(files: Sequence[TradeFile], role: str, options: SourceOptions, spec: Instrument) -> Instants:
    """Times of all files' rows, in order. InputError where a column is no time or its meaning stays open."""
    notes: list[str] = []
    raw = [RawFile(path=f.path, row=f.row, time=_column(f, role), prices={}, volume=None, contract=None,
                   time_column=f.layout.roles.get(role, f.layout.roles.get("date", ""))) for f in files if len(f)]
    if not raw:
        nothing = np.zeros(0, np.int64)
        return Instants(nothing, nothing != 0, nothing != 0, 0, 0, "UTC", notes)
    local, zoned, swapped, is_utc = read_clock(raw, ImportOptions(dates=options.dates), notes)
    local = np.where(local <= 0, NO_TIME, local)  # 1970 and before: a missing time written as zero
    zone = _zone(role, raw[0], local, zoned, is_utc, options, spec, notes)
    if zone == "UTC":
        ts, ambiguous = local, 0
    else:
        ts, ambiguous = to_utc(np.where(zoned, NO_TIME, local), zone, equal_times=True)
        ts[zoned] = local[zoned]
    written = int(zoned.sum()) if not zoned.all() else 0
    prefix = "" if role == "ts" else f"{role} "
    return Instants(ts, swapped, (ts == NO_TIME) & (local != NO_TIME), ambiguous, written, zone,
                    [prefix + note for note in notes])


def _column(file: TradeFile, role: str) -> pa.ChunkedArray:
    if role in file.columns:
        return instants(file, role)
    if not ("date" in file.columns and "clock" in file.columns):
        raise InputError(file.path, f"no column for {role}, unlike the files before", "import it alone")
    parts = [_text(file, name) for name in ("date", "clock")]
    return pc.binary_join_element_wise(*parts, pa.scalar(" ", pa.large_string()))


def _text(file: TradeFile, role: str) -> pa.ChunkedArray:
    column = decoded(file.columns[role])
    try:
        return pc.cast(column, pa.large_string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise InputError(file.path, f"the column of the {role} holds {column.type}, not text", "store it as text"
                         ) from None


def _zone(role: str, first: RawFile, local: IntArray, zoned: BoolArray, is_utc: bool, options: SourceOptions,
          spec: Instrument, notes: list[str]) -> str:
    """The caller's zone, the one that the column's name says, or the one that fits the trading hours."""
    known = local != NO_TIME
    written = is_utc or (known.any() and bool(zoned[known].all()))
    if written and role != "ts":
        return "UTC"
    given = options.zone
    if given is None and not written:
        tokens = first.time_column.lower().replace("-", "_").replace(" ", "_").split("_")
        given = next((_ZONE_TOKENS[token] for token in tokens if token in _ZONE_TOKENS), None)
        if given is not None:
            notes.append(f"zone: {given} (the column is called '{first.time_column}'; --zone sets it)")
    if not known.any():
        return given or "UTC"
    asked = ImportOptions(zone=given, stamp="open")
    return zone_and_stamp(first, local, zoned, is_utc, MINUTE_NS, asked, spec.session, notes)[0]


@dataclass(frozen=True)
class ClockOffset:
    """Receive minus event time over the rows that have both, in ns.

    fastest_ns is its robust lower end; nothing is received before it happens, so a negative one proves that the
    receive clock is behind by at least that much. offset_ns is then fastest_ns, else 0 (a clock that is ahead
    cannot be told from a slow line). received_early counts rows received before they happened; corrected says
    whether offset_ns was subtracted from ts_recv.
    """

    rows: int
    offset_ns: int
    fastest_ns: int
    median_ns: int
    received_early: int
    corrected: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    def line(self) -> str:
        """One line for people."""
        if self.offset_ns == 0:
            return f"receive times follow event times, median delay {self.median_ns / 1e6:.3f} ms"
        return (f"the receive clock is {-self.offset_ns / 1e9:.4f} s behind the exchange's "
                f"({self.received_early} of {self.rows} rows received before they happened); "
                + ("ts_recv was corrected by it" if self.corrected else "ts_recv was left as it is"))


def estimate_offset(ts: IntArray, ts_recv: IntArray) -> ClockOffset | None:
    """The clock offset by the 0.1 % quantile of the delays near their median; None without rows.

    Delays far below the median (by 20 interquartile ranges and at least 50 ms) are single wrong stamps, which must
    not pass for a clock offset.
    """
    both = (ts != NO_TIME) & (ts_recv != NO_TIME)
    if not both.any():
        return None
    delay = ts_recv[both] - ts[both]
    low, median, high = (int(v) for v in np.quantile(delay, (0.25, 0.5, 0.75)))
    reach = max(20 * (high - low), 50_000_000)
    fastest = int(np.quantile(delay[delay >= median - reach], _LOW_QUANTILE))
    return ClockOffset(int(delay.size), min(fastest, 0), fastest, median, int((delay < 0).sum()))


def corrected(offset: ClockOffset) -> ClockOffset:
    """The same estimate, marked as applied."""
    return replace(offset, corrected=True)
