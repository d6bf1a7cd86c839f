"""Augmentation that bends a history: noise, magnitude warping, time warping, injected events.

All work on log shapes (augmentation_shapes), read only the bars they are given, and draw only from `rng`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import Field
from scipy.interpolate import CubicSpline

from algospace.config import FrozenConfig
from algospace.errors import ConfigError
from algospace.marketdata.augmentation_shapes import (
    Shapes,
    bars_of,
    break_kind,
    local_volatility,
    range_volatility,
    roll_rows,
    shapes_of,
    whole_if,
)
from algospace.types import Bars, BoolArray, FloatArray, IntArray

_SUBSTEPS = 8  # of the path inside a bar, in time warping
_CALMING = 0.97  # share of a crash's excess volatility left after each bar


class NoiseConfig(FrozenConfig):
    """scale: standard deviation of the noise in local volatilities; volume: of log volume; window: bars."""

    scale: float = Field(default=0.3, ge=0, le=2)
    volume: float = Field(default=0.1, ge=0, le=2)
    window: int = Field(default=60, ge=3)


class MagnitudeWarpConfig(FrozenConfig):
    """sigma: of the curve's logarithm at its knots, `knot_bars` apart."""

    sigma: float = Field(default=0.2, ge=0, le=1)
    knot_bars: int = Field(default=138, ge=2)


class TimeWarpConfig(FrozenConfig):
    """sigma: of the log speed of time at its knots, `knot_bars` apart."""

    sigma: float = Field(default=0.1, ge=0, le=1)
    knot_bars: int = Field(default=36, ge=2)


class InjectionConfig(FrozenConfig):
    """An event from the bar at `at` on: a share of the history, or `at_ns`, the first bar not before that instant.

    crash: `bars` bars fall by size_bp in all, moves and volume grow by `multiple`, then calm. jump: size_bp within
    one bar. gap: size_bp before one bar. volatility: `bars` bars of `multiple` times the moves and volume. halt:
    `bars` bars are removed (the result is shorter by so many) and trading reopens size_bp away. A negative size
    falls, except in a crash, whose size is its fall.
    """

    kind: Literal["crash", "jump", "gap", "volatility", "halt"] = "crash"
    at: float = Field(default=0.5, ge=0, lt=1)
    at_ns: int | None = None
    bars: int = Field(default=12, ge=1)
    size_bp: float = Field(default=-300.0, ge=-5000, le=5000)
    multiple: float = Field(default=4.0, gt=0, le=50)


def add_noise(bars: Bars, config: NoiseConfig, rng: np.random.Generator) -> Bars:
    """Noise on returns: body' = (body + scale·σ_t·N) / √(1 + scale²), σ_t the local volatility (kept so).

    Wicks and volumes are multiplied by log-normal noise of mean 1; gaps stay, and so do bars without any range.
    """
    shapes, s = shapes_of(bars), config.scale
    moves = bars.high > bars.low
    shock = s * local_volatility(bars, shapes, config.window) * rng.standard_normal(len(bars))
    body = np.where(moves, (shapes.body + shock) / np.sqrt(1.0 + s * s), shapes.body)
    upper, lower = (wick * _log_noise(rng, s, len(bars)) for wick in (shapes.upper, shapes.lower))
    volume = whole_if(shapes.volume * _log_noise(rng, config.volume, len(bars)), bars.volume)
    return bars_of(Shapes(shapes.gap, body, upper, lower, volume), bars)


def _log_noise(rng: np.random.Generator, sigma: float, n: int) -> FloatArray:
    noise: FloatArray = np.exp(sigma * rng.standard_normal(n) - 0.5 * sigma * sigma)
    return noise


def smooth_curve(n: int, knot_bars: int, sigma: float, rng: np.random.Generator) -> FloatArray:
    """(n,) positive curve around 1: exp of a cubic spline through N(0, sigma²) at knots `knot_bars` apart."""
    knots = np.arange(0, n + 2 * knot_bars, knot_bars)
    spline = CubicSpline(knots, sigma * rng.standard_normal(knots.size))
    curve: FloatArray = np.exp(np.clip(spline(np.arange(n)), -3.0 * sigma, 3.0 * sigma))
    return curve


def warp_magnitude(bars: Bars, config: MagnitudeWarpConfig, rng: np.random.Generator) -> Bars:
    """Moves times a smooth curve (Um et al. 2017, arXiv 1706.00527); gaps over rolls and volumes stay."""
    shapes = shapes_of(bars)
    warped = shapes.scaled(smooth_curve(len(bars), config.knot_bars, config.sigma, rng))
    return bars_of(replace(warped, gap=np.where(roll_rows(bars), shapes.gap, warped.gap)), bars)


def warp_time(bars: Bars, config: TimeWarpConfig, rng: np.random.Generator) -> Bars:
    """Time runs faster and slower inside every stretch without a break; bars remain on the clock.

    The new bar i covers the old times [τ(i), τ(i+1)), τ smooth and monotone, and every stretch keeps its ends, so
    its total return, its total volume and the gaps between stretches. Inside an old bar the path is a Brownian
    bridge by the bar's own range (scaled so that ranges and returns give one mean variance): where a bar is cut,
    returns stay uncorrelated and as volatile as before.
    """
    shapes, n = shapes_of(bars), len(bars)
    first = (break_kind(bars) > 0) | roll_rows(bars)
    first[0] = True
    edges = _warped_edges(first, smooth_curve(n, config.knot_bars, config.sigma, rng))
    step = shapes.body + np.where(first, 0.0, shapes.gap)
    volatility = range_volatility(shapes)
    by_range = float(np.mean(volatility**2))
    volatility *= np.sqrt(float(np.mean(step**2)) / by_range) if by_range > 0.0 else 1.0
    moved = np.diff(_path_at(edges, step, volatility, rng))
    source = np.minimum((0.5 * (edges[1:] + edges[:-1])).astype(np.int64), n - 1)
    gap = np.where(first, shapes.gap, np.where(first[source], 0.0, shapes.gap[source]))
    body = moved - np.where(first, 0.0, gap)
    stretch = np.sqrt(np.diff(edges))
    volume = _volume_between(edges, shapes.volume, source)
    return bars_of(Shapes(gap, body, shapes.upper[source] * stretch, shapes.lower[source] * stretch, volume), bars)


