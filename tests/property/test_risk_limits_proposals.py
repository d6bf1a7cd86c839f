"""Ten million random proposals against random accounts: no hard limit is ever broken, and the one that changed a
proposal is named."""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
import pytest

from algospace.execution.mechanics import (
    ACCOUNT_DTYPE,
    FILL_DTYPE,
    MAX_FILLS_PER_BAR,
    advance,
    open_account,
    venue_record,
)
from algospace.execution.orders import plan_order
from algospace.instruments import INSTRUMENTS
from algospace.risk import Limit, LimitsConfig, limit_contracts
from algospace.seeding import combine, to_unit
from algospace.types import AnyArray, IntArray

PROPOSALS = 10_000_000
BROKEN = ("size", "risk per trade", "position", "daily loss", "open instruments", "named limit", "largest size")
_NONE, _RISK, _POSITION, _DAILY, _INSTRUMENTS = (int(limit) for limit in Limit)


@nb.njit
def _spread(key: Any, lane: int, low: float, high: float) -> float:
    """Log-uniform between low and high."""
    return low * (high / low) ** to_unit(combine(key, lane))


@nb.njit
def propose_and_check(limits: AnyArray, seed: Any, count: int, broken: IntArray, named: IntArray) -> None:
    """Draw proposals; count broken properties (in the order of BROKEN) and which limit was named."""
    for i in range(count):
        key = combine(seed, i)
        rule = limits[int(to_unit(combine(key, 0)) * limits.size)]
        start = _spread(key, 1, 1e3, 1e8)
        equity = start * (0.9 + 0.2 * to_unit(combine(key, 2)))
        kind = to_unit(combine(key, 3))
        contracts = float(int(to_unit(combine(key, 4)) * 6)) if kind < 0.8 else _spread(key, 4, 1e-2, 1e6)
        loss = _spread(key, 5, 1e-4, 3.0) * rule.risk_per_trade * equity
        opened = int(to_unit(combine(key, 6)) * 5)
        if kind > 0.99:  # what a damaged proposal or account could hold
            odd = int(to_unit(combine(key, 7)) * 6)
            if odd == 0:
                loss = np.nan
            elif odd == 1:
                loss = -loss
            elif odd == 2:
                contracts = np.nan
            elif odd == 3:
                equity = np.nan
            elif odd == 4:
                contracts = np.inf
            else:
                equity = -equity
        allowed, code = limit_contracts(rule, contracts, loss, equity, start, opened)
        named[code] += 1
        tolerance = 1e-8 * abs(equity)
        if not (allowed >= 0.0 and not allowed > contracts):
            broken[0] += 1
        if allowed == 0.0:
            broken[5] += contracts > 0.0 and code == _NONE
            continue
        whole = allowed * loss
        broken[1] += not whole <= rule.risk_per_trade * equity + tolerance
        broken[2] += not allowed <= rule.max_position
        broken[3] += not equity - whole >= (1.0 - rule.daily_loss) * start - tolerance
        broken[4] += not opened < rule.max_open_instruments
        broken[5] += (code == _NONE) != (allowed == contracts)
        more = allowed + 1.0  # a limit takes no more than it has to
        if code != _NONE and more <= min(contracts, rule.max_position):
            fits = (more * loss <= rule.risk_per_trade * equity - tolerance
                    and equity - more * loss >= (1.0 - rule.daily_loss) * start + tolerance)
            broken[6] += fits


