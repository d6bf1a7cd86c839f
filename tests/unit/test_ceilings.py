"""What the benchmark of ceilings computes beside training: the limit's values, mirrors, distributions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from algospace.analysis.unit_score import limit_score, score_unit_run
from benchmarks._planted import AVERAGES, OWN, Market, open_market
from benchmarks.ceilings import Agent, Row, by_value, fraction, gradient, greedy, occupancy


@pytest.fixture(scope="module")
def market() -> Market:
    return open_market("easy", 701, 20_000, None, (*OWN, *AVERAGES))[0]


def test_whoever_knows_the_limits_values_plays_the_limit(market: Market) -> None:
    positions = greedy(by_value(market.values).numpy())
    assert market.truth.limit_position is not None
    assert market.truth.expected_return is not None
    assert (positions == market.truth.limit_position).mean() > 0.999  # ties and single precision
    earned = score_unit_run(positions, market.truth.expected_return, market.close).score
    assert earned == pytest.approx(limit_score(market.truth, market.close).score, rel=1e-3)


def test_inputs_and_their_mirror_images_differ_by_signs_and_twins(market: Market) -> None:
    real, image = market.tactical
    for name, even in (("return_1", False), ("volatility_60", True), ("raw", False), ("ema20", False),
                       ("ac20", True), ("vol20", True)):
        place = (*OWN, *AVERAGES).index(name)
        assert torch.equal(image[:, place], real[:, place] * (1.0 if even else -1.0)), name
    bull, bear = OWN.index("fvg_bull_active"), OWN.index("fvg_bear_active")
    assert torch.equal(image[:, bull], real[:, bear])


def test_occupancy_is_the_distribution_of_sampled_positions() -> None:
    torch.manual_seed(0)
    policy = torch.softmax(torch.randn(1, 6, 3, 3), -1)
    exact = occupancy(policy)[0]
    held = torch.randint(0, 3, (200_000,))
    for t in range(6):
        seen = torch.bincount(held, minlength=3) / len(held)
        torch.testing.assert_close(seen, exact[t], atol=0.01, rtol=0.0)
        held = torch.multinomial(policy[0, t][held], 1)[:, 0]


def test_agents_see_no_later_row(market: Market) -> None:
    torch.manual_seed(0)
    agent = Agent(market, Row("", "fit"), (2,))
    start, straight = torch.tensor([9_000]), torch.zeros(1, dtype=torch.bool)
    later = market.tactical.clone()
    later[:, 9_040:] += 1.0
    changed = market._replace(tactical=later, strategic=market.strategic.clone())
    changed.strategic[:, int(market.row_30m[9_039]) + 1:] += 1.0
    (first,), (second,) = (agent(part, start, 80, straight) for part in (market, changed))
    assert torch.equal(first[:, :40], second[:, :40])
    assert not torch.equal(first[:, 40:], second[:, 40:])


def test_a_training_runs_and_is_played(market: Market) -> None:
    torch.manual_seed(0)
    agent = gradient(market, Row("", "gradient", samples=3 * 64 * 128))
    assert np.isfinite(fraction(agent, market, "gradient"))
