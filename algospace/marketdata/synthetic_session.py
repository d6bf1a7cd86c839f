"""Realistic synthetic markets over a CME-like calendar: seasonality, jumps, gaps, crashes, halts, missing bars.

They exercise robustness; nobody has solved their limit. Prices are on the tick grid. The hidden regimes are
those of the planted model, with the volatility of each 5-minute slot scaled by the time of day.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np

from algospace.calendars import CHICAGO_OFFSETS, CHICAGO_STARTS, local_ns
from algospace.config import FrozenConfig
from algospace.marketdata.bayes_filter import PlantedHmm
from algospace.marketdata.synthetic_paths import (
    BRIDGE,
    EVENT,
    RETURN,
    STEPS_PER_BAR,
    VOLUME,
    bridge_path,
    exponential,
    first_regime,
    next_regime,
    normal_pair,
    unit_t6,
    write_bars,
)
from algospace.seeding import combine, to_unit
from algospace.types import BASE_BAR_NS, DAY_NS, MINUTE_NS, AnyArray, FloatArray

# Chicago hours 0..23: quiet nights, the European open at 2, US data at 7, the cash session 8:30 to 15
HOURLY_VOLATILITY = np.array([0.55, 0.6, 0.85, 0.85, 0.7, 0.65, 0.75, 1.0, 1.7, 1.6, 1.25, 1.1, 1.1, 1.3, 1.6,
                              0.9, 0.0, 0.8, 0.65, 0.6, 0.55, 0.5, 0.5, 0.5])
HOURLY_VOLUME = np.array([0.2, 0.25, 0.5, 0.5, 0.4, 0.35, 0.5, 0.9, 2.8, 2.6, 1.8, 1.4, 1.4, 1.9, 3.2,
                          0.6, 0.0, 0.3, 0.3, 0.25, 0.2, 0.2, 0.2, 0.2])
_CRASH_VOLATILITY, _CALMING = 4.0, 0.99  # multiplier in a crash; share of its excess left after each bar
_CRASH, _HALT, _HOLE, _JUMP, _GAP = 1, 2, 3, 4, 5  # sub-streams of EVENT


class SessionOptions(FrozenConfig):
    """Rates are per 5-minute bar, sizes in basis points."""

    jump_rate: float = 0.002
    jump_bp: float = 25.0
    overnight_gap_bp: float = 8.0
    weekend_gap_bp: float = 35.0
    crash_rate: float = 0.0  # a crash: `crash_bars` bars of heavy falls, then a slow, nervous recovery
    crash_bp: float = 90.0
    crash_bars: int = 12
    halt_rate: float = 0.0  # a halt: no bars for `halt_bars`, reopening with a jump
    halt_bars: int = 3
    hole_rate: float = 0.0  # missing data: up to `hole_bars` bars are absent
    hole_bars: int = 30
    volume_scale: float = 400.0

    def rates(self) -> FloatArray:
        """The numbers in the order the compiled path reads them."""
        bp = 1e-4
        return np.array([self.jump_rate, self.jump_bp * bp, self.overnight_gap_bp * bp, self.weekend_gap_bp * bp,
                         self.crash_rate, self.crash_bp * bp, self.crash_bars, self.halt_rate, self.halt_bars,
                         self.hole_rate, self.hole_bars, self.volume_scale])


@nb.njit(cache=True)
def cme_open(ts: int) -> bool:
    """Whether CME Globex index futures trade in the bar that opens at `ts` (UTC ns); holidays are ignored."""
    local = local_ns(ts, CHICAGO_STARTS, CHICAGO_OFFSETS)
    weekday = (local // DAY_NS + 3) % 7  # Monday 0; 1970-01-01 was a Thursday
    hour = local % DAY_NS // (60 * MINUTE_NS)
    if weekday == 5 or (weekday == 6 and hour < 17) or (weekday == 4 and hour >= 16):
        return False
    return hour != 16


@nb.njit(cache=True)
def hourly(ts: int, curve: AnyArray) -> float:
    """The curve's value in the Chicago hour of `ts`."""
    local = local_ns(ts, CHICAGO_STARTS, CHICAGO_OFFSETS)
    return curve[local % DAY_NS // (60 * MINUTE_NS)]


@nb.njit(cache=True)
def _event_size(key: Any, t: int, rate: float, scale: float) -> float:
    """0, or with probability `rate` a normal shock of size `scale`."""
    shock_key = combine(key, t)
    if to_unit(combine(shock_key, 1)) >= rate:
        return 0.0
    return scale * normal_pair(combine(shock_key, 2))[0]


@nb.njit(cache=True)
def _absent_bars(event_key: Any, t: int, o: AnyArray) -> tuple[int, bool]:
    """(slots from t on that have no bar, whether trading is halted in them)."""
    if to_unit(combine(combine(event_key, _HALT), t)) < o[7]:
        return int(o[8]), True
    hole_key = combine(combine(event_key, _HOLE), t)
    if to_unit(combine(hole_key, 1)) < o[9]:
        u = to_unit(combine(hole_key, 2))
        return 1 + int(u * u * u * o[10]), False  # mostly single bars
    return 0, False


@nb.njit(cache=True)
def _crash(event_key: Any, t: int, o: AnyArray, left: int, stress: float) -> tuple[float, int, float]:
    """(fall in this bar as a fraction, crash bars left, volatility multiplier).

    While volatility calms, with a half-life of 69 bars, the mean fall of o[5]·o[6] comes back.
    """
    if left == 0 and to_unit(combine(combine(event_key, _CRASH), t)) < o[4]:
        left, stress = int(o[6]), _CRASH_VOLATILITY
    if left == 0:
        rebound = o[5] * o[6] * (1.0 - _CALMING) * (stress - 1.0) / (_CRASH_VOLATILITY - 1.0)
        return -rebound, 0, 1.0 + (stress - 1.0) * _CALMING
    return o[5] * exponential(combine(combine(event_key, _CRASH), -1 - t)), left - 1, stress


@nb.njit(cache=True)
def _opening(event_key: Any, t: int, price: float, closed_slots: int, o: AnyArray, tick: float) -> float:
    """The first price after `closed_slots` without trading, on the tick grid."""
    if closed_slots == 0:
        return price
    scale = o[2] if closed_slots <= 24 else o[3]
    gap = max(scale * unit_t6(combine(combine(event_key, _GAP), t)), -0.2)
    return _on_tick(price * (1.0 + gap), tick)


@nb.njit(inline="always", cache=True)
def _on_tick(price: float, tick: float) -> float:
    return max(np.floor(price / tick + 0.5), 1.0) * tick


@nb.njit(cache=True)
def session_path(key: Any, start_ts: int, start_price: float, tick: float, stationary: AnyArray, leave: AnyArray,
                 mu: AnyArray, phi: AnyArray, sigma: AnyArray, bridge_volatility: float, o: AnyArray, parts: int,
                 ts: AnyArray, regime: AnyArray, open_: AnyArray, high: AnyArray, low: AnyArray, close: AnyArray,
                 volume: AnyArray) -> None:
    """Fill `regime.size` base bars (each cut into `parts` source bars) from slot 0 at `start_ts` on.

    `o` is `SessionOptions.rates()`. A slot is every 5 minutes of wall time; only open, present slots emit.
    Prices move on unseen in a hole of the data; in a halt they stand still and reopen with a gap.
    """
    path = np.empty(STEPS_PER_BAR + 1)
    event_key, width = combine(key, EVENT), BASE_BAR_NS // parts
    price, r_tm1, state = start_price, 0.0, first_regime(key, stationary)
    closed_slots, absent, halted, crash_left, stress = 0, 0, False, 0, 1.0
    row, t = 0, -1
    while row < regime.size:
        t += 1
        slot_ts = start_ts + t * BASE_BAR_NS
        if absent == 0 and cme_open(slot_ts):
            absent, halted = _absent_bars(event_key, t, o)
        if not cme_open(slot_ts) or (absent > 0 and halted):
            closed_slots += 1
            absent = max(absent - 1, 0)
            continue
        state = next_regime(key, t, state, leave)
        fall, crash_left, stress = _crash(event_key, t, o, crash_left, stress)
        scale = hourly(slot_ts, HOURLY_VOLATILITY) * stress
        r_t = mu[state] + phi[state] * r_tm1 + scale * sigma[state] * unit_t6(combine(combine(key, RETURN), t))
        r_t += _event_size(combine(event_key, _JUMP), t, o[0], o[1]) - fall
        r_tm1 = r_t = max(r_t, -0.2)  # a limit-down circuit breaker
        opening = _opening(event_key, t, price, closed_slots, o, tick)
        price = _on_tick(opening * (1.0 + r_t), tick)
        closed_slots = 0
        if absent > 0:
            absent -= 1
            continue
        bridge_path(combine(combine(key, BRIDGE), t), opening, price, bridge_volatility * scale, tick, path)
        size = o[11] * hourly(slot_ts, HOURLY_VOLUME) * (1.0 + abs(r_t) / sigma[state])
        write_bars(path, combine(combine(key, VOLUME), t), size, row * parts, parts, open_, high, low, close,
                   volume)
        for part in range(parts):
            ts[row * parts + part] = slot_ts + part * width
        regime[row] = state
        row += 1


def fill_session(key: int, start_ts: int, start_price: float, tick: float, hmm: PlantedHmm,
                 options: SessionOptions, bridge_volatility: float, parts: int, ts: AnyArray, regime: AnyArray,
                 columns: tuple[FloatArray, ...]) -> None:
    """`session_path` for a model and options; `columns` are open, high, low, close, volume."""
    session_path(np.uint64(key), start_ts, start_price, tick, hmm.stationary, hmm.leave, hmm.mu, hmm.phi,
                 hmm.sigma, bridge_volatility, options.rates(), parts, ts, regime, *columns)
