"""LVN, the low volume nodes of a volume profile: where the market passed quickly, on 30-minute bars.

The profile covers the last `WINDOW` bars. A bar's volume is spread evenly over its ticks low, low + tick, ..,
high; the ticks are counted into bins of width max(tick, range / MAX_BINS) that start at the window's lowest low
(the last bin holds its upper edge). The profile is smoothed by a Gaussian (sigma 2 bins, cut at 4 sigma, ends
reflected as by `scipy.ndimage.gaussian_filter1d`). Everything but the skew reads the smoothed profile.

node       a local minimum between two neighbouring peaks that lies at least `PROMINENCE` of the POC's height
           below the lower of them; the first or last bin is a peak where the profile falls away from it
POC        point of control, the highest bin
value area grown from the POC by the higher neighbour until it holds `VALUE_AREA` of the profile

Ties go to the lower price; profile heights closer than 1e-12 of the POC are equal, so that rounding decides
nothing. Without volume (NaN anywhere in the window, or none traded in it) every tick touched counts one: time
at price (TPO).

Prices are roll-adjusted, so a tick of the present contract is tick_size times the roll factor: then the columns of
a history that starts later, with another factor, are the same but for scale.

Contract: `state = new_state(tick_size)`, then `update(state, high, low, close, volume, factor, out)` once for
every 30-minute bar writes `COLUMNS` into `out` (float64, NaN in the first WINDOW - 1 bars). The state is a tuple
of arrays: copying them is a snapshot. Calls must run in order of time; nothing is read that the bar's close
does not know.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba as nb
import numpy as np

from algospace.types import FloatArray, IntArray

WINDOW = 240
MAX_BINS = 400
SIGMA = 2.0
RADIUS = 8  # bins, 4 sigma
PROMINENCE = 0.10
VALUE_AREA = 0.70
COLUMNS = ("lvn_distance", "lvn_strength", "poc_distance", "value_area_position", "volume_profile_skew")

_EDGE = 1e-6  # bins: a tick that lies on a bin's lower edge but for rounding belongs to that bin
_TIE = 1e-12  # of the POC's height
_REBUILD = 32  # bars after which the profile is summed anew, so that rounding cannot pile up
_TAPS = np.exp(-0.5 * (np.arange(RADIUS + 1) / SIGMA) ** 2)
_TAPS /= _TAPS[0] + 2.0 * _TAPS[1:].sum()

# Places in `LvnState.grid` and `LvnState.counts`.
_TICK, _START, _WIDTH, _UNIT = 0, 1, 2, 3
_SEEN, _BINS, _AGE, _TPO = 0, 1, 2, 3


class LvnState(NamedTuple):
    """low, high, volume: ring of the last WINDOW bars, slot = bar number mod WINDOW. grid: tick size, start and
    width of the bins, tick size times roll factor. counts: bars seen, bins in use, bars since the profile was
    summed anew, whether the profile counts time. profile, smooth: (MAX_BINS + 2,) heights per bin; padded: the
    profile with its reflected ends.
    """

    low: FloatArray
    high: FloatArray
    volume: FloatArray
    grid: FloatArray
    counts: IntArray
    profile: FloatArray
    smooth: FloatArray
    padded: FloatArray


def new_state(tick_size: float) -> LvnState:
    """State before the first bar; `tick_size` in price points, > 0."""
    if not tick_size > 0.0:
        raise ValueError(f"tick_size must be positive, got {tick_size}")
    grid = np.array([tick_size, np.nan, np.nan, np.nan])
    return LvnState(np.zeros(WINDOW), np.zeros(WINDOW), np.zeros(WINDOW), grid, np.zeros(4, np.int64),
                    np.zeros(MAX_BINS + 2), np.zeros(MAX_BINS + 2), np.zeros(MAX_BINS + 2 + 2 * RADIUS))


@nb.njit(cache=True)
def update(
    state: LvnState, high: float, low: float, close: float, volume: float, factor: float, out: FloatArray
) -> None:
    """Take one 30-minute bar, its prices adjusted by `factor`, and write `COLUMNS` into `out` (5,)."""
    slot = state.counts[_SEEN] % WINDOW
    old_low, old_high, old_volume = state.low[slot], state.high[slot], state.volume[slot]
    state.low[slot], state.high[slot], state.volume[slot] = low, high, volume
    state.counts[_SEEN] += 1
    out[:] = np.nan
    if state.counts[_SEEN] < WINDOW:
        return
    if _regrid(state, state.grid[_TICK] * factor):
        _rebuild(state)
    else:
        _spread(state, old_low, old_high, old_volume, -1.0)
        _spread(state, low, high, volume, 1.0)
        state.counts[_AGE] += 1
    _smooth(state)
    poc = _write_nodes(state, close, out)
    _write_value_area(state, close, poc, out)
    out[4] = _skew(state)


@nb.njit(cache=True)
def _regrid(state: LvnState, tick: float) -> bool:
    """Fit the bins to the window; True if the profile must be summed anew. `tick` in adjusted points."""
    start, top, traded = np.inf, -np.inf, 0.0
    for i in range(WINDOW):
        start = min(start, state.low[i])
        top = max(top, state.high[i])
        traded += state.volume[i]
    tpo = 0 if traded > 0.0 else 1  # NaN, too, is not > 0
    span = top - start
    # a span of MAX_BINS ticks but for rounding keeps bins of a tick
    wide = span > tick * MAX_BINS * (1.0 + _EDGE / MAX_BINS)
    width = span / MAX_BINS if wide else tick
    bins = MAX_BINS if wide else int(np.floor(span / width + _EDGE)) + 1
    same = start == state.grid[_START] and width == state.grid[_WIDTH] and tick == state.grid[_UNIT]
    same = same and bins == state.counts[_BINS] and tpo == state.counts[_TPO]
    if same and state.counts[_AGE] < _REBUILD:
        return False
    state.grid[_START], state.grid[_WIDTH], state.grid[_UNIT] = start, width, tick
    state.counts[_BINS], state.counts[_TPO] = bins, tpo
    return True


@nb.njit(cache=True)
def _rebuild(state: LvnState) -> None:
    state.profile[:] = 0.0
    for i in range(WINDOW):
        _spread(state, state.low[i], state.high[i], state.volume[i], 1.0)
    state.counts[_AGE] = 0


@nb.njit(cache=True)
def _spread(state: LvnState, low: float, high: float, volume: float, sign: float) -> None:
    """Add (sign 1) or take away (-1) one bar: each of its evenly spaced ticks carries volume / ticks.

    Tick k lies at bin position first + k * step; so the number of ticks below the upper edge of bin b is
    ceil((b + 1 - first) / step), and bins get differences of these counts.
    """
    width, last = state.grid[_WIDTH], state.counts[_BINS] - 1
    ticks = int(np.floor((high - low) / state.grid[_UNIT] + 0.5)) + 1
    weight = sign if state.counts[_TPO] else sign * volume / ticks
    if weight == 0.0:
        return
    first = (low - state.grid[_START]) / width + _EDGE
    bin_first = min(int(first), last)
    bin_last = min(int((high - state.grid[_START]) / width + _EDGE), last) if ticks > 1 else bin_first
    if bin_last > bin_first:
        per_bin = (ticks - 1) * width / (high - low)
        before = 0.0
        for b in range(bin_first, bin_last):
            below = np.ceil((b + 1 - first) * per_bin)
            state.profile[b] += (below - before) * weight
            before = below
        state.profile[bin_last] += (ticks - before) * weight
    else:
        state.profile[bin_first] += ticks * weight


@nb.njit(cache=True)
def _smooth(state: LvnState) -> None:
    """Gaussian smoothing with reflected ends (d c b a | a b c d | d c b a)."""
    bins, padded, smooth = state.counts[_BINS], state.padded, state.smooth
    padded[RADIUS:RADIUS + bins] = state.profile[:bins]
    for k in range(RADIUS):
        mirrored = k % (2 * bins)
        if mirrored >= bins:
            mirrored = 2 * bins - 1 - mirrored
        padded[RADIUS - 1 - k] = state.profile[mirrored]
        padded[RADIUS + bins + k] = state.profile[bins - 1 - mirrored]
    for i in range(bins):
        smooth[i] = _TAPS[0] * padded[RADIUS + i]
    for k in range(1, RADIUS + 1):
        tap = _TAPS[k]
        for i in range(bins):
            smooth[i] += tap * (padded[RADIUS + i - k] + padded[RADIUS + i + k])


@nb.njit(cache=True)
def _write_nodes(state: LvnState, close: float, out: FloatArray) -> Any:
    """Write distance and strength of the nearest node and the POC's distance; return the POC's bin.

    Walks up the profile from turn to turn. `node` is a valley that waits for its upper peak.
    """
    bins, smooth = state.counts[_BINS], state.smooth
    start, width = state.grid[_START], state.grid[_WIDTH]
    highest = 0.0
    for i in range(bins):
        highest = max(highest, smooth[i])
    tie = _TIE * highest
    poc = 0
    while smooth[poc] < highest - tie:
        poc += 1
    out[0], out[1], out[2] = 0.0, 0.0, start + (poc + 0.5) * width - close

    nearest = np.inf
    direction, floor = 0, 0
    peak, node = np.nan, -1
    for i in range(1, bins + 1):
        # Beyond the last bin the profile counts as falling, which closes a rise there as a peak.
        step = smooth[i] - smooth[i - 1] if i < bins else -np.inf
        if step > tie:
            if direction < 0:
                node = floor
            direction = 1
        elif step < -tie:
            if direction >= 0 and (i < bins or direction > 0):
                upper = smooth[i - 1]
                if node >= 0:
                    lower_peak = min(peak, upper)
                    distance = start + (node + 0.5) * width - close
                    if lower_peak - smooth[node] >= PROMINENCE * highest and abs(distance) < nearest:
                        nearest = abs(distance) - _EDGE * width  # a later node must be nearer beyond rounding
                        out[0] = distance
                        out[1] = 100.0 * (1.0 - max(0.0, smooth[node]) / lower_peak)
                    node = -1
                peak = upper
            direction, floor = -1, i
    return poc


@nb.njit(cache=True)
def _write_value_area(state: LvnState, close: float, poc: int, out: FloatArray) -> None:
    bins, smooth = state.counts[_BINS], state.smooth
    total = 0.0
    for i in range(bins):
        total += smooth[i]
    bottom, top, held, tie = poc, poc, smooth[poc], _TIE * smooth[poc]
    while held < VALUE_AREA * total * (1.0 - _TIE) and top - bottom + 1 < bins:
        below = smooth[bottom - 1] if bottom > 0 else -np.inf
        above = smooth[top + 1] if top < bins - 1 else -np.inf
        if above > below + tie:
            top += 1
            held += above
        else:
            bottom -= 1
            held += below
    width = state.grid[_WIDTH]
    position = (close - state.grid[_START] - bottom * width) / ((top + 1 - bottom) * width)
    out[3] = min(2.0, max(-1.0, position))


@nb.njit(cache=True)
def _skew(state: LvnState) -> Any:
    """Skewness of price under the unsmoothed profile (third standardised moment); 0 for a single bin."""
    bins, profile = state.counts[_BINS], state.profile
    total, first = 0.0, 0.0
    for i in range(bins):
        total += profile[i]
        first += profile[i] * i
    mean = first / total
    second, third = 0.0, 0.0
    for i in range(bins):
        moment = profile[i] * (i - mean) ** 2
        second += moment
        third += moment * (i - mean)
    variance = second / total
    if variance < _EDGE:  # bins squared; one filled bin but for rounding
        return 0.0
    return third / total / variance ** 1.5
