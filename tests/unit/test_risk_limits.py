"""The hard limits by themselves: what each allows, which one is named, and settings that would switch one off."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from algospace.risk import Limit, LimitsConfig, limit_contracts

LIMITS = LimitsConfig().record()[()]  # 2 % a trade, 5 contracts, 5 % a day, 3 instruments


@pytest.mark.parametrize(
    ("contracts", "stop_loss", "equity", "open_instruments", "allowed", "limit"),
    [
        (2.0, 500.0, 100_000.0, 0, 2.0, Limit.NONE),
        (0.0, 500.0, 100_000.0, 0, 0.0, Limit.NONE),
        (5.0, 400.0, 100_000.0, 0, 5.0, Limit.NONE),  # exactly 2 %
        (5.0, 400.01, 100_000.0, 0, 4.0, Limit.RISK_PER_TRADE),
        (1.0, 2000.01, 100_000.0, 0, 0.0, Limit.RISK_PER_TRADE),
        (1.0, 0.0, 100_000.0, 0, 0.0, Limit.RISK_PER_TRADE),  # without a stop the risk is unlimited
        (9.0, 100.0, 100_000.0, 0, 5.0, Limit.MAX_POSITION),
        (9.0, 500.0, 100_000.0, 0, 4.0, Limit.RISK_PER_TRADE),  # both bind: the last one is named
        (1.0, 100.0, 95_100.0, 0, 1.0, Limit.NONE),  # the stop may just take the day to its limit
        (5.0, 100.0, 95_350.0, 0, 3.0, Limit.DAILY_LOSS),  # three stops fit into what may still be lost today
        (1.0, 100.0, 95_099.0, 0, 0.0, Limit.DAILY_LOSS),
        (1.0, 100.0, 95_000.0, 0, 0.0, Limit.DAILY_LOSS),  # the day began with 100,000
        (1.0, 100.0, 100_000.0, 2, 1.0, Limit.NONE),
        (1.0, 100.0, 100_000.0, 3, 0.0, Limit.OPEN_INSTRUMENTS),
    ],
)
def test_each_limit_allows_what_it_says(contracts: float, stop_loss: float, equity: float, open_instruments: int,
                                        allowed: float, limit: Limit) -> None:
    assert limit_contracts(LIMITS, contracts, stop_loss, equity, 100_000.0, open_instruments) == (allowed, limit)


def test_ruin_and_an_unknown_stop_refuse() -> None:
    assert limit_contracts(LIMITS, 1.0, 100.0, -1.0, -1.0, 0)[0] == 0.0
    assert limit_contracts(LIMITS, np.nan, 100.0, 100_000.0, 100_000.0, 0)[0] == 0.0
    assert limit_contracts(LIMITS, 1.0, np.nan, 100_000.0, 100_000.0, 0) == (0.0, Limit.RISK_PER_TRADE)
    assert limit_contracts(LIMITS, 1.0, 100.0, np.nan, 100_000.0, 0) == (0.0, Limit.DAILY_LOSS)


@pytest.mark.parametrize("values", [{"risk_per_trade": 0.0}, {"risk_per_trade": 2}, {"daily_loss": 5},
                                    {"daily_loss": -0.05}, {"max_position": 0}, {"max_open_instruments": 0}])
def test_a_setting_that_switches_a_limit_off_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        LimitsConfig(**values)
