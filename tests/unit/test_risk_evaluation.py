"""Scores of rules against each other: formulas on hand-made returns, intervals, what the fixed rules choose."""

from __future__ import annotations

import numpy as np
import pytest

from algospace.instruments import INSTRUMENTS
from envs.config import RiskEnvConfig
from envs.risk_play import Play, RiskField
from tests.env_market import random_table
from training.evaluation.risk import (
    TEAM,
    FixedChoice,
    choose_fixed,
    compare,
    constant,
    fixed_rules,
    play_rule,
    sharpe,
    sortino,
)

SYNTH = INSTRUMENTS["SYNTH"]


@pytest.fixture(scope="module")
def field() -> RiskField:
    return RiskField(random_table(8, 3000), SYNTH, RiskEnvConfig(momentum_bars=6, max_bars=20, episode_trades=10),
                     30, 3000, 8, tours=2)


def made(field: RiskField, returns: np.ndarray) -> Play:
    """A play with given returns on an account that never changes."""
    k = len(field.opportunities)
    equity = field.config.initial_equity
    return Play(returns * equity, returns, np.ones(k), np.zeros(k, np.int8), field.opportunities.rows,
                np.full(k, equity))


def test_ratios_are_the_textbooks() -> None:
    returns = np.array([0.02, -0.01, 0.0, 0.03])
    assert sortino(returns) == pytest.approx(0.01 / np.sqrt(0.01**2 / 4.0))
    assert sharpe(returns) == pytest.approx(returns.mean() / returns.std())
    assert sortino(np.array([0.01, 0.0])) is None
    assert sharpe(np.zeros(3)) is None


def test_a_better_rule_is_told_from_an_equal_one(field: RiskField) -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0.0, 0.01, len(field.opportunities))
    plays = {TEAM: [made(field, noise)], "same": [made(field, noise)], "worse": [made(field, noise - 0.01)],
             "double": [made(field, 2.0 * noise)]}
    scores = compare(plays, [field], tours=2, samples=300, seed=0)
    assert (scores["same"].difference, scores["same"].low, scores["same"].high) == (0.0, 0.0, 0.0)
    assert scores["double"].difference == pytest.approx(0.0)  # the ratio knows no scale
    assert scores["worse"].low > 0.3
    assert scores[TEAM].sortino == pytest.approx(sortino(noise))
    assert scores[TEAM].traded == 1.0


def test_drawdowns_are_of_accounts_not_of_the_whole_walk(field: RiskField) -> None:
    k, initial = len(field.opportunities), field.config.initial_equity
    equity = np.full(k, 0.9 * initial)  # every account falls by a tenth, once
    play = Play(np.zeros(k), np.zeros(k), np.ones(k), np.zeros(k, np.int8), field.opportunities.rows, equity)
    score = compare({TEAM: [play]}, [field], tours=2, samples=10, seed=0)[TEAM]
    assert (score.drawdown, score.mean_drawdown) == (pytest.approx(0.1), pytest.approx(0.1))


def test_the_best_pair_of_training_is_the_best(field: RiskField) -> None:
    choice = choose_fixed(field)
    best = sortino(play_rule(field, constant(*choice.pair, contracts=1.0)).returns)
    for stop in range(7):
        for target in range(5):
            assert sortino(play_rule(field, constant(stop, target, contracts=1.0)).returns) <= best


def test_no_trade_and_kelly_without_an_edge_stay_out(field: RiskField) -> None:
    rules = fixed_rules(FixedChoice((3, 2), (3, 2), 0.0, 0.0), seed=1, least=1)
    for name in ("no trade", "Kelly, 2 ATR, 2R"):
        play = play_rule(field, rules[name])
        assert not play.contracts.any()
        assert not play.profits.any()
        assert not play.limits.any()
    assert play_rule(field, rules["random"]).contracts.any()
