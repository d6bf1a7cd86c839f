"""The core environment and the backtest's session turn the same decisions into the same equity, bit for bit."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.execution.replay import OrderArrays, run_precomputed
from algospace.execution.venue import SimulatedVenue
from algospace.instruments import INSTRUMENTS
from algospace.risk.limits import LimitsConfig
from envs.config import CoreEnvConfig
from envs.core_env import CoreEnv
from envs.core_kernels import CLOSE, EXECUTE
from tests.env_market import random_proposals, random_table

SYNTH = INSTRUMENTS["SYNTH"]
EPISODE = 200


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_environment_and_session_agree(seed: int, reverse: bool) -> None:
    table, rng = random_table(seed), np.random.default_rng(seed)
    proposals = random_proposals(seed, table)
    limits = LimitsConfig(daily_loss=0.9)
    config = CoreEnvConfig(episode_bars=EPISODE, reverse=reverse, limits=limits, max_drawdown=1.0)
    env = CoreEnv(table, SYNTH, config, proposals, 30, len(table), seed, 1.0, mirror=False)
    start, equity, position = env.row, [env.account["equity"].item()], [0.0]
    want, has_order = np.zeros(EPISODE + 1), np.zeros(EPISODE + 1, bool)
    stop, target = np.zeros(EPISODE + 1), np.zeros(EPISODE + 1)
    for t in range(EPISODE):
        env.vote(rng.integers(0, 3, 3).tolist())
        action = int(rng.integers(0, 3))
        if env.asked and env.action_mask[action] and action in (EXECUTE, CLOSE):
            has_order[t] = True
            if action == EXECUTE:
                contracts, stop[t], target[t] = proposals[env.row, (env.opportunity + 1) // 2]
                want[t] = env.opportunity * contracts
        env.execute(action)
        equity.append(env.account["equity"].item())
        position.append(env.account["position"].item())
    result = run_precomputed(table, start, start + EPISODE + 1, OrderArrays.build(want, has_order, stop, target),
                             SimulatedVenue(SYNTH), limits, reverse=reverse)
    np.testing.assert_array_equal(result.position, position)
    np.testing.assert_array_equal(result.equity, equity)
    assert result.trades.size > 0
