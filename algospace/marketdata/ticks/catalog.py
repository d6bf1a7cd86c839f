"""The catalog of ticks: Parquet by instrument and UTC day, beside the bars of the same root folder.

    ROOT/SYMBOL.ticks/2025-05-04.parquet   rows on TICK_SCHEMA, in the order in which they became known
    ROOT/SYMBOL.ticks/ticks.json           contracts, sources, rows and SHA-256 of every day
    ROOT/SYMBOL.ticks/quarantine.parquet   rows that broke a rule
    ROOT/SYMBOL.ticks/quality.json         the report of every import

An instrument's folder is replaced as a whole (days that do not change are linked, not copied), so a reader never
sees half an import. A source is known by the SHA-256 of its content: importing it again changes nothing. Equal
prints are legitimate, so two sources that cover the same time cannot be told apart row by row: a newer file of the
same name replaces the older one's ticks of that time, another name is refused unless the caller decides.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from algospace.errors import InputError
from algospace.files import atomic_directory, atomic_path, sha256_file, write_json
from algospace.marketdata.parquet_import import read_table
from algospace.marketdata.ticks.importer import TickImportResult
from algospace.marketdata.ticks.schema import (
    OPTIONAL,
    TICK_SCHEMA,
    concatenate,
    stamps,
    table_to_ticks,
    ticks_to_table,
)
from algospace.marketdata.ticks.sources import Incoming, Sources
from algospace.types import DAY_NS, IntArray, Ticks

MANIFEST = "ticks.json"
SUFFIX = ".ticks"
QUALITY = "quality.json"
QUARANTINE = "quarantine.parquet"
FORMAT = 1

Overlap = Literal["refuse", "replace", "append"]


@dataclass(frozen=True)
class TicksWritten:
    """What a write changed: days rewritten, rows added to them, rows that went."""

    days: int
    added: int
    removed: int


class TickCatalog:
    """Ticks by instrument and UTC day below one folder."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def symbols(self) -> list[str]:
        """Instruments held, sorted."""
        return sorted(p.parent.name.removesuffix(SUFFIX) for p in self.root.glob(f"*{SUFFIX}/{MANIFEST}")
                      if not p.parent.name.startswith("."))

    def manifest(self, symbol: str) -> dict[str, Any]:
        """The manifest of one instrument."""
        return _read_manifest(self._folder(symbol))

    def contracts(self, symbol: str) -> list[str]:
        """Names of the contract codes of `read`."""
        return [str(name) for name in self.manifest(symbol)["contracts"]]

    def days(self, symbol: str) -> list[str]:
        """UTC days held, such as 2025-05-04, in order."""
        return sorted(self.manifest(symbol)["days"])

    def clock_offset_ns(self, symbol: str) -> int:
        """How far the receive clock of the files behind `symbol` runs ahead of the exchange's, ns; 0 if unknown.

        Negative where it is behind. Of several files it is the most negative one: what is stamped by that clock is
        then taken as known later rather than earlier.
        """
        held = {source["sha256"] for source in self.manifest(symbol)["sources"]}
        path = self._folder(symbol) / QUALITY
        reports = json.loads(path.read_text(encoding="utf-8"))["imports"] if path.is_file() else []
        clocks = [report["clock"] for report in reports if report["sha256"] in held and report["clock"]]
        return min((int(clock["offset_ns"]) for clock in clocks), default=0)

    def lacks(self, symbol: str) -> InputError:
        """What to say where `symbol` is asked for and not here."""
        held = ", ".join(self.symbols()) or "nothing"
        return InputError(self.root, f"the catalog does not hold ticks of {symbol} (it has: {held})",
                          "import them first")

    def read(self, symbol: str, start_ns: int | None = None, end_ns: int | None = None,
             as_of_ns: int | None = None) -> Ticks:
        """Ticks with start_ns <= ts < end_ns, and, as of an instant, only those that were known by then.

        A tick is known from its event on, and from its receipt on where the data has one. InputError if a day's
        file is missing or differs from the manifest.
        """
        parts = [ticks for _, ticks in self.iterate(symbol, start_ns, end_ns, as_of_ns)]
        if parts:
            return concatenate(parts)
        manifest = self.manifest(symbol)
        return table_to_ticks(TICK_SCHEMA.empty_table(), manifest["contracts"], manifest["columns"])

    def iterate(self, symbol: str, start_ns: int | None = None, end_ns: int | None = None,
                as_of_ns: int | None = None) -> Iterator[tuple[str, Ticks]]:
        """(day, its ticks) in order, one day in memory at a time; days without such ticks are left out."""
        folder = self._folder(symbol)
        manifest = _read_manifest(folder)
        if as_of_ns is not None:
            end_ns = as_of_ns + 1 if end_ns is None else min(end_ns, as_of_ns + 1)
        for day, entry in sorted(manifest["days"].items()):
            if (start_ns is not None and entry["last_ts"] < start_ns) or (
                    end_ns is not None and entry["first_ts"] >= end_ns):
                continue
            table = _read_day(folder, day, entry)
            ticks = table_to_ticks(table, manifest["contracts"], manifest["columns"])
            wanted = np.ones(len(ticks), np.bool_)
            if start_ns is not None:
                wanted &= ticks.ts >= start_ns
            if end_ns is not None:
                wanted &= ticks.ts < end_ns
            if as_of_ns is not None:
                wanted &= stamps(table.column("ts_recv")) <= as_of_ns  # a missing one is in the far past
            if wanted.any():
                yield day, ticks if wanted.all() else ticks.take(wanted)

    def write(self, symbol: str, ticks: Ticks, contracts: Sequence[str] = (), source: str = "ticks",
              overlap: Overlap = "refuse") -> TicksWritten:
        """Merge clean ticks of a named source into the instrument's days."""
        digest = hashlib.sha256()
        for name, column in ticks.columns().items():
            digest.update(name.encode() + np.ascontiguousarray(column).tobytes())
        return self._write(symbol, ticks, contracts, source, digest.hexdigest(), overlap, None)

    def write_import(self, symbol: str, result: TickImportResult, overlap: Overlap = "refuse") -> TicksWritten:
        """Merge an import with its report and its quarantine.

        overlap says what happens where another source holds ticks of the same time: `refuse` raises InputError,
        `replace` drops the held ones, `append` keeps both (sources of different venues).
        """
        report = result.report
        return self._write(symbol, result.ticks, result.contracts, report.source, report.sha256, overlap, result)

    def _write(self, symbol: str, ticks: Ticks, contracts: Sequence[str], source: str, sha256: str,
               overlap: Overlap, result: TickImportResult | None) -> TicksWritten:
        if len(ticks) == 0:
            raise ValueError("a catalog takes at least one tick")
        folder = self.root / f"{symbol}{SUFFIX}"
        old = _read_manifest(folder) if (folder / MANIFEST).is_file() else None
        held = Sources(list(old["sources"]) if old else [])
        incoming = Incoming.of(ticks, contracts, source, sha256)
        plan = held.plan(folder, incoming, overlap)
        with atomic_directory(folder) as part:
            if old is not None:
                shutil.copytree(folder, part, dirs_exist_ok=True, copy_function=_link)
            table = ticks_to_table(ticks, contracts, plan.number)
            days, written = _merge_days(part, dict(old["days"]) if old else {}, table, plan.drop, plan.touched)
            sources = held.after(plan, incoming)
            manifest = {"format": FORMAT, "symbol": symbol, "days": days, "sources": sources,
                        "contracts": held.contracts(old["contracts"] if old else [], contracts),
                        "columns": held.columns(OPTIONAL)}
            if result is not None:
                _add_report(part, result)
            write_json(part / MANIFEST, manifest)
        return written

    def _folder(self, symbol: str) -> Path:
        folder = self.root / f"{symbol}{SUFFIX}"
        if not (folder / MANIFEST).is_file():
            raise self.lacks(symbol)
        return folder


