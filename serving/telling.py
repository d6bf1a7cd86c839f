"""What the stream is told of a decision; and batches told behind their answers, row by row, as if each had come
alone, to the stream, the log and the shadow.

All rows at once would fill the queues of the stream's clients, so some are told and then the clients get time to
read along. The answer does not wait for that.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import structlog

from algospace.execution.decision import Decision
from algospace.execution.preconditions import FORBIDDING
from serving.batch import BatchDecisions
from serving.batch_service import RowsRead
from serving.calls import Call
from serving.correction import GateLevel
from serving.decider import DecisionInputs, MarketState
from serving.models import Model
from serving.stream import StreamHub

_LOG = structlog.get_logger("serving")
_TOLD_AT_ONCE = 64
_PACE_S, _MOST_PACES = 0.001, 50
_MOST_BEHIND, _END_S = 4, 2.0

Row = tuple[DecisionInputs, Decision, str]
"""A decision and its trace id."""


def decision_data(model: Model, inputs: DecisionInputs, decision: Decision, trace_id: str,
                  latency_ms: float) -> dict[str, Any]:
    """A decision as the stream tells it."""
    p, regime = decision.proposal, None
    if inputs.regime.ndim == 1 or decision.reason not in FORBIDDING:  # the RDE is not asked for what was refused
        regime = model.decider.regime_vector(inputs.regime).tolist()  # a window's vector is remembered
    return {"trace_id": trace_id, "ts_ns": time.time_ns(), "instrument": model.bundle.manifest.instrument,
            "price": inputs.market.close, "verdict": decision.verdict, "reason": decision.reason.value,
            "direction": decision.direction, "confidence": decision.confidence, "votes": decision.votes,
            "proposal": {"contracts": p.contracts, "stop_distance": p.stop_distance,
                         "target_distance": p.target_distance, "limit": p.limit},
            "uncertainty": decision.uncertainty, "regime": regime,
            "gate": None if inputs.gate is None else inputs.gate._asdict(),
            "model": model.id, "latency_ms": latency_ms}


def told_rows(read: RowsRead, decided: BatchDecisions, model_id: str, trace_id: str) -> Iterator[Row]:
    """The batch's decisions one by one, with their regime windows (the shadow has an RDE of its own) and with
    where their gates stand."""
    inputs = read.inputs
    assert inputs is not None
    for at, row in enumerate(read.kept.tolist()):
        sin, cos = inputs.clock[at].tolist()
        distance, strength = inputs.lvn[at].tolist()
        level, threshold = inputs.gate[at].tolist()
        market = MarketState(float(inputs.close[at]), float(inputs.atr[at]), (sin, cos), inputs.synergy[at],
                             (distance, strength), int(inputs.ts_close[at]) or None)
        one = DecisionInputs(inputs.strategic[at], inputs.tactical[at], read.regimes[at], market,
                             inputs.accounts[at], int(inputs.seeds[at]),
                             GateLevel(model_id, level, threshold) if level == level else None)
        yield one, decided.decision(at), read.traces[row] or f"{trace_id}-{row}"


def behind_the_answer(tell: Callable[..., None], *what: Any) -> None:
    """`tell(*what)` in the event loop's next turn: this one writes the answer. At once where no loop runs."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        tell(*what)
    else:
        loop.call_soon(tell, *what)


class Telling:
    """The batches whose rows are being told. Each keeps its arrays until then, so a new one is begun only while
    fewer than _MOST_BEHIND are."""

    def __init__(self, hub: StreamHub) -> None:
        self._hub = hub
        self._tasks: set[asyncio.Task[None]] = set()

    async def room(self, call: Call) -> None:
        """Wait until a batch may begin; Refused (503) at the call's deadline."""
        while len(self._tasks) >= _MOST_BEHIND:
            left_s = (call.deadline_ms - call.age_ms()) / 1e3
            await asyncio.wait(self._tasks, timeout=None if left_s == float("inf") else max(0.0, left_s),
                               return_when=asyncio.FIRST_COMPLETED)
            call.check("the batch waited until others were told")

    def begin(self, rows: Iterator[Row], tell: Callable[[DecisionInputs, Decision, str], None]) -> None:
        """`tell` every row from the event loop's next turn on. A failure ends it and is logged."""
        task = asyncio.create_task(self._tell(rows, tell))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def end(self) -> None:
        """Once all is told; after _END_S without regard to clients that do not read along."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=_END_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)  # `_ended` logs what fails

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            _LOG.error("batch_not_told", error=type(error).__name__, exc_info=error)

    async def _tell(self, rows: Iterator[Row], tell: Callable[[DecisionInputs, Decision, str], None]) -> None:
        at_once = max(1, min(_TOLD_AT_ONCE, self._hub.settings.queue // 4))
        try:
            for at, row in enumerate(rows):
                tell(*row)
                if (at + 1) % at_once == 0:
                    await self._let_read()
        except asyncio.CancelledError:  # the loop ends: what is left is told now or never
            for row in rows:
                tell(*row)
            raise

    async def _let_read(self) -> None:
        """A turn for the stream's clients, and some milliseconds more if one is half its queue behind."""
        await asyncio.sleep(0)
        for _ in range(_MOST_PACES):
            if self._hub.backlog() <= self._hub.settings.queue // 2:
                return
            await asyncio.sleep(_PACE_S)
