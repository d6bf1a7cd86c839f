"""Recordings of backtests: bars, decisions, fills and the account, as the page replays them.

A recording is a folder: `replay.json` says what it is, `bars.parquet` holds one row per base bar with the account
at its close, `decisions.parquet` and `fills.parquet` what happened. Times are int64 ns UTC, prices raw points.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from algospace.errors import InputError
from algospace.execution.decision import Reason
from algospace.execution.journal import Decided, Filled, Ordered, Record
from algospace.execution.mechanics import FillCause
from algospace.execution.result import SessionResult
from algospace.features.market_table import MarketTable
from algospace.files import atomic_directory, write_json

VERSION = 1
DESCRIPTION = "replay.json"
_BARS, _DECISIONS, _FILLS = "bars.parquet", "decisions.parquet", "fills.parquet"
_ACTS = (Reason.EXECUTE.value, Reason.CLOSE.value)


def write_recording(folder: Path, result: SessionResult, journal: Iterable[Record], table: MarketTable, *,
                    title: str, model: str) -> None:
    """Record one session; `folder` is replaced as a whole. `journal`: that session's; `model`: bundle id."""
    records = list(journal)
    with atomic_directory(folder) as staging:
        pq.write_table(_bars(result, records, table), staging / _BARS)
        pq.write_table(_decisions(records, table), staging / _DECISIONS)
        pq.write_table(_fills(result, records), staging / _FILLS)
        write_json(staging / DESCRIPTION, {
            "version": VERSION, "title": title, "instrument": result.instrument.symbol,
            "currency": result.instrument.currency, "model": model, "bars": len(result),
            "decisions": sum(isinstance(r, Decided) for r in records), "trades": int(result.trades.size),
            "start_ns": int(result.ts_close[0]), "end_ns": int(result.ts_close[-1]),
            "initial_equity": float(result.initial_equity)})


def _bars(result: SessionResult, records: list[Record], table: MarketTable) -> pa.Table:
    """One row per bar; entry, stop and target rest at its close, null where nothing is held."""
    rows = result.rows
    entry, stop, target = _levels(result, records)
    columns = {"ts_ns": result.ts_close, **{name: np.asarray(getattr(table, name))[rows]
                                            for name in ("open", "high", "low", "close")},
               "equity": result.equity, "position": result.position}
    levels = {name: pa.array(values, from_pandas=True)
              for name, values in (("entry", entry), ("stop", stop), ("target", target))}
    return pa.table({name: pa.array(values) for name, values in columns.items()} | levels)


def _levels(result: SessionResult, records: list[Record]) -> tuple[Any, Any, Any]:
    """Entry, stop and target (n,) in points as of each close; NaN without a position.

    They move from a fill on: the distances are those of the order that caused it, a roll rescales all three.
    """
    n, first = len(result), int(result.rows[0])
    entry, stop, target = (np.full(n, math.nan) for _ in range(3))
    orders = {record.order_id: record for record in records if isinstance(record, Ordered)}
    held, at, low, high, since = 0.0, math.nan, math.nan, math.nan, 0
    for fill in (record for record in records if isinstance(record, Filled)):
        place = fill.row - first
        entry[since:place], stop[since:place], target[since:place] = at, low, high
        since = place
        if fill.cause == FillCause.ROLL.name:
            at, low, high = at * fill.roll, low * fill.roll, high * fill.roll
            continue
        opens, held = held == 0.0, held + fill.quantity
        if held == 0.0:
            at = low = high = math.nan
        elif opens:
            order, side = orders.get(fill.order_id), math.copysign(1.0, held)
            at = fill.price
            low = at - side * order.stop_distance if order and order.stop_distance > 0 else math.nan
            high = at + side * order.target_distance if order and order.target_distance > 0 else math.nan
    entry[since:], stop[since:], target[since:] = at, low, high
    return entry, stop, target


def _decisions(records: list[Record], table: MarketTable) -> pa.Table:
    """ts_ns, and the rest of each decision as the stream tells it, as JSON."""
    found = [record for record in records if isinstance(record, Decided)]
    close = np.asarray(table.close)
    bodies = [json.dumps({
        "price": float(close[d.row]), "verdict": d.reason if d.reason in _ACTS else "REJECT", "reason": d.reason,
        "direction": d.direction, "confidence": d.confidence, "votes": d.votes,
        "proposal": {"contracts": d.contracts, "stop_distance": d.stop_distance,
                     "target_distance": d.target_distance, "limit": d.limit},
        "uncertainty": d.uncertainty}, separators=(",", ":")) for d in found]
    return pa.table({"ts_ns": pa.array([d.ts for d in found], pa.int64()),
                     "decision": pa.array(bodies, pa.string())})


def _fills(result: SessionResult, records: list[Record]) -> pa.Table:
    """Fills in order; `pnl` is the trade's net profit where the fill closed one."""
    fills = [record for record in records if isinstance(record, Filled)]
    profits = iter(result.trades["net_pnl"].tolist())
    held, pnl = 0.0, []
    for fill in fills:
        before, held = held, held + fill.quantity
        pnl.append(next(profits) if before != 0.0 and held == 0.0 else None)
    return pa.table({"ts_ns": pa.array([f.ts for f in fills], pa.int64()),
                     "quantity": pa.array([f.quantity for f in fills], pa.float64()),
                     "price": pa.array([f.price for f in fills], pa.float64()),
                     "cause": pa.array([f.cause for f in fills], pa.string()),
                     "pnl": pa.array(pnl, pa.float64())})


def describe(folder: Path) -> dict[str, Any]:
    """What a recording is; InputError if it cannot be read or is of another version."""
    path = folder / DESCRIPTION
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(path, "is missing or not JSON", "record the backtest again") from None
    if not isinstance(found, dict) or found.get("version") != VERSION:
        raise InputError(path, f"is not of version {VERSION}", "record the backtest again")
    return found


def read_recording(folder: Path, start: int, count: int) -> dict[str, Any]:
    """Bars [start, start + count) as columns, and the decisions and fills between the first's open and the last's
    close; InputError if a file is damaged."""
    description = describe(folder)
    try:
        bars = pq.read_table(folder / _BARS).slice(start, count)
        decisions, fills = (pq.read_table(folder / name) for name in (_DECISIONS, _FILLS))
    except (OSError, pa.ArrowException) as error:
        raise InputError(folder, f"cannot be read ({type(error).__name__})", "record the backtest again") from None
    after = -1 if start == 0 else _time_of(folder, start - 1)
    last = int(bars["ts_ns"][-1].as_py()) if len(bars) else after
    told = [{"ts_ns": ts, **json.loads(body)} for ts, body in
            zip(*(column.to_pylist() for column in _between(decisions, after, last).columns), strict=True)]
    return {"description": description, "start": start, "bars": bars.to_pydict(), "decisions": told,
            "fills": _between(fills, after, last).to_pylist()}


def _time_of(folder: Path, row: int) -> int:
    times = pq.read_table(folder / _BARS, columns=["ts_ns"])["ts_ns"]
    return int(times[min(row, len(times) - 1)].as_py())


def _between(table: pa.Table, after: int, last: int) -> pa.Table:
    times = table["ts_ns"]
    return table.filter(pc.and_(pc.greater(times, after), pc.less_equal(times, last)))
