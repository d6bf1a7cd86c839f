"""Batches as Arrow IPC streams: columns in, columns out, no row is touched in Python.

In: one row per decision (`batch_schema`), matrices as fixed-size lists, row by row of the matrix; metadata
`schema_hash`. Out: ANSWER, in the same order; `error` is null where there is an answer. A request
may have the columns GATE as well, and the answer then has GATE_ANSWER.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from algospace.execution.mechanics import ACCOUNT_DTYPE
from algospace.types import AnyArray, BoolArray, FloatArray
from serving.batch import LIMIT_NAMES, REASON_NAMES, BatchDecisions, BatchInputs
from serving.bundle import Bundle
from serving.correction import Correction
from serving.schemas import CONTRACTS_MOST, MONEY_MOST, PRICE_MOST, SMALLEST, STRENGTH_MOST, TIMES

MEDIA_TYPE = "application/vnd.apache.arrow.stream"
VALUE_BOUND = 1e6
_NAMES = pa.dictionary(pa.int8(), pa.string())
_VERDICTS = ("REJECT", "EXECUTE", "CLOSE")
ANSWER = pa.schema([
    ("verdict", _NAMES), ("reason", _NAMES), ("direction", pa.int8()), ("confidence", pa.float64()),
    ("contracts", pa.float64()), ("stop_distance", pa.float64()), ("target_distance", pa.float64()),
    ("limit", _NAMES), ("votes", pa.list_(pa.float64(), 9)), ("uncertainty", pa.list_(pa.float64(), 4)),
    ("error", pa.string())])
"""votes: strategic, tactical, arbitrage, each short, pass, long; uncertainty: entropy, mutual_information, std,
agreement."""
GATE = pa.schema([("gate_model", pa.string()), ("gate_level", pa.float64()),
                  ("gate_closed", pa.list_(pa.bool_()))])
"""Where each row's gate stands (serving.schemas.GateIn); model and level are null before the first trade."""
GATE_ANSWER = pa.schema([("gate_level", pa.float64()), ("gate_threshold", pa.float64())])
_MOST_CLOSED = 1000
_NUMBERS = ("close", "atr", "hour_sin", "hour_cos", "position", "entry", "equity", "day_start")
_LEVELS = ("stop", "target", "lvn_distance")
_PRICES = (-PRICE_MOST, PRICE_MOST)
_RULES: dict[str, tuple[float, float]] = {
    "close": (SMALLEST, PRICE_MOST), "atr": (0.0, PRICE_MOST), "hour_sin": (-1.0, 1.0), "hour_cos": (-1.0, 1.0),
    "position": (-CONTRACTS_MOST, CONTRACTS_MOST), "entry": (0.0, PRICE_MOST), "equity": (-MONEY_MOST, MONEY_MOST),
    "day_start": (SMALLEST, MONEY_MOST), "bars_in_trade": (0.0, 2.0**31 - 1), "stop": _PRICES, "target": _PRICES,
    "lvn_distance": _PRICES, "lvn_strength": (-STRENGTH_MOST, STRENGTH_MOST)}
"""The bounds of serving.schemas."""


class ArrowFault(Exception):
    """The body is no batch of this bundle; the message says why."""


def batch_schema(bundle: Bundle, windows: bool = False, times: bool = False, gates: bool = False) -> pa.Schema:
    """Columns of a request. With `windows` the regime matrix stands in for the regime vector; with `times` rows
    say when their bars closed, with `gates` where their gates stand.

    stop, target, lvn_distance, lvn_strength, gate_model and gate_level may be null; nothing else may.
    """
    schema, number = bundle.schema, pa.float64()

    def matrix(spec: Any) -> Any:
        return pa.list_(pa.float32(), spec.window * spec.width)

    regime = ("regime_window", matrix(schema.regime)) if windows else (
        "regime", pa.list_(pa.float32(), bundle.manifest.regime_size))
    return pa.schema([
        ("strategic", matrix(schema.strategic)), ("tactical", matrix(schema.tactical)), regime,
        ("synergy", pa.list_(pa.float32(), 3)), *((name, number) for name in _NUMBERS),
        *((name, number) for name in _LEVELS), ("lvn_strength", number), ("bars_in_trade", pa.int64()),
        ("seed", pa.int64()), *([("ts_close_ns", pa.int64())] if times else []),
        *(GATE if gates else [])],
        {"schema_hash": bundle.manifest.schema_hash})


