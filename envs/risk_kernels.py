"""Compiled step of the M-RMS environment over a batch of E environments; `envs.risk_env` is the readable twin."""

from __future__ import annotations

from typing import Any, NamedTuple

import numba as nb
import numpy as np

from algospace.execution.mechanics import advance, open_account, pass_bar
from algospace.risk.limits import limit_contracts
from algospace.types import AnyArray, BoolArray, Float32Array, FloatArray, Int32Array, IntArray
from envs.config import STOP_ATRS, STOP_BEYOND_LVN, TARGET_RS
from envs.core_kernels import draw

SYNERGY, MOMENTUM, RANDOM = 0, 1, 2
SOURCES = 3
RISK_FEATURES = 4
FIRST_LANES, LANES = 2, 4           # draws per episode, then per opportunity
START_LANE, SIGN_LANE = 0, 1
SOURCE_DRAW, WAIT_DRAW, SIDE_DRAW, WRAP_DRAW = 0, 1, 2, 3
FALLBACK_ATR = 4.0
FIRST_SQUARE = 0.25
"""Downside second moment before the first trade: losses of half the risk per trade."""
SMALLEST_SQUARE = 1e-4
RATIO_CLIP = 10.0

HINDSIGHT_BRACKETS = ((0, 0), (1, 4), (2, 2), (3, 4), (5, 1), (5, 4))
"""(stop, target) choices whose outcomes tell what the bars behind an opportunity brought."""
HINDSIGHT_CLIP = 5.0

_HINDSIGHT = np.array(HINDSIGHT_BRACKETS)
_STOPS = np.array(STOP_ATRS)
_TARGETS = np.array(TARGET_RS)


class RiskMarket(NamedTuple):
    """What the kernels read of a market table (n rows)."""

    open: FloatArray
    high: FloatArray
    low: FloatArray
    close: FloatArray
    roll: FloatArray
    atr: FloatArray
    day: Int32Array
    filled: BoolArray        # nobody traded: orders wait
    lvn: FloatArray          # (n, 2) signed distance from the close in points (NaN: none), strength 0..100
    sides: AnyArray          # (2, n) int8 direction of a synergy or momentum opportunity
    following: Int32Array    # (3, n) first opportunity of each source at or after a row, -1 if there is none


class RiskRules(NamedTuple):
    """Constants of a run."""

    first: int               # rows at which opportunities may lie: [first, last]
    last: int
    cumulative: FloatArray   # (3,) of the sources' weights
    max_wait: int
    episode_trades: int
    max_bars: int
    initial_equity: float
    max_drawdown: float
    eta: float
    penalty: float
    lvn_margin: float
    lvn_strength: float
    tick: float
    multiplier: float
    exit_cost: float


class RiskBatch(NamedTuple):
    """The state of E environments."""

    accounts: AnyArray
    rows: Int32Array
    directions: Float32Array  # mirrored frame
    signs: Float32Array
    alive: BoolArray
    episodes: IntArray
    trades: IntArray          # opportunities answered in this episode
    moments: FloatArray       # (E, 2) mean and downside square of the returns, over all episodes


@nb.njit(cache=True)
def bracket(atr: float, lvn_distance: float, lvn_strength: float, side: float, stop_choice: int,
            target_choice: int, margin: float, min_strength: float) -> tuple[float, float]:
    """(stop, target) distances in points of the agents' choices for a real direction `side`.

    Beyond the node: the distance to a low volume node on the stop's side, of at least `min_strength` and
    within 4 ATR, plus `margin` ATR; 4 ATR where there is none.
    """
    if stop_choice == STOP_BEYOND_LVN:
        behind = -side * lvn_distance
        stop = FALLBACK_ATR * atr
        if behind > 0.0 and behind <= FALLBACK_ATR * atr and lvn_strength >= min_strength:
            stop = behind + margin * atr
    else:
        stop = _STOPS[stop_choice] * atr
    return stop, _TARGETS[target_choice] * stop


@nb.njit(cache=True)
def proposal_kernel(sizes: AnyArray, stops: AnyArray, targets: AnyArray, atr: FloatArray, lvn: FloatArray,
                    tick: float, margin: float, min_strength: float, out: Float32Array) -> None:
    """Choices (n, 2) -> contracts, stop and target distance (n, 2, 3)."""
    for row in range(atr.size):
        unit = atr[row] if atr[row] > tick else tick
        for side in range(2):
            stop, target = bracket(unit, lvn[row, 0], lvn[row, 1], 2.0 * side - 1.0, stops[row, side],
                                   targets[row, side], margin, min_strength)
            out[row, side, 0] = sizes[row, side]
            out[row, side, 1] = stop
            out[row, side, 2] = target


