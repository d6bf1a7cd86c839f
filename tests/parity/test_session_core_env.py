"""What an agent learns on is what the backtest pays: the core environment and the trading session, fed the same
actions, keep the same account to the last bit."""

from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest

from algospace.execution.mechanics import ACCOUNT_DTYPE
from algospace.execution.replay import OrderArrays, run_precomputed
from algospace.execution.venue import SimulatedVenue
from algospace.instruments import instrument
from algospace.risk.limits import LimitsConfig
from envs.config import CoreEnvConfig
from envs.vector_core import VectorCoreEnv
from tests.session_market import SmallTable, random_table

ES = instrument("ES")
N, START, EPISODE = 700, 20, 600
EXECUTE, CLOSE = 1, 2


class Table(SimpleNamespace):
    def __len__(self):
        return N


def env_table(seed):
    table = random_table(seed, n=N, rolls=3, missing=0.05)
    columns = {field.name: getattr(table, field.name) for field in fields(SmallTable)}
    return Table(**columns, clock=np.zeros((N, 2), np.float32), synergy_event=np.zeros(N, bool))


def play_environment(table, config, proposals, seed):
    """(accounts after each step, orders that an agent without hard limits would place, rows played)."""
    env = VectorCoreEnv(table, ES, config, proposals, START, START + EPISODE + 1, 1, 0, 1.0, mirror=False)
    rng = np.random.default_rng(seed)
    want, has_order = np.zeros(EPISODE + 1), np.zeros(EPISODE + 1, bool)
    stops, targets = np.zeros(EPISODE + 1), np.zeros(EPISODE + 1)
    reward, discount = np.zeros(1, np.float32), np.zeros(1, np.float32)
    accounts = [env._batch.accounts.copy()]
    for k in range(EPISODE):
        row = int(env.rows[0])
        assert row == START + k
        env.vote(np.array([rng.choice(3, 3, p=[0.35, 0.3, 0.35])], np.int8))
        opportunity, voting = int(env._batch.opportunity[0]), bool(env.voting[0])
        held = float(env._batch.accounts["position"][0])
        action = int(rng.choice(3, p=[0.2, 0.6, 0.2]))
        proposal = proposals[row, int(opportunity > 0)].astype(float)
        if voting and action == EXECUTE and opportunity and proposal[0] > 0.0:
            want[k], has_order[k] = opportunity * proposal[0], True
            stops[k], targets[k] = proposal[1:]
        if voting and action == CLOSE and held:
            has_order[k] = True
        allowed = env._batch.action_mask[0, action]
        env.execute(np.array([action if allowed else 0], np.int8), reward, discount)
        accounts.append(env._batch.accounts.copy())
        if not env.alive[0]:
            break
    rows = len(accounts)
    orders = OrderArrays.build(want[:rows], has_order[:rows], stops[:rows], targets[:rows])
    return np.concatenate(accounts), orders, rows


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("reverse", "intrabar"), [(True, "pessimistic"), (False, "infer")])
def test_environment_and_session_keep_the_same_account(seed, reverse, intrabar):
    table = env_table(seed)
    rng = np.random.default_rng(seed)
    proposals = np.stack([rng.integers(0, 8, (N, 2)), rng.choice([0.0, 2.0, 6.0, 30.0], (N, 2)),
                          rng.choice([3.0, 9.0], (N, 2))], axis=-1).astype(np.float32)
    config = CoreEnvConfig(episode_bars=EPISODE, reverse=reverse, intrabar=intrabar, max_drawdown=1.0,
                           initial_equity=60_000.0, limits=LimitsConfig(daily_loss=0.2))
    accounts, orders, rows = play_environment(table, config, proposals, seed)
    venue = SimulatedVenue(ES, config.slippage_ticks, config.commission, intrabar)
    result = run_precomputed(table, START, START + rows, orders, venue, config.limits, reverse=reverse,
                             initial_equity=config.initial_equity)
    np.testing.assert_array_equal(result.equity, accounts["equity"])
    np.testing.assert_array_equal(result.position, accounts["position"])
    for name in ACCOUNT_DTYPE.names:
        np.testing.assert_array_equal(result.account[name], accounts[name][-1:], err_msg=name)
    assert rows > 50
    assert result.trades.size > 5
    assert (result.decisions["limit"] > 0).any(), "the hard limits must have had something to do"
