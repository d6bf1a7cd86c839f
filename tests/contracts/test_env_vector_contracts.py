"""Contracts of the batched environments: determinism, shards, state, values, refusals."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from algospace.errors import ConfigError
from algospace.instruments import INSTRUMENTS
from algospace.risk.limits import LimitsConfig
from algospace.types import Float32Array
from envs import checks
from envs.config import CoreEnvConfig, RiskEnvConfig
from envs.vector_core import VectorCoreEnv, build_market, risk_unit_of
from envs.vector_risk import VectorRiskEnv
from tests.env_market import random_proposals, random_table

SYNTH = INSTRUMENTS["SYNTH"]
TABLE = random_table(7, 600)
PROPOSALS = random_proposals(7, TABLE)
Make = Callable[[int, int], checks.VectorEnv]


def core(**values: object) -> Make:
    config = CoreEnvConfig(**{"episode_bars": 32, "initial_equity": 30_000.0} | values)
    unit = risk_unit_of(TABLE, SYNTH, config, 0, 600)
    return lambda first, count: VectorCoreEnv(TABLE, SYNTH, config, PROPOSALS, 30, 590, count, 5, unit,
                                              first_env=first)


def risk(first: int, count: int) -> checks.VectorEnv:
    config = RiskEnvConfig(episode_trades=8, max_bars=30, initial_equity=30_000.0, max_drawdown=0.1)
    return VectorRiskEnv(TABLE, SYNTH, config, 30, 590, count, 5, first_env=first)


MAKES = {"full": core(), "unit": core(mechanics="unit"), "synergy": core(decision_points="synergy"), "risk": risk}


@pytest.mark.parametrize("name", MAKES)
def test_vector_contracts(name: str) -> None:
    make = MAKES[name]
    steps = checks.play(make(0, 12), 6, 8, 1)
    checks.check_values(steps)
    assert any(step.rewards.any() for step in steps)
    checks.check_determinism(lambda: make(0, 12), 4, 8, 1)
    checks.check_shards(make, 4, 8, 1, 12)
    checks.check_state(lambda: make(3, 12), 3, 8, 1)


@pytest.mark.parametrize("mechanics", ["full", "unit"])
def test_the_risk_unit_is_of_its_rows_alone(mechanics: str) -> None:
    """Rows of validation and test must not scale the rewards of training."""
    config, start, stop = CoreEnvConfig(mechanics=mechanics, base_size=2), 100, 300
    returns = [math.log(TABLE.close[row] / TABLE.close[row - 1] / TABLE.roll[row]) for row in range(start, stop)]
    expected = float(np.std(returns)) if mechanics == "unit" else TABLE.atr[start:stop].mean() * 50.0 * 2
    assert risk_unit_of(TABLE, SYNTH, config, start, stop) == pytest.approx(expected, rel=1e-9)


def test_a_unit_held_earns_the_return_without_the_jump_of_a_roll() -> None:
    assert (TABLE.roll[30:590] != 1.0).sum() > 5
    config = CoreEnvConfig(mechanics="unit", episode_bars=559)
    env = VectorCoreEnv(TABLE, SYNTH, config, PROPOSALS, 30, 590, 1, 5, 1.0, mirror=False)
    env.cost_scale = 0.0
    assert env.rows[0] == 30
    held = 0.0
    for row in range(31, 589):
        voting = env.voting[0]
        reward = checks.take_step(env, np.array([[2, 2, 2, 1]], np.int8)).rewards[0]
        held = 1.0 if voting and not TABLE.filled[row] else held
        earned = held * math.log(TABLE.close[row] / TABLE.close[row - 1] / TABLE.roll[row])
        assert reward == pytest.approx(earned, abs=1e-7)


@pytest.mark.parametrize("points", ["bar", "synergy"])
def test_episodes_may_begin_wherever_they_end_inside_the_split(points: str) -> None:
    event = TABLE.decision & TABLE.synergy_event if points == "synergy" else np.ones(len(TABLE), np.bool_)
    market = build_market(TABLE, CoreEnvConfig(episode_bars=32, decision_points=points), 30, 590)
    assert market.starts.tolist() == [row for row in range(30, 590) if row + 32 <= 589 and event[row]]


@pytest.mark.parametrize("name", MAKES)
def test_seed_and_number_of_the_environment_decide_its_start(name: str) -> None:
    rows = MAKES[name](0, 64).rows
    assert np.unique(rows).size > 16
    assert (rows[8:] == MAKES[name](8, 56).rows).all()


def test_rows_advance_by_one_for_the_living_and_the_dead() -> None:
    """A segment stores its first row and sign only: row = first + t."""
    config = CoreEnvConfig(episode_bars=32, max_drawdown=0.01, limits=LimitsConfig(risk_per_trade=0.5))
    env = VectorCoreEnv(TABLE, SYNTH, config, PROPOSALS, 30, 590, 32, 5, 100.0)
    first = env.rows.copy()
    for t in range(32):
        assert (env.rows == first + t).all()
        checks.take_step(env, checks.choices(env, 2, t))
    assert (env.rows == first + 32).all()
    assert not env.alive.all()
    env.begin_segment()
    assert env.alive.all()


def test_a_state_of_another_size_is_refused() -> None:
    env = MAKES["full"](0, 4)
    with pytest.raises(ValueError, match="environments"):
        MAKES["full"](0, 5).set_state(env.get_state())
    with pytest.raises(ValueError, match="keys"):
        env.set_state({})


@pytest.mark.parametrize(("start", "stop"), [(-1, 500), (580, 600), (0, 20)])
def test_a_split_without_room_is_refused(start: int, stop: int) -> None:
    with pytest.raises(ConfigError, match="too few"):
        VectorCoreEnv(TABLE, SYNTH, CoreEnvConfig(episode_bars=32), PROPOSALS, start, stop, 2, 1, 1.0)
    with pytest.raises(ConfigError, match="too few"):
        VectorRiskEnv(TABLE, SYNTH, RiskEnvConfig(), start, stop, 2, 1)


def test_proposals_of_another_length_are_refused() -> None:
    wrong: Float32Array = PROPOSALS[:-1]
    with pytest.raises(ConfigError, match="proposals"):
        VectorCoreEnv(TABLE, SYNTH, CoreEnvConfig(episode_bars=32), wrong, 30, 590, 2, 1, 1.0)


def test_risk_actions_out_of_range_are_refused() -> None:
    env = risk(0, 2)
    assert isinstance(env, VectorRiskEnv)
    with pytest.raises(ValueError, match="actions"):
        env.step(np.full((2, 3), 6, np.int8), np.empty(2, np.float32), np.empty(2, np.float32))
