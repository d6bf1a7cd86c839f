"""What the examples share: a synthetic market with known truth, the score of positions on it, the options."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np

from algospace.analysis.unit_baselines import score_baselines
from algospace.analysis.unit_score import UnitScore, fraction_of_limit, require_no_leak, score_unit_run
from algospace.features import build
from algospace.features.market_table import MarketTable
from algospace.features.matrices import Normaliser, assemble
from algospace.features.matrix_schema import MatrixConfig, MatrixSchema
from algospace.instruments import instrument
from algospace.marketdata.synthetic import SyntheticTruth, generate, scenario_named
from algospace.types import AnyArray
from envs.build import fixed_proposals
from envs.config import CoreEnvConfig
from envs.core_env import CoreEnv
from envs.vector_core import risk_unit_of

SYMBOL = "SYNTH"
MATRICES = MatrixConfig(strategic_window=2, tactical_window=4, regime_window=2,
                        tactical_extra=("return_1", "volatility_60", "autocorr1_60"))
"""Short windows, for networks without embedders; without the extra columns the range state is hard to see."""


@dataclass(frozen=True)
class ExampleMarket:
    """A market table and what is true of its rows; decisions are made on rows [start, stop)."""

    table: MarketTable
    truth: SyntheticTruth
    start: int
    stop: int


def options(about: str, steps: int, counted: str) -> dict[str, Any]:
    """What the command line asks of an example's `main`; `about` is its docstring, `steps` the default number of
    `counted` steps."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--steps", type=_at_least_one, default=steps, help=f"{counted} to train for")
    parser.add_argument("--seed", type=int, default=0, help="seed of training and of its market")
    parser.add_argument("--test-seed", type=int, default=9001, help="seed of the market that judges")
    parser.add_argument("--scenario", default="easy", help="easy, mid, hard or martingale")
    return vars(parser.parse_args())


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def make_market(seed: int, bars: int, scenario: str = "easy", schema: MatrixSchema | None = None) -> ExampleMarket:
    """A synthetic market, normalised by `schema` (a training market's) or, without one, by itself."""
    made = generate(scenario_named(scenario), seed, bars)
    contract = instrument(SYMBOL)
    features = build(made.bars, contract)
    chosen = schema or Normaliser.fit(features, MATRICES, int(features.ts_close[-1]))
    table = assemble(features, chosen, contract)
    return ExampleMarket(table, made.truth, table.first_decision, len(table) - 1)


def unit_core(market: ExampleMarket, config: CoreEnvConfig, seed: int, risk_unit: float | None = None,
              mirror: bool = True, env_index: int = 0) -> CoreEnv:
    """One core environment over the whole of a market."""
    contract = instrument(SYMBOL)
    unit = risk_unit or risk_unit_of(market.table, contract, config, market.start, market.stop)
    return CoreEnv(market.table, contract, config, fixed_proposals(market.table), market.start, market.stop, seed,
                   unit, mirror, env_index)


def chunks(market: ExampleMarket, count: int) -> list[tuple[int, int]]:
    """`count` stretches [start, stop) of equal length, to be played side by side, each starting flat."""
    length = (market.stop - market.start - 1) // count
    return [(market.start + length * i, market.start + length * (i + 1)) for i in range(count)]


def chunk_cores(market: ExampleMarket, segments: list[tuple[int, int]], risk_unit: float) -> list[CoreEnv]:
    """One unmirrored environment per stretch, whose one episode is the stretch."""
    contract, proposals = instrument(SYMBOL), fixed_proposals(market.table)
    cores = []
    for start, stop in segments:
        config = CoreEnvConfig(mechanics="unit", episode_bars=stop - start)
        cores.append(CoreEnv(market.table, contract, config, proposals, start, stop + 1, 0, risk_unit, False))
    return cores


def cost_scale(done: float) -> float:
    """Share of full costs after the share `done` of training: none for a quarter, full from 55 % on. Full costs
    from the first step teach any agent never to trade."""
    return min(max((done - 0.25) / 0.30, 0.0), 1.0)


def report(market: ExampleMarket, positions: AnyArray, segments: list[tuple[int, int]],
           who: str) -> dict[str, Any]:
    """Print and return scores in ticks per bar, noise-free and net of costs, beside the limit and plain rules.

    Raises LeakError if the positions earn more than anyone can who sees only the past.
    """
    truth, close = market.truth, np.asarray(market.table.close)
    if truth.expected_return is None:
        raise ValueError("the examples need a planted scenario: easy, mid, hard or martingale")
    own = score_unit_run(positions, truth.expected_return, close, segments)
    rules = score_baselines(truth, close, positions, segments)
    limit = rules.pop("bayes_limit")
    require_no_leak(own, limit, who)
    fraction = fraction_of_limit(own, limit)
    print(f"\n{own.bars:,} unseen bars; ticks per bar after costs, luck of returns removed")
    for name, score in ((who, own), ("bayes limit", limit), *rules.items()):
        print(_line(name, score, limit))
    return {"score": own.score, "score_se": own.score_se, "limit": limit.score, "fraction_of_limit": fraction,
            "exposure": own.exposure, "turnover": own.turnover,
            "baselines": {name: score.score for name, score in rules.items()}}


def _line(name: str, score: UnitScore, limit: UnitScore) -> str:
    share = fraction_of_limit(score, limit)
    of_limit = "" if share is None else f"{share:8.1%} of the limit"
    return f"  {name:<16} {score.score:8.3f} ± {score.score_se:.3f}{of_limit}   exposure {score.exposure:4.0%}"
