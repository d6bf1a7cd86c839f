"""Mirrored prices mirror the columns as the registry says."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.features.library import compute, describe
from algospace.types import Bars
from tests.library_market import scale, walk


def mirrored(bars: Bars, how: str) -> Bars:
    """p -> 2c - p ("difference") or c²/p ("ratio"); the mirrored low is the high."""
    centre = 4096.0

    def turn(prices: np.ndarray) -> np.ndarray:
        return 2.0 * centre - prices if how == "difference" else centre * centre / prices

    return Bars(bars.ts_open, turn(bars.open), turn(bars.low), turn(bars.high), turn(bars.close), bars.volume,
                bars.width_ns)


@given(seed=st.integers(0, 2**32 - 1), volume=st.booleans())
@settings(max_examples=20, deadline=None)
def test_columns_have_the_parity_that_the_registry_states(seed: int, volume: bool) -> None:
    bars = walk(seed, 300, flat=0.0, jump=0.0, volume=volume)
    for how in ("difference", "ratio"):
        stated = [c for c in describe() if c.parity != "none" and c.mirror == how]
        names = [column.name for column in stated]
        values, turned = compute(bars, names), compute(mirrored(bars, how), names)
        for column in stated:
            seen, expected = turned[column.name], values[column.name]
            if column.parity == "odd":
                expected = 2.0 * column.centre - expected
            allowed = 1e-7 * np.maximum(np.abs(expected), scale(column, bars))
            off = np.abs(seen - expected) > allowed
            assert not off.any(), f"{column.name}: {seen[off][:3]} where {expected[off][:3]} was stated"
