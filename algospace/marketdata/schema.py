"""The one table that every importer maps onto, and its way between Arrow and numpy.

    ts_open   timestamp[ns, UTC]   start of the bar; the bar covers [ts_open, ts_open + width)
    open, high, low, close         float64 points, unadjusted
    volume    float64              null where the data has none
    contract  dictionary<string>   null where the data names none; a change marks a futures roll

The width is metadata of the table (`width_ns`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from algospace.types import Bars, FloatArray, Int32Array, IntArray

PRICES = ("open", "high", "low", "close")
CONTRACT_TYPE = pa.dictionary(pa.int32(), pa.string())
BAR_SCHEMA = pa.schema([
    ("ts_open", pa.timestamp("ns", tz="UTC")),
    *((name, pa.float64()) for name in PRICES),
    ("volume", pa.float64()),
    ("contract", CONTRACT_TYPE),
])
_WIDTH_KEY = b"width_ns"


def bars_to_table(bars: Bars, contracts: Sequence[str] = ()) -> pa.Table:
    """`bars` on BAR_SCHEMA; `contracts[code]` names each contract code, empty if the data names none."""
    columns: list[pa.Array] = [pa.array(bars.ts_open, BAR_SCHEMA.field("ts_open").type)]
    columns += [pa.array(getattr(bars, name)) for name in PRICES]
    columns.append(pa.array(bars.volume, mask=np.isnan(bars.volume)))
    if contracts:
        names = pa.array(list(contracts), pa.string())
        columns.append(pa.DictionaryArray.from_arrays(pa.array(bars.contract), names))
    else:
        columns.append(pa.nulls(len(bars), CONTRACT_TYPE))
    schema = BAR_SCHEMA.with_metadata({_WIDTH_KEY: str(bars.width_ns).encode()})
    return pa.Table.from_arrays(columns, schema=schema)


def table_to_bars(table: pa.Table, width_ns: int, contracts: Sequence[str] = ()) -> Bars:
    """Bars of a table on BAR_SCHEMA; contract codes are positions in `contracts`, 0 without names."""
    ts = table.column("ts_open").cast(pa.int64()).to_numpy()
    prices = {name: _floats(table.column(name)) for name in PRICES}
    codes = _codes(table.column("contract"), contracts) if contracts else np.zeros(ts.size, np.int32)
    return Bars(ts_open=ts, **prices, volume=_floats(table.column("volume")), width_ns=width_ns, contract=codes)


def empty_bars(rows: int, width_ns: int) -> Bars:
    """Bars of `rows` rows, to be filled by `copy_bars`."""
    prices = {name: np.empty(rows) for name in PRICES}
    return Bars(ts_open=np.empty(rows, np.int64), **prices, volume=np.empty(rows), width_ns=width_ns,
                contract=np.empty(rows, np.int32))


def copy_bars(source: Bars, target: Bars, row: int) -> None:
    """Write `source` into the rows of `target` from `row` on."""
    for name in ("ts_open", *PRICES, "volume", "contract"):
        getattr(target, name)[row:row + len(source)] = getattr(source, name)


def _floats(column: pa.ChunkedArray) -> FloatArray:
    return np.ascontiguousarray(column.to_numpy(), dtype=np.float64)


def _codes(column: pa.ChunkedArray, contracts: Sequence[str]) -> Int32Array:
    """Positions in `contracts`; a table may order its dictionary differently."""
    number = {name: code for code, name in enumerate(contracts)}
    encoded = column.unify_dictionaries().combine_chunks() if column.num_chunks else column
    chunks = encoded.chunks if isinstance(encoded, pa.ChunkedArray) else [encoded]
    parts = []
    for chunk in chunks:
        lookup = np.array([number[name] for name in chunk.dictionary.to_pylist()] + [0], np.int32)
        parts.append(lookup[chunk.indices.fill_null(len(lookup) - 1).to_numpy()])
    return np.concatenate(parts) if parts else np.zeros(0, np.int32)


def infer_width(ts_open: IntArray) -> int:
    """The most common distance between neighbouring bars that differ in time, in ns; 0 if there are none."""
    steps = np.abs(np.diff(ts_open))
    steps = steps[steps > 0]
    if steps.size == 0:
        return 0
    values, counts = np.unique(steps, return_counts=True)
    return int(values[np.argmax(counts)])
