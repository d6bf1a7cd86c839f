"""Nothing observed, proposed or earned up to row t depends on the market after row t."""

import dataclasses

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.instruments import INSTRUMENTS
from envs import checks
from envs.config import CoreEnvConfig
from envs.core_env import CoreEnv
from envs.observations import Observer
from envs.vector_core import VectorCoreEnv
from tests.env_market import random_proposals, random_table, without_gaps

SYNTH = INSTRUMENTS["SYNTH"]
EPISODE = 32
NO_PRICES = ("symbol", "schema", "ts_close", "row_30m")


def scrambled_after(table, row, seed):
    """The table with another market after `row`."""
    other = random_table(seed + 1, len(table))
    values = {}
    for field in dataclasses.fields(table):
        if field.name in NO_PRICES:
            continue
        mine, theirs = getattr(table, field.name), getattr(other, field.name)
        cut = int(table.row_30m[row]) + 1 if field.name in ("strategic", "regime") else row + 1
        values[field.name] = np.concatenate([mine[:cut], theirs[cut:]])
    return dataclasses.replace(table, **values)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["unit", "full"]), st.integers(1, EPISODE - 1))
def test_the_future_changes_nothing_up_to_now(seed: int, mechanics: str, steps: int) -> None:
    table = random_table(seed)
    config = CoreEnvConfig(mechanics=mechanics, episode_bars=EPISODE)
    proposals = random_proposals(seed, table)
    env = VectorCoreEnv(table, SYNTH, config, proposals, 30, 400, 1, seed, 400.0)
    present = int(env.rows[0]) + steps
    changed = scrambled_after(table, present, seed)
    future = VectorCoreEnv(changed, SYNTH, config, proposals, 30, 400, 1, seed, 400.0)
    for t in range(steps):
        actions = checks.choices(env, seed, t)
        checks.same([checks.take_step(env, actions)], [checks.take_step(future, actions)])
    assert env.rows[0] == present
    seen = [np.empty((1, 8), np.float32) for _ in range(2)]
    votes = checks.choices(env, seed, steps)[:, :3]
    for e, out in zip((env, future), seen, strict=True):
        e.observe(out)
        e.vote(np.ascontiguousarray(votes))
    assert seen[0].tobytes() == seen[1].tobytes()
    assert env.proposal.tobytes() == future.proposal.tobytes()
    assert env.action_mask.tobytes() == future.action_mask.tobytes()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(30, 390), st.sampled_from([-1.0, 1.0]))
def test_windows_hold_rows_up_to_now_only(seed: int, row: int, sign: float) -> None:
    table = random_table(seed)
    now, future = Observer(table).market(row, sign), Observer(scrambled_after(table, row, seed)).market(row, sign)
    for name in now:
        np.testing.assert_array_equal(now[name], future[name])
    assert now["tactical"].shape == (6, 7)
    if sign > 0.0:
        np.testing.assert_array_equal(now["tactical"][-1], table.tactical[row])
        np.testing.assert_array_equal(now["strategic"][-1], table.strategic[table.row_30m[row]])


def test_the_fill_is_at_the_next_open_never_at_the_close_that_was_seen() -> None:
    table = without_gaps(random_table(2))
    proposals = np.tile(np.array([1.0, 500.0, 0.0], np.float32), (len(table), 2, 1))
    config = CoreEnvConfig(episode_bars=8, initial_equity=5_000_000.0)
    for seed in range(20):
        env = CoreEnv(table, SYNTH, config, proposals, 30, 400, seed, 400.0)
        env.vote((2, 2, 2))
        env.execute(1)
        side = env.sign
        assert env.account["entry"] == table.open[env.row] + side * 0.25
        assert env.account["stop"] == env.account["entry"] - side * 500.0
