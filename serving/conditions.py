"""What must hold before the service opens a position: kill switch, age of the data, trading hours.

Refusing costs no pass of the model, unless there is a position: the team is still asked whether to close it, and
may. What is refused for features of another schema is refused when the request is read (serving.reading).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import Field

from agents.gate import Uncertainty
from algospace.config import FrozenConfig
from algospace.execution.decision import Decision, Reason
from algospace.execution.preconditions import Conditions, PreconditionsConfig, forbidden, overruled
from algospace.execution.result import REASON_CODE, REASONS
from algospace.instruments import Session
from algospace.marketdata.sessions import minute_of_week, open_minutes
from algospace.types import MINUTE_NS, AnyArray, BoolArray
from serving.batch import VOTER_NAMES, BatchDecisions, BatchInputs
from serving.decider import NO_PROPOSAL, Decider, DecisionInputs
from serving.reading import FieldError

_NOBODY_VOTED = (0.0, 0.0, 0.0)


class PreconditionsSettings(FrozenConfig):
    """Off by default: a replay has no now. The kill switch always counts."""

    max_age_s: float | None = Field(default=None, gt=0)
    """Oldest bar that may open a position, seconds from its close; requests then have to name it."""
    trading_hours: bool = False
    """Whether positions are opened only while the instrument's market is open by the service's clock. Holidays
    are not known."""
    kill_file: Path | None = None
    """Where the kill switch is latched, so that it outlives the service."""


class Ruling(NamedTuple):
    """What forbids opening a position, under which conditions."""

    why: Reason
    conditions: Conditions


Rulings = Sequence[Ruling | None]


class Watch:
    """The conditions of decisions made now. `session`: of the instrument; `killed`: is the switch thrown?"""

    def __init__(self, settings: PreconditionsSettings, session: Session, killed: Callable[[], bool],
                 now_ns: Callable[[], int] = time.time_ns) -> None:
        self._config = PreconditionsConfig(max_age_s=settings.max_age_s)
        self._hours, self._session = settings.trading_hours, session
        self._killed, self._now_ns = killed, now_ns
        self._minute, self._open = -1, True

    @property
    def needs_time(self) -> bool:
        """Whether a request has to say when its bar closed."""
        return self._config.max_age_s is not None

    def require_time(self, ts_close_ns: int | None) -> None:
        """FieldError (422) where a request has to say when its bar closed and does not."""
        if ts_close_ns is None and self.needs_time:
            raise FieldError("market.ts_close_ns", "missing", f"bars older than {self._config.max_age_s:g} s open "
                             "no position here (preconditions.max_age_s): say when this one closed, ns UTC")

    def ruling(self, ts_close_ns: int | None) -> Ruling | None:
        """What forbids opening a position on the bar that closed then; None: nothing does."""
        now = self._now_ns()
        return self._rule(now, self._age_s(now, math.nan if ts_close_ns is None else ts_close_ns))

    def rulings(self, ts_close_ns: AnyArray) -> Rulings | None:
        """`ruling` of rows (N,), where 0 is a time that was not told; None: nothing forbids any."""
        now = self._now_ns()
        fresh, stale = self._rule(now, 0.0), self._rule(now, math.nan)
        if stale is None:
            return None
        limit = self._config.max_age_s
        if limit is None or (fresh is not None and fresh.why is stale.why):
            return [fresh] * len(ts_close_ns)
        ages = (now - ts_close_ns) / 1e9
        return [fresh if ok else stale for ok in (np.abs(ages) <= limit).tolist()]

    def _age_s(self, now: int, ts_close_ns: float) -> float:
        """Seconds; no number for a bar that closes further ahead than data may be old: then the clocks differ."""
        age, limit = (now - ts_close_ns) / 1e9, self._config.max_age_s
        return math.nan if limit is not None and age < -limit else age

    def _rule(self, now: int, age_s: float) -> Ruling | None:
        conditions = Conditions(self._killed(), True, age_s, not self._hours or self._is_open(now))
        why = forbidden(conditions, self._config)
        return None if why is None else Ruling(why, conditions)

    def _is_open(self, now: int) -> bool:
        minute = now // MINUTE_NS
        if minute != self._minute:
            place = minute_of_week(np.array([now], np.int64), self._session.zone)[0]
            self._minute, self._open = minute, bool(open_minutes(self._session)[place])
        return self._open

    def left(self, reason: Reason, ruling: Ruling, held: float, direction: int) -> Reason:
        """What a ruling leaves of the team's and the gate's answer; see `overruled`."""
        return overruled(reason, ruling.conditions, self._config, held, direction)

    def decide(self, decider: Decider, inputs: DecisionInputs) -> Decision:
        """The decision, under what holds now."""
        ruling = self.ruling(inputs.market.ts_close_ns)
        if ruling is None:
            return decider.decide(inputs)
        if inputs.account["position"] == 0.0:
            return refused(ruling.why)
        decision = decider.decide(inputs)
        return replace(decision, reason=self.left(decision.reason, ruling, float(inputs.account["position"]),
                                                  decision.direction))

    def decide_rows(self, decider: Decider, inputs: BatchInputs, before: Rulings | None) -> BatchDecisions:
        """`decide` of every row, in one pass of those that the model is asked about. `before`: what forbade rows
        when they were read; it counts, too."""
        rulings = _both(before, self.rulings(inputs.ts_close))
        if rulings is None:
            return decider.decide_batch(inputs)
        asked = asked_rows(rulings, inputs.accounts)
        decided = BatchDecisions.of_nothing(len(inputs))
        if asked.any():
            decided.put(asked, decider.decide_batch(inputs.rows(asked)))
        self._overrule(decided, inputs, rulings)
        return decided

    def overrule_rows(self, decided: BatchDecisions, inputs: BatchInputs) -> None:
        """Apply what holds now to rows that were decided some time ago: passes of others came between."""
        rulings = self.rulings(inputs.ts_close)
        if rulings is not None:
            self._overrule(decided, inputs, rulings)

    def _overrule(self, decided: BatchDecisions, inputs: BatchInputs, rulings: Rulings) -> None:
        """Rows without a position that are refused look as if nobody had been asked, whoever was."""
        unasked = ~asked_rows(rulings, inputs.accounts)
        codes = decided.reasons.copy()
        decided.put(unasked, BatchDecisions.of_nothing(int(unasked.sum())))
        held, direction = inputs.accounts["position"].tolist(), decided.direction.tolist()
        for row, ruling in enumerate(rulings):
            if ruling is not None:
                codes[row] = REASON_CODE[self.left(REASONS[codes[row]], ruling, held[row], direction[row])]
        decided.reasons[:] = codes


def _both(before: Rulings | None, now: Rulings | None) -> Rulings | None:
    if before is None or now is None:
        return before or now
    return [one or other for one, other in zip(now, before, strict=True)]


def asked_rows(rulings: Rulings, accounts: AnyArray) -> BoolArray:
    """(N,): whether the model is asked. It is not where opening is forbidden and there is nothing to close."""
    asked: BoolArray = np.array([ruling is None for ruling in rulings]) | (accounts["position"] != 0.0)
    return asked


def refused(why: Reason) -> Decision:
    """A decision that nobody was asked about: nobody voted, and all numbers are 0."""
    return Decision(why, 0, 0.0, NO_PROPOSAL, dict.fromkeys(VOTER_NAMES, _NOBODY_VOTED),
                    Uncertainty(0.0, 0.0, 0.0, 0.0)._asdict())
