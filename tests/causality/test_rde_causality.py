"""Regime vectors know nothing of the future, and the filter of the HMM baseline does not either."""

import numpy as np
import torch
from hmmlearn.hmm import GaussianHMM
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.regime import RegimeNet
from agents.settings import RegimeConfig
from training.rde import regime_vectors
from training.rde_report import encode_ends, filter_markov

torch.set_num_threads(1)
torch.manual_seed(0)
NET = RegimeNet(RegimeConfig(size="tiny")).eval()
ROWS = np.random.default_rng(0).standard_normal((700, 12)).astype(np.float32)
ROWS[:7] = np.nan
VECTORS = regime_vectors(NET, ROWS, 96)


@settings(max_examples=12, deadline=None)
@given(st.integers(1, len(ROWS)))
def test_cutting_or_changing_the_future_changes_no_bit(cut: int) -> None:
    assert np.array_equal(regime_vectors(NET, ROWS[:cut], 96), VECTORS[:cut])
    changed = ROWS.copy()
    changed[cut:] = np.nan
    assert np.array_equal(regime_vectors(NET, changed, 96)[:cut], VECTORS[:cut])


def test_rows_without_a_complete_window_are_zero() -> None:
    assert not VECTORS[: 7 + 95].any()
    assert VECTORS[7 + 95:].any(axis=1).all()
    gap = ROWS.copy()
    gap[400, 2] = np.nan
    vectors = regime_vectors(NET, gap, 96)
    assert not vectors[400:496].any()
    assert np.array_equal(vectors[496:], VECTORS[496:])


def test_vectors_equal_single_windows() -> None:
    ends = np.array([102, 300, 699])
    single = np.concatenate([encode_ends(NET, ROWS, ends[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(VECTORS[ends], single, atol=1e-5)


def test_mirrored_vectors_are_those_of_the_mirrored_rows() -> None:
    sign = np.where(np.arange(12) % 2, -1.0, 1.0).astype(np.float32)
    assert np.array_equal(regime_vectors(NET, ROWS, 96, sign), regime_vectors(NET, ROWS * sign, 96))


def test_markov_filter_is_causal_and_agrees_with_hmmlearn_at_the_last_row() -> None:
    """On the last row filtering and hmmlearn's smoothing are the same posterior."""
    rows = np.concatenate([np.random.default_rng(1).normal(m, 1.0, (60, 2)) for m in (-1.0, 1.0, -1.0)])
    model = GaussianHMM(2, covariance_type="diag", n_iter=10, random_state=0).fit(rows)
    beliefs = filter_markov(model, rows)
    for cut in (1, 30, 61, 180):
        np.testing.assert_allclose(beliefs[cut - 1], model.predict_proba(rows[:cut])[-1], atol=1e-9)
