"""The oracle column: the next bar's return, shown on purpose to test a learner, and kept out of everything else.

Fed with it, a learner that works must leave the best possible result of honest observers far behind, and the leak
alarm must ring. It can enter a table in one way, `with_oracle`, which only the evaluation harness calls, on
synthetic markets. Its name in the table's schema is the mark: no configuration can name it, no feature pipeline
computes it, and `refuse_oracle` stands before every bundle.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from algospace.errors import SchemaError
from algospace.features.market_table import MarketTable
from algospace.features.matrix_schema import ODD, ColumnSpec, MatrixSchema
from algospace.types import Float32Array, FloatArray

ORACLE_COLUMN = "oracle_next_return"


def has_oracle(schema: MatrixSchema) -> bool:
    """Whether any matrix of the schema shows the future."""
    return any(ORACLE_COLUMN in matrix.names for matrix in (schema.tactical, schema.strategic, schema.regime))


def refuse_oracle(schema: MatrixSchema, what: str) -> None:
    """SchemaError if `what`, made for `schema`, was fed with the oracle column."""
    if has_oracle(schema):
        raise SchemaError(f"{what}: its column '{ORACLE_COLUMN}' shows the future on purpose, to test a learner; "
                          "train a run without it")


def with_oracle(table: MarketTable, scale: float) -> MarketTable:
    """`table` with a last tactical column: the return of bar t+1 on row t, divided by `scale` and clipped like
    every standardised column; 0 on the last row."""
    refuse_oracle(table.schema, table.symbol)
    if not scale > 0.0:
        raise ValueError(f"the oracle column's scale must be positive, got {scale}")
    tactical = table.schema.tactical
    place = tactical.width
    column = ColumnSpec(ORACLE_COLUMN, "robust", 0.0, float(scale), ODD, place)
    schema = replace(table.schema, tactical=replace(tactical, columns=(*tactical.columns, column)))
    seen = np.clip(_next_return(table) / scale, -table.schema.clip, table.schema.clip)
    rows: Float32Array = np.column_stack((table.tactical, seen)).astype(np.float32)
    return replace(table, schema=schema, tactical=np.ascontiguousarray(rows))


def oracle_scale(table: MarketTable) -> float:
    """Standard deviation of the table's returns: what `with_oracle` divides by on every market of a run."""
    return float(_next_return(table).std())


def _next_return(table: MarketTable) -> FloatArray:
    close = np.asarray(table.close)
    returns = np.zeros(close.size)
    returns[:-1] = close[1:] / (close[:-1] * np.asarray(table.roll)[1:]) - 1.0
    return returns
