"""LVN equals a slow literal reading of the definition, in every kind of market it can meet."""

from __future__ import annotations

import numba as nb
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter1d

from algospace.features import lvn
from algospace.types import FloatArray

TIE = 1e-12


@nb.njit
def _drive(state, high, low, close, volume, out, factor=1.0):
    for i in range(close.size):
        lvn.update(state, high[i], low[i], close[i], volume[i], factor, out[i])


def run(high: FloatArray, low: FloatArray, close: FloatArray, volume: FloatArray, tick: float) -> FloatArray:
    out = np.empty((close.size, len(lvn.COLUMNS)))
    _drive(lvn.new_state(tick), high, low, close, volume, out)
    return out


def bars(seed: int, size: int, tick: float, volatility: float, offgrid: float = 1.0) -> tuple[FloatArray, ...]:
    """Random 30-minute bars on the tick grid, times `offgrid` (a roll factor)."""
    rng = np.random.default_rng(seed)
    steps = rng.standard_t(5, size=(size, 20)) * volatility
    prices = np.round(1000.0 * np.exp(np.cumsum(steps.ravel())) / tick).reshape(size, 20) * tick * offgrid
    volume = np.round(rng.lognormal(6.0, 1.0, size))
    return prices.max(axis=1), prices.min(axis=1), prices[:, -1].copy(), volume


def literal_profile(high, low, volume, tick):
    """(start, width, heights): every tick of every bar put into its bin, one by one."""
    start, span = low.min(), high.max() - low.min()
    wide = span / tick > 400 * (1 + 1e-9)  # a range of exactly 400 ticks is not, however it was rounded
    width = span / 400 if wide else tick
    bins = 400 if wide else int(np.floor(span / width + 1e-6)) + 1
    heights = np.zeros(bins)
    tpo = not np.nansum(volume) > 0 or bool(np.isnan(volume).any())
    for h, b, v in zip(high, low, volume, strict=True):
        ticks = int(np.floor((h - b) / tick + 0.5)) + 1
        prices = np.linspace(b, h, ticks)
        places = np.minimum(np.floor((prices - start) / width + 1e-6).astype(int), bins - 1)
        np.add.at(heights, places, 1.0 if tpo else v / ticks)
    return start, width, heights


def literal_turns(smooth):
    """Indices of peaks and valleys in alternation, plateaus at their lower end, ends counted as peaks."""
    tie = TIE * smooth.max()
    points = [0]
    for i in range(1, smooth.size):  # one representative per plateau
        if abs(smooth[i] - smooth[i - 1]) > tie:
            points.append(i)
    values = smooth[points]
    inner = range(len(points))
    peaks = [k for k in inner if (k == 0 or values[k] > values[k - 1])
             and (k == len(points) - 1 or values[k] > values[k + 1])]
    valleys = [k for k in inner[1:-1] if values[k] < min(values[k - 1], values[k + 1])]
    return [points[k] for k in peaks], [points[k] for k in valleys]


def literal_columns(high, low, close, volume, tick):
    start, width, heights = literal_profile(high, low, volume, tick)
    smooth = gaussian_filter1d(heights, 2.0, mode="reflect", truncate=4.0)
    top = smooth.max()
    poc = int(np.flatnonzero(smooth >= top * (1 - TIE))[0])
    price = start + (np.arange(smooth.size) + 0.5) * width
    peaks, valleys = literal_turns(smooth)
    nodes = []
    for valley in valleys:
        lower = min(smooth[max(p for p in peaks if p < valley)], smooth[min(p for p in peaks if p > valley)])
        if lower - smooth[valley] >= 0.10 * top:
            nodes.append((round(abs(price[valley] - close) / width, 6), valley, lower))
    distance = strength = 0.0
    if nodes:
        _, node, lower = min(nodes)
        distance, strength = price[node] - close, 100 * (1 - smooth[node] / lower)
    bottom = upper = poc
    while smooth[bottom:upper + 1].sum() < 0.70 * smooth.sum() * (1 - TIE):
        below = smooth[bottom - 1] if bottom > 0 else -np.inf
        above = smooth[upper + 1] if upper + 1 < smooth.size else -np.inf
        if above > below + TIE * top:
            upper += 1
        else:
            bottom -= 1
    position = (close - (start + bottom * width)) / ((upper - bottom + 1) * width)
    centred = price - np.average(price, weights=heights)
    variance = np.average(centred**2, weights=heights)
    skew = np.average(centred**3, weights=heights) / variance**1.5 if variance > 1e-6 * width**2 else 0.0
    return np.array([distance, strength, price[poc] - close, np.clip(position, -1, 2), skew])


MARKETS = {
    "tick bins": (0.25, 4e-5, 1.0, "lots"),
    "wide bins": (0.25, 4e-4, 1.0, "lots"),
    "penny ticks, 400 bins of many ticks": (0.01, 6e-4, 1.0, "lots"),
    "roll-adjusted, off the tick grid": (0.25, 4e-4, 1.0371, "lots"),
    "roll-adjusted, tick bins": (0.25, 4e-5, 0.9713, "lots"),
    "no volume": (0.25, 1e-4, 1.0, "none"),
    "volume now and then absent": (0.25, 1e-4, 1.0, "some"),
    "one trade": (0.25, 1e-4, 1.0, "zero"),
}


