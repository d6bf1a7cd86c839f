"""The policy over a market table: pure, causal, and equal to one decision computed from its inputs alone."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from agents.gate import GateConfig
from algospace.errors import SchemaError
from algospace.execution.decision import Decision, Reason
from algospace.execution.mechanics import ACCOUNT_DTYPE
from algospace.features.market_table import MarketTable
from algospace.instruments import instrument
from envs.config import CoreEnvConfig
from envs.vector_core import VectorCoreEnv
from envs.vector_risk import proposal_table
from serving.backends import make_backend
from serving.bundle import Bundle
from serving.decider import Decider, account_record
from serving.desk import Desk
from serving.policy import BundlePolicy
from tests.serving_market import FIRST_DECISION, accounts, random_bundle, rows, serving_table


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return random_bundle(tmp_path_factory.mktemp("policy") / "bundle")


@pytest.fixture(scope="module")
def table() -> MarketTable:
    return serving_table()


def same(a: Decision, b: Decision, tolerance: float = 1e-6) -> None:
    assert (a.reason, a.direction, a.proposal) == (b.reason, b.direction, b.proposal)
    assert a.confidence == pytest.approx(b.confidence, abs=tolerance)
    for voter in a.votes:
        assert a.votes[voter] == pytest.approx(b.votes[voter], abs=tolerance)


def test_all_verdicts_occur(bundle: Bundle, table: MarketTable) -> None:
    policy = BundlePolicy(bundle, table)
    seen = Counter(policy.decide(row, account).reason for row in rows(table, 200)
                   for account in accounts(table, row))
    assert {Reason.EXECUTE, Reason.NO_OPPORTUNITY, Reason.RISK_LIMIT, Reason.LOW_CONFIDENCE} <= set(seen)


@pytest.mark.parametrize("backend", ["onnx", "torch"])
def test_the_policy_equals_a_decision_from_its_inputs(bundle: Bundle, table: MarketTable, backend: str) -> None:
    policy = BundlePolicy(bundle, table)
    decider = Decider(bundle, make_backend(backend, bundle))
    for row in rows(table):
        for account in accounts(table, row):
            inputs = policy.inputs(row, account)
            last = int(table.row_30m[row]) + 1
            window = table.regime[last - table.schema.regime.window:last]
            same(policy.decide(row, account), decider.decide(inputs), 1e-5)
            same(policy.decide(row, account), decider.decide(dataclasses.replace(inputs, regime=window)), 1e-5)


def test_decisions_are_pure(bundle: Bundle, table: MarketTable) -> None:
    forwards, backwards = BundlePolicy(bundle, table), BundlePolicy(bundle, table)
    chosen = rows(table, 60)
    first = {row: forwards.decide(row, accounts(table, row)[1]) for row in chosen}
    assert first == {row: backwards.decide(row, accounts(table, row)[1]) for row in reversed(chosen)}
    other_seed = BundlePolicy(bundle, table, seed=1)
    assert any(other_seed.decide(row, accounts(table, row)[1]) != first[row] for row in chosen)


def test_the_future_changes_nothing(bundle: Bundle, table: MarketTable) -> None:
    cut = rows(table, 60)[-1] + 1
    future = np.arange(len(table)) >= cut
    slow_future = np.arange(len(table.strategic)) > table.row_30m[cut - 1]
    changed = dataclasses.replace(
        table, close=np.where(future, 1.0, table.close), atr=np.where(future, 9.0, table.atr),
        tactical=np.where(future[:, None], np.float32(3), table.tactical),
        strategic=np.where(slow_future[:, None], np.float32(3), table.strategic),
        regime=np.where(slow_future[:, None], np.float32(3), table.regime))
    ours, theirs = BundlePolicy(bundle, table), BundlePolicy(bundle, changed)
    for row in rows(table, 60):
        same(ours.decide(row, accounts(table, row)[1]), theirs.decide(row, accounts(table, row)[1]), 1e-6)


def test_rows_that_are_not_decision_points_have_no_opportunity(bundle: Bundle, table: MarketTable) -> None:
    row = int(np.flatnonzero(~table.decision[FIRST_DECISION:])[0]) + FIRST_DECISION
    assert BundlePolicy(bundle, table).decide(row, accounts(table, row)[0]).reason is Reason.NO_OPPORTUNITY


def test_observation_and_proposal_are_the_environments(bundle: Bundle, table: MarketTable) -> None:
    """Play the batched environment; at every step the decider's desk, of one row or of four, must see what it
    sees."""
    env_config = bundle.manifest.env.model_copy(update={"episode_bars": 100})
    rng = np.random.default_rng(0)
    stop = np.repeat(table.atr[:, None] * 1.5, 2, 1)
    proposals = np.stack([rng.integers(1, 6, stop.shape), stop, 2 * stop], 2).astype(np.float32)
    env = VectorCoreEnv(table, instrument("SYNTH"), env_config, proposals, FIRST_DECISION, len(table), 4, 5,
                        bundle.manifest.risk_unit, mirror=False)
    desk, alone = Desk(bundle, 4), Desk(bundle, 1)
    policy = BundlePolicy(bundle, table)
    observed = np.empty((4, 8), np.float32)
    rewards, discounts = np.empty(4, np.float32), np.empty(4, np.float32)
    for _ in range(60):
        env.observe(observed)
        votes = rng.integers(0, 3, (4, 3)).astype(np.int8)
        env.vote(votes)
        states = [policy.market_state(int(row)) for row in env.rows]
        close, atr = (np.array([getattr(state, name) for state in states]) for name in ("close", "atr"))
        seen = desk.observe(close, atr, np.array([state.clock for state in states]), env.accounts)
        offers = desk.vote(votes, proposals[env.rows], env.voting)
        living = env.alive
        np.testing.assert_array_equal(seen[living], observed[living])
        np.testing.assert_array_equal(offers.asked[living], env.asked[living])
        np.testing.assert_array_equal(offers.allowed[living], env.action_mask[living])
        np.testing.assert_array_equal(offers.encoded[living], env.proposal[living])
        for e in np.flatnonzero(living):
            one = alone.observe(close[e], atr[e], states[e].clock, env.accounts[e])
            np.testing.assert_array_equal(one[0], observed[e])
            offer = alone.vote(votes[e:e + 1], proposals[env.rows[e:e + 1]], bool(env.voting[e]))
            np.testing.assert_array_equal(offer.encoded[0], env.proposal[e])
            np.testing.assert_array_equal(offer.orders[0], offers.orders[e])
        env.execute(rng.integers(0, 3, 4).astype(np.int8), rewards, discounts)


def test_hard_limits_bind_a_team_trained_on_unit_mechanics(tmp_path: Path, table: MarketTable) -> None:
    bundle = random_bundle(tmp_path / "unit", env=CoreEnvConfig(mechanics="unit"))
    policy, spec, limits = BundlePolicy(bundle, table), bundle.instrument, bundle.manifest.env.limits
    exit_cost = bundle.manifest.env.slippage_ticks * spec.tick_size * spec.multiplier + 2.0 * spec.commission
    cut = 0
    for row in rows(table, 100):
        rich = policy.decide(row, account_record(equity=1e7, day_start=1e7, peak=1e7))
        if rich.reason is not Reason.EXECUTE:
            continue
        equity = 1.5 * rich.proposal.stop_distance * spec.multiplier / limits.risk_per_trade
        modest = policy.decide(row, account_record(equity=equity, day_start=equity, peak=equity))
        risk = modest.proposal.contracts * (modest.proposal.stop_distance * spec.multiplier + exit_cost)
        assert risk <= limits.risk_per_trade * equity * (1.0 + 1e-9)
        cut += modest.proposal.limit == "RISK_PER_TRADE"
        one = (rich.proposal.stop_distance * spec.multiplier + exit_cost) / limits.risk_per_trade
        for equity, affordable in ((0.999999 * one, 0.0), (1.000001 * one, 1.0)):  # the costs of the exit count
            exact = policy.decide(row, account_record(equity=equity, day_start=equity, peak=equity))
            assert exact.proposal.contracts == affordable
        lost = policy.decide(row, account_record(equity=0.94 * 1e7, day_start=1e7, peak=1e7))
        assert lost.reason is not Reason.EXECUTE
        if lost.direction:
            assert (lost.proposal.contracts, lost.proposal.limit) == (0.0, "DAILY_LOSS")
    assert cut > 5


@pytest.mark.parametrize("position", [0.0, 1.0, -3.0])
def test_a_unit_team_sees_a_side_and_money_as_a_share_of_the_notional(tmp_path: Path, table: MarketTable,
                                                                      position: float) -> None:
    bundle = random_bundle(tmp_path / "unit", env=CoreEnvConfig(mechanics="unit"))
    close, atr, clock = 5000.0, 4.0, np.array([[0.1, 0.2]])
    notional = close * bundle.instrument.multiplier * max(abs(position), 1.0)
    gain = 2.5 * bundle.manifest.risk_unit * notional
    account = account_record(position=position, entry=close - 2.0, stop=close - 8.0, target=close + 8.0,
                             equity=1e6 + gain, day_start=1e6)
    seen = Desk(bundle, 1).observe(close, atr, clock, account)[0]
    side = np.sign(position)
    np.testing.assert_allclose(seen, [side, side * 2.0 / atr, 0.0, 0.0, 0.0, 0.25, 0.1, 0.2], rtol=1e-5)
    assert account["position"] == position  # the caller's record is its own


def test_without_dropout_one_mask_decides(tmp_path: Path, table: MarketTable) -> None:
    plain = random_bundle(tmp_path / "plain", gate=GateConfig(iterations=1, confidence_threshold=0.2))
    one, other = BundlePolicy(plain, table), BundlePolicy(plain, table, seed=9)
    for row in rows(table, 20):
        decision = one.decide(row, accounts(table, row)[0])
        assert decision == other.decide(row, accounts(table, row)[0])
        assert decision.uncertainty["std"] == 0.0


def test_synergy_decision_points(tmp_path: Path, table: MarketTable) -> None:
    config = CoreEnvConfig(decision_points="synergy")
    policy = BundlePolicy(random_bundle(tmp_path / "synergy", env=config), table)
    chosen = rows(table, 200)
    quiet = [row for row in chosen if not table.synergy_event[row]]
    assert all(policy.decide(row, accounts(table, row)[0]).reason is Reason.NO_OPPORTUNITY for row in quiet)
    events = [row for row in chosen if table.synergy_event[row]]
    assert any(policy.decide(row, accounts(table, row)[0]).reason is Reason.EXECUTE for row in events)


def test_a_table_of_another_schema_or_market_is_refused(bundle: Bundle, table: MarketTable) -> None:
    other = dataclasses.replace(table, schema=dataclasses.replace(table.schema, clip=4.0))
    with pytest.raises(SchemaError, match="is not the expected"):
        BundlePolicy(bundle, other)
    with pytest.raises(SchemaError, match="the bundle trades SYNTH, the table holds ES"):
        BundlePolicy(bundle, dataclasses.replace(table, symbol="ES"))
    with pytest.raises(SchemaError, match="regime vectors have shape"):
        BundlePolicy(bundle, table, regime_vectors=np.zeros((3, 8), np.float32))


def test_known_regime_vectors_replace_the_rde(bundle: Bundle, table: MarketTable) -> None:
    policy = BundlePolicy(bundle, table)
    chosen = rows(table)
    expected = [policy.decide(row, accounts(table, row)[1]) for row in chosen]
    given = BundlePolicy(bundle, table, regime_vectors=np.array(policy._regimes))
    for row, decision in zip(chosen, expected, strict=True):
        same(decision, given.decide(row, accounts(table, row)[1]))


def test_fixed_proposals(tmp_path: Path, table: MarketTable) -> None:
    bundle = random_bundle(tmp_path / "bundle", experts=False)
    with pytest.raises(SchemaError, match="holds no RDE"):
        BundlePolicy(bundle, table)
    policy = BundlePolicy(bundle, table, regime_vectors=np.zeros((len(table.strategic), 8), np.float32))
    decisions = [(row, policy.decide(row, accounts(table, row)[0])) for row in rows(table, 60)]
    assert any(decision.direction for _, decision in decisions)
    for row, decision in decisions:
        if decision.direction == 0:
            continue
        assert decision.proposal.stop_distance == pytest.approx(2 * table.atr[row], rel=1e-6)
        assert decision.proposal.target_distance == pytest.approx(4 * table.atr[row], rel=1e-6)


def test_proposals_are_the_risk_environments(bundle: Bundle, table: MarketTable) -> None:
    policy = BundlePolicy(bundle, table)
    backend = make_backend("torch", bundle)
    chosen = np.array(rows(table, 30))
    inputs = [policy.inputs(int(row), accounts(table, int(row))[0]) for row in chosen]
    choices = np.zeros((3, len(table), 2), np.int64)
    for side, sign in enumerate((-1.0, 1.0)):
        logits = backend.infer("mrms", {
            "strategic": np.stack([i.strategic for i in inputs]),
            "tactical": np.stack([i.tactical for i in inputs]), "regime": np.stack([i.regime for i in inputs]),
            "direction": np.full((len(chosen), 1), sign, np.float32)})["logits"]
        choices[:, chosen, side] = logits.argmax(-1).T
    expected = proposal_table(*choices, table, bundle.manifest.risk_env)
    chunk = [policy._embed(int(row) - int(row) % 64) for row in chosen]
    for row, part in zip(chosen, chunk, strict=True):
        np.testing.assert_array_equal(part.proposals[row - part.first], expected[row])


def test_account_records_are_flat_by_default() -> None:
    record = account_record(equity=1.0)
    assert record.dtype == ACCOUNT_DTYPE
    assert record["position"] == 0.0
    assert np.isnan(record["stop"])
