"""How alike two markets are: a score from 0 to 1 over the stylised facts of returns.

Cont 2001 (doi:10.1080/713665670) lists what series of returns have in common: heavy tails, no linear
autocorrelation, long memory of |r|, the leverage effect, volume that goes with volatility, bursts. Each component
compares one of them, is 1 for equal data, and falls by a stated formula:

marginal         distributions of r, log range, volume            mean of e^(-D/0.1), D = Kolmogorov-Smirnov
tails            kurtosis of r; Hill index of both 1 % tails      mean of e^(-|ln ratio|)
correlation      of |r| and r with range and volume, lags 0, 1    e^(-mean|Δρ| / 0.1)
autocorrelation  of r, lags 1..lags                               e^(-mean|Δρ| / 0.02)
clustering       autocorrelation of |r|, lags 1..lags             1 - Σ|Δρ| / Σ|ρ_real|
leverage         corr(r_t, |r_{t+k}|), k = 1..leverage_lags       e^(-mean|Δρ| / 0.05)
volatility       log hourly realised volatility: deviation, acf1  mean of e^(-|ln ratio|), e^(-|Δρ|/0.2)
seasonality      mean |r| by half hour, as shares of a day        1 - TV(synthetic, real) / TV(flat, real)

r is the log close-to-close return inside sessions (a fraction, not over breaks, holes or rolls), ρ Pearson's
correlation, Δ synthetic minus real, TV total variation. Scores below 0 count as 0. The overall score is the
geometric mean of the components, each at least 0.01, so that a market that lacks one fact cannot hide it behind
the others. Volume is compared where the real history has it. Sample noise keeps two histories of one process
below 1: compare with the score of one year of real data against another (0.6 to 0.75 for NQ).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from pydantic import Field
from scipy import stats

from algospace.calendars import to_local_ns
from algospace.config import FrozenConfig
from algospace.errors import InputError
from algospace.types import DAY_NS, HOUR_NS, MINUTE_NS, Bars, BoolArray, FloatArray, IntArray

_FEWEST = 1_000
_FLOOR = 0.01
_SLOT_NS = 30 * MINUTE_NS
_TAIL = 0.01
_KS_SCALE, _RHO_SCALE, _ACF_SCALE, _LEVERAGE_SCALE, _MEMORY_SCALE = 0.1, 0.1, 0.02, 0.05, 0.2


class SimilarityOptions(FrozenConfig):
    """lags: of the autocorrelations; zone: of the time of day; standardise: compare returns and ranges in units of
    their own standard deviation and volume of its own mean (for markets of another size)."""

    lags: int = Field(default=50, ge=1, le=_FEWEST // 2)
    leverage_lags: int = Field(default=10, ge=1, le=_FEWEST // 2)
    zone: str = "America/Chicago"
    standardise: bool = False


@dataclass(frozen=True)
class SimilarityReport:
    """`overall` and `components` in [0, 1]; `facts`: name -> (real, synthetic) of what was compared."""

    overall: float
    components: dict[str, float]
    facts: dict[str, tuple[float, float]]

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return {"overall": self.overall, "components": self.components,
                "facts": {name: list(pair) for name, pair in self.facts.items()}}


@dataclass(frozen=True)
class _Series:
    """Bars whose predecessor lies directly before them: log return, log range, volume (or None), half hour."""

    r: FloatArray
    spread: FloatArray
    volume: FloatArray | None
    slot: IntArray
    hour: IntArray
    per_day: int


def similarity(real: Bars, synthetic: Bars, options: SimilarityOptions | None = None) -> SimilarityReport:
    """The score of `synthetic` against `real`, bars of one width; InputError where there are too few of them."""
    chosen = options or SimilarityOptions()
    if real.width_ns != synthetic.width_ns:
        raise InputError("similarity", f"widths differ: {real.width_ns} and {synthetic.width_ns} ns",
                         "compare bars of one width")
    a, b = _series(real, chosen, "the real history"), _series(synthetic, chosen, "the synthetic history")
    if a.volume is None:
        b = replace(b, volume=None)
    facts: dict[str, tuple[float, float]] = {}
    components = {
        "marginal": _marginal(a, b, facts),
        "tails": _tails(a, b, facts),
        "correlation": _closeness(_correlations(a, facts, 0), _correlations(b, facts, 1), _RHO_SCALE),
        "autocorrelation": _autocorrelation(a, b, chosen.lags, facts),
        "clustering": _clustering(a, b, chosen.lags, facts),
        "leverage": _leverage(a, b, chosen.leverage_lags, facts),
        "volatility": _volatility(a, b, facts),
        "seasonality": _seasonality(a, b),
    }
    bounded = {name: float(min(max(value, 0.0), 1.0)) for name, value in components.items()}
    overall = float(np.exp(np.mean(np.log(np.maximum(list(bounded.values()), _FLOOR)))))
    return SimilarityReport(overall, bounded, facts)


def _series(bars: Bars, options: SimilarityOptions, what: str) -> _Series:
    inside = np.zeros(len(bars), np.bool_)
    inside[1:] = (np.diff(bars.ts_open) == bars.width_ns) & (np.diff(bars.contract) == 0)
    if inside.sum() < _FEWEST:
        raise InputError("similarity", f"{what} has {int(inside.sum())} bars that follow another directly",
                         f"give at least {_FEWEST}")
    r = np.zeros(len(bars))
    r[1:] = np.log(bars.close[1:] / bars.close[:-1])
    r, spread, volume = r[inside], np.log(bars.high / bars.low)[inside], _volume(bars, inside)
    if options.standardise:
        scale = float(r.std()) or 1.0
        r, spread = r / scale, spread / scale
        volume = None if volume is None else volume / (float(volume.mean()) or 1.0)
    slot = (to_local_ns(bars.ts_open, options.zone) % DAY_NS // _SLOT_NS)[inside]
    return _Series(r, spread, volume, slot, (bars.ts_open // HOUR_NS)[inside], int(DAY_NS // _SLOT_NS))


def _volume(bars: Bars, inside: BoolArray) -> FloatArray | None:
    """Volume with unknown values as 0; None where none is known."""
    return None if np.isnan(bars.volume).all() else np.nan_to_num(bars.volume[inside])


def _closeness(a: FloatArray, b: FloatArray, scale: float) -> float:
    """e^(-mean|a - b| / scale); vectors of different length (volume in one only) are unlike."""
    return float(np.exp(-np.abs(a - b).mean() / scale)) if a.size == b.size else 0.0


def _ratio(a: float, b: float) -> float:
    """e^(-|ln(a/b)|): the smaller share of the larger one; 1 where both are 0."""
    if a == b:
        return 1.0
    return float(min(a, b) / max(a, b)) if a > 0.0 and b > 0.0 else 0.0


def _correlation(x: FloatArray, y: FloatArray) -> float:
    """Pearson's; 0 where one does not vary."""
    if x.std() == 0.0 or y.std() == 0.0:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def acf(x: FloatArray, lags: int) -> FloatArray:
    """(lags,) autocorrelations at lags 1..lags; 0 for a constant series."""
    centred = x - x.mean()
    total = float(centred @ centred)
    if total == 0.0:
        return np.zeros(lags)
    return np.array([float(centred[k:] @ centred[:-k]) / total for k in range(1, lags + 1)])


