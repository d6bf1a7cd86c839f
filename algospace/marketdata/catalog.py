"""The catalog: clean bars as Parquet by instrument and month.

    ROOT/SYMBOL/2024-12.parquet     rows on BAR_SCHEMA, in time order
    ROOT/SYMBOL/catalog.json        width, contract names, rows and SHA-256 of every month, imports
    ROOT/SYMBOL/quarantine.parquet  rows that broke a rule
    ROOT/SYMBOL/quality.json        the report of every import

An instrument's folder is replaced as a whole, so a reader never sees half an import. Importing the same source
again changes nothing; where two sources hold the same bar the later import wins and the count is reported.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from algospace.errors import InputError
from algospace.files import atomic_directory, sha256_file
from algospace.marketdata.importers import ImportResult
from algospace.marketdata.parquet_import import read_table
from algospace.marketdata.schema import PRICES, bars_to_table, copy_bars, empty_bars, table_to_bars
from algospace.memory import release_unused
from algospace.types import AnyArray, Bars, IntArray

MANIFEST = "catalog.json"
QUALITY = "quality.json"
QUARANTINE = "quarantine.parquet"
FORMAT = 1


@dataclass(frozen=True)
class Written:
    """What a write changed: months rewritten, rows that are new, rows whose values were replaced."""

    months: int
    added: int
    replaced: int


def find_catalog(path: Path, symbol: str) -> Path | None:
    """The catalog's root if `path` is a catalog or one instrument's folder in it, else None."""
    if (path / symbol / MANIFEST).is_file():
        return path
    if (path / MANIFEST).is_file():
        held = _read_manifest(path)["symbol"]
        if held != symbol:
            raise InputError(path, f"this catalog folder holds {held}, not {symbol}", f"say --instrument {held}")
        return path.parent
    if path.is_dir() and any(path.glob(f"*/{MANIFEST}")):
        Catalog(path).manifest(symbol)  # raises: the catalog holds others
    return None


class Catalog:
    """Bars by instrument and month below one folder."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def symbols(self) -> list[str]:
        """Instruments held, sorted."""
        return sorted(p.parent.name for p in self.root.glob(f"*/{MANIFEST}") if not p.parent.name.startswith("."))

    def manifest(self, symbol: str) -> dict[str, Any]:
        """The manifest of one instrument."""
        return _read_manifest(self._folder(symbol))

    def contracts(self, symbol: str) -> list[str]:
        """Names of the contract codes of `read`."""
        return [str(name) for name in self.manifest(symbol)["contracts"]]

    def read(self, symbol: str, start_ns: int | None = None, end_ns: int | None = None,
             as_of_ns: int | None = None) -> Bars:
        """Bars with start_ns <= ts_open < end_ns, and, as of an instant, only those closed by then.

        InputError if a month's file is missing or differs from the manifest.
        """
        folder = self._folder(symbol)
        manifest = _read_manifest(folder)
        width = int(manifest["width_ns"])
        end = _earliest(end_ns, None if as_of_ns is None else as_of_ns - width + 1)
        months = [(month, entry) for month, entry in sorted(manifest["months"].items())
                  if (start_ns is None or entry["last_ts"] >= start_ns)
                  and (end is None or entry["first_ts"] < end)]
        bars = empty_bars(sum(entry["rows"] for _, entry in months), width)
        row = 0
        for month, entry in months:  # month by month, so that no second copy of the whole is ever held
            copy_bars(table_to_bars(_read_month(folder, month, entry), width, manifest["contracts"]), bars, row)
            row += entry["rows"]
        release_unused()
        first = 0 if start_ns is None else int(np.searchsorted(bars.ts_open, start_ns))
        stop = len(bars) if end is None else int(np.searchsorted(bars.ts_open, end))
        return bars.slice(first, max(stop, first))

    def read_month(self, symbol: str, month: str, manifest: dict[str, Any]) -> Bars:
        """The bars of one month as `manifest` (of `manifest(symbol)`) knows it; InputError if it has changed."""
        entry = manifest["months"][month]
        table = _read_month(self.root / symbol, month, entry)
        return table_to_bars(table, int(manifest["width_ns"]), manifest["contracts"])

    def write(self, symbol: str, bars: Bars, contracts: Sequence[str] = ()) -> Written:
        """Merge clean bars (in time order) into the instrument's months."""
        return self._write(symbol, bars, contracts, None)

    def write_import(self, symbol: str, result: ImportResult) -> Written:
        """Merge an import with its report and its quarantine."""
        return self._write(symbol, result.bars, result.contracts, result)

    def _write(self, symbol: str, bars: Bars, contracts: Sequence[str], result: ImportResult | None) -> Written:
        if len(bars) == 0 or (np.diff(bars.ts_open) <= 0).any():
            raise ValueError("a catalog takes at least one bar, in strictly increasing time order")
        folder = self.root / symbol
        old = _read_manifest(folder) if (folder / MANIFEST).is_file() else None
        if old is not None and old["width_ns"] != bars.width_ns:
            raise InputError(folder, f"the catalog holds {old['width_ns'] // 10**9} s bars of {symbol}, "
                                     f"the source has {bars.width_ns // 10**9} s bars", "choose another --out")
        with atomic_directory(folder) as part:
            if old is not None:
                shutil.copytree(folder, part, dirs_exist_ok=True)
            months, written = _merge_months(part, old, bars, contracts)
            names = list(dict.fromkeys([*(old["contracts"] if old else []), *contracts]))
            manifest = {"format": FORMAT, "symbol": symbol, "width_ns": bars.width_ns, "contracts": names,
                        "months": months}
            if result is not None:
                _add_report(part, result)
            (part / MANIFEST).write_text(_json(manifest), encoding="utf-8")
        return written

    def _folder(self, symbol: str) -> Path:
        folder = self.root / symbol
        if not (folder / MANIFEST).is_file():
            held = ", ".join(self.symbols()) or "nothing"
            raise InputError(self.root, f"the catalog does not hold {symbol} (it has: {held})", "import it first")
        return folder


