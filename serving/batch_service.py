"""POST /v1/decide/batch behind its route: a body of rows to a body of answers, pass by pass."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import ValidationError
from pydantic_core import from_json

from algospace.execution.decision import Reason
from algospace.execution.result import REASON_CODE
from algospace.types import AnyArray, BoolArray
from serving import batch_arrow
from serving.batch import BatchDecisions, BatchInputs
from serving.calls import Call
from serving.conditions import Rulings, Watch, asked_rows
from serving.decider import DecisionInputs
from serving.limits import LimitsSettings
from serving.models import Model
from serving.reading import FieldError, faults, require_schema, row_inputs
from serving.schemas import BatchEnvelope, DecideRow

JSON = "application/json"
_TURN_S = 0.005


@dataclass(frozen=True)
class RowsRead:
    """A batch as the model takes it: `inputs` of the rows `kept` (None: no row is sound), by row what is wrong,
    and the rows' own trace ids. Of the rows kept, `regimes`: the regime vector or window as it was given, and
    `rulings`: what forbids them."""

    inputs: BatchInputs | None
    kept: AnyArray
    errors: list[Any]
    traces: list[str | None]
    regimes: Sequence[AnyArray] | AnyArray
    rulings: Rulings | None = None


class _Turns:
    """Long work in the event loop: every few milliseconds others get their turn and the deadline is looked at."""

    def __init__(self, call: Call) -> None:
        self._call, self._since = call, time.perf_counter()

    async def next(self) -> None:
        """A step of the work is done."""
        if time.perf_counter() - self._since > _TURN_S:
            await asyncio.sleep(0)
            self._call.check("the batch was being read")
            self._since = time.perf_counter()

    async def regimes(self, model: Model, given: Sequence[AnyArray] | AnyArray,
                      asked: BoolArray | None) -> AnyArray:
        """(N, R) of regime vectors and windows: a window costs a run of the RDE; zeros for rows that the model is
        not `asked` (N,) about."""
        found = np.zeros((len(given), model.bundle.manifest.regime_size), np.float32)
        for row, one in enumerate(given):
            if asked is None or asked[row]:
                found[row] = model.decider.regime_vector(one)
                await self.next()
        return found


async def read_json(model: Model, watch: Watch, body: bytes, limits: LimitsSettings, call: Call) -> RowsRead:
    """ValidationError or FieldError if the batch as a whole is wrong, Refused past the deadline; a row's faults
    are its own."""
    try:
        values = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise FieldError("", "json_invalid", f"Invalid JSON: {str(error)[:200]}") from None
    envelope = BatchEnvelope.model_validate(values)
    require_schema(model, envelope.schema_hash)
    if len(envelope.rows) > limits.batch_rows:
        raise FieldError("rows", "too_long", f"a batch holds at most {limits.batch_rows} rows, this one "
                         f"{len(envelope.rows)}")
    sound: list[DecisionInputs] = []
    kept, errors, traces = [], [], []
    turns = _Turns(call)
    for number, value in enumerate(envelope.rows):
        fault, trace = None, None
        try:
            row = DecideRow.model_validate(value)
            trace = row.trace_id
            watch.require_time(row.market.ts_close_ns)
            sound.append(row_inputs(model, row))
            kept.append(number)
        except ValidationError as error:
            fault = faults(error)
        except FieldError as error:
            fault = [error.fault]
        errors.append(fault)
        traces.append(trace)
        await turns.next()
    inputs, given, rulings = None, [row.regime for row in sound], None
    if sound:
        rulings = watch.rulings(np.array([row.market.ts_close_ns or 0 for row in sound], np.int64))
        asked = None if rulings is None else asked_rows(rulings, np.array([row.account for row in sound]))
        inputs = BatchInputs.of(sound, await turns.regimes(model, given, asked))
    return RowsRead(inputs, np.array(kept, np.int64), errors, traces, given, rulings)


async def read_arrow(model: Model, watch: Watch, body: bytes, limits: LimitsSettings, call: Call) -> RowsRead:
    """FieldError if the batch as a whole is wrong, Refused past the deadline."""
    try:
        table = batch_arrow.decode(body, limits.batch_rows)
        require_schema(model, (table.schema.metadata or {}).get(b"schema_hash", b"").decode("latin-1")[:80])
        inputs, errors = batch_arrow.inputs_of(table, model.bundle, watch.needs_time)
    except batch_arrow.ArrowFault as fault:
        raise FieldError("", "arrow", str(fault)) from None
    turns = _Turns(call)
    await batch_arrow.correct(table, inputs, errors, model.correction, turns.next)
    kept = np.array([row for row, error in enumerate(errors) if error is None], np.int64)
    traces: list[str | None] = [None] * len(errors)
    if not kept.size:
        return RowsRead(None, kept, errors, traces, [])
    if kept.size < len(errors):
        inputs = inputs.rows(kept)
    given, rulings = inputs.regime, watch.rulings(inputs.ts_close)
    if given.ndim == 3:
        asked = None if rulings is None else asked_rows(rulings, inputs.accounts)
        inputs = with_regime(inputs, await turns.regimes(model, given, asked))
    return RowsRead(inputs, kept, errors, traces, given, rulings)


def with_regime(inputs: BatchInputs, regime: AnyArray) -> BatchInputs:
    """The batch with regime vectors (N, R)."""
    return BatchInputs(**(vars(inputs) | {"regime": regime}))


async def decide_passes(model: Model, watch: Watch, inputs: BatchInputs, rulings: Rulings | None, pass_rows: int,
                        call: Call) -> BatchDecisions:
    """Decide in passes of at most `pass_rows`; between them others get their turn, and the deadline
    is looked at. `rulings`: what forbade rows when they were read; what holds at the end counts for all."""
    parts, whole = [], len(inputs) <= pass_rows
    for first in range(0, len(inputs), pass_rows):
        if first:
            await asyncio.sleep(0)
        call.check("the batch was given up")
        here = slice(first, first + pass_rows)
        parts.append(watch.decide_rows(model.decider, inputs if whole else inputs.rows(here),
                                       None if rulings is None else rulings[here]))
    if len(parts) == 1:
        return parts[0]
    decided = BatchDecisions(**{name: np.concatenate([getattr(part, name) for part in parts])
                                for name in vars(parts[0])})
    watch.overrule_rows(decided, inputs)
    return decided


def only_finite(read: RowsRead, decided: BatchDecisions, arrow: bool) -> tuple[RowsRead, BatchDecisions | None]:
    """A row for which the model gives no finite decision gets an error and costs the others nothing."""
    finite = decided.finite
    if finite.all():
        return read, decided
    text, errors = "the model gives no finite decision on this row", list(read.errors)
    for row in read.kept[~finite].tolist():
        errors[row] = text if arrow else [{"loc": ["body", "rows", row], "msg": text, "type": "not_finite"}]
    pick = np.flatnonzero(finite)
    if not pick.size:
        return RowsRead(None, read.kept[pick], errors, read.traces, []), None
    assert read.inputs is not None
    given = [read.regimes[at] for at in pick.tolist()]
    return RowsRead(read.inputs.rows(pick), read.kept[pick], errors, read.traces, given), decided.rows(pick)


def opened_ns(read: RowsRead, decided: BatchDecisions | None) -> int | None:
    """The oldest bar's close on which a row opens a position; see serving.calls.Call."""
    if decided is None or read.inputs is None:
        return None
    opened = read.inputs.ts_close[decided.reasons == REASON_CODE[Reason.EXECUTE]]
    return int(opened.min()) if opened.size else None


