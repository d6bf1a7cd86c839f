"""The solved rule: its grid, its optimality, its cache."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.analysis.unit_score import score_unit_run
from algospace.marketdata import bayes_limit
from algospace.marketdata.bayes_filter import PlantedHmm
from algospace.marketdata.bayes_limit import (
    COST_TICKS,
    TICK_RETURN,
    cached_limit,
    limit_positions,
    simplex_nodes,
    simplex_weights,
    solve_limit,
)
from algospace.marketdata.synthetic import SCENARIOS, generate

COST = COST_TICKS * TICK_RETURN


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4).filter(lambda b: sum(b) > 1e-6), st.integers(2, 20))
@settings(max_examples=200, deadline=None)
def test_interpolation_weights_reproduce_the_belief(raw, resolution):
    belief = np.array(raw) / np.sum(raw)
    nodes, vertex = simplex_nodes(resolution)
    rows, weights = np.empty(4, np.int64), np.empty(4)
    simplex_weights(belief, vertex, rows, weights)
    assert (rows >= 0).all()
    assert (weights >= -1e-9).all()
    assert weights.sum() == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(weights @ nodes[rows], belief, atol=1e-9)


@pytest.mark.parametrize("corner", range(4))
def test_certainty_is_a_grid_node(corner):
    nodes, vertex = simplex_nodes(5)
    rows, weights = np.empty(4, np.int64), np.empty(4)
    simplex_weights(np.eye(4)[corner], vertex, rows, weights)
    np.testing.assert_allclose(nodes[rows[weights.argmax()]], np.eye(4)[corner])


@pytest.fixture(scope="module")
def easy():
    return generate("easy", seed=8, n_bars=300_000)


def _score(market, positions):
    return score_unit_run(positions, market.truth.expected_return, market.bars.close).score


def _hysteresis(expected, enter, leave):
    """Enter above one expected return, turn flat below another."""
    out, held = np.zeros(expected.size, np.int8), 0
    for t, value in enumerate(expected):
        if abs(value) > enter:
            held = 1 if value > 0 else -1
        elif held * value < leave:
            held = 0
        out[t] = held
    return out


def test_no_threshold_rule_on_the_true_expectation_comes_near(easy):
    best = max(_score(easy, _hysteresis(easy.truth.expected_return, enter * COST, leave * COST))
               for enter in (0.3, 0.5, 0.7, 1.0) for leave in (-0.7, -0.3, 0.0))
    assert 0.1 < best < _score(easy, easy.truth.limit_position) - 0.005


def test_the_rule_earns_what_its_value_function_promises(easy):
    """E[max_b {G_b - cost·|b|}] over visited states is the gain that value iteration believes in; it closes
    in on what the rule really earns as the grid is refined (1 M bars of `easy`: .479, .487, .489 promised with
    steps of 1/10, 1/20, 1/44, .489 earned by all), so what is left to gain lies within the difference.
    """
    policy = cached_limit(easy.scenario.hmm())
    truth, n = easy.truth, 40_000
    returns = easy.bars.close / easy.bars.open - 1.0
    promise = np.empty(n)
    rows, weights = np.empty(4, np.int64), np.empty(4)
    for t in range(n):
        simplex_weights(truth.belief[t], policy.vertex, rows, weights)
        x = np.clip(returns[t], policy.return_grid[0], policy.return_grid[-1])
        long, short = (sum(w * np.interp(x, policy.return_grid, side[row])
                           for w, row in zip(weights, rows, strict=True)) for side in (policy.long, policy.short))
        promise[t] = max(0.0, truth.expected_return[t] + long - COST, -truth.expected_return[t] + short - COST)
    earned = score_unit_run(truth.limit_position[:n], truth.expected_return[:n], easy.bars.close[:n])
    promised = promise.mean() / TICK_RETURN
    assert earned.score == pytest.approx(promised, rel=0.02)


def test_a_finer_grid_gains_next_to_nothing(easy):
    hmm, truth = easy.scenario.hmm(), easy.truth
    returns = easy.bars.close / easy.bars.open - 1.0
    coarse = solve_limit(hmm, resolution=8, return_nodes=21)
    held = limit_positions(coarse, truth.belief, truth.expected_return, returns)
    assert _score(easy, truth.limit_position) == pytest.approx(_score(easy, held), abs=0.003)


def test_the_rule_is_the_same_in_the_mirrored_market(easy):
    truth, returns = easy.truth, easy.bars.close / easy.bars.open - 1.0
    policy = cached_limit(easy.scenario.hmm())
    mirrored = limit_positions(policy, truth.belief[:, [1, 0, 2, 3]].copy(), -truth.expected_return, -returns)
    assert np.mean(mirrored == -truth.limit_position) > 0.99  # cells of the grid are not mirrored exactly


def test_without_costs_the_rule_takes_the_sign_of_the_expectation(easy):
    policy = solve_limit(easy.scenario.hmm(), cost=1e-9, resolution=6, return_nodes=21)
    returns = easy.bars.close / easy.bars.open - 1.0
    held = limit_positions(policy, easy.truth.belief, easy.truth.expected_return, returns)
    assert np.mean(held == np.sign(easy.truth.expected_return)) > 0.999


def test_prohibitive_costs_keep_the_rule_out(easy):
    policy = solve_limit(easy.scenario.hmm(), cost=1.0, resolution=6, return_nodes=21)
    returns = easy.bars.close / easy.bars.open - 1.0
    assert not limit_positions(policy, easy.truth.belief, easy.truth.expected_return, returns).any()


def test_a_lopsided_model_is_refused():
    hmm = SCENARIOS["easy"].hmm()
    with pytest.raises(ValueError, match="mirror"):
        solve_limit(PlantedHmm(hmm.mu * np.array([1, 2, 1, 1]), hmm.phi, hmm.sigma, hmm.durations))


def _count_solves(monkeypatch):
    solved = []

    def small(hmm, cost):
        solved.append(cost)
        return solve_limit(hmm, cost, resolution=4, return_nodes=11)

    monkeypatch.setattr(bayes_limit, "solve_limit", small)
    return solved


def test_a_solved_rule_is_kept_and_a_damaged_file_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    solved = _count_solves(monkeypatch)
    hmm = SCENARIOS["hard"].hmm()
    first, second = cached_limit(hmm), cached_limit(hmm)
    assert len(solved) == 1
    np.testing.assert_array_equal(first.long, second.long)
    (kept,) = (tmp_path / "algospace" / "limits").iterdir()
    kept.write_bytes(kept.read_bytes()[:1000])
    np.testing.assert_array_equal(cached_limit(hmm).long, first.long)
    assert len(solved) == 2
    cached_limit(hmm)
    cached_limit(SCENARIOS["mid"].hmm())
    cached_limit(hmm, cost=2e-4)
    assert len(solved) == 4


def test_an_unwritable_cache_only_warns(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    _count_solves(monkeypatch)
    with pytest.warns(UserWarning, match="not cached"):
        policy = cached_limit(SCENARIOS["hard"].hmm())
    assert policy.long.any()