def table_of(inputs: BatchInputs, bundle: Bundle) -> pa.Table:
    """A request's table; `inputs.regime` (N, R) or, as windows, (N, Wr, Fr). Times are told if all are known."""
    rows, accounts = len(inputs), inputs.accounts
    corrected = ~np.isnan(inputs.gate[:, 0])
    schema = batch_schema(bundle, inputs.regime.ndim == 3, bool((inputs.ts_close > 0).all()),
                          bool(corrected.any()))
    numbers = {"close": inputs.close, "atr": inputs.atr, "hour_sin": inputs.clock[:, 0],
               "hour_cos": inputs.clock[:, 1], "lvn_distance": inputs.lvn[:, 0], "lvn_strength": inputs.lvn[:, 1],
               "gate_level": inputs.gate[:, 0], "seed": inputs.seeds,
               "ts_close_ns": inputs.ts_close, **{name: accounts[name] for name in (
                   "position", "entry", "equity", "day_start", "stop", "target", "bars_in_trade")}}
    lists = {"strategic": inputs.strategic, "tactical": inputs.tactical, "synergy": inputs.synergy,
             "regime": inputs.regime, "regime_window": inputs.regime}
    columns = []
    for field in schema:
        if field.name in lists:
            flat = np.ascontiguousarray(lists[field.name], np.float32).reshape(rows, -1)
            columns.append(pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1]))
        elif field.name == "gate_model":
            columns.append(pa.array([bundle.id if known else None for known in corrected.tolist()], field.type))
        elif field.name == "gate_closed":
            columns.append(pa.array([[]] * rows, field.type))
        else:
            values = np.ascontiguousarray(numbers[field.name]).astype(field.type.to_pandas_dtype())
            columns.append(pa.array(values, field.type, from_pandas=True))  # NaN becomes null
    return pa.Table.from_arrays(columns, schema=schema)


def encode(table: pa.Table) -> bytes:
    """One IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    encoded: bytes = sink.getvalue().to_pybytes()
    return encoded


def decode(body: bytes, most_rows: int) -> pa.RecordBatch:
    """The rows of an uncompressed stream as one batch. ArrowFault on anything else.

    Compressed buffers are refused unread: a few kilobytes could ask for gigabytes.
    """
    try:
        source = pa.BufferReader(body)
        schema = pa.ipc.open_stream(source).schema
        if any(pa.types.is_dictionary(field.type) for field in schema):
            raise ArrowFault("dictionary columns are not read")
        _refuse_compressed(body)
        table = pa.ipc.open_stream(pa.BufferReader(body)).read_all()
        if not 1 <= table.num_rows <= most_rows:
            raise ArrowFault(f"a batch holds 1 to {most_rows} rows, this one {table.num_rows}")
        table.validate(full=True)
        batch = table.combine_chunks().to_batches()[0]
    except (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError) as error:
        raise ArrowFault(f"not an Arrow IPC stream: {' '.join(str(error).split())[:200]}") from None
    return batch


def _refuse_compressed(body: bytes) -> None:
    source = pa.BufferReader(body)
    while True:
        try:
            message = pa.ipc.read_message(source)
        except EOFError:
            return
        if message is None:
            return
        try:
            if message.type == "record batch" and _is_compressed(message.metadata.to_pybytes()):
                raise ArrowFault("compressed buffers are not read; write the stream without compression")
        except struct.error:
            raise ArrowFault("not an Arrow IPC stream: a message is cut off") from None


def _is_compressed(message: bytes) -> bool:
    """Whether a record batch's flatbuffer (Message.header: RecordBatch) has its field `compression`."""
    def at(form: str, place: int) -> int:
        value: int = struct.unpack_from(form, message, place)[0]
        return value

    def field(table: int, number: int) -> int:
        vtable = table - at("<i", table)
        entry = 4 + 2 * number
        return at("<H", vtable + entry) if entry < at("<H", vtable) else 0

    root = at("<I", 0)
    place = field(root, 2)
    if not place:
        return False
    header = root + place
    return field(header + at("<I", header), 3) != 0


