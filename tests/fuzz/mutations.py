"""Damaged market files: valid seeds, and what goes wrong with such files, drawn from a seeded generator."""

from __future__ import annotations

import io
import random
from collections.abc import Callable

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

NASTY = ["", " ", "NaN", "nan", "inf", "-inf", "1e400", "-1", "0", "-0.0", "1e-320", "9" * 400, "0x10", "1_000",
         "1,5", '"', '""', "'", "\0", "é", "١٢", "null", "None", "true", "2024-13-40", "0001-01-01 00:00:00",
         "9999-12-31 23:59:59", "2262-04-12", "1677-09-20", "31/02/2024 10:00", "2024-11-03 01:30:00",
         "2024-03-10 02:30:00", "2024-03-04T15:00:00+25:00", "2024-03-04T15:00:00+05:30", "2024-03-04 24:00",
         "1709564400", "1709564400000000000", "18446744073709551616", "a,b", "\t", ";", "=1+1",
         "\ufeff"]  # fmt: skip
ROWS = 60


def bar_frame(rng: random.Random) -> pd.DataFrame:
    """Valid one-minute bars."""
    close = 5000 + np.cumsum([rng.choice([-0.25, 0.0, 0.25]) for _ in range(ROWS)])
    start = rng.choice(["2024-03-04 15:00", "2024-11-03 00:30", "2024-03-10 01:30", "1969-12-31 23:30"])
    return pd.DataFrame({"ts_utc": pd.date_range(start, periods=ROWS, freq="1min"), "open": close,
                         "high": close + 0.25, "low": close - 0.25, "close": close, "volume": 10.0})


def tick_frame(rng: random.Random) -> pd.DataFrame:
    """Valid trades in one of the known layouts."""
    price = 5000 + np.cumsum([rng.choice([-0.25, 0.0, 0.25]) for _ in range(ROWS)])
    ts = pd.date_range("2024-03-04 15:00", periods=ROWS, freq="137ms")
    ns = ts.astype(np.int64)
    return rng.choice([
        lambda: pd.DataFrame({"ts_utc": ts, "price": price}),
        lambda: pd.DataFrame({"ts_utc": ts, "price": price, "size": 3.0, "bid": price - 0.25, "ask": price}),
        lambda: pd.DataFrame({"ts_event": ts, "ts_recv": ts, "symbol": "ESM4", "action": "T", "side": "B",
                              "price": price, "size": 1, "flags": 0, "sequence": np.arange(ROWS)}),
        lambda: pd.DataFrame({"local_ns": ns, "exch_ms": ns // 10**6, "price": price, "qty": 0.5,
                              "buyer_is_maker": True, "type": "MARKET"}),
        lambda: pd.DataFrame({"ts_ny": ts, "price": price, "qty": 100, "exchange": "P", "cond": "2000",
                              "suspicious": 0}),
    ])()  # fmt: skip


def quote_frame(rng: random.Random) -> pd.DataFrame:
    """Valid best bids and asks."""
    bid = 5000 + np.cumsum([rng.choice([-0.25, 0.0, 0.25]) for _ in range(ROWS)])
    ns = pd.date_range("2024-03-04 15:00", periods=ROWS, freq="137ms").astype(np.int64)
    return pd.DataFrame({"local_ns": ns, "bid": bid, "bid_qty": 1.0, "ask": bid + 0.25, "ask_qty": 2.0})


SEEDS: dict[str, Callable[[random.Random], pd.DataFrame]] = {
    "bars": bar_frame, "ticks": tick_frame, "quotes": quote_frame}  # fmt: skip


def damage_frame(frame: pd.DataFrame, rng: random.Random) -> pd.DataFrame:
    """Rows and columns shuffled, repeated, removed, renamed, retyped."""
    for _ in range(rng.randrange(3)):
        kind = rng.randrange(8)
        column = rng.choice(list(frame.columns))
        row = rng.randrange(max(len(frame), 1))
        if kind == 0:
            frame = frame.sample(frac=1, random_state=rng.randrange(2**31))
        elif kind == 1:
            frame = pd.concat([frame, frame.iloc[row : row + 5]])
        elif kind == 2:
            frame = frame.drop(columns=column)
        elif kind == 3:
            frame = frame.rename(columns={column: rng.choice([*frame.columns, "x", "Time", "", "symbol"])})
        elif kind == 4:
            frame = frame.iloc[:row]
        elif kind == 5:
            frame = frame.astype({column: str}) if list(frame.columns).count(column) == 1 else frame
        elif kind == 6:
            frame = frame.drop(index=frame.index[row : row + 7]) if len(frame) else frame
        else:
            frame = frame.assign(extra=rng.choice(NASTY))
        if frame.columns.size == 0:
            break
    return frame