def _earliest(*instants: int | None) -> int | None:
    known = [instant for instant in instants if instant is not None]
    return min(known) if known else None


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise InputError(path, f"catalog format {manifest['format']}, this version reads {FORMAT}",
                             "import again")
    except (ValueError, KeyError, TypeError):
        raise InputError(path, "not a catalog manifest", "import the instrument again") from None
    return manifest


def _read_month(folder: Path, month: str, entry: dict[str, Any]) -> pa.Table:
    path = folder / f"{month}.parquet"
    if not path.is_file():
        raise InputError(path, "a month of the catalog is missing", "import it again")
    if sha256_file(path) != entry["sha256"]:
        read_table(path)  # a truncated file gets its own words
        raise InputError(path, "its bytes differ from the manifest's SHA-256", "import the month again")
    return read_table(path)


def _months_of(ts: IntArray) -> AnyArray:
    return ts.astype("datetime64[ns]").astype("datetime64[M]")


def _merge_months(part: Path, old: dict[str, Any] | None, bars: Bars,
                  contracts: Sequence[str]) -> tuple[dict[str, Any], Written]:
    """Write every month that the bars touch; (all months' manifest entries, what changed)."""
    entries: dict[str, Any] = dict(old["months"]) if old else {}
    table = bars_to_table(bars, contracts)
    months = _months_of(bars.ts_open)
    starts = np.flatnonzero(np.r_[True, months[1:] != months[:-1]])
    touched = added = replaced = 0
    for start, stop in zip(starts, np.r_[starts[1:], len(bars)], strict=True):
        month = str(months[start])
        new = table.slice(start, stop - start)
        if month in entries:
            held = _read_month(part, month, entries[month])
            new, fresh, changed = _merge(held, new)
            added, replaced = added + fresh, replaced + changed
            if not fresh and not changed:
                continue
        else:
            added += new.num_rows
        touched += 1
        path = part / f"{month}.parquet"
        pq.write_table(new, path, compression="zstd")
        ts = new.column("ts_open").cast(pa.int64())
        entries[month] = {"rows": new.num_rows, "first_ts": ts[0].as_py(), "last_ts": ts[-1].as_py(),
                          "sha256": sha256_file(path)}
    return entries, Written(touched, added, replaced)


def _merge(held: pa.Table, new: pa.Table) -> tuple[pa.Table, int, int]:
    """(rows of both, new winning at equal times; rows added; rows whose values changed)."""
    held_ts, new_ts = (t.column("ts_open").cast(pa.int64()).to_numpy() for t in (held, new))
    _, at_held, at_new = np.intersect1d(held_ts, new_ts, assume_unique=True, return_indices=True)
    changed = np.zeros(at_held.size, np.bool_)
    for name in (*PRICES, "volume"):
        before, after = held.column(name).to_numpy()[at_held], new.column(name).to_numpy()[at_new]
        changed |= ~((before == after) | (np.isnan(before) & np.isnan(after)))
    names = [pc.cast(t.column("contract"), pa.string()).fill_null("").to_numpy(zero_copy_only=False)
             for t in (held, new)]
    changed |= names[0][at_held] != names[1][at_new]
    fresh = new_ts.size - at_new.size
    if not fresh and not changed.any():
        return held, 0, 0
    kept = np.setdiff1d(np.arange(held_ts.size), at_held)
    both = pa.concat_tables([held.take(kept), new]).unify_dictionaries()
    return both.sort_by("ts_open").combine_chunks(), fresh, int(changed.sum())


def _add_report(part: Path, result: ImportResult) -> None:
    """Add the report and the quarantined rows; those of an earlier import of the same source are replaced."""
    report = result.report.to_dict()
    path = part / QUALITY
    reports = json.loads(path.read_text(encoding="utf-8"))["imports"] if path.is_file() else []
    replaced = [r for r in reports if r["source"] == report["source"]]
    reports = sorted([*(r for r in reports if r not in replaced), report],
                     key=lambda r: (r["first_bar"], r["source"]))
    path.write_text(_json({"imports": reports}), encoding="utf-8")
    names = pa.array([report["source"]] * result.quarantine.num_rows, pa.string())
    rows = result.quarantine.append_column("import", names)
    path = part / QUARANTINE
    if path.is_file():
        held = read_table(path)
        rows = pa.concat_tables([held.filter(pc.not_equal(held.column("import"), report["source"])), rows])
    pq.write_table(rows, path, compression="zstd")


