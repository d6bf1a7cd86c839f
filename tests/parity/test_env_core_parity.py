"""The batched core environment equals the readable one, step for step and to the last bit."""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.instruments import INSTRUMENTS
from algospace.risk.limits import LimitsConfig
from envs.config import CoreEnvConfig
from envs.core_env import CoreEnv
from envs.vector_core import VectorCoreEnv, risk_unit_of
from tests.env_market import random_proposals, random_table

SYNTH = INSTRUMENTS["SYNTH"]
ENVS = 4

configs = st.builds(
    CoreEnvConfig, mechanics=st.sampled_from(["unit", "full"]), reverse=st.booleans(),
    decision_points=st.sampled_from(["bar", "synergy"]), episode_bars=st.sampled_from([8, 32]),
    intrabar=st.sampled_from(["pessimistic", "infer"]),
    slippage_ticks=st.sampled_from([0.0, 1.0]), initial_equity=st.sampled_from([20_000.0, 100_000.0]),
    max_drawdown=st.sampled_from([0.05, 0.25]),
    limits=st.builds(LimitsConfig, risk_per_trade=st.sampled_from([0.02, 0.2]),
                     daily_loss=st.sampled_from([0.02, 0.05])),
    shaping=st.sampled_from(["none", "differential_sharpe", "differential_sortino", "drawdown", "holding"]),
    shaping_weight=st.just(0.3))


def compare(batch: VectorCoreEnv, singles: list[CoreEnv], observed: Any) -> None:
    batch.observe(observed)
    for e, single in enumerate(singles):
        assert (batch.rows[e], batch.signs[e], batch.alive[e], batch.voting[e]) == (
            single.row, single.sign, single.alive, single.voting)
        assert batch.accounts[e].tobytes() == single.account.tobytes()
        np.testing.assert_allclose(observed[e], single.observe(), rtol=1e-6, atol=1e-7)


def compare_votes(batch: VectorCoreEnv, singles: list[CoreEnv]) -> None:
    for e, single in enumerate(singles):
        assert batch.opportunity[e] == single.opportunity
        assert batch.asked[e] == single.asked
        assert batch.action_mask[e].tolist() == single.action_mask
        assert batch.limit_codes[e] == single.limit_code
        assert batch.proposal[e].tolist() == single.proposal.tolist()


@settings(max_examples=60, deadline=None)
@given(configs, st.integers(0, 10_000), st.booleans(), st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 3))
def test_batched_environment_equals_the_readable_one(config: CoreEnvConfig, seed: int, mirror: bool, scale: float,
                                                     first_env: int) -> None:
    table = random_table(seed, 300)
    proposals = random_proposals(seed, table)
    unit = risk_unit_of(table, SYNTH, config, 0, 300)
    batch = VectorCoreEnv(table, SYNTH, config, proposals, 10, 290, ENVS, seed, unit, mirror, first_env)
    singles = [CoreEnv(table, SYNTH, config, proposals, 10, 290, seed, unit, mirror, first_env + e)
               for e in range(ENVS)]
    rng = np.random.default_rng(seed)
    rewards, discounts = np.empty(ENVS, np.float32), np.empty(ENVS, np.float32)
    observed = np.empty((ENVS, 8), np.float32)
    for env in (batch, *singles):
        env.cost_scale = scale
    for _ in range(6):
        batch.begin_segment()
        for single in singles:
            if not single.alive or single.at_end:
                single.begin_episode()
        compare(batch, singles, observed)
        for _ in range(8):
            votes = rng.integers(0, 3, (ENVS, 3)).astype(np.int8)
            actions = rng.integers(0, 3, ENVS).astype(np.int8)
            batch.vote(votes)
            for e, single in enumerate(singles):
                single.vote(votes[e].tolist())
            compare_votes(batch, singles)
            batch.execute(actions, rewards, discounts)
            for e, single in enumerate(singles):
                reward, discount = single.execute(int(actions[e]))
                assert (rewards[e], discounts[e]) == (np.float32(reward), np.float32(discount))
            compare(batch, singles, observed)
