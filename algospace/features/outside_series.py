"""Publications of outside series: their table, and how a file of them is read. The form is told in `outside`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from algospace.errors import InputError
from algospace.types import AnyArray, BoolArray, FloatArray, IntArray

KINDS = ("level", "event", "score", "corporate_action")
_HEADER_LINES = 2  # data row 0 is line 2
_REQUIRED = ("published", "name", "value")
_OPTIONAL = ("event", "kind", "tenor", "delta")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
# what int64 nanoseconds can hold, in whole years
_FIRST_TIME, _END_TIME = pd.Timestamp("1678-01-01", tz="UTC"), pd.Timestamp("2262-01-01", tz="UTC")
_ZONE = re.compile(r"(Z|[+-]\d\d:?\d\d|UTC)\s*$")


@dataclass(frozen=True, order=True)
class OutsideKey:
    """One series: its columns' name and its kind."""

    name: str
    kind: str


def column_names(key: OutsideKey) -> tuple[str, ...]:
    """The columns of one series."""
    suffixes = {"level": ("", "_age"), "score": ("", "_age"), "event": ("_since", "_until"),
                "corporate_action": ("_factor", "_pending", "_until")}
    return tuple(key.name + suffix for suffix in suffixes[key.kind])


@dataclass(frozen=True)
class OutsideSeries:
    """Publications of one or more series, in order of `published`, then `event`, then value.

    published, event: (n,) int64 UTC ns; key: (n,) index into `keys`; value: (n,) float64. notes: what looked odd.
    """

    keys: tuple[OutsideKey, ...]
    published: IntArray
    event: IntArray
    key: IntArray
    value: FloatArray
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return int(self.published.size)

    def take(self, rows: AnyArray) -> OutsideSeries:
        """Some publications (a mask, or indices in order) of the same series."""
        return OutsideSeries(self.keys, self.published[rows], self.event[rows], self.key[rows], self.value[rows],
                             self.notes)

    def known_at(self, ts: int) -> OutsideSeries:
        """What was published by `ts` (UTC ns)."""
        return self.take(self.published <= ts)


