"""Markets for an evaluation: generated, normalised with the statistics of the run that made the experts, with the
experts' columns beside them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from algospace.analysis.unit_judgement import Judgement, judge
from algospace.features import build
from algospace.features.matrices import assemble
from algospace.features.oracle import oracle_scale, with_oracle
from algospace.instruments import instrument
from algospace.marketdata.synthetic import Scenario, SyntheticTruth, generate
from envs.config import CoreEnvConfig
from training.config import RunConfig
from training.dataset import open_dataset
from training.evaluation.unit_run import unit_run
from training.experts import load_regime, propose, regime_columns
from training.mappo.core_team import CoreTeamModule
from training.mappo.module import build_team_module
from training.mappo.tables import save_experts
from training.team_training import TrainedTeam, load_team


class Experts:
    """The frozen RDE and M-RMS of a run, and the normaliser they were trained with."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        train = open_dataset(run_dir).train.market()
        self.schema, self.oracle_scale = train.schema, oracle_scale(train)
        self.regime = load_regime(run_dir)
        self.risk = load_team(run_dir / "mrms" / "team")


@dataclass(frozen=True)
class JudgingMarket:
    """A market table and its experts' columns in `folder`; decisions are made on rows [start, stop)."""

    folder: Path
    scenario: Scenario
    seed: int
    truth: SyntheticTruth
    close: Any
    start: int
    stop: int
    digest: str

    @property
    def places(self) -> dict[str, str]:
        """The part of a team's specification that says which table it reads."""
        return {"market": str((self.folder / "market").resolve()),
                "experts": str((self.folder / "experts").resolve()), "table_hash": self.digest}


def make_market(config: RunConfig, experts: Experts, scenario: Scenario, seed: int, bars: int, folder: Path,
                mirror: bool = False, oracle: bool = False) -> JudgingMarket:
    """Generate a market and write it to `folder`, over whatever is there.

    mirror: the experts' columns for the mirrored market too, which training needs. oracle: show the next return;
    the experts, trained without, do not see it.
    """
    shutil.rmtree(folder, ignore_errors=True)
    made = generate(scenario, seed, bars)
    spec = instrument(config.market.instrument)
    table = assemble(build(made.bars, spec, config.features), experts.schema, spec)
    vectors = regime_columns(experts.regime, table, mirror)
    proposals = propose(experts.risk, table, vectors[0])
    if oracle:
        table = with_oracle(table, experts.oracle_scale)
    table.save(folder / "market")
    digest = save_experts(folder / "experts", folder / "market", vectors, proposals)
    return JudgingMarket(folder, scenario, seed, made.truth, np.asarray(table.close), table.first_decision,
                         len(table) - 1, digest)


def judge_team(team: TrainedTeam, market: JudgingMarket) -> Judgement:
    """The unit run of a trained core over a market, judged."""
    env = CoreEnvConfig(**{**team.spec["env"], "mechanics": "unit", "decision_points": "bar"})
    spec = {**team.spec, **market.places, "env": env.model_dump()}
    module = build_team_module(spec)
    assert isinstance(module, CoreTeamModule)
    module.load_state_dict(team.module.state_dict())
    positions, segments = unit_run(module, spec, market.start, market.stop)
    return judge(market.scenario, market.truth, market.close, positions, segments, market.seed)
