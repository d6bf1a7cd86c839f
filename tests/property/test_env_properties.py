"""What must hold in every environment whatever is done: conservation, mirror symmetry, forced passes, limits."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.instruments import INSTRUMENTS
from algospace.risk.limits import LimitsConfig
from envs import checks
from envs.config import CoreEnvConfig, RiskEnvConfig
from envs.vector_core import VectorCoreEnv
from envs.vector_risk import VectorRiskEnv
from tests.env_market import negated, random_proposals, random_table, without_gaps

SYNTH = INSTRUMENTS["SYNTH"]
ENVS = 8


def core_env(table, seed, mirror=True, **values):
    config = CoreEnvConfig(**{"episode_bars": 64} | values)
    return VectorCoreEnv(table, SYNTH, config, random_proposals(seed, table), 30, len(table), ENVS, seed, 400.0,
                         mirror)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.sampled_from([0.0, 1.0]))
def test_equity_is_start_plus_realised_plus_unrealised_minus_costs(seed: int, reverse: bool, scale: float) -> None:
    table = random_table(seed, rolls=False)
    core = core_env(table, seed, reverse=reverse)
    risk = VectorRiskEnv(table, SYNTH, RiskEnvConfig(episode_trades=64, max_bars=20), 30, len(table), ENVS, seed)
    for env in (core, risk):
        env.cost_scale = scale
        for t in range(64):
            checks.take_step(env, checks.choices(env, seed, t))
            checks.check_balance(env, SYNTH.multiplier, 100_000.0)
            if scale == 0.0:
                assert not env.accounts["costs"].any()
    assert core.accounts["trades"].sum() > 0
    assert risk.accounts["trades"].sum() > 0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_rewards_add_up_to_the_equity_curve(seed: int) -> None:
    env = core_env(random_table(seed), seed)
    total = sum(checks.take_step(env, checks.choices(env, seed, t)).rewards.astype(float) for t in range(64))
    np.testing.assert_allclose(total * 400.0, env.accounts["equity"] - 100_000.0, atol=0.5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_a_negated_market_with_the_other_sign_gives_the_same_rewards(seed: int, infer: bool) -> None:
    """The mirrored environment equals an unmirrored one on negated prices, to the last bit."""
    table = random_table(seed)
    table = dataclasses.replace(table, close=np.where(table.close == table.open, table.close + 0.25, table.close),
                                high=table.high + 0.25)
    upside_down = negated(table)
    intrabar = "infer" if infer else "pessimistic"
    real, mirror = core_env(table, seed, intrabar=intrabar), core_env(table, seed, intrabar=intrabar)
    flipped = VectorCoreEnv(upside_down, SYNTH, mirror.config, random_proposals(seed, table)[:, ::-1].copy(), 30,
                            len(table), ENVS, seed, 400.0)
    state = real.get_state()
    state["signs"] = -state["signs"]
    state["accounts"]["mark"] = -state["accounts"]["mark"]
    flipped.set_state(state)
    for t in range(64):
        actions = checks.choices(real, seed, t)
        a, b = checks.take_step(real, actions), checks.take_step(flipped, actions)
        assert a.rewards.tobytes() == b.rewards.tobytes()
        np.testing.assert_array_equal(a.observed, b.observed)
        np.testing.assert_array_equal(real.opportunity, flipped.opportunity)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_unit_rewards_change_sign_with_the_market_when_costs_are_zero(seed: int) -> None:
    table = random_table(seed)
    first, second = (core_env(table, seed, mirror=False, mechanics="unit") for _ in range(2))
    state = second.get_state()
    state["signs"][:] = -1.0
    second.set_state(state)
    first.cost_scale = second.cost_scale = 0.0
    for t in range(64):
        actions = checks.choices(first, seed, t)
        a, b = checks.take_step(first, actions), checks.take_step(second, actions)
        np.testing.assert_allclose(a.rewards, -b.rewards, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["bar", "synergy"]))
def test_nobody_is_asked_where_no_decision_is_due(seed: int, points: str) -> None:
    table = random_table(seed)
    env = core_env(table, seed, decision_points=points)
    rewards, discounts = np.empty(ENVS, np.float32), np.empty(ENVS, np.float32)
    seen = 0
    for t in range(64):
        due = table.decision[env.rows] & env.alive
        if points == "synergy":
            due &= table.synergy_event[env.rows]
        assert (env.voting == due).all()
        env.vote(np.full((ENVS, 3), 2, np.int8))
        assert not env.opportunity[~due].any()
        assert not env.asked[~due].any()
        assert not env.action_mask[~due, 1:].any()
        assert (env.opportunity[due] == 1).all()
        assert not env.proposal[~due].any()
        seen += int((~due).sum())
        position, waiting = env.accounts["position"].copy(), env.get_state()["pending"]
        env.execute(np.full(ENVS, 1 + t % 2, np.int8), rewards, discounts)
        untouched = ~due & ~waiting & (position != 0.0) & (env.accounts["position"] != 0.0) & (points == "bar")
        assert (env.accounts["position"][untouched] == position[untouched]).all()
    assert seen > 0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.01, 0.02]), st.sampled_from([1, 3]))
def test_no_position_exceeds_the_hard_limits(seed: int, per_trade: float, most: int) -> None:
    table = random_table(seed)
    limits = LimitsConfig(risk_per_trade=per_trade, max_position=most)
    core = core_env(table, seed, limits=limits)
    risk = VectorRiskEnv(table, SYNTH, RiskEnvConfig(limits=limits, max_bars=20), 30, len(table), ENVS, seed)
    for env in (core, risk):
        before = env.accounts.copy()
        for t in range(40):
            real = ~table.filled[env.rows]  # an order waits through filled bars, sized before them
            before[real] = env.accounts[real]
            checks.take_step(env, checks.choices(env, seed, t))
            account = env.accounts
            assert (np.abs(account["position"]) <= most).all()
            opened = (account["position"] != 0.0) & (account["bars_in_trade"] == 1)
            loss = np.abs(account["entry"] - account["stop"]) * np.abs(account["position"]) * SYNTH.multiplier
            assert (loss[opened] <= per_trade * before["equity"][opened] + 1e-6).all()


def test_ruin_and_the_daily_loss_limit_terminate() -> None:
    table = random_table(3, step=40.0)
    for values in ({"max_drawdown": 0.02, "limits": LimitsConfig(risk_per_trade=0.5, daily_loss=0.9)},
                   {"max_drawdown": 0.9, "initial_equity": 500_000.0,  # a stop that is gapped through
                    "limits": LimitsConfig(risk_per_trade=0.5, daily_loss=0.02)}):
        env = core_env(table, 3, **values)
        died = np.zeros(ENVS, bool)
        for t in range(64):
            step = checks.take_step(env, checks.choices(env, 3, t))
            ended = step.alive & (step.discounts == 0.0)
            account = env.accounts
            ruin = account["equity"] <= (1.0 - values["max_drawdown"]) * account["peak"]
            daily = (account["equity"] - account["day_start"]
                     <= -values["limits"].daily_loss * account["day_start"])
            assert (ended == (step.alive & (ruin | daily))).all()
            assert (env.alive == (step.alive & ~ended)).all()
            died |= ended
        assert died.any()
        assert env.alive.sum() == (~died).sum()


@pytest.mark.parametrize("mechanics", ["unit", "full"])
def test_opening_and_closing_at_once_costs_exactly_the_costs(mechanics: str) -> None:
    """On a market that stands still a round trip loses two commissions and two slippages, times the scale."""
    table = random_table(1, rolls=False)
    flat = {name: np.full(len(table), 5000.0) for name in ("open", "high", "low", "close")}
    table = without_gaps(dataclasses.replace(table, **flat))
    config = CoreEnvConfig(mechanics=mechanics, episode_bars=8)
    proposals = np.tile(np.array([1.0, 20.0, 40.0], np.float32), (len(table), 2, 1))
    env = VectorCoreEnv(table, SYNTH, config, proposals, 30, 300, 2, 1, 1.0)
    env.cost_scale = 0.5
    total = np.zeros(2)
    for votes, action in ((2, 1), (1, 2)):
        step = checks.take_step(env, np.full((2, 4), (votes, votes, votes, action), np.int8))
        total += step.rewards
    cost = 2 * 1.18 * 0.5e-4 if mechanics == "unit" else 2 * (2.25 + 0.25 * 50.0)
    np.testing.assert_allclose(total, -0.5 * cost, rtol=1e-6)
    assert not env.accounts["position"].any()