def load_outside(path: Path | str) -> OutsideSeries:
    """Publications of a Parquet or CSV file, in any order; InputError names the first row that breaks a rule.

    Equal rows count once, except scores, which add up. Two different values for the same event, published at the
    same time, are an error; a level published before the time it is about is kept and noted.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(path, "no such file", "give a Parquet or CSV file of publications")
    try:
        if path.suffix == ".parquet":
            frame = pd.read_parquet(path)
        else:
            frame = pd.read_csv(path, dtype=str, keep_default_na=False, skip_blank_lines=False)
    except (OSError, ValueError, UnicodeDecodeError, pd.errors.ParserError) as error:
        raise InputError(path, f"not readable ({' '.join(str(error).split())})", "write it again") from None
    return outside_series(frame, path)


def outside_series(frame: pd.DataFrame, source: Path | str = "publications") -> OutsideSeries:
    """Publications of a frame in the documented form; `source` names it in errors. Rules: see `load_outside`."""
    if "horizon" in frame and "tenor" not in frame:
        frame = frame.rename(columns={"horizon": "tenor"})
    unknown = [str(name) for name in frame.columns if name not in (*_REQUIRED, *_OPTIONAL)]
    missing = [name for name in _REQUIRED if name not in frame]
    if missing or unknown:
        fault = f"no column '{missing[0]}'" if missing else f"unknown column '{unknown[0]}'"
        raise InputError(source, fault, f"it needs {', '.join(_REQUIRED)} and takes {', '.join(_OPTIONAL)}")
    if frame.empty:
        raise InputError(source, "no rows", "give at least one publication")
    rules = _Rules(source)
    published = rules.times(frame["published"], "published")
    event = rules.times(frame["event"], "event", published) if "event" in frame else published.copy()
    value = rules.values(frame["value"])
    keys = rules.keys(frame)
    names = tuple(sorted(set(keys)))
    rules.require(_one_kind_each(names, keys), "the series appears with two kinds", "give each its own name")
    rules.require(_own_columns(names, keys), "a column of the series is one of another series, too",
                  "give one of them another name")
    place = {key: i for i, key in enumerate(names)}
    key = np.array([place[k] for k in keys], np.int64)
    kinds = np.array([k.kind for k in keys])
    rules.require(~(kinds == "corporate_action") | (value > 0), "a price factor that is not positive",
                  "give for example 0.5 for a 2-for-1 split")
    order = np.lexsort((value, event, published))
    series = OutsideSeries(names, published[order], event[order], key[order], value[order])
    return _without_duplicates(series, order, kinds[order], rules)


def _without_duplicates(series: OutsideSeries, lines: IntArray, kinds: AnyArray, rules: _Rules) -> OutsideSeries:
    """Drop equal rows, refuse contradictions, note levels known before their time; `lines`: rows of the source."""
    order = np.lexsort((series.value, series.event, series.published, series.key))
    same = np.zeros(len(series), np.bool_)
    parts = (series.key[order], series.published[order], series.event[order])
    same[order[1:]] = np.all([part[1:] == part[:-1] for part in parts], axis=0)
    before = np.zeros(len(series), np.int64)
    before[order[1:]] = order[:-1]
    same &= kinds != "score"  # two items of news may come at once, and add up
    equal = same & (series.value == series.value[before])
    conflict = same & ~equal
    if conflict.any():
        row = int(lines[conflict].min())
        raise rules.error(row, "another value for the same event was published at the same time", "keep one")
    early = (series.published < series.event) & (kinds == "level")
    notes = []
    if equal.any():
        notes.append(f"{int(equal.sum())} equal rows, the first in row {int(lines[equal].min()) + _HEADER_LINES}: "
                     "counted once")
    if early.any():
        notes.append(f"{int(early.sum())} levels published before the time they are about, the first in row "
                     f"{int(lines[early].min()) + _HEADER_LINES}: a forecast, or a wrong time")
    kept = series.take(~equal)
    return OutsideSeries(kept.keys, kept.published, kept.event, kept.key, kept.value, tuple(notes))


@dataclass(frozen=True)
class _Rules:
    """Checks of a source's columns; each fault is one line."""

    source: Path | str

    def error(self, row: int, rule: str, fix: str) -> InputError:
        return InputError(self.source, rule, fix, row=row + _HEADER_LINES)

    def require(self, fine: BoolArray, rule: str, fix: str) -> None:
        if not fine.all():
            raise self.error(int(np.argmin(fine)), rule, fix)

    def times(self, column: pd.Series, name: str, default: IntArray | None = None) -> IntArray:
        """UTC ns; an empty text or a missing time takes `default`."""
        zone = f"'{name}' has no time zone"
        fix = "give times such as 2024-05-03T12:30:00Z or 2024-05-03 08:30-04:00"
        if isinstance(column.dtype, pd.DatetimeTZDtype):
            stamps = column
        elif pd.api.types.is_datetime64_dtype(column) or pd.api.types.is_numeric_dtype(column):
            raise InputError(self.source, zone, fix)
        else:
            text = column.astype(str).str.strip().where(column.notna(), "")
            given = text.to_numpy(dtype=object) != ""
            zoned = np.array([_ZONE.search(t) is not None for t in text], np.bool_)
            stamps = pd.to_datetime(text, utc=True, errors="coerce", format="ISO8601")
            self.require(stamps.notna().to_numpy() | ~given, f"'{name}' is not a time", fix)
            self.require(zoned | ~given, zone, fix)
        absent = stamps.isna().to_numpy()
        if default is None:
            self.require(~absent, f"'{name}' is missing", fix)
            default = np.zeros(len(column), np.int64)
        inside = ((stamps >= _FIRST_TIME) & (stamps < _END_TIME)).to_numpy()
        self.require(inside | absent, f"'{name}' lies outside the years 1678 to 2261", fix)
        ns = stamps.dt.tz_convert("UTC").dt.as_unit("ns").astype("int64").to_numpy()
        return np.where(absent, default, ns).astype(np.int64)

    def values(self, column: pd.Series) -> FloatArray:
        values = pd.to_numeric(column, errors="coerce").to_numpy(np.float64)
        self.require(np.isfinite(values), "'value' is not a finite number", "leave out what is not known")
        return values

    def keys(self, frame: pd.DataFrame) -> list[OutsideKey]:
        """Of every row; of a surface point with tenor and delta in the name."""
        absent: Any = [""] * len(frame)
        columns = [frame.get(name, absent) for name in ("name", "kind", "tenor", "delta")]
        found: dict[tuple[Any, ...], OutsideKey] = {}
        keys = []
        for row, cells in enumerate(zip(*columns, strict=True)):
            if cells not in found:
                found[cells] = self._key(row, *("" if pd.isna(cell) else str(cell).strip() for cell in cells))
            keys.append(found[cells])
        return keys

    def _key(self, row: int, name: str, kind: str, tenor: str, delta: str) -> OutsideKey:
        kind = kind or "level"
        if kind not in KINDS:
            raise self.error(row, f"unknown kind '{kind}'", f"give one of {', '.join(KINDS)}")
        if not _NAME.fullmatch(name):
            raise self.error(row, f"'{name}' is not a column name", "use a-z, 0-9 and _, a letter first")
        if (tenor or delta) and kind != "level":
            raise self.error(row, f"a tenor or delta with kind {kind}", "only levels are surface points")
        return OutsideKey("_".join([name, *(_slug(part) for part in (tenor, delta) if part)]), kind)


