"""What a policy answers at a decision point, and the one enum of reasons."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol


class Reason(StrEnum):
    """Why a decision is what it is. Only EXECUTE and CLOSE become orders."""

    EXECUTE = "EXECUTE"
    CLOSE = "CLOSE"
    NO_OPPORTUNITY = "NO_OPPORTUNITY"
    REJECTED = "REJECTED"                    # the execution agent chose to reject
    LOW_CONFIDENCE = "LOW_CONFIDENCE"
    HIGH_UNCERTAINTY = "HIGH_UNCERTAINTY"
    RISK_LIMIT = "RISK_LIMIT"
    STALE_DATA = "STALE_DATA"
    OUT_OF_SESSION = "OUT_OF_SESSION"
    SCHEMA_MISMATCH = "SCHEMA_MISMATCH"
    KILL_SWITCH = "KILL_SWITCH"


@dataclass(frozen=True)
class RiskProposal:
    """How to take an opportunity: contracts >= 0, distances in points, which limit (its name) changed it."""

    contracts: float
    stop_distance: float
    target_distance: float
    limit: str = "NONE"


@dataclass(frozen=True)
class Decision:
    """The verdict of the team and the gate at one base bar's close.

    direction: -1, 0, +1 proposed by the voters; votes: agent -> mean probabilities (short, pass, long);
    confidence in [0, 1]; uncertainty: named measures (entropy, mutual information, std over masks).
    """

    reason: Reason
    direction: int
    confidence: float
    proposal: RiskProposal
    votes: dict[str, tuple[float, float, float]]
    uncertainty: dict[str, float]

    @property
    def verdict(self) -> str:
        """EXECUTE, CLOSE or REJECT."""
        return self.reason.value if self.reason in (Reason.EXECUTE, Reason.CLOSE) else "REJECT"


class Policy(Protocol):
    """Anything that decides at rows of a market table."""

    def decide(self, row: int, account: Any) -> Decision:
        """Decide at the close of base row `row` for one ACCOUNT_DTYPE record. Pure: same inputs, same answer."""
        ...
