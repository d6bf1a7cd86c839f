"""Feature tables as Parquet: FILE.parquet holds the base rows, FILE.30m.parquet beside it the 30-minute rows."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from algospace.errors import InputError, SchemaError
from algospace.features.table import FeatureTable
from algospace.files import atomic_path, sha256_file
from algospace.types import FloatArray

_VERSION = 1
_KEY = b"algospace"
_RECORD = {"version", "symbol", "config", "base", "slow", "schema", "slow_sha256"}
_INDEX = ("ts_close", "filled", "contract", "row_30m")
# Measured on a month of NQ: a third smaller and no slower than pyarrow's default, whose dictionaries do not pay
# for columns of floats that hardly repeat.
PARQUET_OPTIONS: dict[str, Any] = {"compression": "zstd", "use_dictionary": False}


def schema_hash(table: FeatureTable) -> str:
    """SHA-256 (hex) of what the columns are and mean: format version, names in order, feature configuration."""
    return _schema_hash(list(table.base), list(table.slow), table.config_digest)


def slow_path(path: Path | str) -> Path:
    """Where the 30-minute rows of the table at `path` lie."""
    path = Path(path)
    return path.with_name(f"{path.stem}.30m{path.suffix or '.parquet'}")


def write_table(table: FeatureTable, path: Path | str) -> None:
    """Write both files whole; the base file comes last and names the hash of its sibling."""
    path = Path(path)
    with atomic_path(path) as base_part, atomic_path(slow_path(path)) as slow_part:
        pq.write_table(slow_arrow(table), slow_part, **PARQUET_OPTIONS)
        about = describe(table.symbol, list(table.base), list(table.slow), table.config_digest, slow_part)
        pq.write_table(base_arrow(table).replace_schema_metadata(encoded(about)), base_part, **PARQUET_OPTIONS)


def describe(
    symbol: str, base: list[str], slow: list[str], config_digest: str, slow_file: Path
) -> dict[str, Any]:
    """What the base file says of itself and `read_table` checks, the written 30-minute file included."""
    return {
        "version": _VERSION, "symbol": symbol, "config": config_digest, "base": base, "slow": slow,
        "schema": _schema_hash(base, slow, config_digest), "slow_sha256": sha256_file(slow_file),
    }  # fmt: skip


def encoded(about: dict[str, Any]) -> dict[bytes, bytes]:
    """`about` as the metadata of a file's schema."""
    return {_KEY: json.dumps(about).encode()}


def base_arrow(table: FeatureTable) -> pa.Table:
    """The base rows as they lie in a file: the index first, `filled` once, as a flag."""
    index = {"ts_close": table.ts_close, "filled": table.filled, "contract": table.contract,
             "row_30m": table.row_30m}  # fmt: skip
    return _arrow({**index, **{name: column for name, column in table.base.items() if name != "filled"}})


def slow_arrow(table: FeatureTable) -> pa.Table:
    """The 30-minute rows as they lie in a file."""
    return _arrow({"ts_close": table.ts_close_30m, **table.slow})


def read_table(path: Path | str, expected_hash: str | None = None) -> FeatureTable:
    """Read both files. SchemaError if the columns are not those the file was written with, or not `expected_hash`;
    InputError if a file is missing, damaged, or the two do not belong together."""
    path = Path(path)
    base, slow = _read(path), _read(slow_path(path))
    about = _about(path, base)
    if about["slow_sha256"] != sha256_file(slow_path(path)):
        raise InputError(slow_path(path), "it does not belong to the base rows", "build the feature table again")
    found = _schema_hash(_columns(base, about["base"]), _columns(slow, about["slow"]), about["config"])
    if about["version"] != _VERSION or found != about["schema"]:
        raise SchemaError(f"{path}: schema {found[:12]} is not the recorded {about['schema'][:12]}; build the "
                          "feature table again")  # fmt: skip
    if expected_hash is not None and found != expected_hash:
        raise SchemaError(f"{path}: schema {found[:12]} differs from the expected {expected_hash[:12]}; build the "
                          "features with the model's configuration")  # fmt: skip
    filled = np.asarray(base["filled"])
    return FeatureTable(
        about["symbol"], np.asarray(base["ts_close"]), filled, np.asarray(base["contract"]),
        {name: filled.astype(np.float64) if name == "filled" else _floats(base, name) for name in about["base"]},
        np.asarray(slow["ts_close"]), {name: _floats(slow, name) for name in about["slow"]},
        np.asarray(base["row_30m"]), about["config"],
    )  # fmt: skip


def _schema_hash(base: list[str], slow: list[str], config_digest: str) -> str:
    text = json.dumps([_VERSION, base, slow, config_digest], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _arrow(columns: dict[str, Any]) -> pa.Table:
    return pa.table({name: pa.array(values) for name, values in columns.items()})


def _read(path: Path) -> pa.Table:
    if not path.is_file():
        raise InputError(path, "no such file", "give the path of a feature table, with its 30m file beside it")
    try:
        return pq.read_table(path, memory_map=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(path, f"not a readable Parquet file ({error})", "build the feature table again") from None


def _about(path: Path, table: pa.Table) -> dict[str, Any]:
    try:
        about: dict[str, Any] = json.loads((table.schema.metadata or {})[_KEY])
        missing = _RECORD - about.keys()
    except (KeyError, ValueError, AttributeError):
        missing = _RECORD
    if missing:
        raise SchemaError(f"{path}: not a feature table of AlgoSpace; build one with `algospace features`")
    return about


def _columns(table: pa.Table, recorded: list[str]) -> list[str]:
    """The value columns of a file, `filled` at its recorded place (it lies among the base rows' index)."""
    names = [name for name in table.column_names if name not in _INDEX]
    if "filled" in recorded:
        names.insert(recorded.index("filled"), "filled")
    return names


def _floats(table: pa.Table, name: str) -> FloatArray:
    return np.asarray(table[name], dtype=np.float64)
