"""The judge: who sees the future rings the alarm, who knows nothing earns nothing, regimes add up to the whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.analysis.regime_table import pooled, regime_sums
from algospace.analysis.trend_bayes import trend_positions
from algospace.analysis.unit_baselines import random_positions
from algospace.analysis.unit_judgement import CLAIRVOYANT, LIMIT, POLICY, TREND, Judgement, judge
from algospace.analysis.unit_score import next_returns
from algospace.errors import ConfigError
from algospace.marketdata.bayes_filter import STATES
from algospace.marketdata.synthetic import SyntheticMarket, generate, scenario_named

BARS = 40_000
SEGMENTS = [(start, start + 500) for start in range(3_000, BARS - 501, 500)]


@pytest.fixture(scope="module")
def easy() -> SyntheticMarket:
    return generate("easy", 701, BARS)


def judged(market: SyntheticMarket, positions: np.ndarray) -> Judgement:
    return judge(market.scenario, market.truth, market.bars.close, positions, SEGMENTS, market.seed)


def signs(market: SyntheticMarket) -> np.ndarray:
    """The sign of the next return: what nobody can know."""
    return np.nan_to_num(np.sign(next_returns(market.bars.close)))


def test_a_policy_that_is_given_the_future_rings_the_alarm(easy: SyntheticMarket) -> None:
    found = judged(easy, signs(easy))
    assert found.verdict.leaking
    assert found.as_dict()["leak"]["rang"]
    assert found.policy.realised > 5 * found.scores[LIMIT].score


def test_a_glimpse_of_the_future_rings_it_too(easy: SyntheticMarket) -> None:
    honest = easy.truth.limit_position
    peek = np.random.default_rng(0).random(honest.size) < 0.05
    assert not judged(easy, honest).verdict.leaking
    assert judged(easy, np.where(peek, signs(easy), honest)).verdict.leaking


@pytest.mark.parametrize("scenario", ["easy", "martingale"])
def test_a_random_policy_earns_nothing_on_any_market(scenario: str, easy: SyntheticMarket) -> None:
    for seed in (702, 703, 704):
        market = generate(scenario, seed, BARS)
        found = judged(market, random_positions(easy.truth.limit_position, seed))
        assert found.policy.score <= 0.0
        assert not found.verdict.leaking


def test_the_limit_is_its_own_whole_and_above_every_honest_contender(easy: SyntheticMarket) -> None:
    found = judged(easy, easy.truth.limit_position)
    assert found.fraction() == 1.0
    assert found.policy == found.scores[LIMIT]
    others = set(found.scores) - {POLICY, LIMIT, CLAIRVOYANT}
    assert {"buy_and_hold", "momentum", "ma_cross", "ema_cross", "random", TREND} == others
    assert all(found.scores[name].score < found.policy.score for name in others)
    assert found.scores[TREND].score == max(found.scores[name].score for name in others)


def test_trend_following_is_worth_half_of_easy_and_nothing_on_a_martingale(easy: SyntheticMarket) -> None:
    assert 0.4 < judged(easy, easy.truth.limit_position).fraction(TREND) < 0.6
    flat = generate("martingale", 701, 5_000)
    assert not trend_positions(flat.scenario.hmm(), flat.truth.belief, flat.bars.close).any()


def test_the_trend_follower_sees_no_future_and_no_autocorrelation(easy: SyntheticMarket) -> None:
    hmm, cut = easy.scenario.hmm(), 2_000
    whole = trend_positions(hmm, easy.truth.belief, easy.bars.close)
    part = trend_positions(hmm, easy.truth.belief[:cut], easy.bars.close[:cut])
    np.testing.assert_array_equal(whole[:cut], part)
    certain = np.tile([0.0, 0.0, 1.0, 0.0], (500, 1))  # a range for sure: returns alternate, drift is nil
    zigzag = 5000.0 * np.cumprod(1.0 + 1e-3 * (-1.0) ** np.arange(500))
    assert not trend_positions(hmm, certain, zigzag).any()


@given(seed=st.integers(0, 10_000), exposure=st.floats(0.0, 1.0), first=st.integers(0, 30_000),
       length=st.integers(2, 3_000), parts=st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_regime_rows_add_up_to_the_whole(easy: SyntheticMarket, seed: int, exposure: float, first: int,
                                         length: int, parts: int) -> None:
    rng = np.random.default_rng(seed)
    positions = np.where(rng.random(BARS) < exposure, rng.choice([-1, 1], BARS), 0)
    segments = [(first + k * length, first + (k + 1) * length) for k in range(parts)
                if first + (k + 1) * length < BARS]
    if not segments:
        return
    found = judge(easy.scenario, easy.truth, easy.bars.close, positions, segments, seed)
    rows = found.regimes.rows()
    parts_of = [rows[name] for name in STATES]
    assert sum(row["bars"] for row in parts_of) == rows["all"]["bars"] == found.policy.bars
    for figure, whole in (("score", found.policy.score), ("realised", found.policy.realised),
                          ("limit", found.scores[LIMIT].score), ("exposure", found.policy.exposure),
                          ("turnover", found.policy.turnover)):
        total = sum(row["share_of_bars"] * row[figure] for row in parts_of if row["bars"])
        assert total == pytest.approx(whole, abs=1e-9)
        assert rows["all"][figure] == pytest.approx(whole, abs=1e-9)
    fraction = found.fraction()
    if fraction is not None:
        assert sum(row["share_of_limit"] for row in parts_of) == pytest.approx(fraction, abs=1e-9)


def test_regimes_are_those_of_the_bar_that_is_held(easy: SyntheticMarket) -> None:
    """Long exactly over the bars of the up state: every exposed bar is counted there."""
    held_over_up = np.append(easy.truth.regime[1:] == 0, False).astype(np.int8)
    rows = regime_sums(easy.truth, easy.bars.close, held_over_up, SEGMENTS).rows()
    assert rows["up"]["exposure"] == rows["up"]["long"] == 1.0
    assert [rows[name]["exposure"] for name in STATES[1:]] == [0.0, 0.0, 0.0]


def test_pooled_markets_are_the_sum_of_both(easy: SyntheticMarket) -> None:
    other = generate("easy", 702, BARS)
    sums = [judged(m, m.truth.limit_position).regimes for m in (easy, other)]
    rows = pooled(sums).rows()["all"]
    assert rows["bars"] == 2 * sums[0].rows()["all"]["bars"]
    assert rows["score"] == pytest.approx(np.mean([s.rows()["all"]["score"] for s in sums]))
    assert rows["fraction_of_limit"] == pytest.approx(1.0)


def test_a_scenario_without_a_limit_is_refused() -> None:
    market = generate("session", 1, 3_000)
    flat = np.zeros(len(market.truth))
    with pytest.raises(ConfigError, match="no solved limit"):
        judge(scenario_named("session"), market.truth, market.bars.close, flat, [(0, 10)], 1)
