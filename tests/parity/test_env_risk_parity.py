"""The batched M-RMS environment equals the readable one, step for step and to the last bit."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.instruments import INSTRUMENTS
from algospace.risk.limits import LimitsConfig
from envs.config import RiskEnvConfig
from envs.risk_env import RiskEnv
from envs.risk_kernels import HINDSIGHT_BRACKETS, differential_sortino
from envs.vector_risk import VectorRiskEnv, proposal_table
from tests.env_market import random_table

SYNTH = INSTRUMENTS["SYNTH"]
ENVS = 4
CHOICES = np.array([6, 7, 5])

configs = st.builds(
    RiskEnvConfig, synergy=st.sampled_from([0.0, 0.3]), momentum=st.sampled_from([0.0, 0.7]),
    random=st.sampled_from([0.1, 0.5]), momentum_bars=st.just(6), max_wait=st.sampled_from([0, 20]),
    episode_trades=st.sampled_from([5, 10]), max_bars=st.sampled_from([3, 40]),
    intrabar=st.sampled_from(["pessimistic", "infer"]), initial_equity=st.sampled_from([20_000.0, 100_000.0]),
    max_drawdown=st.sampled_from([0.04, 0.25]),
    limits=st.builds(LimitsConfig, risk_per_trade=st.sampled_from([0.02, 0.1])))


@settings(max_examples=50, deadline=None)
@given(configs, st.integers(0, 10_000), st.booleans(), st.integers(0, 3))
def test_batched_environment_equals_the_readable_one(config: RiskEnvConfig, seed: int, mirror: bool,
                                                     first_env: int) -> None:
    table = random_table(seed, 400)
    rng = np.random.default_rng(seed)
    lvn = np.stack([rng.normal(0.0, 15.0, 400), rng.uniform(0.0, 100.0, 400)], axis=1)
    batch = VectorRiskEnv(table, SYNTH, config, 30, 400, ENVS, seed, mirror, first_env, lvn)
    singles = [RiskEnv(table, SYNTH, config, 30, 400, seed, mirror, first_env + e, lvn) for e in range(ENVS)]
    rewards, discounts = np.empty(ENVS, np.float32), np.empty(ENVS, np.float32)
    observed = np.empty((ENVS, 4), np.float32)
    for _ in range(4):
        batch.begin_segment()
        for single in singles:
            if not single.alive or single.at_end:
                single.begin_episode()
        for _ in range(5):
            batch.observe(observed)
            for e, single in enumerate(singles):
                assert (batch.rows[e], batch.directions[e], batch.alive[e]) == (
                    single.row, single.direction, single.alive)
                assert batch.accounts[e].tobytes() == single.account.tobytes()
                assert observed[e].tolist() == single.observe().tolist()
            actions = rng.integers(0, CHOICES, (ENVS, 3)).astype(np.int8)
            batch.step(actions, rewards, discounts)
            for e, single in enumerate(singles):
                reward, discount = single.step(*actions[e].tolist())
                assert (rewards[e], discounts[e]) == (np.float32(reward), np.float32(discount))
                assert batch.limit_codes[e] == single.limit_code


def test_proposal_table_holds_the_brackets_that_the_environment_plays() -> None:
    table, config = random_table(5), RiskEnvConfig()
    rng = np.random.default_rng(5)
    n = len(table)
    lvn = np.stack([rng.normal(0.0, 15.0, n), rng.uniform(0.0, 100.0, n)], axis=1)
    choices = [rng.integers(0, count, (n, 2)) for count in CHOICES]
    proposals = proposal_table(*choices, table, config, lvn)
    env = RiskEnv(table, SYNTH, config, 30, n, seed=1, lvn=lvn)
    for row in range(30, 250):
        for side in (0, 1):
            env.row, env.direction = row, env.sign * (2.0 * side - 1.0)
            stop, target = env.bracket(int(choices[1][row, side]), int(choices[2][row, side]))
            expected = np.array([choices[0][row, side], stop, target], np.float32)
            assert proposals[row, side].tolist() == expected.tolist()


def test_hindsight_is_what_the_reference_brackets_will_make_and_changes_nothing() -> None:
    table, config = random_table(9, 600), RiskEnvConfig(momentum_bars=6, initial_equity=1e6, episode_trades=20)
    env = VectorRiskEnv(table, SYNTH, config, 30, 600, ENVS, seed=9)
    rewards, discounts = np.empty(ENVS, np.float32), np.empty(ENVS, np.float32)
    hindsight = np.empty((ENVS, len(HINDSIGHT_BRACKETS)), np.float32)
    rng = np.random.default_rng(9)
    for _ in range(10):
        before = env.get_state()
        env.hindsight(hindsight)
        for name, array in env.get_state().items():
            assert array.tobytes() == before[name].tobytes()
        for h, (stop_choice, target_choice) in enumerate(HINDSIGHT_BRACKETS):
            twin = RiskEnv(table, SYNTH, config, 30, 600, seed=9)
            actions = np.tile([1, stop_choice, target_choice], (ENVS, 1)).astype(np.int8)
            env.step(actions, rewards, discounts)
            profits = env.accounts["equity"] - before["accounts"]["equity"]
            env.set_state(before)
            for e in range(ENVS):
                twin.row, twin.sign = int(env.rows[e]), float(env.signs[e])
                twin.direction = float(env.directions[e])
                loss = twin.bracket(stop_choice, target_choice)[0] * SYNTH.multiplier + twin._rules.exit_cost
                expected = min(max(profits[e] / loss, -5.0), 5.0) if env.limit_codes[e] == 0 else hindsight[e, h]
                np.testing.assert_allclose(hindsight[e, h], expected, rtol=1e-4, atol=1e-5)
        env.step(rng.integers(0, CHOICES, (ENVS, 3)).astype(np.int8), rewards, discounts)


def test_losses_are_not_paid_for_while_the_mean_is_below_zero() -> None:
    """With a mean below 0 the plain ratio would rise with the spread of the losses."""
    moments, eta = np.array([-0.2, 0.25]), 0.0
    assert differential_sortino(moments, eta, -1.0) == -2.0
    assert differential_sortino(moments, eta, -3.0) == -6.0
    moments[0] = 0.2
    assert differential_sortino(moments, eta, -1.0) < -2.0


def test_moments_live_on_from_one_account_to_the_next() -> None:
    table = random_table(9, 600)
    env = VectorRiskEnv(table, SYNTH, RiskEnvConfig(momentum_bars=6, episode_trades=2), 30, 600, ENVS, seed=9)
    rewards, discounts = np.empty(ENVS, np.float32), np.empty(ENVS, np.float32)
    for _ in range(2):
        env.step(np.tile([1, 2, 2], (ENVS, 1)).astype(np.int8), rewards, discounts)
    moments = env.get_state()["moments"]
    assert (moments[:, 0] != 0.0).all()
    env.begin_segment()
    assert np.array_equal(env.get_state()["moments"], moments)
    assert (env.accounts["trades"] == 0).all()