def hill_index(losses: FloatArray, share: float = _TAIL) -> float:
    """Tail index by the mean log excess of the largest `share` of positive values (Hill 1975); 0 without any."""
    ranked = np.sort(losses[losses > 0.0])[::-1]
    k = max(int(share * losses.size), 10)
    if ranked.size <= k:
        return 0.0
    excess = float(np.log(ranked[:k] / ranked[k]).mean())
    return 1.0 / excess if excess > 0.0 else 0.0


def _marginal(a: _Series, b: _Series, facts: dict[str, tuple[float, float]]) -> float:
    pairs: list[tuple[FloatArray, FloatArray] | None] = [(a.r, b.r), (a.spread, b.spread)]
    if a.volume is not None and b.volume is not None:
        pairs.append((a.volume, b.volume))
    elif a.volume is not None:
        pairs.append(None)
    facts["std of r"] = (float(a.r.std()), float(b.r.std()))
    return float(np.mean([0.0 if pair is None else np.exp(-stats.ks_2samp(*pair).statistic / _KS_SCALE)
                          for pair in pairs]))


def _tails(a: _Series, b: _Series, facts: dict[str, tuple[float, float]]) -> float:
    kurtosis = [float(stats.kurtosis(s.r, fisher=False)) if s.r.std() > 0 else 0.0 for s in (a, b)]
    left, right = [hill_index(-s.r) for s in (a, b)], [hill_index(s.r) for s in (a, b)]
    for name, pair in (("kurtosis", kurtosis), ("left tail index", left), ("right tail index", right)):
        facts[name] = (pair[0], pair[1])
    return float(np.mean([_ratio(*kurtosis), _ratio(*left), _ratio(*right)]))


