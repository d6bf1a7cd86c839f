"""Throughput of the batched environments on one core, beside scalar Python environments over the same market.

    python -m benchmarks.environments [--envs 1024] [--rows 200000]

An env step is one team decision, both half-steps. Times are CPU seconds of the one thread, best of several
repeats; random actions are drawn beforehand. Peers: `CoreEnv`, our readable reference, and `TypicalEnv`, the
usual shape of a public scalar trading environment (a window of 48 x 8 features copied at every step, a position
of -1, 0 or 1, costs, no brackets), written here so that both sides share market, actions and machine.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np

from algospace.features.market_table import MarketTable
from algospace.features.matrix_schema import MatrixConfig, MatrixSchema, MatrixSpec, column_specs
from algospace.instruments import INSTRUMENTS
from algospace.types import BASE_BAR_NS, AnyArray, Float32Array, FloatArray
from envs.config import SIZE_CHOICES, STOP_CHOICES, TARGET_CHOICES, CoreEnvConfig, RiskEnvConfig
from envs.core_env import CoreEnv
from envs.vector_core import VectorCoreEnv, risk_unit_of
from envs.vector_risk import VectorRiskEnv

SYNTH = INSTRUMENTS["SYNTH"]
STEPS = 128
REQUIRED = 10e6


def random_market(rows: int) -> MarketTable:
    """A random walk on the tick grid; feature columns are noise, the environments only index them."""
    rng = np.random.default_rng(0)
    close = np.round(5000.0 * np.exp(np.cumsum(rng.normal(0.0, 5e-4, rows))) * 4.0) / 4.0
    open_ = np.concatenate([[5000.0], close[:-1]])
    config = MatrixConfig.model_validate({})
    specs = [MatrixSpec(window, column_specs(names, {})) for window, names in (
        (48, config.strategic), (60, config.tactical), (96, config.regime))]
    schema = MatrixSchema(strategic=specs[0], tactical=specs[1], regime=specs[2], clip=5.0, atr_clip=50.0)
    slow = rows // 6 + 1
    strategic, tactical, regime = (rng.normal(size=(n, spec.width)).astype(np.float32)
                                   for n, spec in zip((slow, rows, slow), specs, strict=True))
    return MarketTable(
        symbol="SYNTH", schema=schema,
        ts_close=(np.arange(rows, dtype=np.int64) + 1) * BASE_BAR_NS, open=open_,
        high=np.maximum(open_, close) + 0.25 * rng.integers(0, 8, rows),
        low=np.minimum(open_, close) - 0.25 * rng.integers(0, 8, rows), close=close, roll=np.ones(rows),
        atr=np.full(rows, 4.0), atr_30m=np.full(rows, 10.0), day=(np.arange(rows) // 276).astype(np.int32),
        clock=np.zeros((rows, 2), np.float32), filled=np.zeros(rows, np.bool_),
        decision=np.ones(rows, np.bool_),
        synergy=np.zeros((rows, 3), np.float32), synergy_event=np.zeros(rows, np.bool_),
        row_30m=(np.arange(rows) // 6).astype(np.int32), tactical=tactical, strategic=strategic, regime=regime)


class TypicalEnv:
    """A scalar environment as commonly published: `step(action)` copies the window that it returns."""

    def __init__(self, close: FloatArray, features: Float32Array, cost: float) -> None:
        self.close, self.features, self.cost = close, features, cost
        self.row, self.position = 48, 0

    def step(self, action: int) -> tuple[Float32Array, float, bool]:
        want = action - 1
        change = self.close[self.row + 1] / self.close[self.row] - 1.0
        reward = want * change - self.cost * abs(want - self.position)
        self.position = want
        self.row += 1
        done = self.row + 1 >= len(self.close)
        return self.features[self.row - 48:self.row].copy(), float(reward), done


def best_rate(run: Callable[[], int], repeats: int) -> float:
    """Steps per CPU second of the fastest of `repeats` runs."""
    best = 0.0
    for _ in range(repeats):
        begin = time.thread_time()
        steps = run()
        best = max(best, steps / (time.thread_time() - begin))
    return best


def core_rate(table: MarketTable, proposals: Float32Array, mechanics: str, envs: int, observe: bool) -> float:
    """Decisions per second of the batched core environment."""
    config = CoreEnvConfig.model_validate({"mechanics": mechanics})
    unit = risk_unit_of(table, SYNTH, config, 0, len(table))
    env = VectorCoreEnv(table, SYNTH, config, proposals, 0, len(table), envs, 1, unit)
    rng = np.random.default_rng(1)
    votes = rng.integers(0, 3, (STEPS, envs, 3)).astype(np.int8)
    actions = rng.integers(0, 3, (STEPS, envs)).astype(np.int8)
    rewards, discounts = np.empty(envs, np.float32), np.empty(envs, np.float32)
    account = np.empty((envs, 8), np.float32)

    def run() -> int:
        env.begin_segment()
        for t in range(STEPS):
            if observe:
                env.observe(account)
            env.vote(votes[t])
            env.execute(actions[t], rewards, discounts)
        return STEPS * envs

    run()
    return best_rate(run, 30)


def scalar_rate(table: MarketTable, proposals: Float32Array, mechanics: str) -> float:
    """Decisions per second of the readable core environment."""
    config = CoreEnvConfig.model_validate({"mechanics": mechanics})
    env = CoreEnv(table, SYNTH, config, proposals, 0, len(table), 1,
                  risk_unit_of(table, SYNTH, config, 0, len(table)))
    rng = np.random.default_rng(1)
    votes, actions = rng.integers(0, 3, (512, 3)).tolist(), rng.integers(0, 3, 512).tolist()

    def run() -> int:
        env.begin_episode()
        for vote, action in zip(votes, actions, strict=True):
            env.observe()
            env.vote(vote)
            env.execute(action)
        return len(actions)

    run()
    return best_rate(run, 5)


def typical_rate(table: MarketTable) -> float:
    """Steps per second of TypicalEnv."""
    features = np.zeros((len(table), 8), np.float32)
    actions = np.random.default_rng(1).integers(0, 3, 20_000).tolist()

    def run() -> int:
        env = TypicalEnv(table.close, features, 1e-4)
        for action in actions:
            env.step(action)
        return len(actions)

    return best_rate(run, 5)


def risk_rate(table: MarketTable, envs: int) -> float:
    """Brackets per second of the batched M-RMS environment."""
    env = VectorRiskEnv(table, SYNTH, RiskEnvConfig.model_validate({}), 0, len(table), envs, 1)
    rng = np.random.default_rng(1)
    bounds = (SIZE_CHOICES, STOP_CHOICES, TARGET_CHOICES)
    choices: AnyArray = rng.integers(0, bounds, (32, envs, 3)).astype(np.int8)
    rewards, discounts = np.empty(envs, np.float32), np.empty(envs, np.float32)

    def run() -> int:
        env.begin_segment()
        for chosen in choices:
            env.step(chosen, rewards, discounts)
        return len(choices) * envs

    run()
    return best_rate(run, 5)


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=200_000)
    options = parser.parse_args()
    table = random_market(options.rows)
    proposals = np.tile(np.array([2.0, 6.0, 12.0], np.float32), (len(table), 2, 1))
    typical = typical_rate(table)
    result: dict[str, float] = {"envs": options.envs, "typical_scalar_per_s": typical}
    for mechanics in ("unit", "full"):
        rate = core_rate(table, proposals, mechanics, options.envs, observe=False)
        scalar = scalar_rate(table, proposals, mechanics)
        result |= {
            f"{mechanics}_per_s": rate,
            f"{mechanics}_with_observe_per_s": core_rate(table, proposals, mechanics, options.envs, observe=True),
            f"{mechanics}_scalar_per_s": scalar, f"{mechanics}_over_scalar": rate / scalar,
            f"{mechanics}_over_typical": rate / typical, f"{mechanics}_over_required": rate / REQUIRED}
    result["risk_brackets_per_s"] = risk_rate(table, options.envs)
    print(json.dumps({name: float(f"{value:.4g}") for name, value in result.items()}, indent=2))


if __name__ == "__main__":
    main()
