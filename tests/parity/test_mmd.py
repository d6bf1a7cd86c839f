"""MMD equals slow literal code: pairwise kernels, iterated sums, numpy statistics."""

from __future__ import annotations

import itertools

import numba as nb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from algospace.features import mmd, mmd_kernel
from algospace.types import FloatArray

COLUMN = {name: i for i, name in enumerate(mmd.COLUMNS)}


@nb.njit
def _drive(state, high, low, close, out):
    for i in range(close.size):
        mmd.update(state, high[i], low[i], close[i], np.nan, out[i])


def run(high: FloatArray, low: FloatArray, close: FloatArray) -> FloatArray:
    out = np.empty((close.size, len(mmd.COLUMNS)))
    _drive(mmd.new_state(), high, low, close, out)
    return out


def bars(seed: int, size: int, tick: float = 0.25) -> tuple[FloatArray, FloatArray, FloatArray]:
    rng = np.random.default_rng(seed)
    steps = rng.standard_t(4, size=(size, 20)) * 4e-4 * np.exp(rng.normal(size=(size, 1)))
    prices = np.round(5000.0 * np.exp(np.cumsum(steps.ravel())).reshape(size, 20) / tick) * tick
    return prices.max(axis=1), prices.min(axis=1), prices[:, -1].copy()


def signature_of_segment(step: FloatArray) -> list[FloatArray]:
    """Levels 0..3 of exp(step): tensor powers over factorials."""
    two = np.multiply.outer(step, step)
    return [np.array(1.0), step, two / 2, np.multiply.outer(two, step) / 6]


def tensor_product(a: list[FloatArray], b: list[FloatArray]) -> list[FloatArray]:
    return [sum(np.multiply.outer(a[k], b[level - k]) for k in range(level + 1)) for level in range(4)]


def literal_log_signature(path: FloatArray) -> FloatArray:
    """Chen's identity over the segments, log series of tensors, then the expansion in Lyndon brackets solved."""
    total = [np.array(1.0), np.zeros(2), np.zeros((2, 2)), np.zeros((2, 2, 2))]
    for step in np.diff(path, axis=0):
        total = tensor_product(total, signature_of_segment(step))
    x = [np.array(0.0), *total[1:]]
    xx = tensor_product(x, x)
    log = [a - b / 2 + c / 3 for a, b, c in zip(x, xx, tensor_product(xx, x), strict=True)]

    def bracket(a: FloatArray, b: FloatArray) -> FloatArray:
        return np.multiply.outer(a, b) - np.multiply.outer(b, a)

    e1, e2 = np.eye(2)
    e12 = bracket(e1, e2)
    degree_3 = np.stack([bracket(e1, e12).ravel(), bracket(e12, e2).ravel()], axis=1)
    third, residual, *_ = np.linalg.lstsq(degree_3, log[3].ravel(), rcond=None)
    assert residual[0] < 1e-20  # a log-signature lies in the free Lie algebra
    return np.array([log[1][0], log[1][1], log[2][0, 1], *third])


def literal_mmd(returns: FloatArray) -> float:
    distance = np.abs(returns[:, None] - returns[None, :])
    b = np.median(distance[np.triu_indices(160, 1)])
    if b == 0:
        return 0.0
    kernel = np.exp(-(distance**2) / (2 * b * b))
    past, recent = kernel[:128, :128], kernel[128:, 128:]
    square = ((past.sum() - np.trace(past)) / (128 * 127) + (recent.sum() - np.trace(recent)) / (32 * 31)
              - 2 * kernel[:128, 128:].mean())
    return float(np.sqrt(max(0.0, square)))


def literal_row(high: FloatArray, low: FloatArray, close: FloatArray, i: int) -> FloatArray:
    logs = np.log(close[:i + 1])
    r = np.diff(logs)
    levels = np.concatenate([[0.0], np.cumsum(r[-32:])]) / (np.std(r[-32:]) * np.sqrt(32))
    path = np.stack([np.linspace(0, 1, 33), levels], axis=1)
    ema = [logs[0]]
    for value in logs[1:]:
        ema.append(2 / 9 * value + 7 / 9 * ema[-1])
    d = r[-20:] - r[-20:].mean()
    before = close[:i]
    true_range = np.maximum(high[1:i + 1] - low[1:i + 1],
                            np.maximum(np.abs(high[1:i + 1] - before), np.abs(low[1:i + 1] - before)))
    return np.array([
        *literal_log_signature(path), literal_mmd(r[-160:]), np.std(r[-30:]), np.std(r[-10:]) / np.std(r[-60:]),
        np.diff(ema[-3:], 2)[0] / np.std(r[-30:]), (d[1:] * d[:-1]).sum() / (d * d).sum(),
        true_range[-10:].mean() / true_range[-60:].mean(),
    ])