def csv_bytes(frame: pd.DataFrame, rng: random.Random) -> bytes:
    """A CSV of the frame with damaged fields, lines and bytes."""
    style = rng.choice(["%Y-%m-%d %H:%M:%S", "%d/%m/%Y %H:%M", "%Y%m%d%H%M%S", None])
    text = frame.to_csv(index=False, sep=rng.choice([",", ",", ";", "\t"]), date_format=style,
                        lineterminator=rng.choice(["\n", "\r\n"]))  # fmt: skip
    lines = text.split("\n")
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(lines))
        fields = lines[at].split(",")
        kind = rng.randrange(6)
        if kind == 0:
            fields[rng.randrange(len(fields))] = rng.choice(NASTY)
        elif kind == 1:
            fields = fields[:-1] or [""]
        elif kind == 2:
            fields = fields + [rng.choice(NASTY)]
        elif kind == 3:
            rng.shuffle(fields)
        lines[at] = "" if kind == 4 else ",".join(fields)
        if kind == 5:
            lines.insert(at, rng.choice(lines))
    data = "\n".join(lines).encode(rng.choice(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16"]))
    return flip(data, rng) if rng.random() < 0.3 else data


def flip(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, a piece removed or repeated, or the end cut off."""
    raw = bytearray(data)
    for _ in range(rng.randrange(1, 6)):
        if not raw:
            break
        at = rng.randrange(len(raw))
        kind = rng.randrange(5)
        if kind < 2:
            raw[at] = rng.randrange(256)
        elif kind == 2:
            del raw[at : at + rng.randrange(1, 40)]
        elif kind == 3:
            raw[at:at] = raw[at : at + rng.randrange(1, 40)]
        else:
            del raw[at:]
    return bytes(raw)


def _retyped(column: pa.ChunkedArray, rng: random.Random) -> pa.Array:
    """The same values in another, perhaps absurd, type; nulls now and then."""
    kinds: list[Callable[[], pa.Array]] = [
        lambda: column.cast(pa.string()), lambda: column.cast(pa.large_string()),
        lambda: column.cast(pa.string()).dictionary_encode(), lambda: column.cast(pa.float32()),
        lambda: column.cast(pa.decimal128(38, 9)), lambda: column.cast(pa.int64(), safe=False),
        lambda: column.cast(pa.timestamp("s")), lambda: column.cast(pa.timestamp("ms", tz="Asia/Tokyo")),
        lambda: column.cast(pa.timestamp("us", tz="America/New_York")), lambda: column.cast(pa.date32()),
        lambda: column.cast(pa.timestamp("ns")), lambda: pa.nulls(len(column)),
        lambda: pa.array([[v] for v in column.to_pylist()]),
        lambda: pa.array([{"a": v} for v in column.to_pylist()]),
        lambda: pa.array([None if rng.random() < 0.2 else v for v in column.to_pylist()], column.type),
        lambda: pa.array([rng.random() < 0.5 for _ in range(len(column))]),
        lambda: pa.array([str(v).encode() for v in column.to_pylist()]),
        lambda: pa.array(np.full(len(column), rng.choice([0, -1, 2**63 - 1, -(2**63)]))),
        lambda: pa.array(np.full(len(column), rng.choice([np.nan, np.inf, -np.inf, 1e308, 5e-324]))),
    ]  # fmt: skip
    try:
        return rng.choice(kinds)()
    except (pa.ArrowException, OverflowError, ValueError):
        return column


def parquet_bytes(frame: pd.DataFrame, rng: random.Random) -> bytes:
    """A Parquet file of the frame with columns of other types, or damaged bytes."""
    frame = frame.loc[:, ~frame.columns.duplicated()]
    table = pa.Table.from_pandas(frame.convert_dtypes(dtype_backend="pyarrow"), preserve_index=False)
    for _ in range(rng.randrange(3)):
        if table.num_columns:
            place = rng.randrange(table.num_columns)
            table = table.set_column(place, table.column_names[place], _retyped(table.column(place), rng))
    stream = io.BytesIO()
    try:
        pq.write_table(table, stream)
    except pa.ArrowException:  # no such file can exist
        return parquet_bytes(frame, rng)
    data = stream.getvalue()
    return flip(data, rng) if rng.random() < 0.3 else data
