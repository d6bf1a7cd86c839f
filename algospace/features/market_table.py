"""The market table: everything that environments, agents and backtests read, row by row, without copying.

Built once from a feature table and a normaliser fitted on the training split; saved as a folder of `.npy` files
that every process maps into memory.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from algospace.errors import InputError, SchemaError
from algospace.features.matrix_schema import MatrixSchema
from algospace.files import atomic_directory, sha256_file, write_json
from algospace.types import BoolArray, Float32Array, FloatArray, Int32Array, IntArray

MANIFEST = "manifest.json"
FORMAT = 2


@dataclass(frozen=True)
class MarketTable:
    """n base rows, m 30-minute rows. Observations are row numbers into these arrays.

    Prices are raw (unadjusted) points. `roll[i]` is 1 except on the first row of a new contract, where a price
    level of the old contract times `roll[i]` is the same level in the new one.
    `atr` and `atr_30m` are in raw points. `day` is the trading day (days since 1970).
    `clock` is (hour_sin, hour_cos) of ts_close in exchange time.
    `filled[i]` is True where no trade happened: the bar repeats the close before it, nothing executes.
    `decision[i]` is True where the policy may act: a real (not filled) bar whose windows are complete.
    `synergy` is (type/4, direction, bars/10); `synergy_event[i]` is True where a synergy was detected on row i.
    `tactical` (n, Ft), `strategic` (m, Fs), `regime` (m, Fr) are normalised feature rows; the window of row i
    is tactical[i-window+1 : i+1], and for 30-minute matrices rows row_30m[i]-window+1 : row_30m[i]+1.
    Rows of the warm-up are zeros there; `atr` and `atr_30m` are NaN until they exist; nothing else is ever NaN.
    """

    symbol: str
    schema: MatrixSchema
    ts_close: IntArray
    open: FloatArray
    high: FloatArray
    low: FloatArray
    close: FloatArray
    roll: FloatArray
    atr: FloatArray
    atr_30m: FloatArray
    day: Int32Array
    clock: Float32Array
    filled: BoolArray
    decision: BoolArray
    synergy: Float32Array
    synergy_event: BoolArray
    row_30m: Int32Array
    tactical: Float32Array
    strategic: Float32Array
    regime: Float32Array

    def __len__(self) -> int:
        return int(self.ts_close.size)

    @property
    def first_decision(self) -> int:
        """First row on which the policy may act; SchemaError if there is none."""
        rows = np.flatnonzero(self.decision)
        if rows.size == 0:
            raise SchemaError(f"no row of {self.symbol} has complete windows; give more history (the warm-up "
                              f"takes about 340 30-minute bars)")
        return int(rows[0])

    def save(self, folder: Path | str) -> None:
        """Write the table as a folder of `.npy` files and a manifest with their SHA-256; whole or not at all."""
        with atomic_directory(folder) as part:
            files = {}
            for name in ARRAYS:
                path = part / f"{name}.npy"
                np.save(path, getattr(self, name), allow_pickle=False)
                files[path.name] = sha256_file(path)
            write_json(part / MANIFEST, {
                "format": FORMAT, "symbol": self.symbol, "rows": len(self), "schema": self.schema.to_dict(),
                "schema_digest": self.schema.digest(), "files": files})

    @staticmethod
    def load(
        folder: Path | str, mmap: bool = True, schema: MatrixSchema | None = None, verify: bool = True
    ) -> MarketTable:
        """Open a saved table, mapped into memory unless `mmap` is False.

        InputError if the folder is no table or a file was changed (`verify` reads every byte once; workers that
        open a table their driver has just verified may skip it). SchemaError if `schema` is given and differs.
        """
        folder = Path(folder)
        manifest = _read_manifest(folder)
        found = MatrixSchema.from_dict(manifest["schema"])
        if found.digest() != manifest["schema_digest"]:
            raise SchemaError(f"{folder / MANIFEST}: the schema was changed after it was written; build it again")
        if schema is not None:
            schema.require(found, str(folder))
        arrays = {name: _load_array(folder, name, manifest["files"], mmap, verify) for name in ARRAYS}
        return MarketTable(symbol=manifest["symbol"], schema=found, **arrays)


ARRAYS = tuple(field.name for field in fields(MarketTable) if field.name not in ("symbol", "schema"))


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(folder, f"no market table here (no {MANIFEST})", "give the folder of a saved table")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise InputError(path, "not valid JSON", "build the table again") from None
    wanted = {"format", "symbol", "rows", "schema", "schema_digest", "files"}
    if not isinstance(manifest, dict) or not wanted <= set(manifest) or manifest["format"] != FORMAT:
        raise InputError(path, f"not a market table of format {FORMAT}", "build the table again")
    return manifest


def _load_array(folder: Path, name: str, hashes: dict[str, str], mmap: bool, verify: bool) -> Any:
    path = folder / f"{name}.npy"
    if path.name not in hashes or not path.is_file():
        raise InputError(path, "this column of the market table is missing", "build the table again")
    if verify and sha256_file(path) != hashes[path.name]:
        raise InputError(path, "the file does not match the manifest's checksum", "build the table again")
    return np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)
