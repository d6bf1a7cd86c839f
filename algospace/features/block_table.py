"""Reading what `blocks` wrote: as one FeatureTable, or copied into the files of `store`, one block at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from algospace.errors import InputError
from algospace.features.blocks import block_files, read_manifest
from algospace.features.store import PARQUET_OPTIONS, describe, encoded, slow_path
from algospace.features.table import FeatureTable
from algospace.files import atomic_path, sha256_file
from algospace.types import AnyArray, FloatArray


def read_blocks(folder: Path | str, start_ns: int | None = None, end_ns: int | None = None,
                partial: bool = False) -> FeatureTable:
    """The base rows with start_ns <= ts_close < end_ns, and the 30-minute rows that these see.

    Without bounds the table equals `build` over the whole history. `row_30m` counts from the first 30-minute row
    returned; a 30-minute window needs an earlier start. InputError if a file is missing or was changed, or if the
    build was stopped before its end, unless `partial`.
    """
    folder = Path(folder)
    manifest = _finished(folder, partial)
    blocks = [block for block in manifest["blocks"] if block["rows"]
              and (start_ns is None or block["last"] >= start_ns) and (end_ns is None or block["first"] < end_ns)]
    index, base = _read_base(folder, manifest, blocks)
    first = 0 if start_ns is None else int(np.searchsorted(index["ts_close"], start_ns))
    stop = index["ts_close"].size if end_ns is None else int(np.searchsorted(index["ts_close"], end_ns))
    rows = slice(first, max(first, stop))
    index = {name: values[rows] for name, values in index.items()}
    seen = index["row_30m"]
    low, high = (max(int(seen[0]), 0), int(seen[-1]) + 1) if seen.size else (0, 0)
    ts_close_30m, slow = _read_slow(folder, manifest, low, high)
    base = {name: values[rows] for name, values in base.items()}
    return FeatureTable(
        manifest["symbol"], index["ts_close"], index["filled"], index["contract"], base, ts_close_30m, slow,
        seen if low == 0 else (seen - low).astype(np.int32), manifest["config"],
    )  # fmt: skip


def write_whole(folder: Path | str, path: Path | str) -> dict[str, Any]:
    """The blocks of `folder` as the two files that `write_table` writes, without ever holding more than a block.

    Returns what the command prints: rows, rows_30m, columns, synergies, first and last ts_close (ns; None without
    rows) and the schema hash.
    """
    folder, path = Path(folder), Path(path)
    manifest = _finished(folder, False)
    synergies = 0
    with atomic_path(path) as base_part, atomic_path(slow_path(path)) as slow_part:
        for _ in _copy(folder, manifest, 1, slow_part, None):
            pass
        about = describe(manifest["symbol"], manifest["base"], manifest["slow"], manifest["config"], slow_part)
        for part in _copy(folder, manifest, 0, base_part, encoded(about)):
            synergies += int((part.column("synergy_type").to_numpy() > 0).sum())
    ends = [block for block in manifest["blocks"] if block["rows"]]
    return {"rows": _total(manifest, "rows"), "rows_30m": _total(manifest, "rows_30m"),
            "columns": len(manifest["base"]), "synergies": synergies, "schema": about["schema"],
            "first": ends[0]["first"] if ends else None, "last": ends[-1]["last"] if ends else None}


def _finished(folder: Path, partial: bool) -> dict[str, Any]:
    manifest = read_manifest(folder)
    if not manifest["complete"] and not partial:
        last = manifest["blocks"][-1]["month"] if manifest["blocks"] else "nothing"
        raise InputError(folder, f"the build was stopped after {last}", "run it again: it continues from there")
    return manifest


def _total(manifest: dict[str, Any], key: str) -> int:
    return sum(block[key] for block in manifest["blocks"])


def _read_base(folder: Path, manifest: dict[str, Any],
               blocks: list[dict[str, Any]]) -> tuple[dict[str, AnyArray], dict[str, FloatArray]]:
    n = sum(block["rows"] for block in blocks)
    index: dict[str, AnyArray] = {"ts_close": np.empty(n, np.int64), "filled": np.empty(n, np.bool_),
                                  "contract": np.empty(n, np.int32), "row_30m": np.empty(n, np.int32)}
    base = {name: np.empty(n) for name in manifest["base"]}
    row = 0
    for block in blocks:  # block by block into place, so that no second copy of the whole is ever held
        part = _read_part(folder, block, 0)
        rows = slice(row, row + block["rows"])
        for name, values in index.items():
            values[rows] = part.column(name).to_numpy()
        for name, column in base.items():
            column[rows] = part.column(name).to_numpy()
        row = rows.stop
    return index, base


def _read_slow(folder: Path, manifest: dict[str, Any], low: int,
               high: int) -> tuple[AnyArray, dict[str, FloatArray]]:
    """30-minute rows [low, high) of the whole history."""
    ts, slow = np.empty(high - low, np.int64), {name: np.empty(high - low) for name in manifest["slow"]}
    start = 0
    for block in manifest["blocks"]:
        stop = start + block["rows_30m"]
        first, last = max(start, low), min(stop, high)
        if first < last:
            part = _read_part(folder, block, 1).slice(first - start, last - first)
            rows = slice(first - low, last - low)
            ts[rows] = part.column("ts_close").to_numpy()
            for name, column in slow.items():
                column[rows] = part.column(name).to_numpy()
        start = stop
    return ts, slow


def _read_part(folder: Path, block: dict[str, Any], which: int) -> pa.Table:
    name = block_files(block["month"])[which]
    path = folder / name
    if not path.is_file():
        raise InputError(path, "a block of the feature table is missing", "run the build again: it repairs it")
    if sha256_file(path) != block["files"][name]:
        raise InputError(path, "its bytes differ from the manifest's SHA-256",
                         "run the build again: it repairs it")
    return pq.ParquetFile(path).read()


def _copy(folder: Path, manifest: dict[str, Any], which: int, target: Path,
          about: dict[bytes, bytes] | None) -> Iterator[pa.Table]:
    """Write one kind of all blocks' rows to `target`, a row group each; yields them."""
    writer = None
    try:
        for block in manifest["blocks"]:
            part = _read_part(folder, block, which)
            if writer is None:
                writer = pq.ParquetWriter(target, part.schema.with_metadata(about), **PARQUET_OPTIONS)
            writer.write_table(part.replace_schema_metadata(about))
            yield part
    finally:
        if writer is not None:
            writer.close()