def test_ten_million_random_proposals_break_no_limit() -> None:
    rng = np.random.default_rng()
    seed = int(rng.integers(2**63))
    settings = [LimitsConfig()] + [
        LimitsConfig(risk_per_trade=float(rng.uniform(0.001, 0.2)), max_position=int(rng.integers(1, 50)),
                     daily_loss=float(rng.uniform(0.005, 0.3)), max_open_instruments=int(rng.integers(1, 6)))
        for _ in range(7)]
    limits = np.array([config.record()[()] for config in settings])
    broken, named = np.zeros(len(BROKEN), np.int64), np.zeros(len(Limit), np.int64)
    propose_and_check(limits, np.uint64(seed), PROPOSALS, broken, named)
    assert not broken.any(), f"seed {seed}: {dict(zip(BROKEN, broken.tolist(), strict=True))}"
    assert named.sum() == PROPOSALS
    assert (named > PROPOSALS // 200).all(), f"seed {seed}: hardly tested {dict(zip(Limit, named, strict=True))}"


@nb.njit
def trade_and_check(venues: AnyArray, accounts: AnyArray, limits: Any, fills: AnyArray, seed: Any, count: int,
                    broken: IntArray) -> int:
    """Whole accounts of several instruments: proposals in, orders out, and the stop filled at its trigger.

    Counts positions beyond the limit, days that end below theirs, stops that lose more than the risk per trade;
    returns how many orders were carried out. Prices do not gap: a gap is not the proposal's.
    """
    orders = 0
    account = accounts[0]
    day = 0
    for i in range(count):
        key = combine(seed, i)
        if i % 50 == 0:
            venue = venues[int(to_unit(combine(key, 10)) * venues.size)]
            price = _spread(key, 11, 50.0, 20_000.0)
            open_account(account, _spread(key, 12, 2e4, 5e6), price, day)
        day += to_unit(combine(key, 13)) < 0.2
        side = 1.0 if to_unit(combine(key, 14)) < 0.5 else -1.0
        size = float(int(to_unit(combine(key, 15)) * 10))
        stop = max(price * _spread(key, 16, 1e-4, 0.05), venue.tick)
        advance(account, venue, False, 0.0, 0.0, 0.0, price, price, price, price, 1.0, day, fills)
        before = account.equity
        reverse = to_unit(combine(key, 17)) < 0.5
        has_order, want, _ = plan_order(account, venue, limits, True, reverse, side * size, stop)
        if not has_order or want == 0.0 or account.position != 0.0:
            continue
        orders += 1
        advance(account, venue, True, want, stop, 0.0, price, price, price, price, 1.0, day, fills)
        broken[0] += abs(account.position) > limits.max_position
        trigger = account.stop
        worst = min(price, trigger) if want > 0.0 else max(price, trigger)
        high, low = max(price, worst), min(price, worst)
        advance(account, venue, False, 0.0, 0.0, 0.0, price, high, low, worst, 1.0, day, fills)
        lost = before - account.equity
        broken[1] += account.position != 0.0
        broken[2] += not lost <= limits.risk_per_trade * before * (1.0 + 1e-9) + 1e-6
        broken[3] += not account.equity >= (1.0 - limits.daily_loss) * account.day_start * (1.0 - 1e-9) - 1e-6
        price = worst
    return orders


@pytest.mark.parametrize("config", [LimitsConfig(), LimitsConfig(risk_per_trade=0.04, daily_loss=0.03)])
def test_filled_stops_stay_within_the_limits(config: LimitsConfig) -> None:
    seed = int(np.random.default_rng().integers(2**63))
    specs = [INSTRUMENTS[name] for name in ("SYNTH", "NQ", "ES", "SPY")]
    venues = np.array([venue_record(spec.tick_size, spec.multiplier, spec.commission, 1.0, "pessimistic")
                       for spec in specs])
    broken = np.zeros(4, np.int64)
    orders = trade_and_check(venues, np.zeros(1, ACCOUNT_DTYPE), config.record()[()],
                             np.zeros(MAX_FILLS_PER_BAR, FILL_DTYPE), np.uint64(seed), 500_000, broken)
    assert orders > 10_000
    names = ("position", "stop missed", "risk per trade", "daily loss")
    assert not broken.any(), f"seed {seed}: {dict(zip(names, broken.tolist(), strict=True))}"