@nb.njit(cache=True)
def find_opportunity(market: Any, rules: Any, seed: Any, env: int, episode: int, number: int,
                     after: int) -> tuple[int, float]:
    """(row, real direction) of opportunity `number` of an episode, at or after row `after`.

    A source is drawn, then a wait; where the split ends first, the search goes on from a random row of it.
    """
    lane = FIRST_LANES + number * LANES
    u = draw(seed, env, episode, lane + SOURCE_DRAW) * rules.cumulative[SOURCES - 1]
    source = SYNERGY
    while source < SOURCES - 1 and rules.cumulative[source] <= u:
        source += 1
    row = after + int(draw(seed, env, episode, lane + WAIT_DRAW) * (rules.max_wait + 1))
    found = market.following[source, row] if row <= rules.last else -1
    if found < 0:
        span = rules.last + 1 - rules.first
        row = rules.first + int(draw(seed, env, episode, lane + WRAP_DRAW) * span)
        found = market.following[source, row]
    if found < 0:
        found = market.following[source, rules.first]
    if source == RANDOM:
        side = 1.0 if draw(seed, env, episode, lane + SIDE_DRAW) < 0.5 else -1.0
    else:
        side = float(market.sides[source, found])
    return found, side


@nb.njit(cache=True)
def _arrive(batch: Any, market: Any, rules: Any, venue: Any, fills: AnyArray, seed: Any, env: int, e: int,
            after: int) -> None:
    """Move environment e to its next opportunity. Its account is flat: the arrival bar alone brings it up to
    date (trading day and mark)."""
    row, side = find_opportunity(market, rules, seed, env, batch.episodes[e], batch.trades[e], after)
    advance(batch.accounts[e], venue, False, 0.0, 0.0, 0.0, market.open[row], market.high[row], market.low[row],
            market.close[row], 1.0, market.day[row], fills)
    batch.rows[e] = row
    batch.directions[e] = batch.signs[e] * side


@nb.njit(cache=True)
def risk_begin_kernel(batch: Any, market: Any, rules: Any, venue: Any, fills: AnyArray, seed: Any,
                      first_env: int, mirror: bool) -> None:
    """Start the next episode wherever the present one has ended."""
    for e in range(batch.rows.size):
        if batch.alive[e] and batch.trades[e] < rules.episode_trades:
            continue
        batch.episodes[e] += 1
        env, episode = first_env + e, batch.episodes[e]
        start = rules.first + int(draw(seed, env, episode, START_LANE) * (rules.last + 1 - rules.first))
        flip = mirror and draw(seed, env, episode, SIGN_LANE) < 0.5
        batch.signs[e] = -1.0 if flip else 1.0
        batch.alive[e] = True
        batch.trades[e] = 0
        open_account(batch.accounts[e], rules.initial_equity, market.close[start], market.day[start])
        _arrive(batch, market, rules, venue, fills, seed, env, e, start)


@nb.njit(cache=True)
def risk_observe_kernel(batch: Any, limits: Any, max_drawdown: float, out: Float32Array) -> None:
    """Account features (E, 4); see VectorRiskEnv.observe."""
    for e in range(batch.rows.size):
        account = batch.accounts[e]
        out[e, 0] = (1.0 - account.equity / account.peak) / max_drawdown
        daily = (account.equity / account.day_start - 1.0) / limits.daily_loss
        out[e, 1] = min(max(daily, -2.0), 2.0)
        out[e, 2] = batch.moments[e, 0]
        out[e, 3] = np.sqrt(batch.moments[e, 1])


@nb.njit(inline="always", cache=True)
def differential_sortino(moments: FloatArray, eta: float, x: float) -> float:
    """The step's differential Sortino ratio; updates the moments (Moody and Saffell 2001).

    A mean below 0 counts as 0: with it the ratio would pay for larger losses, as long as they spread wider.
    """
    mean, square = max(moments[0], 0.0), max(moments[1], SMALLEST_SQUARE)
    deviation = np.sqrt(square)
    if x > 0.0:
        ratio = (x - 0.5 * mean) / deviation
    else:
        ratio = (square * (x - 0.5 * mean) - 0.5 * mean * x * x) / (square * deviation)
    down = min(x, 0.0)
    moments[0] += eta * (x - moments[0])
    moments[1] = square + eta * (down * down - square)
    return min(max(ratio, -RATIO_CLIP), RATIO_CLIP)


