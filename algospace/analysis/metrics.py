"""What a run was worth: metrics of an equity curve and its trades, and their bootstrap intervals.

Returns are changes of equity over the *initial* equity: positions are contracts and profits are not reinvested,
so that every measure stays defined even for a run that loses more than it had. What has no value in a degenerate
run (no trades, no variance, no loss) is None, never 0 or infinity.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numba as nb
import numpy as np

from algospace.execution.mechanics import FillCause
from algospace.execution.result import SessionResult, slippage_paid
from algospace.risk.measures import expected_shortfall, value_at_risk
from algospace.seeding import combine, to_unit
from algospace.types import BASE_BAR_NS, AnyArray, FloatArray

MIN_DAYS_FOR_DAILY = 2


@dataclass(frozen=True)
class Metrics:
    """Money in account currency; Sharpe, Sortino and Calmar annualised; VaR and ES are daily, as shares of the
    initial equity, positive = loss; exposure: share of bars in the market; turnover: contracts traded per
    trading day; costs = commission + slippage."""

    initial_equity: float
    final_equity: float
    net_pnl: float
    gross_pnl: float
    total_return: float
    annual_return: float
    sharpe: float | None
    sortino: float | None
    calmar: float | None
    max_drawdown: float
    max_drawdown_money: float
    var_95: float | None
    es_95: float | None
    var_99: float | None
    es_99: float | None
    trades: int
    win_rate: float | None
    profit_factor: float | None
    average_trade: float | None
    average_bars_in_trade: float | None
    exits: dict[str, int]
    exposure: float
    turnover: float
    contracts_traded: float
    commission: float
    slippage: float
    costs: float
    bars: int
    days: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def rows_per_year(result: SessionResult) -> float:
    """Rows of this run's width in a year of the instrument's session, whose figure is for 5-minute bars."""
    five_minutes = float(result.instrument.session.bars_per_year)
    if len(result) < 2:
        return five_minutes
    return five_minutes * BASE_BAR_NS / float(np.median(np.diff(result.ts_close)))


def measure(result: SessionResult, bars_per_year: float | None = None) -> Metrics:
    """All metrics of a run; `bars_per_year` defaults to the instrument's at the run's bar width."""
    per_year = bars_per_year or rows_per_year(result)
    initial, equity = result.initial_equity, result.equity
    returns, daily = bar_returns(result), daily_returns(result)
    commission, slippage = float(result.fills["commission"].sum()), slippage_paid(result)
    net = float(equity[-1]) - initial
    annual = float(returns.mean()) * per_year if returns.size else 0.0
    drawdown, drawdown_money = max_drawdown(equity)
    traded = float(np.abs(result.fills["quantity"]).sum())
    days = int(np.unique(result.day).size)
    return Metrics(
        initial_equity=initial, final_equity=float(equity[-1]), net_pnl=net,
        gross_pnl=net + commission + slippage, total_return=net / initial, annual_return=annual,
        sharpe=sharpe_ratio(returns, per_year), sortino=sortino_ratio(returns, per_year),
        calmar=annual / drawdown if drawdown > 0.0 else None, max_drawdown=drawdown,
        max_drawdown_money=drawdown_money,
        var_95=value_at_risk(daily, 0.95), es_95=expected_shortfall(daily, 0.95),
        var_99=value_at_risk(daily, 0.99), es_99=expected_shortfall(daily, 0.99), **_trade_figures(result.trades),
        exposure=float(np.mean(result.position != 0.0)), turnover=traded / days, contracts_traded=traded,
        commission=commission, slippage=slippage, costs=commission + slippage, bars=len(result), days=days)


def _trade_figures(trades: AnyArray) -> dict[str, Any]:
    pnl = trades["net_pnl"]
    lost = float(-pnl[pnl < 0.0].sum())
    exits = np.bincount(trades["cause"], minlength=len(FillCause))
    return {
        "trades": int(pnl.size),
        "win_rate": float(np.mean(pnl > 0.0)) if pnl.size else None,
        "profit_factor": float(pnl[pnl > 0.0].sum()) / lost if lost > 0.0 else None,
        "average_trade": float(pnl.mean()) if pnl.size else None,
        "average_bars_in_trade": float(np.mean(trades["exit_row"] - trades["entry_row"])) if pnl.size else None,
        "exits": {cause.name: int(exits[cause]) for cause in FillCause if exits[cause]},
    }


def bar_returns(result: SessionResult) -> FloatArray:
    """(n-1,) change of equity per bar over the initial equity."""
    changes: FloatArray = np.diff(result.equity) / result.initial_equity
    return changes


def daily_returns(result: SessionResult) -> FloatArray:
    """(days,) change of equity per trading day over the initial equity; empty with fewer than two days."""
    last = np.flatnonzero(np.diff(result.day, append=result.day[-1] + 1))
    if last.size < MIN_DAYS_FOR_DAILY:
        return np.zeros(0)
    changes: FloatArray = np.diff(result.equity[last], prepend=result.initial_equity) / result.initial_equity
    return changes


def sharpe_ratio(returns: FloatArray, periods_per_year: float) -> float | None:
    """mean/stdev (ddof 1) · sqrt(periods); risk-free rate 0, as futures need no funding."""
    if returns.size < 2:
        return None
    deviation = float(returns.std(ddof=1))
    return float(returns.mean()) / deviation * math.sqrt(periods_per_year) if deviation > 0.0 else None


def sortino_ratio(returns: FloatArray, periods_per_year: float) -> float | None:
    """mean over the root mean square of the losses among all returns (target 0), annualised."""
    if returns.size < 2:
        return None
    downside = math.sqrt(float(np.mean(np.minimum(returns, 0.0) ** 2)))
    return float(returns.mean()) / downside * math.sqrt(periods_per_year) if downside > 0.0 else None


def max_drawdown(equity: FloatArray) -> tuple[float, float]:
    """(largest fall from a peak as a share of that peak, largest fall in money); both >= 0."""
    peak = np.maximum.accumulate(equity)
    fall = peak - equity
    return float(np.max(fall / peak)), float(np.max(fall))


def drawdown_curve(equity: FloatArray) -> FloatArray:
    """(n,) <= 0: distance below the running peak as a share of it."""
    peak = np.maximum.accumulate(equity)
    curve: FloatArray = equity / peak - 1.0
    return curve


@dataclass(frozen=True)
class Interval:
    """A statistic and its percentile interval; None where it is undefined."""

    estimate: float | None
    low: float | None
    high: float | None
    level: float
    samples: int
    mean_block: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def stationary_bootstrap(returns: FloatArray, periods_per_year: float, samples: int = 2000, level: float = 0.95,
                         mean_block: float | None = None, seed: int = 0) -> dict[str, Interval]:
    """Intervals of the annualised mean and Sharpe ratio (Politis and Romano 1994, doi:10.2307/2290993).

    Blocks of geometric length (mean `mean_block`, default n^(1/3)) from a circular series keep the dependence
    between neighbours. Equal seeds give equal intervals.
    """
    n = returns.size
    if n < 2:
        nothing = Interval(None, None, None, level, 0, 0.0)
        return {"mean": nothing, "sharpe": nothing}
    block = max(1.0, mean_block if mean_block is not None else n ** (1.0 / 3.0))
    means, sharpes = np.empty(samples), np.empty(samples)
    _resample(np.ascontiguousarray(returns, np.float64), 1.0 / block, np.uint64(seed), means, sharpes)
    scale = math.sqrt(periods_per_year)
    return {
        "mean": _interval(float(returns.mean()) * periods_per_year, means * periods_per_year, level, block),
        "sharpe": _interval(sharpe_ratio(returns, periods_per_year), sharpes * scale, level, block),
    }


def _interval(estimate: float | None, draws: FloatArray, level: float, block: float) -> Interval:
    known = draws[np.isfinite(draws)]
    if estimate is None or known.size == 0:
        return Interval(estimate, None, None, level, 0, block)
    low, high = np.quantile(known, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return Interval(estimate, float(low), float(high), level, int(known.size), block)


@nb.njit(cache=True)
def bootstrap_indices(n: int, restart: float, seed: Any, sample: int, out: AnyArray) -> None:
    """Fill `out` (n,) with one stationary resample: with probability `restart` jump, else the next element."""
    key = combine(seed, sample)
    index = 0
    for t in range(n):
        draw = combine(key, t)
        if t == 0 or to_unit(draw) < restart:
            index = int(to_unit(combine(draw, 1)) * n)
        else:
            index = index + 1 if index + 1 < n else 0
        out[t] = index


@nb.njit(cache=True)
def _resample(returns: FloatArray, restart: float, seed: Any, means: FloatArray, sharpes: FloatArray) -> None:
    n = returns.size
    indices = np.empty(n, np.int64)
    for sample in range(means.size):
        bootstrap_indices(n, restart, seed, sample, indices)
        total = 0.0
        for t in range(n):
            total += returns[indices[t]]
        mean = total / n
        squares = 0.0
        for t in range(n):
            squares += (returns[indices[t]] - mean) ** 2
        deviation = np.sqrt(squares / (n - 1))
        means[sample] = mean
        sharpes[sample] = mean / deviation if deviation > 0.0 else np.nan
