"""Dropout masks: pure functions of their keys, at the right rate, never a shifted copy of one another."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.dropout import MaskBank
from agents.mask_rows import BANK_ROWS, _splitmix, decision_rows, mask_rows
from algospace.seeding import splitmix64


def test_a_bank_depends_on_its_key_only() -> None:
    first, again, other = (MaskBank(key, 64, 0.1).masks for key in (5, 5, 6))
    assert first.shape == (BANK_ROWS, 64)
    assert first.equal(again)
    assert not first.equal(other)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5])
def test_units_are_dropped_at_the_rate_and_the_mean_is_kept(rate: float) -> None:
    masks = MaskBank(1, 64, rate).masks.numpy()
    assert set(np.unique(masks)) <= {np.float32(0.0), np.float32(1.0 / (1.0 - rate))}
    deviation = (rate * (1.0 - rate) / masks.size) ** 0.5
    assert abs((masks == 0.0).mean() - rate) <= 5.0 * deviation
    assert abs((masks == 0.0).mean(0) - rate).max() <= 6.0 * (rate * (1.0 - rate) / BANK_ROWS) ** 0.5 + 1e-12


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_a_rate_outside_the_unit_interval_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="dropout rate"):
        MaskBank(1, 8, rate)


def test_neighbouring_masks_are_no_shifted_copies() -> None:
    bank = MaskBank(9, 64, 0.5).masks.numpy() > 0.0
    for shift in range(-3, 4):
        moved = np.roll(bank[1:], shift, axis=1)
        assert abs((bank[:-1] == moved).mean() - 0.5) < 0.01
        assert not (bank[:-1] == moved).all(1).any()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20))
def test_the_vectorised_hash_is_the_projects_hash(values: list[int]) -> None:
    array = np.array(values, np.uint64)
    assert [int(v) for v in _splitmix(array)] == [int(splitmix64(np.uint64(v))) for v in values]


def test_rows_of_steps_agents_and_segments_are_unrelated() -> None:
    rows = mask_rows(np.array([1, 2, 2**40], np.int64), 500, 4)
    assert rows.shape == (3, 500, 4)
    assert rows.min() >= 0
    assert rows.max() < BANK_ROWS
    flat = rows.reshape(3, -1)
    for shift in (1, 4, 8):  # the next agent, the next step, the one after
        assert (flat[:, :-shift] == flat[:, shift:]).mean() < 0.01
        assert (flat[0, :-shift] == flat[1, shift:]).mean() < 0.01
    assert (flat[0] == flat[1]).mean() < 0.01
    assert abs(np.bincount(flat.ravel() // 512, minlength=8) / flat.size - 0.125).max() < 0.02


def test_a_decisions_samples_use_distinct_masks() -> None:
    assert np.unique(decision_rows(123, 256, 4)).size == 256 * 4
