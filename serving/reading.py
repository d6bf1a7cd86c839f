"""From a request to what a model takes: well-formed JSON that does not fit the bundle is refused by field."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import ValidationError

from algospace.errors import SchemaError
from algospace.execution.decision import Reason
from algospace.types import Float32Array
from serving.correction import GateLevel
from serving.decider import DecisionInputs, MarketState, account_record
from serving.models import Model
from serving.schemas import AccountIn, DecideRequest, DecideRow, GateIn, Matrix, level

_MOST_FAULTS = 20


class FieldError(Exception):
    """A request is well formed but does not fit the bundle; `fault` names the field as FastAPI does, `reason` why
    there can be no decision, where the list of reasons has it."""

    def __init__(self, field: str, kind: str, message: str, status: int = 422,
                 reason: Reason | None = None) -> None:
        super().__init__(message)
        self.fault = {"loc": ["body", *field.split(".")], "msg": message, "type": kind}
        self.status, self.reason = status, reason


def decision_inputs(model: Model, request: DecideRequest) -> DecisionInputs:
    """A request as the model takes it; FieldError if it does not fit the model's bundle."""
    require_schema(model, request.schema_hash)
    return row_inputs(model, request)


def require_schema(model: Model, schema_hash: str) -> None:
    """FieldError (409) unless the request was normalised with the model's schema."""
    expected = model.bundle.manifest.schema_hash
    if schema_hash != expected:
        raise FieldError("schema_hash", "schema_mismatch", f"the model was trained on schema {expected}, the "
                         f"request is of {schema_hash}; normalise with the bundle's schema", 409,
                         Reason.SCHEMA_MISMATCH)


def row_inputs(model: Model, request: DecideRow) -> DecisionInputs:
    """A row as the model takes it; FieldError if its shapes do not fit the model's bundle."""
    if request.regime is not None:
        regime = np.array(request.regime, np.float32)
    else:
        assert request.regime_window is not None
        if not model.bundle.has("rde"):
            raise FieldError("regime_window", "no_rde", "the bundle holds no RDE: give regime instead")
        regime = _matrix("regime_window", request.regime_window)
    market = request.market
    node = market.low_volume_node
    state = MarketState(market.close, market.atr, (market.hour_sin, market.hour_cos),
                        np.array(request.synergy, np.float32),
                        (np.nan, 0.0) if node is None else (node.distance, node.strength), market.ts_close_ns)
    inputs = DecisionInputs(_matrix("strategic", request.strategic), _matrix("tactical", request.tactical),
                            regime, state, account_of(request.account), request.seed, gate_of(model, request.gate))
    try:
        model.decider.check(inputs)
    except SchemaError as error:
        name = str(error).split(" ", 1)[0]
        if name == "regime" and request.regime is None:
            name = "regime_window"
        raise FieldError(name, "shape", str(error)) from None
    return inputs


def _matrix(name: str, rows: Matrix) -> Float32Array:
    widths = {len(row) for row in rows}
    if len(widths) != 1:
        raise FieldError(name, "shape", f"{name} has rows of {min(widths)} to {max(widths)} values")
    return np.array(rows, np.float32)


def account_of(account: AccountIn) -> Any:
    """An account as the model takes it: one ACCOUNT_DTYPE record."""
    return account_record(position=account.position, entry=account.entry, stop=level(account.stop),
                          target=level(account.target), equity=account.equity, peak=account.equity,
                          day_start=account.day_start, bars_in_trade=account.bars_in_trade)


def gate_of(model: Model, gate: GateIn | None) -> GateLevel | None:
    """Where the model's gate stands for a caller who keeps its level."""
    return None if gate is None else model.correction.after(gate.model, gate.level, gate.closed)


def faults(error: ValidationError) -> list[dict[str, Any]]:
    """The first errors of pydantic, without the rejected input, which may be large."""
    found = error.errors(include_url=False, include_context=False, include_input=False)[:_MOST_FAULTS]
    return [{"loc": ["body", *item["loc"]], "msg": item["msg"], "type": item["type"]} for item in found]