def _slug(text: str) -> str:
    """Of a tenor or delta: 30d -> 30d, -25.0 -> m25, 0.5 -> 0p5."""
    number = re.fullmatch(r"(-?)(\d+)(?:\.(\d+))?", text)
    if number:
        sign, whole, part = number[1], number[2], (number[3] or "").rstrip("0")
        return f"{'m' if sign else ''}{whole}{'p' + part if part else ''}"
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def _one_kind_each(names: Sequence[OutsideKey], keys: Sequence[OutsideKey]) -> BoolArray:
    first: dict[str, OutsideKey] = {}
    for key in keys:
        first.setdefault(key.name, key)
    clash = {key for key in names if first[key.name] != key}
    return np.array([key not in clash for key in keys], np.bool_)


def _own_columns(names: Sequence[OutsideKey], keys: Sequence[OutsideKey]) -> BoolArray:
    """False for rows of a series that takes a column of another, as a series x_age takes that of x."""
    owner: dict[str, OutsideKey] = {}
    clash = {key for key in names for column in column_names(key) if owner.setdefault(column, key) != key}
    return np.array([key not in clash for key in keys], np.bool_)


def daily_publications(
    frame: pd.DataFrame, name: str = "vix", day: str = "ts_utc", value: str = "close", time: str = "16:15",
    zone: str = "America/New_York",
) -> pd.DataFrame:
    """Publications of a daily file in the documented form: each day's value is known at `time` in `zone`.

    frame: `day` the date (its label, whatever the hour), `value` the day's value. The default is Cboe's VIX, whose
    day ends at 16:15 New York time; on the few short days it is known earlier, which loses hours, leaks nothing.
    """
    label = pd.to_datetime(frame[day], utc=True).dt.tz_localize(None).dt.normalize()
    close = (label + pd.Timedelta(f"{time}:00")).dt.tz_localize(zone)
    return pd.DataFrame({"published": close.dt.tz_convert("UTC"), "event": label.dt.tz_localize("UTC"),
                         "name": name, "value": frame[value].astype(np.float64)})
