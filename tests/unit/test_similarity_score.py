"""The similarity score: 1 for equal markets, and each stylised fact that is destroyed shows in its component."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from algospace.analysis.similarity import SimilarityOptions, acf, hill_index, similarity
from algospace.errors import InputError
from algospace.marketdata.augmentation import AugmentationConfig, augment
from algospace.marketdata.synthetic import generate


@pytest.fixture(scope="module")
def bars():
    return generate("session", 1, 30_000).bars


def rebuilt(bars, r):
    """Bars without wicks or gaps along the log returns `r` (n,)."""
    close = bars.close[0] * np.exp(np.cumsum(r))
    open_ = np.concatenate((close[:1], close[:-1]))
    return replace(bars, open=open_, close=close, high=np.maximum(open_, close), low=np.minimum(open_, close))


def returns(bars):
    return np.diff(np.log(bars.close), prepend=np.log(bars.close[0]))


def test_equal_markets_score_one(bars):
    report = similarity(bars, bars)
    assert report.overall == 1.0
    assert set(report.components.values()) == {1.0}
    assert report.to_dict()["overall"] == 1.0


def test_another_path_of_one_process_scores_high(bars):
    report = similarity(bars, generate("session", 2, 30_000).bars)
    assert report.overall > 0.85
    assert min(report.components.values()) > 0.6


def test_shuffled_returns_lose_clustering_and_seasonality_but_not_their_tails(bars):
    shuffled = rebuilt(bars, np.random.default_rng(0).permutation(returns(bars)))
    parts = similarity(bars, shuffled).components
    assert parts["clustering"] < 0.1
    assert parts["seasonality"] < 0.2
    assert parts["tails"] > 0.7
    assert similarity(bars, shuffled).overall < 0.4


def test_a_gaussian_walk_scores_low(bars):
    r = returns(bars)
    walk = rebuilt(bars, np.random.default_rng(0).standard_normal(r.size) * r.std())
    report = similarity(bars, walk)
    assert report.overall < 0.3
    assert report.components["clustering"] < 0.1
    assert report.components["tails"] < 0.7


def test_the_leverage_effect_is_seen(bars):
    """Volatility after falls in one market, after rises in the other."""
    shock = np.random.default_rng(1).standard_normal(len(bars))
    markets = []
    for sign in (-1.0, 1.0):
        calm = np.exp(0.5 * sign * np.concatenate(([0.0], shock[:-1])))
        markets.append(rebuilt(bars, 5e-4 * calm * shock))
    assert similarity(*markets).components["leverage"] < 0.6
    assert similarity(markets[0], markets[0]).components["leverage"] == 1.0


def test_scale_counts_unless_standardised(bars):
    doubled = rebuilt(bars, 2.0 * returns(bars))
    plain = rebuilt(bars, returns(bars))
    assert similarity(plain, doubled).components["marginal"] < 0.8
    free = similarity(plain, doubled, SimilarityOptions(standardise=True))
    assert free.components["marginal"] == pytest.approx(1.0, abs=0.02)


def test_volume_counts_where_the_real_market_has_it(bars):
    none = replace(bars, volume=np.full(len(bars), np.nan))
    assert similarity(none, bars).overall == 1.0
    assert similarity(bars, none).components["correlation"] == 0.0
    assert similarity(bars, none).components["marginal"] == pytest.approx(2 / 3)


def test_every_augmentation_keeps_more_of_the_market_than_a_shuffle(bars):
    shuffled = rebuilt(bars, np.random.default_rng(0).permutation(returns(bars)))
    floor = similarity(bars, shuffled).overall
    regimes = generate("session", 1, 30_000).truth.regime.astype(np.int64)
    for name in ("noise", "magnitude_warp", "time_warp", "block_bootstrap", "regime_resample"):
        score = similarity(bars, augment(bars, AugmentationConfig(operators=(name,)), 1, regimes)).overall
        assert score > max(0.75, 2 * floor), name


def test_autocorrelation_and_tail_index_are_the_textbooks():
    rng = np.random.default_rng(3)
    x = np.zeros(100_000)
    noise = rng.standard_normal(x.size)
    for t in range(1, x.size):
        x[t] = 0.6 * x[t - 1] + noise[t]
    np.testing.assert_allclose(acf(x, 3), [0.6, 0.36, 0.216], atol=0.02)
    assert not acf(np.ones(50), 4).any()
    assert hill_index(stats.pareto(3.0).rvs(200_000, random_state=rng)) == pytest.approx(3.0, rel=0.05)
    assert hill_index(-np.ones(100)) == 0.0


def test_too_little_or_unlike_data_is_refused(bars):
    with pytest.raises(InputError, match="the synthetic history has 498 bars"):
        similarity(bars, bars.slice(0, 500))
    with pytest.raises(InputError, match="widths differ"):
        similarity(bars, generate("session", 1, 2_000, resolution="1m").bars)
