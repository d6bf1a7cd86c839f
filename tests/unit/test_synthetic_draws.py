"""The portable draws have the distributions they are named after."""

import math

import numba as nb
import numpy as np
import pytest
from scipy import stats

from algospace.marketdata.bayes_filter import unit_t6_density
from algospace.marketdata.synthetic_paths import (
    bridge_path,
    exponential,
    normal_pair,
    portable_log,
    unit_t6,
)
from algospace.seeding import combine

N = 100_000


@nb.njit
def _draw(n):
    normals, exponentials, students = np.empty((n, 2)), np.empty(n), np.empty(n)
    for i in range(n):
        normals[i] = normal_pair(combine(np.uint64(1), i))
        exponentials[i] = exponential(combine(np.uint64(2), i))
        students[i] = unit_t6(combine(np.uint64(3), i))
    return normals, exponentials, students


@pytest.fixture(scope="module")
def draws():
    return _draw(N)


def test_the_logarithm_agrees_with_the_library():
    for x in np.concatenate((np.logspace(-300, 300, 2001), np.linspace(0.4, 2.1, 2001))):
        assert portable_log(x) == pytest.approx(math.log(x), rel=4e-16, abs=2e-16)


def test_normals_are_standard_and_independent(draws):
    normals = draws[0]
    assert stats.kstest(normals.ravel(), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(normals.T)[0, 1]) < 4 / math.sqrt(N)
    assert abs(np.corrcoef(normals[1:, 0], normals[:-1, 1])[0, 1]) < 4 / math.sqrt(N)


def test_exponentials_and_students_follow_their_laws(draws):
    assert stats.kstest(draws[1], "expon").pvalue > 1e-3
    assert stats.kstest(draws[2], stats.t(6, scale=math.sqrt(4 / 6)).cdf).pvalue > 1e-3
    assert draws[2].var() == pytest.approx(1.0, abs=0.03)


def test_the_density_is_the_one_that_is_drawn():
    x = np.linspace(-9, 9, 101)
    ours = np.array([unit_t6_density(v) for v in x])
    np.testing.assert_allclose(ours, stats.t(6, scale=math.sqrt(4 / 6)).pdf(x), rtol=1e-13)


@nb.njit
def _bridges(n, steps, volatility):
    out = np.empty((n, steps + 1))
    for i in range(n):
        bridge_path(combine(np.uint64(4), i), 100.0, 101.0, volatility, 0.0, out[i])
    return out


def test_the_bridge_has_its_ends_and_the_variance_of_a_brownian_bridge():
    steps, volatility = 10, 6e-4
    paths = _bridges(20_000, steps, volatility)
    assert (paths[:, 0] == 100.0).all()
    assert (paths[:, -1] == 101.0).all()
    share = np.arange(1, steps) / steps
    np.testing.assert_allclose(paths[:, 1:-1].mean(axis=0), 100.0 + share, atol=4 * 0.03 / math.sqrt(20_000))
    expected = (100.0 * volatility) ** 2 * share * (1.0 - share)
    np.testing.assert_allclose(paths[:, 1:-1].var(axis=0), expected, rtol=0.05)
