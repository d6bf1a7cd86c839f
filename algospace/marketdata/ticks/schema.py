"""Ticks as an Arrow table, one row a trade, and back.

    ts         timestamp[ns, UTC]   event time (or the receipt, where the data has no other)
    price      float64              points, unadjusted
    size       float64              null where unknown
    bid, ask   float64              best quotes just before the trade, null where unknown
    aggressor  int8                 +1 buyer, -1 seller, 0 unknown; null where the data does not say
    ts_recv    timestamp[ns, UTC]   null where the data has none
    contract   dictionary<string>   null where the data names none
    source     int32                position in the manifest's list of sources
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from algospace.marketdata.schema import CONTRACT_TYPE
from algospace.marketdata.ticks.files import codes_of
from algospace.types import AnyArray, FloatArray, IntArray, Ticks

_TIME = pa.timestamp("ns", tz="UTC")
TICK_SCHEMA = pa.schema([("ts", _TIME), ("price", pa.float64()), ("size", pa.float64()), ("bid", pa.float64()),
                         ("ask", pa.float64()), ("aggressor", pa.int8()), ("ts_recv", _TIME),
                         ("contract", CONTRACT_TYPE), ("source", pa.int32())])
OPTIONAL = ("bid", "ask", "aggressor", "ts_recv")


def ticks_to_table(ticks: Ticks, contracts: Sequence[str], source: int) -> pa.Table:
    """`ticks` on TICK_SCHEMA; `contracts[code]` names each contract code, empty if the data names none."""
    n = len(ticks)
    columns: list[pa.Array] = []
    for field in TICK_SCHEMA:
        values = getattr(ticks, field.name, None)
        if field.name == "source":
            columns.append(pa.array(np.full(n, source, np.int32)))
        elif field.name == "contract":
            columns.append(_contract_column(ticks, contracts))
        elif values is None:
            columns.append(pa.nulls(n, field.type))
        elif pa.types.is_floating(field.type):
            columns.append(pa.array(values, field.type, mask=np.isnan(values)))
        else:
            columns.append(pa.array(values, field.type))
    return pa.Table.from_arrays(columns, schema=TICK_SCHEMA)


def _contract_column(ticks: Ticks, contracts: Sequence[str]) -> pa.Array:
    if not contracts:
        return pa.nulls(len(ticks), CONTRACT_TYPE)
    codes = ticks.contract if ticks.contract is not None else np.zeros(len(ticks), np.int32)
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), pa.array(list(contracts), pa.string()))


def table_to_ticks(table: pa.Table, contracts: Sequence[str], columns: Collection[str]) -> Ticks:
    """Ticks of a table on TICK_SCHEMA with the optional `columns`; codes are positions in `contracts`."""
    optional: dict[str, AnyArray] = {}
    for name in ("bid", "ask"):
        if name in columns:
            optional[name] = floats(table.column(name))
    if "aggressor" in columns:
        optional["aggressor"] = np.array(table.column("aggressor").fill_null(0).to_numpy(), np.int8)
    if "ts_recv" in columns:
        optional["ts_recv"] = stamps(table.column("ts_recv"))
    if contracts:
        numbers, names = codes_of(table.column("contract"))
        lookup = [contracts.index(name) if name in contracts else 0 for name in names]
        lookup.append(contracts.index("") if "" in contracts else 0)  # rows without a contract
        optional["contract"] = np.array(lookup, np.int32)[numbers]
    return Ticks(stamps(table.column("ts")), floats(table.column("price")), floats(table.column("size")),
                 **optional)


def stamps(column: pa.ChunkedArray) -> IntArray:
    """Times as int64 ns; a missing one is the smallest integer."""
    return np.array(pc.cast(column, pa.int64()).fill_null(np.iinfo(np.int64).min).to_numpy(), np.int64)


def floats(column: pa.ChunkedArray) -> FloatArray:
    """Numbers, NaN where missing."""
    return np.array(column.to_numpy(), np.float64)


def contract_names(table: pa.Table) -> AnyArray:
    """(n,) name of each row's contract, None without one."""
    return pc.cast(table.column("contract"), pa.string()).to_numpy(zero_copy_only=False)


def concatenate(parts: Sequence[Ticks]) -> Ticks:
    """Ticks one after the other; all parts have the same columns."""
    names = parts[0].columns()
    return Ticks(**{name: np.concatenate([part.columns()[name] for part in parts]) for name in names})