@nb.njit(cache=True)
def play_bracket(account: Any, market: Any, venue: Any, fills: AnyArray, row: int, want: float, stop: float,
                  target: float, max_bars: int) -> int:
    """Open `want` contracts at the first real open after `row` and play bars until flat; still open `max_bars`
    from the entry on, it is closed at the next real open. Returns the row of the exit."""
    has_order, bars = True, 0  # bars since the entry, filled ones too
    while has_order or account.position != 0.0:
        row += 1
        if bars == max_bars:
            has_order = True
            want = 0.0
        if market.filled[row]:
            pass_bar(account, venue, market.close[row], market.roll[row], market.day[row], fills)
            bars += bars > 0
            continue
        advance(account, venue, has_order, want, stop, target, market.open[row], market.high[row], market.low[row],
                market.close[row], market.roll[row], market.day[row], fills)
        has_order = False
        bars += 1
    return row


@nb.njit(cache=True)
def hindsight_kernel(batch: Any, market: Any, rules: Any, venue: Any, fills: AnyArray, spare: AnyArray,
                     out: Float32Array) -> None:
    """Net profits (E, H) of the reference brackets over the loss at the stop; see VectorRiskEnv.hindsight."""
    account = spare[0]
    for e in range(batch.rows.size):
        row = batch.rows[e]
        side = float(batch.signs[e] * batch.directions[e])
        atr = market.atr[row] if market.atr[row] > rules.tick else rules.tick
        for h in range(_HINDSIGHT.shape[0]):
            stop, target = bracket(atr, market.lvn[row, 0], market.lvn[row, 1], side, _HINDSIGHT[h, 0],
                                   _HINDSIGHT[h, 1], rules.lvn_margin, rules.lvn_strength)
            open_account(account, rules.initial_equity, market.close[row], market.day[row])
            play_bracket(account, market, venue, fills, row, side, stop, target, rules.max_bars)
            gain = (account.equity - rules.initial_equity) / (stop * rules.multiplier + rules.exit_cost)
            out[e, h] = min(max(gain, -HINDSIGHT_CLIP), HINDSIGHT_CLIP)


@nb.njit(cache=True)
def risk_step_kernel(batch: Any, market: Any, rules: Any, limits: Any, venue: Any, fills: AnyArray, seed: Any,
                     first_env: int, actions: AnyArray, rewards: Float32Array, discounts: Float32Array,
                     limit_codes: AnyArray) -> None:
    """Answer one opportunity in every environment; see VectorRiskEnv.step."""
    for e in range(batch.rows.size):
        limit_codes[e] = 0
        rewards[e] = 0.0
        if not batch.alive[e] or batch.trades[e] >= rules.episode_trades:
            discounts[e] = 1.0 if batch.alive[e] else 0.0
            continue
        account = batch.accounts[e]
        row = batch.rows[e]
        side = float(batch.signs[e] * batch.directions[e])
        atr = market.atr[row] if market.atr[row] > rules.tick else rules.tick
        stop, target = bracket(atr, market.lvn[row, 0], market.lvn[row, 1], side, actions[e, 1], actions[e, 2],
                               rules.lvn_margin, rules.lvn_strength)
        contracts, code = limit_contracts(limits, float(actions[e, 0]), stop * rules.multiplier + rules.exit_cost,
                                          account.equity, account.day_start, 0)
        equity = account.equity
        if contracts > 0.0:
            row = play_bracket(account, market, venue, fills, row, side * contracts, stop, target,
                                rules.max_bars)
        gain = (account.equity - equity) / (limits.risk_per_trade * equity)
        reward = differential_sortino(batch.moments[e], rules.eta, gain)
        if code != 0:
            reward -= rules.penalty
        terminated = account.equity <= (1.0 - rules.max_drawdown) * account.peak
        limit_codes[e] = code
        rewards[e] = reward
        discounts[e] = 0.0 if terminated else 1.0
        batch.alive[e] = not terminated
        batch.trades[e] += 1
        if not terminated:
            _arrive(batch, market, rules, venue, fills, seed, first_env + e, e, row + 1)
