"""The compiled filter equals textbook Bayes, written out with numpy and scipy."""

import numpy as np
import pytest
from scipy import stats

from algospace.marketdata.bayes_filter import bayes_filter
from algospace.marketdata.synthetic import SCENARIOS, generate


def _literal_filter(scenario, returns):
    mu = np.array([scenario.mu_bp, -scenario.mu_bp, 0, 0]) * 1e-4
    phi = np.array([0, 0, scenario.phi, 0])
    sigma, stay = np.array(scenario.sigma_bp) * 1e-4, 1 - 1 / np.array(scenario.durations)
    transition = np.array([[stay[i] if i == j else (1 - stay[i]) / 3 for j in range(4)] for i in range(4)])
    values, vectors = np.linalg.eig(transition.T)
    prior = np.real(vectors[:, np.argmax(np.real(values))])
    prior /= prior.sum()
    beliefs, means, r_tm1 = [], [], 0.0
    for r_t in returns:
        likelihood = stats.t.pdf(r_t, df=6, loc=mu + phi * r_tm1, scale=sigma * np.sqrt(4 / 6))
        posterior = prior * likelihood / np.sum(prior * likelihood)
        prior = posterior @ transition
        beliefs.append(posterior)
        means.append(prior @ (mu + phi * r_t))
        r_tm1 = r_t
    return np.array(beliefs), np.array(means)


@pytest.mark.parametrize("name", ["easy", "mid", "hard", "martingale"])
def test_filter_equals_the_literal_one(name):
    market = generate(name, seed=4, n_bars=1_500)
    bars = market.bars
    beliefs, means = _literal_filter(SCENARIOS[name], bars.close / bars.open - 1.0)
    np.testing.assert_allclose(market.truth.belief, beliefs, rtol=1e-7, atol=1e-11)
    np.testing.assert_allclose(market.truth.expected_return, means, rtol=1e-6, atol=1e-13)


def test_the_filter_sees_no_future():
    market = generate("easy", seed=4, n_bars=1_000)
    returns = market.bars.close / market.bars.open - 1.0
    changed = returns.copy()
    changed[700:] *= -3.0
    for one, other in zip(bayes_filter(market.scenario.hmm(), returns),
                          bayes_filter(market.scenario.hmm(), changed), strict=True):
        np.testing.assert_array_equal(one[:700], other[:700])
        assert not np.array_equal(one[700:], other[700:])