def write_json(read: RowsRead, decided: BatchDecisions | None, model_id: str, call: Call) -> bytes:
    """A BatchResponse."""
    answers: list[dict[str, Any]] = [{"errors": fault} for fault in read.errors]
    if decided is not None and read.inputs is not None:
        levels = read.inputs.gate.tolist()
        for at, row in enumerate(read.kept.tolist()):
            d = decided.decision(at)
            p = d.proposal
            answers[row] = {
                "verdict": d.verdict, "reason": d.reason.value, "direction": d.direction,
                "confidence": d.confidence, "votes": d.votes,
                "proposal": {"contracts": p.contracts, "stop_distance": p.stop_distance,
                             "target_distance": p.target_distance, "limit": p.limit},
                "uncertainty": d.uncertainty}
            level, threshold = levels[at]
            if level == level:
                answers[row]["gate"] = {"model": model_id, "level": level, "threshold": threshold}
    for answer, trace in zip(answers, read.traces, strict=True):
        if trace is not None:
            answer["trace_id"] = trace
    return json.dumps({"rows": answers, "decided": len(read.kept), "model": model_id, "trace_id": call.trace_id,
                       "latency_ms": call.age_ms()}, allow_nan=False, separators=(",", ":")).encode()


def write_arrow(read: RowsRead, decided: BatchDecisions | None, model_id: str, call: Call) -> bytes:
    """A stream of batch_arrow.ANSWER."""
    metadata = {"model": model_id, "trace_id": call.trace_id, "latency_ms": f"{call.age_ms():.3f}",
                "decided": str(len(read.kept))}
    return batch_arrow.encode(batch_arrow.answer_table(decided, read.inputs, read.kept, read.errors,
                                                        metadata))