@pytest.mark.parametrize(("seed", "tick"), [(1, 0.25), (2, 25.0)])
def test_equals_the_literal_definition(seed: int, tick: float) -> None:
    high, low, close = bars(seed, 500, tick)
    out = run(high, low, close)
    for i in range(160, 500, 3):
        np.testing.assert_allclose(out[i], literal_row(high, low, close, i), rtol=1e-9, atol=1e-9,
                                   err_msg=f"row {i}")
    assert (out[160:, COLUMN["mmd_score"]] > 0).mean() > 0.2


def test_each_column_begins_when_its_window_is_full() -> None:
    out = run(*bars(5, 200))
    first = [int(np.flatnonzero(np.isfinite(column))[0]) for column in out.T]
    assert first == [32] * 5 + [160, 30, 60, 30, 20, 60]
    assert all(np.isfinite(out[start:, k]).all() for k, start in enumerate(first))


def test_a_motionless_market_has_neutral_values() -> None:
    flat = np.full(200, 4000.25)
    last = dict(zip(mmd.COLUMNS, run(flat, flat, flat)[-1].tolist(), strict=True))
    ones = {"volatility_ratio", "range_ratio"}
    assert all(value == (1.0 if name in ones else 0.0) for name, value in last.items()), last


def test_a_constant_drift_counts_as_no_volatility() -> None:
    close = 100.0 * np.exp(1e-3 * np.arange(200))
    out = run(close, close, close)
    assert np.isfinite(out[160:]).all()
    assert np.abs(out[160:, :5]).max() == 0.0


def test_a_mirrored_market_changes_only_the_sign_of_odd_columns() -> None:
    high, low, close = bars(9, 400, 1e-9)
    pivot = close[0] ** 2
    out, mirrored = run(high, low, close), run(pivot / low, pivot / high, pivot / close)
    odd = {"logsig_2", "logsig_3", "logsig_4", "price_acceleration"}
    for name, k in COLUMN.items():
        if name == "range_ratio":
            continue  # a range in points is not symmetric in log price
        sign = -1.0 if name in odd else 1.0
        np.testing.assert_allclose(mirrored[:, k], sign * out[:, k], rtol=1e-7, atol=1e-8, err_msg=name)


def test_the_state_can_be_copied_and_continued() -> None:
    high, low, close = bars(13, 500)
    whole, out = run(high, low, close), np.empty((500, len(mmd.COLUMNS)))
    first = mmd.new_state()
    _drive(first, high[:301], low[:301], close[:301], out[:301])
    snapshot = mmd.MmdState(*(array.copy() for array in first))
    _drive(first, high, low, close, np.empty_like(out))
    _drive(snapshot, high[301:], low[301:], close[301:], out[301:])
    np.testing.assert_array_equal(out, whole)


COARSE = st.integers(-3, 3).map(lambda k: k * 1e-3)
FINE = st.floats(-1.0, 1.0, width=64)


@given(sample=st.integers(2, 60).flatmap(lambda n: arrays(np.float64, n, elements=st.one_of(COARSE, FINE))),
       guess=st.one_of(st.just(np.nan), st.floats(0, 2)))
@settings(max_examples=200, deadline=None)
def test_the_median_distance_is_exact_for_any_ties_and_guess(sample: FloatArray, guess: float) -> None:
    ordered = np.sort(sample)
    distances = [abs(a - b) for a, b in itertools.combinations(ordered, 2)]
    assert mmd_kernel.median_distance(ordered, guess) == np.median(distances)


@pytest.mark.parametrize("levels", [2, 3, 5, 40, 10**9])
def test_the_median_distance_of_a_full_window_is_exact(levels: int) -> None:
    rng = np.random.default_rng(levels)
    for _ in range(40):
        ordered = np.sort(rng.integers(0, levels, 160) * 1e-3 * (1.0 + rng.normal(size=160) * 1e-9))
        distances = np.abs(ordered[:, None] - ordered)[np.triu_indices(160, 1)]
        assert mmd_kernel.median_distance(ordered, rng.uniform(0, 1)) == np.median(distances)


@given(values=st.lists(COARSE, min_size=1, max_size=60), size=st.integers(1, 12))
@settings(max_examples=100, deadline=None)
def test_the_sorted_window_holds_exactly_the_last_values(values: list[float], size: int) -> None:
    ordered = np.zeros(size)
    for n, value in enumerate(values):
        old = values[n - size] if n >= size else 0.0
        mmd_kernel.replace_sorted(ordered, old, value, min(n, size))
        used = min(n + 1, size)
        assert ordered[:used].tolist() == sorted(values[max(0, n + 1 - size):n + 1])


def test_the_kernel_is_the_exponential() -> None:
    d = np.linspace(0.0, 12.0, 200_001)
    sums = np.zeros_like(d)
    mmd_kernel._add_row(0.0, d, 1.0, sums)
    assert np.abs(sums - np.exp(-d * d)).max() < 1e-13
