"""The registry of teams: which module is trained and what samples it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from training.mappo.core_team import CoreSampler, CoreTeamModule
from training.mappo.markets import JointCoreModule, JointCoreSampler
from training.mappo.risk_team import RiskSampler, RiskTeamModule


@dataclass(frozen=True)
class Team:
    """A TeamModule class and its sampler."""

    module: type[Any]
    sampler: type[Any]


TEAMS: dict[str, Team] = {
    "core": Team(CoreTeamModule, CoreSampler),
    "joint": Team(JointCoreModule, JointCoreSampler),
    "risk": Team(RiskTeamModule, RiskSampler),
}