def _correlations(s: _Series, facts: dict[str, tuple[float, float]], side: int) -> FloatArray:
    size = np.abs(s.r)
    pairs = {"|r|, range": (size, s.spread), "|r|, next range": (size[:-1], s.spread[1:]),
             "r, next range": (s.r[:-1], s.spread[1:])}
    if s.volume is not None:
        pairs |= {"|r|, volume": (size, s.volume), "|r|, next volume": (size[:-1], s.volume[1:]),
                  "r, volume": (s.r, s.volume), "range, volume": (s.spread, s.volume)}
    values = {f"corr({name})": _correlation(x, y) for name, (x, y) in pairs.items()}
    for name, value in values.items():
        other = facts.get(name, (float("nan"), float("nan")))
        facts[name] = (value, other[1]) if side == 0 else (other[0], value)
    return np.array(list(values.values()))


def _autocorrelation(a: _Series, b: _Series, lags: int, facts: dict[str, tuple[float, float]]) -> float:
    rho_a, rho_b = acf(a.r, lags), acf(b.r, lags)
    facts["acf(r) at 1"] = (float(rho_a[0]), float(rho_b[0]))
    return _closeness(rho_a, rho_b, _ACF_SCALE)


def _clustering(a: _Series, b: _Series, lags: int, facts: dict[str, tuple[float, float]]) -> float:
    rho_a, rho_b = acf(np.abs(a.r), lags), acf(np.abs(b.r), lags)
    facts["mean acf(|r|)"] = (float(rho_a.mean()), float(rho_b.mean()))
    noise = lags * 2.0 / np.sqrt(a.r.size)  # a history without memory is compared within its sampling error
    return float(1.0 - np.abs(rho_a - rho_b).sum() / max(np.abs(rho_a).sum(), noise))


def _leverage(a: _Series, b: _Series, lags: int, facts: dict[str, tuple[float, float]]) -> float:
    rho_a, rho_b = (np.array([_correlation(s.r[:-k], np.abs(s.r[k:])) for k in range(1, lags + 1)])
                    for s in (a, b))
    facts["mean leverage"] = (float(rho_a.mean()), float(rho_b.mean()))
    return _closeness(rho_a, rho_b, _LEVERAGE_SCALE)


def _volatility(a: _Series, b: _Series, facts: dict[str, tuple[float, float]]) -> float:
    """Of log realised volatility per hour, (Σ r²)^½: its standard deviation and its memory of one hour."""
    held = []
    for s in (a, b):
        starts = np.flatnonzero(np.concatenate(([True], np.diff(s.hour) != 0)))
        realised = np.sqrt(np.add.reduceat(s.r * s.r, starts))
        logs = np.log(realised[realised > 0.0])
        held.append((float(logs.std()), float(acf(logs, 1)[0])) if logs.size > 1 else (0.0, 0.0))
    (std_a, rho_a), (std_b, rho_b) = held
    facts["std of log hourly volatility"], facts["its autocorrelation"] = (std_a, std_b), (rho_a, rho_b)
    return 0.5 * (_ratio(std_a, std_b) + float(np.exp(-abs(rho_a - rho_b) / _MEMORY_SCALE)))


def _seasonality(a: _Series, b: _Series) -> float:
    """Profiles over the half hours that both have; 1 where the real one is flat and the synthetic one equal."""
    profiles, counts = [], []
    for s in (a, b):
        count = np.bincount(s.slot, minlength=s.per_day)
        profiles.append(np.bincount(s.slot, np.abs(s.r), s.per_day) / np.maximum(count, 1))
        counts.append(count)
    common = (counts[0] > 0) & (counts[1] > 0)
    if not common.any():
        return 0.0
    p, q = (profile[common] / (profile[common].sum() or 1.0) for profile in profiles)
    from_flat = 0.5 * np.abs(p - 1.0 / p.size).sum()
    return float(1.0 - 0.5 * np.abs(p - q).sum() / max(from_flat, 1e-3))
