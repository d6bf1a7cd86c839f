"""What must hold before anybody's confidence counts: the second stage of a decision, behind the team and its gate.

Order of precedence, first that applies: the kill switch; features of another schema, which mean nothing; data too
old; outside the session. Hard limits on size come after these, in `plan_order`. A position may be closed at any
time and under any condition but one: where the features mean nothing, so does the team's wish to close.
"""

from __future__ import annotations

from typing import NamedTuple

from pydantic import Field

from algospace.config import FrozenConfig
from algospace.execution.decision import Reason

FORBIDDING = frozenset({Reason.KILL_SWITCH, Reason.SCHEMA_MISMATCH, Reason.STALE_DATA, Reason.OUT_OF_SESSION})
"""Reasons that conditions give, whatever the team's answer was."""


class PreconditionsConfig(FrozenConfig):
    """Bounds of what is still fit to trade on."""

    max_age_s: float | None = Field(default=None, gt=0)
    """Oldest data that may open a position, seconds from the bar's close; None asks nothing."""


class Conditions(NamedTuple):
    """What is so at the time of a decision."""

    killed: bool = False
    schema_known: bool = True
    age_s: float = 0.0
    in_session: bool = True


def forbidden(conditions: Conditions, config: PreconditionsConfig) -> Reason | None:
    """Why no position may be opened now; None if one may. An age that is no number is too old."""
    if conditions.killed:
        return Reason.KILL_SWITCH
    if not conditions.schema_known:
        return Reason.SCHEMA_MISMATCH
    if config.max_age_s is not None and not conditions.age_s <= config.max_age_s:
        return Reason.STALE_DATA
    return None if conditions.in_session else Reason.OUT_OF_SESSION


def overruled(reason: Reason, conditions: Conditions, config: PreconditionsConfig, held: float,
              direction: int) -> Reason:
    """What the conditions leave of the team's and the gate's answer.

    `held`: signed contracts of the position; `direction` of the answer. Of a reversal, an EXECUTE against the
    position held, the half that closes is left.
    """
    why = forbidden(conditions, config)
    if why is None:
        return reason
    closes = reason is Reason.CLOSE or (reason is Reason.EXECUTE and held * direction < 0.0)
    return Reason.CLOSE if closes and conditions.schema_known else why
