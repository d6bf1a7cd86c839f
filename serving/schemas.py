"""What the decision service takes and answers. Unknown fields, wrong types, NaN and infinities are refused."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

from algospace.execution.decision import Decision, Reason
from serving.correction import GateLevel

Row = list[Annotated[float, Field(ge=-1e6, le=1e6)]]
"""Normalised values; the bound keeps them finite in float32."""
PRICE_MOST, MONEY_MOST, CONTRACTS_MOST, STRENGTH_MOST = 1e12, 1e18, 1e9, 1e6
"""Largest prices, distances and ATR in points, money, contracts, strengths of a node: far above any market's, and
with room to be multiplied with each other in float64 and with the settings' factors in float32."""
SMALLEST = 1e-9
"""Smallest price and value of an account that is divided by."""
TIMES = 1, 2**62 - 1
"""First and last time, ns UTC."""
Price = Annotated[float, Field(ge=-PRICE_MOST, le=PRICE_MOST)]
VerdictName = Literal["EXECUTE", "CLOSE", "REJECT"]
ReasonName = Annotated[str, Field(json_schema_extra={"enum": [reason.value for reason in Reason]})]
Matrix = Annotated[list[Row], Field(min_length=1, max_length=4096)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class LowVolumeNode(_Strict):
    """The nearest node: signed distance in points from the close, and its strength (0..100, as read back)."""

    distance: Price
    strength: float = Field(ge=-STRENGTH_MOST, le=STRENGTH_MOST)


class MarketIn(_Strict):
    """The bar that has just closed. Prices in raw points; `hour_sin`, `hour_cos` of its close in exchange time,
    `ts_close_ns` the same in ns UTC; it may have to be told (preconditions.max_age_s)."""

    close: float = Field(ge=SMALLEST, le=PRICE_MOST)
    atr: float = Field(ge=0, le=PRICE_MOST)
    hour_sin: float = Field(ge=-1, le=1)
    hour_cos: float = Field(ge=-1, le=1)
    low_volume_node: LowVolumeNode | None = None
    ts_close_ns: int | None = Field(default=None, ge=TIMES[0], le=TIMES[1])


class AccountIn(_Strict):
    """The account at that close: signed contracts, average entry, resting levels, money in account currency."""

    position: float = Field(ge=-CONTRACTS_MOST, le=CONTRACTS_MOST)
    entry: float = Field(default=0.0, ge=0, le=PRICE_MOST)
    stop: Price | None = None
    target: Price | None = None
    equity: float = Field(ge=-MONEY_MOST, le=MONEY_MOST)
    day_start: float = Field(ge=SMALLEST, le=MONEY_MOST)
    bars_in_trade: int = Field(default=0, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _a_position_has_an_entry(self) -> AccountIn:
        if self.position != 0.0 and self.entry <= 0.0:
            raise ValueError("an open position needs its entry price")
        return self


class GateIn(_Strict):
    """Where the gate's online correction stands. `model` and `level` of the last answer's `gate` (neither: nothing
    was traded yet), and of the trades that have closed since, in order, whether each ended with a net gain."""

    model: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    level: float | None = Field(default=None, ge=0, le=1)
    closed: list[bool] = Field(default=[], max_length=1000)

    @model_validator(mode="after")
    def _a_level_has_its_model(self) -> Self:
        if (self.level is None) != (self.model is None):
            raise ValueError("model and level belong together, as the last answer gave them")
        return self


class DecideRow(_Strict):
    """One decision. Matrices are normalised as the bundle's schema says, oldest row first.

    `regime` is the regime vector, `regime_window` the matrix it is computed from; exactly one is given.
    `synergy` is (type/4, direction, bars/10). `seed` chooses the dropout masks: the same request gives the same
    answer.
    """

    strategic: Matrix
    tactical: Matrix
    regime: Row | None = None
    regime_window: Matrix | None = None
    synergy: Annotated[Row, Field(min_length=3, max_length=3)]
    market: MarketIn
    account: AccountIn
    gate: GateIn | None = None
    seed: int = Field(default=0, ge=0, lt=2**63)
    trace_id: str | None = Field(default=None, pattern="^[A-Za-z0-9_.-]{1,64}$")

    @model_validator(mode="after")
    def _one_regime(self) -> Self:
        if (self.regime is None) == (self.regime_window is None):
            raise ValueError("give either regime or regime_window")
        return self


class DecideRequest(DecideRow):
    """A row on its own. `schema_hash` names the schema that the matrices were normalised with."""

    schema_hash: str = Field(pattern="^[0-9a-f]{64}$")


class BarIn(_Strict):
    """One closed source bar: [ts_open, ts_open + the catalog's width), ns UTC, raw prices."""

    ts_open: int = Field(ge=0, lt=2**62)
    open: float = Field(gt=0)
    high: float = Field(gt=0)
    low: float = Field(gt=0)
    close: float = Field(gt=0)
    volume: float | None = Field(default=None, ge=0)
    contract: int = Field(default=0, ge=0, lt=2**31)


class BarsRequest(_Strict):
    """The bars behind `state_id`, oldest first, and the account at the last one's close; see DecideRequest."""

    state_id: str | None = Field(default=None, max_length=100)
    bars: list[BarIn] = Field(max_length=100_000)
    account: AccountIn
    gate: GateIn | None = None
    seed: int = Field(default=0, ge=0, lt=2**63)
    trace_id: str | None = Field(default=None, pattern="^[A-Za-z0-9_.-]{1,64}$")


class BatchRequest(_Strict):
    """Many rows for one model. A row that is not well formed gets errors of its own and costs the others
    nothing."""

    schema_hash: str = Field(pattern="^[0-9a-f]{64}$")
    rows: Annotated[list[DecideRow], Field(min_length=1)]


class BatchEnvelope(_Strict):
    """A BatchRequest whose rows have not been looked at yet."""

    schema_hash: str = Field(pattern="^[0-9a-f]{64}$")
    rows: Annotated[list[Any], Field(min_length=1)]


class Fault(BaseModel):
    """Where a request is wrong, and how."""

    loc: list[str | int]
    msg: str
    type: str


class Problem(BaseModel):
    """Every answer that is not a success: one line, or a fault per field; `reason` where it is one of a
    decision's: features of another schema."""

    detail: str | list[Fault]
    verdict: VerdictName | None = None
    reason: ReasonName | None = None


class ProposalOut(BaseModel):
    """Contracts, distances in points, and which hard limit changed the proposal."""

    contracts: float
    stop_distance: float
    target_distance: float
    limit: str


class GateOut(BaseModel):
    """Where the gate's online correction stands, to be sent with the next request: `level` is the share of the
    calibration's trades that pass, `threshold` the confidence that an EXECUTE needed here."""

    model: str
    level: float
    threshold: float


class DecideResponse(BaseModel):
    """The verdict. `votes`: agent -> mean probabilities (short, pass, long); `model` is the bundle's id; `gate`
    where the request had one."""

    verdict: VerdictName
    reason: ReasonName
    direction: int
    confidence: float
    votes: dict[str, tuple[float, float, float]]
    proposal: ProposalOut
    uncertainty: dict[str, float]
    model: str
    trace_id: str
    latency_ms: float
    gate: GateOut | None = None

    @staticmethod
    def of(decision: Decision, model: str, trace_id: str, latency_ms: float,
           gate: GateLevel | None = None) -> DecideResponse:
        """The answer that carries `decision`."""
        p = decision.proposal
        return DecideResponse.model_construct(
            verdict=cast(VerdictName, decision.verdict), reason=decision.reason.value,
            direction=decision.direction, confidence=decision.confidence, votes=decision.votes,
            proposal=ProposalOut.model_construct(contracts=p.contracts, stop_distance=p.stop_distance,
                                                 target_distance=p.target_distance, limit=p.limit),
            uncertainty=decision.uncertainty, model=model, trace_id=trace_id, latency_ms=latency_ms,
            gate=None if gate is None else GateOut.model_construct(**gate._asdict()))


class BarsResponse(BaseModel):
    """The state behind the bars, to be sent with the next ones, and the decision at its last row; `why` there is
    none. `width_ns`: of the bars; `row_ts_close_ns`: the row's close. Times in ns UTC."""

    state_id: str
    through_ns: int
    width_ns: int
    decision: DecideResponse | None
    why: str | None = None
    row_ts_close_ns: int | None = None


class RowAnswer(BaseModel):
    """A row of a batch: its decision, or its errors."""

    verdict: VerdictName | None = None
    reason: ReasonName | None = None
    direction: int | None = None
    confidence: float | None = None
    votes: dict[str, tuple[float, float, float]] | None = None
    proposal: ProposalOut | None = None
    uncertainty: dict[str, float] | None = None
    gate: GateOut | None = None
    trace_id: str | None = None
    errors: list[Fault] | None = None


class BatchResponse(BaseModel):
    """Rows in the order of the request; `decided` of them hold a decision."""

    rows: list[RowAnswer]
    decided: int
    model: str
    trace_id: str
    latency_ms: float


def level(price: float | None) -> float:
    """A resting level as accounts hold it: NaN where there is none."""
    return math.nan if price is None else price
