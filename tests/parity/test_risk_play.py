"""Rules played on fixed opportunities: equal to the readable environment, and the same opportunities for all."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.risk import RiskNet
from algospace.execution.mechanics import open_account
from algospace.instruments import INSTRUMENTS
from algospace.risk.limits import limit_contracts
from algospace.types import AnyArray
from envs.config import RiskEnvConfig
from envs.risk_env import RiskEnv
from envs.risk_play import Play, RiskField
from tests.env_market import random_table
from tests.training_market import MarketOnDisk
from training.evaluation.risk import chosen, constant, play_rule, team_choices
from training.experts import propose
from training.mappo.module import build_team_module
from training.team_training import TrainedTeam

SYNTH = INSTRUMENTS["SYNTH"]
CHOICES = np.array([6, 7, 5])
configs = st.builds(RiskEnvConfig, momentum_bars=st.just(6), max_wait=st.sampled_from([0, 20]),
                    episode_trades=st.sampled_from([2, 5]), max_bars=st.sampled_from([3, 20]),
                    intrabar=st.sampled_from(["pessimistic", "infer"]),
                    initial_equity=st.sampled_from([20_000.0, 100_000.0]))


def random_choices(field: RiskField, seed: int) -> AnyArray:
    return np.random.default_rng(seed).integers(0, CHOICES, (len(field.opportunities), 3))


def play_choices(field: RiskField, choices: AnyArray) -> Play:
    return play_rule(field, lambda spots: chosen(spots, choices))


@settings(max_examples=25, deadline=None)
@given(configs, st.integers(0, 10_000))
def test_play_equals_the_readable_environment(config: RiskEnvConfig, seed: int) -> None:
    table = random_table(seed, 400)
    field = RiskField(table, SYNTH, config, 30, 400, seed, tours=2)
    choices = random_choices(field, seed)
    play, spots = play_choices(field, choices), field.opportunities
    env = RiskEnv(table, SYNTH, config, 30, 400, seed, mirror=False)
    for k in range(len(spots)):
        row = int(spots.rows[k])
        if spots.firsts[k]:
            open_account(env.account, config.initial_equity, float(table.close[row]), int(table.day[row]))
        env._play_bar(row, False, 0.0, 0.0, 0.0, roll=1.0)
        env.row, env.direction = row, float(spots.sides[k])
        stop, target = env.bracket(int(choices[k, 1]), int(choices[k, 2]))
        equity = float(env.account["equity"])
        size, code = limit_contracts(env._limits, float(choices[k, 0]),
                                     stop * SYNTH.multiplier + env._rules.exit_cost, equity,
                                     float(env.account["day_start"]), 0)
        exit_row = env._play_bracket(float(spots.sides[k]) * size, stop, target) if size > 0.0 else row
        profit = float(env.account["equity"]) - equity
        assert (play.contracts[k], play.limits[k], play.exits[k]) == (size, code, exit_row)
        assert (play.profits[k], play.returns[k]) == (profit, profit / equity)
        assert play.equity[k] == env.account["equity"]


@settings(max_examples=15, deadline=None)
@given(configs, st.integers(0, 10_000))
def test_every_rule_has_left_before_the_next_opportunity(config: RiskEnvConfig, seed: int) -> None:
    table = random_table(seed, 600)
    field = RiskField(table, SYNTH, config, 30, 600, seed, tours=3)
    spots = field.opportunities
    patient = field.play(np.ones(len(spots)), np.zeros(len(spots)), np.full(len(spots), 30.0),
                         np.full(len(spots), 1e6))
    for tour in range(3):
        rows, exits = spots.rows[spots.tours == tour], patient.exits[spots.tours == tour]
        assert (rows[1:] > exits[:-1]).all()
        assert (exits >= rows).all()
    assert table.decision[spots.rows].all()
    assert set(np.unique(spots.sides)) <= {-1.0, 1.0}
    again = RiskField(table, SYNTH, config, 30, 600, seed, tours=3).opportunities
    assert np.array_equal(again.rows, spots.rows)
    assert np.array_equal(again.sides, spots.sides)


def test_a_share_of_equity_is_rounded_down_to_contracts() -> None:
    table = random_table(4, 600)
    field = RiskField(table, SYNTH, RiskEnvConfig(momentum_bars=6), 30, 600, 4, tours=4)
    play = play_rule(field, constant(1, 2, fraction=0.01))
    before = play.equity - play.profits
    loss = field.opportunities.brackets[:, 1, 2, 0] * SYNTH.multiplier + 0.25 * SYNTH.multiplier + 4.5
    assert np.array_equal(play.contracts, np.minimum(np.floor(0.01 * before / loss + 1e-9), 5.0))
    assert (play.contracts > 0.0).any()


def test_outcomes_are_those_of_one_contract() -> None:
    table = random_table(5, 600)
    field = RiskField(table, SYNTH, RiskEnvConfig(momentum_bars=6, initial_equity=1e7), 30, 600, 5, tours=2)
    outcomes = field.outcomes()
    for stop, target in ((0, 0), (3, 2), (6, 4)):
        play = play_rule(field, constant(stop, target, contracts=1.0))
        np.testing.assert_allclose(outcomes[:, stop, target], play.profits, rtol=1e-5, atol=0.5)


def test_the_teams_choices_are_those_it_is_frozen_with(training_market: MarketOnDisk) -> None:
    market = training_market
    module = build_team_module(market.risk_spec())
    net = module.net
    assert isinstance(net, RiskNet)
    with torch.no_grad():
        net.head.mul_(100.0)  # as sure of itself as after training
    regime = np.random.default_rng(1).normal(size=(market.table.strategic.shape[0], 8)).astype(np.float32)
    proposals = propose(TrainedTeam(market.risk_spec(), module, {}), market.table, regime)
    config = RiskEnvConfig(**market.risk_spec()["env"])
    field = RiskField(market.table, SYNTH, config, market.start, market.stop, 3, tours=2)
    spots = field.opportunities
    answers = chosen(spots, team_choices(net, market.table, regime, spots.rows, spots.sides))
    frozen = proposals[spots.rows, (spots.sides > 0.0).astype(int)]
    played = np.stack((answers.contracts, answers.stops, answers.targets), axis=1).astype(np.float32)
    assert (played == frozen).all(axis=1).mean() > 0.995  # a tie may fall to either side of rounding
