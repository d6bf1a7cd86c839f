"""Every library column that TA-Lib has equals TA-Lib's to 1e-9 of its scale, at any price and length."""

from __future__ import annotations

import numpy as np
import pytest
import talib
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.features.library import REGISTRY, compute
from algospace.types import Bars, BoolArray
from tests.library_market import from_talib, scale, scaled, walk

SHARED = [name for name, column in REGISTRY.items() if column.talib]
RELATIVE_ERROR = 1e-9
STILL = 1e-9


def _still_rsi(bars: Bars) -> BoolArray:
    """Where RSI stood still (flat prices) within the window: TA-Lib then scales the roundings up to 0..100."""
    rsi = talib.RSI(bars.close, 14)
    spread = talib.MAX(rsi, 14) - talib.MIN(rsi, 14)
    still = spread < STILL
    return still | np.roll(still, 1) | np.roll(still, 2)


def assert_equal_to_talib(bars: Bars, rows: slice = slice(None)) -> None:
    ours = compute(bars, SHARED)
    for name in SHARED:
        column = REGISTRY[name]
        theirs = from_talib(column, bars)
        both = np.isfinite(theirs[rows])
        if name.startswith("stochrsi"):
            both &= ~_still_rsi(bars)[rows]
        if not both.any():
            continue
        allowed = RELATIVE_ERROR * np.maximum(np.abs(theirs[rows][both]), scale(column, bars))
        error = np.abs(ours[name][rows][both] - theirs[rows][both])
        worst = int(np.argmax(error / allowed))
        assert not (error > allowed).any(), f"{name}: {error[worst]} above {allowed[worst]}, value {worst}"


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(60, 600), flat=st.sampled_from([0.0, 0.2, 0.9]),
       jump=st.sampled_from([0.0, 0.05]))
@settings(max_examples=40, deadline=None)
def test_equal_on_random_markets(seed: int, n: int, flat: float, jump: float) -> None:
    assert_equal_to_talib(walk(seed, n, flat=flat, jump=jump))


@pytest.mark.parametrize("price", [2.0**-20, 2.0**20], ids=["tiny", "huge"])
@pytest.mark.parametrize("volume", [2.0**-10, 2.0**20], ids=["few", "many"])
def test_equal_for_tiny_and_huge_prices(price: float, volume: float) -> None:
    assert_equal_to_talib(scaled(walk(3, 3000), price, volume))


def test_equal_on_flat_prices() -> None:
    flat = np.full(200, 7.1)
    bars = walk(1, 200)
    assert_equal_to_talib(Bars(bars.ts_open, flat, flat, flat, flat, bars.volume, bars.width_ns))


def test_equal_over_a_gap_and_a_flat_stretch() -> None:
    bars = walk(4, 1200, jump=0.0)
    for name in ("open", "high", "low", "close"):
        getattr(bars, name)[600:] *= 8.0
        getattr(bars, name)[700:740] = bars.close[700]
    assert_equal_to_talib(bars)


def test_equal_after_a_million_bars() -> None:
    bars = walk(5, 1_000_000, jump=0.0)
    assert_equal_to_talib(bars, slice(999_000, None))


def test_equal_on_real_bars(data_root: object) -> None:
    import pandas as pd

    frame = pd.read_parquet(f"{data_root}/nq_1m/nq_1m_2020.parquet").iloc[:100_000]
    prices = [frame[name].to_numpy(float) for name in ("open", "high", "low", "close")]
    volume = np.ones(len(frame))
    assert_equal_to_talib(Bars(np.arange(len(frame)) * 60_000_000_000, *prices, volume, 60_000_000_000))