def _link(source: str, target: str) -> None:
    """A hard link, or a copy where links are not possible; files of a catalog are replaced, never changed."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        form = manifest["format"]
        complete = {"symbol", "contracts", "days", "sources", "columns"} <= set(manifest)
    except (ValueError, KeyError, TypeError):
        form, complete = None, False
    if not complete:
        raise InputError(path, "not a manifest of ticks", "import the instrument again")
    if form != FORMAT:
        raise InputError(path, f"catalog format {form}, this version reads {FORMAT}", "import again")
    return manifest


def _read_day(folder: Path, day: str, entry: dict[str, Any]) -> pa.Table:
    path = folder / f"{day}.parquet"
    if not path.is_file():
        raise InputError(path, "a day of the catalog is missing", "import it again")
    if sha256_file(path) != entry["sha256"]:
        read_table(path)  # a truncated file gets its own words
        raise InputError(path, "its bytes differ from the manifest's SHA-256", "import the day again")
    return read_table(path)


def _merge_days(part: Path, entries: dict[str, Any], table: pa.Table, drop: Any,
                touched: tuple[int, int]) -> tuple[dict[str, Any], TicksWritten]:
    """Write every day that changes; (all days' manifest entries, what changed).

    drop(table) is the mask of held rows that go; touched is the time range that they can lie in.
    """
    number = stamps(table.column("ts")) // DAY_NS
    order = np.argsort(number, kind="stable")  # ticks out of order around midnight go to their own day
    table, number = (table, number) if bool((np.diff(number) >= 0).all()) else (table.take(order), number[order])
    new = {int(day): (int(np.searchsorted(number, day)), int(np.searchsorted(number, day, side="right")))
           for day in np.unique(number)}
    held = {int(np.datetime64(day).astype(int)) for day in entries}
    days = sorted(new.keys() | {day for day in held if touched[0] // DAY_NS <= day <= touched[1] // DAY_NS})
    changed = added = removed = 0
    for day in days:
        name = str(np.datetime64(day, "D"))
        start, stop = new.get(day, (0, 0))
        fresh = table.slice(start, stop - start)
        before = _read_day(part, name, entries[name]) if name in entries else None
        kept = before.filter(pa.array(~drop(before))) if before is not None else None
        after = fresh if kept is None or kept.num_rows == 0 else _in_order(kept, fresh)
        if before is not None and _equal(before, after):
            continue
        changed, added = changed + 1, added + fresh.num_rows
        removed += before.num_rows - (kept.num_rows if kept is not None else 0) if before is not None else 0
        path = part / f"{name}.parquet"
        if after.num_rows == 0:
            path.unlink()
            del entries[name]
            continue
        with atomic_path(path) as fresh_path:  # never through the link into the old folder's file
            pq.write_table(after, fresh_path, compression="zstd")
        ts = stamps(after.column("ts"))
        entries[name] = {"rows": after.num_rows, "first_ts": int(ts.min()), "last_ts": int(ts.max()),
                         "sha256": sha256_file(path)}
    return entries, TicksWritten(changed, added, removed)


def _in_order(kept: pa.Table, fresh: pa.Table) -> pa.Table:
    """Both together by time; rows of one source stay in their own order."""
    both = pa.concat_tables([kept, fresh]).unify_dictionaries().combine_chunks()
    ts, source = stamps(both.column("ts")), both.column("source").to_numpy()
    key: IntArray = np.empty_like(ts)
    for one in np.unique(source):
        rows = source == one
        key[rows] = np.maximum.accumulate(ts[rows])
    return both.take(pa.array(np.argsort(key, kind="stable")))


def _equal(before: pa.Table, after: pa.Table) -> bool:
    plain = [name for name in TICK_SCHEMA.names if name != "contract"]
    if not before.select(plain).equals(after.select(plain)):
        return False
    names = [pc.cast(table.column("contract"), pa.string()) for table in (before, after)]
    return bool(names[0].equals(names[1]))


def _add_report(part: Path, result: TickImportResult) -> None:
    """Add the report and the quarantined rows; those of an earlier import of the same content are replaced."""
    report = result.report.to_dict()
    path = part / QUALITY
    reports = json.loads(path.read_text(encoding="utf-8"))["imports"] if path.is_file() else []
    others = [r for r in reports if r["sha256"] != report["sha256"]]
    write_json(path, {"imports": sorted([*others, report], key=lambda r: (r["first"], r["source"], r["sha256"]))})
    names = pa.array([report["sha256"]] * result.quarantine.num_rows, pa.string())
    rows = result.quarantine.append_column("import", names)
    path = part / QUARANTINE
    if path.is_file():
        held = read_table(path)
        rows = pa.concat_tables([held.filter(pc.not_equal(held.column("import"), report["sha256"])), rows])
    with atomic_path(path) as fresh_path:
        pq.write_table(rows, fresh_path, compression="zstd")