def _warped_edges(first: BoolArray, speed: FloatArray) -> FloatArray:
    """(n+1,) old positions at which new bars begin; fixed at every stretch's first bar."""
    starts = np.flatnonzero(first)
    lengths = np.diff(np.concatenate((starts, [first.size])))
    scale = np.repeat(lengths / np.add.reduceat(speed, starts), lengths)
    edges = np.concatenate(([0.0], np.cumsum(speed * scale)))
    edges[starts], edges[-1] = starts, first.size
    earliest = np.append(np.repeat(starts, lengths), first.size)  # rounding must not cross a stretch's ends
    latest = np.append(np.repeat(starts + lengths, lengths), first.size)
    clipped: FloatArray = np.clip(edges, earliest, latest)
    return clipped


def _path_at(position: FloatArray, step: FloatArray, volatility: FloatArray,
             rng: np.random.Generator) -> FloatArray:
    """Log price at positions in [0, n]: straight steps plus a bridge of `_SUBSTEPS` steps inside each bar."""
    n = step.size
    walk = np.zeros((n, _SUBSTEPS + 1))
    np.cumsum(rng.standard_normal((n, _SUBSTEPS)) / np.sqrt(_SUBSTEPS), axis=1, out=walk[:, 1:])
    walk -= walk[:, -1:] * np.linspace(0.0, 1.0, _SUBSTEPS + 1)
    walk *= volatility[:, None]
    bar = np.minimum(position.astype(np.int64), n - 1)
    share = (position - bar) * _SUBSTEPS
    node = np.minimum(share.astype(np.int64), _SUBSTEPS - 1)
    bridge = walk[bar, node] + (share - node) * (walk[bar, node + 1] - walk[bar, node])
    before = np.concatenate(([0.0], np.cumsum(step)))[bar]
    return before + step[bar] * (position - bar) + bridge


def _volume_between(edges: FloatArray, volume: FloatArray, source: IntArray) -> FloatArray:
    """Volume traded between neighbouring positions; where some is unknown, that of the source bars."""
    if np.isnan(volume).any():
        return volume[source]
    total = np.interp(edges, np.arange(volume.size + 1), np.concatenate(([0.0], np.cumsum(volume))))
    between: FloatArray = np.maximum(np.diff(whole_if(total, volume)), 0.0)
    return between


def inject(bars: Bars, config: InjectionConfig, rng: np.random.Generator) -> Bars:
    """One event at a chosen place (InjectionConfig). ConfigError where it does not fit into the history."""
    at = _row_of(bars, config)
    stop, size = at + config.bars, config.size_bp * 1e-4
    if config.kind in ("crash", "volatility", "halt") and (stop >= len(bars) or at == 0):
        raise ConfigError(f"injection: {config.bars} bars from row {at} on do not fit inside {len(bars)} bars")
    shapes = shapes_of(bars)
    if config.kind == "halt":
        return _halted(bars, shapes, at, stop, size)
    if config.kind in ("jump", "gap"):
        move = np.zeros(len(bars))
        move[at] = np.log1p(size)
        if config.kind == "jump":
            return bars_of(replace(shapes, body=shapes.body + move), bars)
        return bars_of(replace(shapes, gap=shapes.gap + move), bars)
    factor = np.ones(len(bars))
    factor[at:stop] = config.multiple
    if config.kind == "crash":
        factor[stop:] = 1.0 + (config.multiple - 1.0) * _CALMING ** np.arange(1, len(bars) - stop + 1)
    scaled = shapes.scaled(factor)
    body, gap = scaled.body, np.where(roll_rows(bars), shapes.gap, scaled.gap)
    if config.kind == "crash":
        falls = rng.standard_exponential(config.bars)
        body = body.copy()
        body[at:stop] += np.log1p(-abs(size)) * falls / falls.sum()
    volume = whole_if(shapes.volume * factor, bars.volume)
    return bars_of(replace(scaled, gap=gap, body=body, volume=volume), bars)


def _row_of(bars: Bars, config: InjectionConfig) -> int:
    if config.at_ns is None:
        return int(config.at * len(bars))
    row = int(np.searchsorted(bars.ts_open, config.at_ns))
    if row == len(bars):
        raise ConfigError(f"injection: at_ns {config.at_ns} lies after the last bar")
    return row


def _halted(bars: Bars, shapes: Shapes, at: int, stop: int, size: float) -> Bars:
    """Without bars [at, stop); the next one opens `size` away from the last close."""
    kept = np.concatenate((np.arange(at), np.arange(stop, len(bars))))
    left = shapes.take(kept)
    left.gap[at] = np.log1p(size)  # fancy indexing made a copy
    like = Bars(bars.ts_open[kept], bars.open[kept], bars.high[kept], bars.low[kept], bars.close[kept],
                bars.volume[kept], bars.width_ns, bars.contract[kept])
    return bars_of(left, like)
