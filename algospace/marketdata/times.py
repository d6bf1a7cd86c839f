"""From a file's time column to UTC bar starts: unit, order of day and month, zone, start or end of the bar.

What the file does not say is decided by evidence (which reading is possible at all; which zone keeps the bars
inside the instrument's trading hours) and reported; where the evidence is silent the import stops or says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from algospace.errors import InputError
from algospace.instruments import Instrument, Session
from algospace.marketdata.options import ImportOptions
from algospace.marketdata.raw import RawFile
from algospace.marketdata.schema import infer_width
from algospace.marketdata.sessions import count_outside, never_closes
from algospace.marketdata.timestamps import (
    NO_TIME,
    UNREADABLE,
    YEAR_LAST,
    DateFields,
    assemble,
    read_fields,
    to_utc,
)
from algospace.types import DAY_NS, SECOND_NS, BoolArray, IntArray

_ZONES = ("UTC", "America/Chicago", "America/New_York", "America/Los_Angeles", "Europe/London", "Europe/Berlin",
          "Europe/Athens", "Asia/Jerusalem", "Asia/Kolkata", "Asia/Singapore", "Asia/Tokyo", "Australia/Sydney")
_SAMPLE = 500_000  # rows that are enough to tell zones apart
_EPOCH_UNITS = ((10**11, SECOND_NS, "seconds"), (10**14, 10**6, "milliseconds"), (10**17, 10**3, "microseconds"))


@dataclass(frozen=True)
class Times:
    """Per source row: ts_open (UTC ns, NO_TIME if unreadable), local (the file's own clock, ns), and why a
    row has no time: swapped (only readable with day and month exchanged), nonexistent (skipped by a clock
    change). width_ns is the bar width; ambiguous counts local times that occur twice."""

    ts_open: IntArray
    local: IntArray
    swapped: BoolArray
    nonexistent: BoolArray
    width_ns: int
    ambiguous: int
    zone: str
    notes: list[str]


def resolve_times(files: Sequence[RawFile], options: ImportOptions, spec: Instrument) -> Times:
    """Times of all files' rows, in order."""
    notes: list[str] = []
    local, zoned, swapped, is_utc = read_clock(files, options, notes)
    sample_width = infer_width(local[local != NO_TIME])
    zone, stamp = zone_and_stamp(files[0], local, zoned, is_utc, sample_width, options, spec.session, notes)
    ts, ambiguous = (local.copy(), 0) if zone == "UTC" else to_utc(np.where(zoned, NO_TIME, local), zone)
    ts[zoned] = local[zoned]
    nonexistent = (ts == NO_TIME) & (local != NO_TIME)
    width = options.width_s * SECOND_NS if options.width_s else infer_width(ts[ts != NO_TIME])
    if width == 0:
        raise InputError(files[0].path, "the bar width cannot be told from fewer than two bars in time order",
                         "sort the file by time, or give --width-s SECONDS")
    if options.width_s is None:
        notes.append(f"bar width: {width // SECOND_NS} s, the most common step")
    if stamp == "close":
        ts[ts != NO_TIME] -= width
    return Times(ts, local, swapped, nonexistent, width, ambiguous, zone, notes)


def read_clock(files: Sequence[RawFile], options: ImportOptions,
                notes: list[str]) -> tuple[IntArray, BoolArray, BoolArray, bool]:
    """(ns in the file's clock, rows with a written offset, swapped rows, whether the clock is UTC)."""
    kind = files[0].time.type
    n = sum(len(f) for f in files)
    nothing = np.zeros(n, np.bool_)
    if pa.types.is_timestamp(kind):
        parts = [_nanos(_checked(f, pa.types.is_timestamp)) for f in files]
        return np.concatenate(parts), nothing, nothing, kind.tz is not None or _named_utc(files[0])
    if pa.types.is_date(kind):
        parts = [_nanos(_checked(f, pa.types.is_date).cast(pa.timestamp("s"))) for f in files]
        return np.concatenate(parts), nothing, nothing, _named_utc(files[0])
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        numbers = np.concatenate([_checked(f, _is_number).to_numpy().astype(np.float64) for f in files]) \
            if pa.types.is_floating(kind) else np.concatenate([_int64(_checked(f, _is_number)) for f in files])
        return _from_epoch(numbers, notes), nothing, nothing, True
    texts = pa.chunked_array([c for f in files for c in _checked(f, _is_text).cast(pa.large_string()).chunks])
    if _all_epoch(texts):
        numbers = pd.to_numeric(pd.Series(texts.to_pandas()), errors="coerce").to_numpy()
        return _from_epoch(numbers, notes), nothing, nothing, True
    local, zoned, swapped = _from_text(files[0], texts, options, notes)
    return local, zoned, swapped, _named_utc(files[0])


def _checked(file: RawFile, is_kind: object) -> pa.ChunkedArray:
    if not callable(is_kind) or not is_kind(file.time.type):
        raise InputError(file.path, f"its times are {file.time.type}, unlike those of the files before",
                         "import it alone")
    return file.time


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _named_utc(file: RawFile) -> bool:
    name = file.time_column.lower()
    return "utc" in name or "gmt" in name


def _nanos(column: pa.ChunkedArray) -> IntArray:
    """Timestamps of any unit in ns, NO_TIME where null or beyond what int64 holds (years 1678 to 2261)."""
    factor = {"s": SECOND_NS, "ms": 1_000_000, "us": 1_000, "ns": 1}[column.type.unit]
    values = _int64(column)
    bound = np.iinfo(np.int64).max // factor
    fits = (values >= -bound) & (values <= bound)
    return np.where(fits, np.where(fits, values, 0) * factor, NO_TIME)


def _int64(column: pa.ChunkedArray) -> IntArray:
    return np.array(column.cast(pa.int64()).fill_null(NO_TIME).to_numpy(), np.int64)


def _all_epoch(texts: pa.ChunkedArray) -> bool:
    """Whether the first readable text is a bare number that is no packed date."""
    for text in texts.slice(0, 100).to_pylist():
        if text:
            whole = text.strip().partition(".")[0]
            return whole.isdigit() and (len(whole) in (9, 10, 11, 13) or len(whole) > 14)
    return False


def _from_epoch(numbers: np.ndarray, notes: list[str]) -> IntArray:
    if numbers.dtype == np.int64:
        valid = numbers != NO_TIME
    else:
        valid = np.isfinite(numbers)
    size = float(np.median(np.abs(numbers[valid]))) if valid.any() else 0.0
    scale, unit = next(((s, u) for limit, s, u in _EPOCH_UNITS if size < limit), (1, "nanoseconds"))
    notes.append(f"times: {unit} since 1970, UTC")
    out = np.full(numbers.size, NO_TIME, np.int64)
    limit = 2**63 // scale - 1
    valid &= np.abs(np.where(valid, numbers, 0)) < limit
    whole = np.floor(numbers[valid]).astype(np.int64)
    out[valid] = whole * scale
    if numbers.dtype != np.int64 and scale > 1:
        out[valid] += np.rint((numbers[valid] - whole) * scale).astype(np.int64)
    return out


def _from_text(file: RawFile, texts: pa.ChunkedArray, options: ImportOptions,
               notes: list[str]) -> tuple[IntArray, BoolArray, BoolArray]:
    fields = read_fields(pa.concat_arrays(texts.chunks) if texts.num_chunks > 1 else texts.chunk(0))
    if not (fields.layout != UNREADABLE).any():
        sample = next((t for t in texts.slice(0, 100).to_pylist() if t), "")
        raise InputError(file.path, f"no readable time in column '{file.time_column}' (for example '{sample}')",
                         "name the time column with --columns time=…", row=int(file.row[0]))
    readings = {order: _assemble(fields, order == "day-first") for order in ("day-first", "month-first")}
    order: str = options.dates
    last = fields.layout == YEAR_LAST
    if order == "auto":
        order = _date_order(file, texts, readings, notes) if last.any() else "day-first"
    widths = np.unique(pc.utf8_length(texts).fill_null(0).to_numpy())
    if last.any() and widths.size > 1 and options.format == "tradestation":
        notes.append("dates: padded and unpadded fields in one column, both read")
    local, swapped = readings[order]
    return local, fields.zoned, swapped


def _assemble(fields: DateFields, day_first: bool) -> tuple[IntArray, BoolArray]:
    out = np.empty(fields.layout.size, np.int64)
    swapped = np.empty(fields.layout.size, np.bool_)
    assemble(fields.layout, fields.year, fields.first, fields.second, fields.nanos, fields.shift, day_first, out,
             swapped)
    return out, swapped


def _date_order(file: RawFile, texts: pa.ChunkedArray, readings: dict[str, tuple[IntArray, BoolArray]],
                notes: list[str]) -> str:
    """The order with fewer impossible dates; else the one with fewer steps back and long jumps in time."""
    impossible = {order: int(swapped.sum()) for order, (_, swapped) in readings.items()}
    disorder = {order: _disorder(local) for order, (local, _) in readings.items()}
    best = min(readings, key=lambda order: (impossible[order], disorder[order]))
    other = next(order for order in readings if order != best)
    if (impossible[best], disorder[best]) == (impossible[other], disorder[other]):
        if np.array_equal(readings[best][0], readings[other][0]):
            return best
        raise InputError(file.path, f"dates like '{texts[0].as_py()}' can be read day-first and month-first",
                         "say which with --dates day-first or --dates month-first", row=int(file.row[0]))
    notes.append(f"dates: {best} ({impossible[best]} impossible dates, {impossible[other]} if {other})")
    return best


def _disorder(local: IntArray) -> int:
    steps = np.diff(local[local != NO_TIME])
    return int((steps <= 0).sum() + (steps > 5 * DAY_NS).sum())


def zone_and_stamp(file: RawFile, local: IntArray, zoned: BoolArray, is_utc: bool, width: int,
                    options: ImportOptions, session: Session, notes: list[str]) -> tuple[str, str]:
    zone = options.zone
    if is_utc or bool(zoned[local != NO_TIME].all()):
        if zone not in (None, "UTC"):
            raise InputError(file.path, f"its times are UTC or carry an offset, --zone {zone} contradicts them",
                             "leave --zone out")
        zone = "UTC"
    fixed_stamp = options.stamp if options.stamp != "auto" else None
    judged = not never_closes(session) and 0 < width < DAY_NS
    if zone is not None and fixed_stamp is not None:
        return zone, fixed_stamp
    if not judged:
        if zone is None:
            notes.append("zone: UTC (nothing in the file says otherwise; --zone sets it)")
        return zone or "UTC", fixed_stamp or "open"
    zones = [zone] if zone else list(_ZONES)
    outside = {(z, s): _outside(local, z, s, width, session)
               for s in ([fixed_stamp] if fixed_stamp else ["open", "close"]) for z in zones}
    return _choose(outside, zone is None, fixed_stamp is None, notes)


def _outside(local: IntArray, zone: str, stamp: str, width: int, session: Session) -> float:
    """Share of rows outside the trading hours under one reading."""
    valid = local[local != NO_TIME]
    valid = valid[:: max(valid.size // _SAMPLE, 1)]
    ts = valid if zone == "UTC" else to_utc(valid, zone)[0]
    existing = ts[ts != NO_TIME]
    start = existing - width if stamp == "close" else existing
    return (count_outside(start, session) + ts.size - existing.size) / max(ts.size, 1)


def _choose(outside: dict[tuple[str, str], float], guess_zone: bool, guess_stamp: bool,
            notes: list[str]) -> tuple[str, str]:
    """The reading with the fewest rows outside the trading hours; the plain one unless it is clearly worse."""
    plain = next(iter(outside))
    best = min(outside, key=lambda reading: outside[reading])
    clearly = outside[plain] > 3e-4 and outside[best] < 0.1 * outside[plain]
    chosen = best if clearly else plain
    zone, stamp = chosen
    share = f"{100 * outside[chosen]:.3g} % of rows outside the trading hours"
    if guess_zone:
        runner_up = min((r for r in outside if r[0] != zone), key=lambda reading: outside[reading])
        against = f"; next best {runner_up[0]} {100 * outside[runner_up]:.3g} %" if clearly else ""
        notes.append(f"zone: {zone} ({share}{against}; --zone sets it)")
    if guess_stamp:
        other = outside[(zone, "close" if stamp == "open" else "open")]
        meaning = "starts" if stamp == "open" else "ends"
        notes.append(f"stamps: {meaning} of bars ({share}, {100 * other:.3g} % otherwise; --stamp sets it)")
    return zone, stamp
