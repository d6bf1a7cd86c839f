"""Contenders: the same mechanics and costs for all, sizes taken out where it is said, days that add up."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.clock import ReplayClock
from algospace.execution.journal import MemoryJournal
from algospace.execution.replay import run_precomputed
from algospace.execution.session import Session, TableFeed
from algospace.instruments import instrument
from envs.config import CoreEnvConfig
from tests.session_market import ReplayPolicy, random_orders, random_table
from training.walk_forward.contenders import (
    RANDOM,
    Stretch,
    daily_profit,
    daily_risk,
    run_bracketed,
    run_nothing,
    run_one_contract,
    run_random,
    run_rules,
    scales,
)

START, STOP = 120, 900


def stretch(seed: int, **changes: Any) -> Stretch:
    table = random_table(seed, n=STOP, rolls=2)
    rng = np.random.default_rng(seed)
    distance = rng.uniform(2.0, 20.0, (STOP, 2))
    proposals = np.stack([rng.integers(0, 4, (STOP, 2)), distance, 2.0 * distance], 2).astype(np.float32)
    side = np.sign(rng.normal(size=STOP - START))
    values = {"table": table, "start": START, "stop": STOP, "instrument": instrument("ES"),
              "env": CoreEnvConfig(), "proposals": proposals, "supervised": side, **changes}
    return Stretch(**values)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 500))
def test_daily_profits_add_up_to_the_net_profit(seed: int) -> None:
    for result in run_rules(stretch(seed), 2.0, 2.0).values():
        days, profit = daily_profit(result)
        assert profit.sum() == pytest.approx(result.equity[-1] - result.initial_equity, abs=1e-6)
        assert np.array_equal(days, np.unique(result.day))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 500), end=st.integers(400, 800))
def test_the_future_changes_no_rule(seed: int, end: int) -> None:
    whole = stretch(seed)
    cut = stretch(seed, stop=end, supervised=whole.supervised[: end - START])  # type: ignore[index]
    after = run_rules(whole, 2.0, 2.0)
    for name, result in run_rules(cut, 2.0, 2.0).items():
        np.testing.assert_array_equal(result.equity, after[name].equity[: end - START], err_msg=name)


def test_rules_without_brackets_hold_one_contract_and_the_fixed_rule_too() -> None:
    runs = run_rules(stretch(4), 2.0, 2.0)
    assert set(runs) == {"buy_and_hold", "momentum", "ma_cross", "ema_cross", "supervised", "momentum_mrms",
                         "momentum_atr"}
    assert {name for name, run in runs.items() if np.abs(run.position).max() > 1.0} == {"momentum_mrms"}
    assert {name for name, run in runs.items() if {"STOP", "TARGET"} & causes(run)} == {"momentum_mrms",
                                                                                       "momentum_atr"}


def causes(run: Any) -> set[str]:
    from algospace.execution.mechanics import FillCause
    return {FillCause(int(cause)).name for cause in np.unique(run.fills["cause"])}


def test_one_contract_repeats_the_team_s_positions_without_its_sizes() -> None:
    """The team's orders as a session logs them; stops and targets are the M-RMS's, so the sides are the same."""
    market = stretch(6)
    table = market.table
    orders = random_orders(6, table, START, STOP)
    rows = np.arange(START, STOP)
    side = np.sign(orders.want)
    chosen = market.proposals[rows, (side > 0).astype(int)].astype(np.float64)
    want = side * np.maximum(chosen[:, 0], 1.0)
    bracketed = type(orders).build(want, orders.has_order, chosen[:, 1], chosen[:, 2])
    session = Session(ReplayClock(), TableFeed(table, START, STOP), market.venue, ReplayPolicy(bracketed, START),
                      None, MemoryJournal())
    team = session.run()
    assert np.abs(team.position).max() > 1.0
    single = run_one_contract(market, team)
    np.testing.assert_array_equal(single.position, np.sign(team.position))
    assert team.fills.size == single.fills.size


def test_a_bracket_that_has_closed_stays_closed_until_the_side_changes() -> None:
    market = stretch(8)
    side = np.where(np.arange(STOP - START) < 400, 1.0, -1.0)
    run = run_bracketed(market, side, np.ones(side.size), np.full(side.size, 3.0), np.full(side.size, 3.0))
    assert len(run.trades) == 2
    assert run.position[-1] == 0.0


def test_random_traders_differ_by_seed_and_trade_about_as_often_as_the_team() -> None:
    market = stretch(9)
    team = run_rules(market, 2.0, 2.0)["ma_cross"]
    draws = run_random(market, team, np.arange(6))
    again = run_random(market, team, np.arange(6))
    for kind in ("random", "random_mrms"):
        assert draws[kind].shape == (6, np.unique(team.day).size)
        np.testing.assert_array_equal(draws[kind], again[kind])
        assert len({row.tobytes() for row in draws[kind]}) == 6


def test_a_team_that_never_trades_makes_idle_random_traders() -> None:
    market = stretch(10)
    nothing = random_orders(10, market.table, START, STOP, rate=0.0)
    idle = run_precomputed(market.table, START, STOP, nothing, market.venue)
    assert np.array_equal(idle.equity, run_nothing(market).equity)
    draws = run_random(market, idle, np.arange(3))
    shape = (3, daily_profit(idle)[0].size)
    assert {name: rows.shape for name, rows in draws.items()} == dict.fromkeys(RANDOM, shape)
    assert not any(rows.any() for rows in draws.values())


def test_scales_bring_each_contender_to_the_same_risk() -> None:
    found = scales({"ungated": 500.0, "momentum": 2_000.0, "idle": 0.0, "tiny": 1e-3}, 1_000.0, 10.0)
    assert found == {"ungated": 2.0, "policy": 2.0, "momentum": 0.5, "idle": 1.0, "tiny": 10.0}
    assert daily_risk(np.array([1.0])) == 0.0
    assert daily_risk(np.array([1.0, 3.0])) == pytest.approx(np.sqrt(2.0))
