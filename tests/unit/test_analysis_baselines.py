"""Baselines through the full mechanics: causal, at the policy's costs, and the rules they claim to be."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.analysis.baselines import (
    adjusted_close,
    orders_from_positions,
    random_positions,
    run_baselines,
    run_positions,
    turnover_of,
)
from algospace.execution.venue import SimulatedVenue
from algospace.instruments import instrument
from tests.session_market import random_table

ES = instrument("ES")
NAMES = {"buy_and_hold", "momentum", "ma_cross", "random"}


def baselines(table, start=120, stop=600, **kwargs):
    return run_baselines(table, start, stop, ES, turnover=0.05, **kwargs)


def test_buy_and_hold_is_one_contract_held_to_the_end():
    table = random_table(1, n=600)
    result = baselines(table)["buy_and_hold"]
    first = 120 + int(np.flatnonzero(table.decision[120:])[0]) + 1
    entry = table.open[first] + 0.25
    assert result.fills.size == 1
    assert result.equity[-1] == pytest.approx(100_000.0 + 50.0 * (table.close[599] - entry) - 2.25)


def test_momentum_holds_the_sign_of_the_last_24_bars():
    table = random_table(2, n=600)
    table.decision[:] = True
    result = baselines(table)["momentum"]
    for row in range(121, 600):
        change = table.close[row - 1] - table.close[row - 25]
        assert result.position[row - 120] == np.sign(change), row


def test_moving_average_cross_holds_the_sign_of_the_difference():
    table = random_table(3, n=600)
    table.decision[:] = True
    result = baselines(table)["ma_cross"]
    for row in range(121, 600):
        past = table.close[:row]
        difference = past[-20:].mean() - past[-100:].mean()
        if abs(difference) > 1e-6:
            assert result.position[row - 120] == np.sign(difference), row


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), cut=st.integers(300, 500))
def test_the_future_changes_no_baseline(seed, cut):
    table = random_table(seed, n=600, rolls=2)
    supervised = np.sign(np.random.default_rng(seed).integers(-1, 2, 480)).astype(float)
    before = baselines(table, supervised=supervised)
    for name in ("open", "high", "low", "close"):
        getattr(table, name)[cut:] *= 1.1
    after = baselines(table, supervised=supervised)
    assert set(before) == {*NAMES, "supervised"}
    for name, result in before.items():
        np.testing.assert_array_equal(result.equity[: cut - 120], after[name].equity[: cut - 120])


def test_rolls_move_no_signal():
    """Scaling a new contract's prices by its roll factor leaves the adjusted closes as they were."""
    table = random_table(4, n=600)
    plain = adjusted_close(table)
    table.roll[300] = 1.02
    table.close[300:] *= 1.02
    np.testing.assert_allclose(adjusted_close(table), plain, rtol=1e-12)


@pytest.mark.parametrize(("turnover", "exposure"), [(0.02, 2 / 3), (0.3, 0.5), (0.1, 0.2), (0.0, 0.5)])
def test_random_has_the_turnover_and_exposure_asked_for(turnover, exposure):
    position = random_positions(200_000, turnover, 7, exposure)
    assert np.abs(np.diff(position)).mean() == pytest.approx(turnover, rel=0.05)
    if turnover:
        assert np.mean(position != 0) == pytest.approx(exposure, abs=0.03)
        assert abs(position.mean()) < 0.05
    np.testing.assert_array_equal(position, random_positions(200_000, turnover, 7, exposure))


def test_turnover_of_a_run_is_what_random_then_does():
    table = random_table(5, n=4000)
    table.decision[:] = True
    position = random_positions(4000, 0.1, 1)
    result = run_positions(table, 0, 4000, position, SimulatedVenue(ES))
    assert turnover_of(result) == pytest.approx(np.abs(np.diff(position, prepend=0.0)).mean(), abs=0.001)


def test_costs_are_paid():
    table = random_table(6, n=600)
    dear, free = baselines(table, slippage_ticks=2.0), baselines(table, slippage_ticks=0.0, commission=0.0)
    for name in NAMES:
        assert dear[name].equity[-1] < free[name].equity[-1], name


def test_positions_must_fit():
    table = random_table(7, n=600)
    with pytest.raises(ValueError, match="do not fit"):
        orders_from_positions(table, 0, 600, np.zeros(10))
    with pytest.raises(ValueError, match="-1, 0 or 1"):
        orders_from_positions(table, 0, 600, np.full(600, 2.0))