def inputs_of(batch: pa.RecordBatch, bundle: Bundle,
              needs_time: bool = False) -> tuple[BatchInputs, list[str | None]]:
    """(every row as arrays, what is wrong with each row). `regime` of the inputs is (N, Wr, Fr) where windows were
    given. ArrowFault if columns are missing (`needs_time`: ts_close_ns, too), strange or of another type. Gates
    stand as they were calibrated until `correct` has been called."""
    windows = "regime_window" in batch.schema.names
    if windows and not bundle.has("rde"):
        raise ArrowFault("regime_window: the bundle holds no RDE: give regime instead")
    times = needs_time or "ts_close_ns" in batch.schema.names
    expected = batch_schema(bundle, windows, times, _has_gates(batch))
    _same_columns(batch.schema, expected)
    rows = batch.num_rows
    bad = np.zeros(rows, np.bool_)
    errors: list[str | None] = [None] * rows

    def fault(wrong: Any, text: str) -> None:
        for row in np.flatnonzero(wrong & ~bad).tolist():
            errors[row] = text
        bad[wrong] = True

    values = {field.name: _values(batch.column(field.name), field, fault) for field in expected
              if field.name not in GATE.names}
    lists = {name: array for name, array in values.items() if array.ndim == 2}
    for name, array in lists.items():
        fault(~(np.abs(array) <= VALUE_BOUND).all(1), f"{name}: values must be numbers within {VALUE_BOUND:g}")
        array[bad] = 0.0
    for name in (*_NUMBERS, "bars_in_trade"):
        low, high = _RULES[name]
        fault(~((values[name] >= low) & (values[name] <= high)), f"{name}: out of range")
    for name in (*_LEVELS, "lvn_strength"):
        low, high = _RULES[name]
        fault((values[name] < low) | (values[name] > high), f"{name}: out of range")
    fault(values["seed"] < 0, "seed: must not be negative")
    if times:
        low, high = TIMES
        fault((values["ts_close_ns"] < low) | (values["ts_close_ns"] > high), "ts_close_ns: out of range")
    fault((values["position"] != 0.0) & ~(values["entry"] > 0.0), "an open position needs its entry price")
    fault(np.isnan(values["lvn_distance"]) != np.isnan(values["lvn_strength"]),
          "lvn_distance and lvn_strength belong together")
    return _as_inputs(values, bundle, windows, bad, np.full((rows, 2), np.nan)), errors


async def correct(batch: pa.RecordBatch, inputs: BatchInputs, errors: list[str | None], correction: Correction,
                  turn: Callable[[], Awaitable[None]]) -> None:
    """Fill in where the gates of sound rows stand, by the rules of serving.schemas.GateIn, if `batch` says so;
    what is wrong with a row goes to `errors`. A million outcomes may be told: `turn` is awaited between two rows.

    Truth values are bits. A list becomes Python's only once its length is known to be allowed.
    """
    if not _has_gates(batch):
        return
    models, levels = batch.column("gate_model").to_pylist(), batch.column("gate_level").to_pylist()
    closed = batch.column("gate_closed")
    lengths, starts, outcomes = pc.list_value_length(closed).to_pylist(), closed.offsets, closed.values
    for row, (model, level, length) in enumerate(zip(models, levels, lengths, strict=True)):
        if errors[row] is not None:
            continue
        if (model is None) != (level is None):
            errors[row] = "gate_model and gate_level belong together, as the last answer gave them"
        elif level is not None and not 0.0 <= level <= 1.0:
            errors[row] = "gate_level: out of range"
        elif length is None or length > _MOST_CLOSED or (
                told := outcomes.slice(starts[row].as_py(), length)).null_count:
            errors[row] = f"gate_closed: must be a list of at most {_MOST_CLOSED} truth values"
        else:
            gained = told.to_numpy(zero_copy_only=False).tolist()
            inputs.gate[row] = correction.after(model, level, gained)[1:]
            await turn()


def _has_gates(batch: pa.RecordBatch) -> bool:
    return any(name in batch.schema.names for name in GATE.names)


def _same_columns(found: pa.Schema, expected: pa.Schema) -> None:
    strange = sorted(set(found.names) - set(expected.names))
    if strange or len(set(found.names)) != len(found.names):
        raise ArrowFault(f"{(strange or found.names)[0]}: not a column of this batch, or there twice")
    for field in expected:
        place = found.get_field_index(field.name)
        if place < 0:
            raise ArrowFault(f"{field.name}: the column is missing; it is {field.type}")
        if found.field(place).type != field.type:
            raise ArrowFault(f"{field.name}: is {found.field(place).type}, must be {field.type}")