@pytest.mark.parametrize("market", MARKETS)
def test_equals_the_literal_definition(market: str) -> None:
    tick, volatility, offgrid, kind = MARKETS[market]
    high, low, close, volume = bars(3, 700, tick, volatility, offgrid)
    if kind == "none":
        volume[:] = np.nan
    elif kind == "some":
        volume[::400] = np.nan
    elif kind == "zero":
        volume[:] = 0.0
    out = run(high, low, close, volume, tick)
    assert np.isnan(out[:lvn.WINDOW - 1]).all()
    for i in range(lvn.WINDOW - 1, close.size):
        window = slice(i - lvn.WINDOW + 1, i + 1)
        expected = literal_columns(high[window], low[window], close[i], volume[window], tick)
        np.testing.assert_allclose(out[i], expected, rtol=1e-9, atol=1e-9, err_msg=f"row {i}")
    if market == "wide bins":
        assert (out[lvn.WINDOW:, 1] > 0).mean() > 0.3  # nodes were there to be compared


@given(seed=st.integers(0, 2**32 - 1), tick=st.sampled_from([0.01, 0.25, 1.0]),
       volatility=st.sampled_from([1e-5, 1e-4, 1e-3]), offgrid=st.floats(0.8, 1.25))
@example(seed=358, tick=0.25, volatility=1e-3, offgrid=1.0848715230562824)  # a range of exactly 400 ticks
@settings(max_examples=30, deadline=None)
def test_any_market_agrees_in_its_last_row(seed: int, tick: float, volatility: float, offgrid: float) -> None:
    high, low, close, volume = bars(seed, lvn.WINDOW + 40, tick, volatility, offgrid)
    out = run(high, low, close, volume, tick * offgrid)
    window = slice(-lvn.WINDOW, None)
    expected = literal_columns(high[window], low[window], close[-1], volume[window], tick * offgrid)
    np.testing.assert_allclose(out[-1], expected, rtol=1e-9, atol=1e-9)


def test_a_motionless_market_has_no_node() -> None:
    flat = np.full(lvn.WINDOW, 1000.0)
    out = run(flat, flat, flat, np.full(lvn.WINDOW, 5.0), 0.25)
    assert out[-1].tolist() == [0.0, 0.0, 0.125, 0.0, 0.0]


def test_a_valley_between_two_blocks_is_found_and_its_plateau_taken_at_the_lower_end() -> None:
    """Half of the bars trade 1000..1010, half 1050..1060, one crosses: nothing but that one lies between."""
    low = np.where(np.arange(lvn.WINDOW) % 2, 1000.0, 1050.0)
    high, volume = low + 10.0, np.full(lvn.WINDOW, 100.0)
    low[0], high[0], volume[0] = 1000.0, 1060.0, 1e-6
    distance, strength, poc, _, skew = run(high, low, np.full(lvn.WINDOW, 1040.0), volume, 1.0)[-1]
    assert -22.0 < distance < -20.0  # eight bins of smoothing above the lower block
    assert strength > 99.99
    assert abs(poc) <= 40.0
    assert abs(skew) < 0.05


def test_the_state_can_be_copied_and_continued() -> None:
    high, low, close, volume = bars(11, 600, 0.25, 4e-4)
    whole = run(high, low, close, volume, 0.25)
    first, out = lvn.new_state(0.25), np.empty((600, len(lvn.COLUMNS)))
    _drive(first, high[:377], low[:377], close[:377], volume[:377], out[:377])
    snapshot = lvn.LvnState(*(array.copy() for array in first))
    _drive(first, high, low, close, volume, np.empty_like(out))  # leaves the copy alone
    _drive(snapshot, high[377:], low[377:], close[377:], volume[377:], out[377:])
    np.testing.assert_array_equal(out, whole)


def test_a_tick_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match="tick_size must be positive"):
        lvn.new_state(0.0)


@settings(max_examples=15, deadline=None)
@example(335, 0.8592970977720868, 0.0007924168594455545)  # spans of 400 ticks, but for rounding
@given(st.integers(0, 10_000), st.floats(0.5, 2.0), st.floats(2e-5, 2e-3))
def test_columns_of_adjusted_prices_differ_in_scale_only(seed: int, factor: float, volatility: float) -> None:
    """A tick of the present contract is tick_size · factor: a history that starts later says the same."""
    high, low, close, volume = bars(seed, 400, 0.25, volatility)
    plain = run(high, low, close, volume, 0.25)
    out = np.empty_like(plain)
    _drive(lvn.new_state(0.25), high * factor, low * factor, close * factor, volume, out, factor)
    scale = np.array([factor, 1.0, factor, 1.0, 1.0])
    np.testing.assert_allclose(out[lvn.WINDOW:], plain[lvn.WINDOW:] * scale, rtol=1e-7, atol=1e-7)


def test_the_profile_is_summed_anew_where_the_tick_changes() -> None:
    """After a roll the whole window is counted in ticks of the new contract."""
    high, low, close, volume = bars(3, 500, 0.25, 5e-5)
    state, fresh = lvn.new_state(0.25), lvn.new_state(0.25)
    out, expected = np.empty((500, len(lvn.COLUMNS))), np.empty((500, len(lvn.COLUMNS)))
    _drive(state, high[:300], low[:300], close[:300], volume[:300], out[:300], 1.0)
    _drive(state, high[300:], low[300:], close[300:], volume[300:], out[300:], 1.1)
    _drive(fresh, high, low, close, volume, expected, 1.1)
    np.testing.assert_allclose(out[300:], expected[300:], rtol=1e-9, atol=1e-9)
