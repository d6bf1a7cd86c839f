"""Compiled half-steps of the core environment over a batch of E environments.

`envs.core_env` states the same rules for one environment in plain Python; the two must agree to the last bit.
The market is always played in its real direction. A mirrored environment (sign -1) turns directions around on
the way in and signed observations on the way out, which equals playing a negated price path.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba as nb
import numpy as np

from algospace.execution.mechanics import advance, open_account, pass_bar
from algospace.risk.limits import limit_contracts
from algospace.seeding import combine, to_unit
from algospace.types import AnyArray, BoolArray, Float32Array, FloatArray, Int32Array, IntArray
from envs.prefetch import prefetch

REJECT, EXECUTE, CLOSE = 0, 1, 2
SHORT, PASS, LONG = 0, 1, 2
SHARPE, SORTINO, DRAWDOWN, HOLDING = 1, 2, 3, 4
SHAPING_CODES = {"none": 0, "differential_sharpe": SHARPE, "differential_sortino": SORTINO,
                 "drawdown": DRAWDOWN, "holding": HOLDING}
ACCOUNT_FEATURES = 8
SHAPING_CLIP = 10.0
START_LANE, SIGN_LANE = 0, 1
AHEAD = 8  # environments between the request for a cache line and its use
EXACT: dict[str, Any] = {"fastmath": False, "error_model": "python"}
"""Said aloud where a caller has it otherwise: numba compiles a function with what its first caller says, and keeps
that in the cache for everybody."""


BAR_DTYPE = np.dtype([
    ("open", "f8"), ("high", "f8"), ("low", "f8"), ("close", "f8"), ("roll", "f8"), ("atr", "f8"),
    ("bar_return", "f8"),    # log return over the row before, roll-adjusted
    ("day", "i4"),
    ("voting", "i2"),        # 1 where voters are asked
    ("filled", "i2"),        # 1 where nobody traded: an order waits
])
"""All that a step reads of one market row, in one 64-byte cache line: environments sit on unrelated rows, and
separate columns cost 40 % of the throughput in cache misses."""


class Market(NamedTuple):
    """What the kernels read of a market table (n rows)."""

    bars: AnyArray           # (n,) BAR_DTYPE
    clock: Float32Array      # (n, 2)
    starts: Int32Array       # rows at which an episode may begin


class Rules(NamedTuple):
    """Constants of a run. Money is account currency (full) or fraction of notional (unit)."""

    unit: bool
    run_on: bool             # play on to the next voting row
    reverse: bool
    episode_bars: int
    initial_equity: float
    max_drawdown: float
    risk_unit: float
    tick: float              # smallest ATR, points
    multiplier: float
    exit_cost: float         # slippage of the stop and both commissions, per contract
    shaping: int
    shaping_weight: float
    shaping_eta: float


class Batch(NamedTuple):
    """The state of E environments, and what the first half-step leaves for the second."""

    accounts: AnyArray       # ACCOUNT_DTYPE
    rows: Int32Array
    ends: Int32Array         # last row of the episode
    signs: Float32Array
    alive: BoolArray
    voting: BoolArray
    episodes: IntArray
    moments: FloatArray      # (E, 2) of the differential ratios
    opportunity: AnyArray    # int8
    asked: BoolArray
    action_mask: BoolArray   # (E, 3)
    order: FloatArray        # (E, 3) contracts, stop and target distance in points, after limits
    pending: BoolArray       # an order waits for the first real bar
    waiting: FloatArray      # (E, 3) that order: signed position wanted in the real market, stop, target


@nb.njit(cache=True)
def draw(seed: Any, env: int, episode: int, lane: int) -> float:
    """U[0, 1) that depends on its coordinates only."""
    return to_unit(combine(combine(combine(seed, env), episode), lane))


@nb.njit(cache=True)
def begin_kernel(batch: Any, market: Any, rules: Any, seed: Any, first_env: int, mirror: bool) -> None:
    """Start the next episode wherever the present one has ended."""
    for e in range(batch.rows.size):
        if batch.alive[e] and batch.rows[e] < batch.ends[e]:
            continue
        batch.episodes[e] += 1
        episode = batch.episodes[e]
        row = market.starts[int(draw(seed, first_env + e, episode, START_LANE) * market.starts.size)]
        flip = mirror and draw(seed, first_env + e, episode, SIGN_LANE) < 0.5
        batch.rows[e] = row
        batch.ends[e] = row + rules.episode_bars
        batch.signs[e] = -1.0 if flip else 1.0
        batch.alive[e] = True
        batch.voting[e] = market.bars[row].voting != 0
        batch.moments[e, :] = 0.0
        batch.opportunity[e] = 0
        batch.asked[e] = False
        batch.action_mask[e, :] = False
        batch.order[e, :] = 0.0
        batch.pending[e] = False
        batch.waiting[e, :] = 0.0
        open_account(batch.accounts[e], rules.initial_equity, market.bars[row].close, market.bars[row].day)


@nb.njit(inline="always", cache=True)
def _clip(x: float, bound: float) -> float:
    return min(max(x, -bound), bound)


@nb.njit(inline="always", cache=True)
def _atr(market: Any, rules: Any, row: int) -> float:
    atr = market.bars[row].atr
    return atr if atr > rules.tick else rules.tick


@nb.njit(cache=True, **EXACT)
def observe_kernel(batch: Any, market: Any, rules: Any, limits: Any, out: Float32Array) -> None:
    """Account features (E, 8); see VectorCoreEnv.observe."""
    scale = 1.0 if rules.unit else limits.max_position
    for e in range(batch.rows.size):
        account = batch.accounts[e]
        row = batch.rows[e]
        atr = _atr(market, rules, row)
        side = np.sign(account.position)
        close = market.bars[row].close
        out[e, 0] = batch.signs[e] * account.position / scale
        out[e, 1] = _clip(side * (close - account.entry) / atr, 10.0) if side != 0.0 else 0.0
        out[e, 2] = np.log1p(float(account.bars_in_trade)) / 5.0 if side != 0.0 else 0.0
        stop = side * (close - account.stop) / atr
        target = side * (account.target - close) / atr
        out[e, 3] = _clip(stop, 10.0) if stop == stop else 0.0
        out[e, 4] = _clip(target, 10.0) if target == target else 0.0
        out[e, 5] = _clip((account.equity - account.day_start) / rules.risk_unit, 10.0) / 10.0
        out[e, 6] = market.clock[row, 0]
        out[e, 7] = market.clock[row, 1]


@nb.njit(inline="always", cache=True)
def agreed_direction(first: int, second: int, third: int) -> int:
    """The direction on which two of three votes (0 short, 1 pass, 2 long) agree, else 0."""
    longs = int(first == LONG) + int(second == LONG) + int(third == LONG)
    shorts = int(first == SHORT) + int(second == SHORT) + int(third == SHORT)
    return int(longs >= 2) - int(shorts >= 2)


@nb.njit(cache=True, **EXACT)
def vote_kernel(batch: Any, market: Any, rules: Any, limits: Any, proposals: Float32Array, votes: AnyArray,
                proposal: Float32Array, limit_codes: AnyArray) -> None:
    """First half-step: votes (E, 3) -> opportunity, asked, action mask and the limited proposal."""
    last = batch.rows.size - 1
    for e in range(batch.rows.size):
        prefetch(proposals, batch.rows[min(e + AHEAD, last)])  # type: ignore[call-arg]  # see envs.prefetch
        voting = batch.voting[e]
        opportunity = agreed_direction(votes[e, 0], votes[e, 1], votes[e, 2]) if voting else 0
        account = batch.accounts[e]
        held = account.position != 0.0
        batch.opportunity[e] = opportunity
        batch.asked[e] = voting and (opportunity != 0 or held)
        batch.action_mask[e, 0] = True
        batch.action_mask[e, 1] = False
        batch.action_mask[e, 2] = voting and held
        limit_codes[e] = 0
        if opportunity == 0:
            batch.order[e, 0] = 0.0
            proposal[e, 0] = 0.0
            proposal[e, 1] = 0.0
            proposal[e, 2] = 0.0
            continue
        row = batch.rows[e]
        side = 1 if opportunity * batch.signs[e] > 0.0 else 0
        contracts = float(proposals[row, side, 0])
        stop = float(proposals[row, side, 1])
        target = float(proposals[row, side, 2])
        if not rules.unit:
            risk = stop * rules.multiplier + rules.exit_cost if stop > 0.0 else 0.0
            contracts, code = limit_contracts(limits, contracts, risk, account.equity, account.day_start, 0)
            limit_codes[e] = code
        batch.order[e, 0] = contracts
        batch.order[e, 1] = stop
        batch.order[e, 2] = target
        batch.action_mask[e, 1] = rules.unit or contracts > 0.0
        proposal[e, 0] = contracts / 5.0
        proposal[e, 1] = stop / _atr(market, rules, row) / 4.0
        proposal[e, 2] = target / stop / 4.0 if stop > 0.0 else 0.0


@nb.njit(inline="always", cache=True)
def _wanted(batch: Any, rules: Any, e: int, action: int, held: float) -> tuple[bool, float]:
    """(is there an order, signed position wanted in the real market) of an action."""
    if action == REJECT or not batch.asked[e] or not batch.action_mask[e, action]:
        return False, held
    if action == CLOSE:
        return True, 0.0
    side = batch.signs[e] * batch.opportunity[e]
    if held * side > 0.0:
        return False, held
    if held != 0.0 and not rules.reverse:
        return True, 0.0
    return True, side * (1.0 if rules.unit else batch.order[e, 0])


@nb.njit(cache=True)
def advance_unit(account: Any, want: float, bar_return: float, side_cost: float, close_before: float, close: float,
                 roll: float, day: int) -> None:
    """One bar of unit mechanics: constant notional, position held from the last close to this one.

    `side_cost` is the cost of one side as a fraction of notional. Equity is in units of notional.
    """
    if day != account.day:
        account.day = day
        account.day_start = account.equity
    traded = abs(want - account.position)
    if traded != 0.0:
        if account.position != 0.0:
            account.trades += 1
        account.entry = close_before
        account.bars_in_trade = 0
    account.entry *= roll
    account.position = want
    account.mark = close
    cost = side_cost * traded
    gross = want * bar_return
    account.costs += cost
    account.realised += gross
    account.equity += gross - cost
    if want != 0.0:
        account.bars_in_trade += 1
    if account.equity > account.peak:
        account.peak = account.equity


@nb.njit(inline="always", cache=True)
def _shaped(moments: FloatArray, rules: Any, x: float, drawdown_growth: float) -> float:
    """The shaping term for a step of reward x; `moments` (2,) are moving averages of x and of its (downside)
    square (Moody and Saffell 2001, doi:10.1109/72.935097)."""
    if rules.shaping == DRAWDOWN:
        return -max(drawdown_growth, 0.0) / rules.risk_unit
    mean, square = moments[0], moments[1]
    shaped = 0.0
    if rules.shaping == SHARPE:
        variance = square - mean * mean
        if variance > 1e-12:
            shaped = (square * (x - mean) - 0.5 * mean * (x * x - square)) / (variance * np.sqrt(variance))
        moments[1] = square + rules.shaping_eta * (x * x - square)
    else:
        down = min(x, 0.0)
        if square > 1e-12:
            deviation = np.sqrt(square)
            if x > 0.0:
                shaped = (x - 0.5 * mean) / deviation
            else:
                shaped = (square * (x - 0.5 * mean) - 0.5 * mean * x * x) / (square * deviation)
        moments[1] = square + rules.shaping_eta * (down * down - square)
    moments[0] = mean + rules.shaping_eta * (x - mean)
    return _clip(shaped, SHAPING_CLIP)


@nb.njit(inline="always", cache=True)
def _ruined(account: Any, rules: Any, limits: Any) -> bool:
    """Ruin or the daily loss limit; unit mechanics knows neither."""
    if rules.unit:
        return False
    return (account.equity <= (1.0 - rules.max_drawdown) * account.peak
            or account.equity - account.day_start <= -limits.daily_loss * account.day_start)


@nb.njit(cache=True, **EXACT)
def execute_kernel(batch: Any, market: Any, rules: Any, limits: Any, venue: Any, side_cost: float, fills: AnyArray,
                   actions: AnyArray, rewards: Float32Array, discounts: Float32Array) -> None:
    """Second half-step: play the bar (or the bars up to the next voting row); see VectorCoreEnv.execute."""
    bars = market.bars
    rows, ends, alives, voting, order = batch.rows, batch.ends, batch.alive, batch.voting, batch.order
    accounts, pending, waiting = batch.accounts, batch.pending, batch.waiting
    for e in range(rows.size):
        row = rows[e]
        if not alives[e] or row >= ends[e]:
            rewards[e] = 0.0
            discounts[e] = 1.0 if row >= ends[e] else 0.0
            if not rules.run_on and row < ends[e]:
                rows[e] = row + 1
            continue
        account = accounts[e]
        has_order, want = _wanted(batch, rules, e, actions[e], account.position)
        stop, target = order[e, 1], order[e, 2]
        if pending[e] and not has_order:
            has_order, want, stop, target = True, waiting[e, 0], waiting[e, 1], waiting[e, 2]
        equity = account.equity
        drawdown = account.peak - equity
        terminated = False
        while True:
            row += 1
            bar = bars[row]
            filled = bar.filled != 0
            if rules.unit:
                held = account.position if filled else want
                advance_unit(account, held, bar.bar_return, side_cost, bars[row - 1].close, bar.close, bar.roll,
                             bar.day)
            elif filled:
                pass_bar(account, venue, bar.close, bar.roll, bar.day, fills)
            else:
                advance(account, venue, has_order, want, stop, target, bar.open, bar.high, bar.low, bar.close,
                        bar.roll, bar.day, fills)
            has_order = has_order and filled
            terminated = _ruined(account, rules, limits)
            if terminated or not rules.run_on or bar.voting != 0 or row >= ends[e]:
                break
        reward = (account.equity - equity) / rules.risk_unit
        if rules.shaping != 0:
            growth = account.peak - account.equity - drawdown
            if rules.shaping == HOLDING:
                reward -= rules.shaping_weight * (account.position != 0.0)
            else:
                reward += rules.shaping_weight * _shaped(batch.moments[e], rules, reward, growth)
        alive = not (terminated or (rules.run_on and row >= ends[e]))
        pending[e] = has_order
        if has_order:
            waiting[e, 0], waiting[e, 1], waiting[e, 2] = want, stop, target
        rows[e] = row
        prefetch(bars, row + 1)  # type: ignore[call-arg]  # see envs.prefetch
        alives[e] = alive
        voting[e] = alive and bars[row].voting != 0
        rewards[e] = reward
        discounts[e] = 0.0 if terminated else 1.0