def _values(column: Any, field: pa.Field, fault: Any) -> AnyArray:
    """A column as an array of its own; null is NaN, or a fault where it may not be."""
    if column.null_count:
        nulls = column.is_null().to_numpy(zero_copy_only=False)
        if field.name not in (*_LEVELS, "lvn_strength"):
            fault(nulls, f"{field.name}: must not be null")
    if pa.types.is_fixed_size_list(field.type):
        width = field.type.list_size
        flat = column.values.slice(column.offset * width, len(column) * width)
        return flat.to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(column), width)
    filled = column.fill_null(0) if pa.types.is_integer(field.type) else column
    numbers: AnyArray = filled.to_numpy(zero_copy_only=False).copy()
    return numbers


def _as_inputs(values: dict[str, AnyArray], bundle: Bundle, windows: bool, bad: BoolArray,
               gate: FloatArray) -> BatchInputs:
    schema, rows = bundle.schema, len(bad)
    accounts = np.zeros(rows, ACCOUNT_DTYPE)
    for name in ("position", "entry", "stop", "target", "equity", "day_start", "bars_in_trade"):
        accounts[name] = values[name]
    accounts["peak"] = accounts["equity"]
    none = np.isnan(values["lvn_distance"])
    regime = values["regime_window" if windows else "regime"]
    if windows:
        regime = regime.reshape(rows, schema.regime.window, schema.regime.width)
    seeds = values["seed"].copy()
    seeds[bad] = 0
    ts_close = values.get("ts_close_ns", np.zeros(rows, np.int64))
    return BatchInputs(
        values["strategic"].reshape(rows, schema.strategic.window, schema.strategic.width),
        values["tactical"].reshape(rows, schema.tactical.window, schema.tactical.width), regime,
        values["synergy"], values["close"], values["atr"],
        np.stack((values["hour_sin"], values["hour_cos"]), 1),
        np.stack((values["lvn_distance"], np.where(none, 0.0, values["lvn_strength"])), 1), accounts,
        seeds.astype(np.uint64), ts_close, gate)


def answer_table(decided: BatchDecisions | None, inputs: BatchInputs | None, kept: AnyArray,
                 errors: list[str | None], metadata: dict[str, str]) -> pa.Table:
    """The answer's table: `decided` and `inputs` belong to rows `kept`, every other row is null but for its
    error. With GATE_ANSWER where a row said where its gate stands."""
    rows = len(errors)
    place = np.full(rows, -1, np.int64)
    place[kept] = np.arange(len(kept))
    if decided is None:
        columns = [pa.nulls(rows, field.type) for field in ANSWER][:-1]
    else:
        verdicts = np.array([_verdict(name) for name in REASON_NAMES], np.int8)[decided.reasons]
        arrays = [_named(verdicts, _VERDICTS), _named(decided.reasons, REASON_NAMES),
                  pa.array(decided.direction), pa.array(decided.confidence),
                  *(pa.array(np.ascontiguousarray(column)) for column in decided.orders.T),
                  _named(decided.limits, LIMIT_NAMES), _lists(decided.votes, 9), _lists(decided.uncertainty, 4)]
        if len(kept) == rows:
            columns = arrays
        else:
            take = pa.array(place, mask=place < 0)
            columns = [array.take(take) for array in arrays]
    columns.append(pa.array(errors, pa.string()))
    if inputs is None or np.isnan(inputs.gate).all():
        return pa.Table.from_arrays(columns, schema=ANSWER.with_metadata(metadata))
    gate = np.full((rows, 2), np.nan)
    gate[kept] = inputs.gate
    columns += [pa.array(np.ascontiguousarray(column), from_pandas=True) for column in gate.T]
    return pa.Table.from_arrays(columns, schema=pa.schema([*ANSWER, *GATE_ANSWER], metadata))


def _verdict(reason: str) -> int:
    return _VERDICTS.index(reason) if reason in _VERDICTS else 0


def _named(codes: AnyArray, names: tuple[str, ...]) -> Any:
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int8)), pa.array(names))


def _lists(values: AnyArray, width: int) -> Any:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).ravel()), width)
