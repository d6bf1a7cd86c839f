"""Hard limits: pure functions that apply to every proposal, learned or not, and say which limit changed it."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numba as nb
import numpy as np
from pydantic import Field

from algospace.config import FrozenConfig
from algospace.types import AnyArray


class Limit(IntEnum):
    """Which limit reduced a proposal; NONE when it stands as proposed."""

    NONE = 0
    RISK_PER_TRADE = 1
    MAX_POSITION = 2
    DAILY_LOSS = 3
    OPEN_INSTRUMENTS = 4


class LimitsConfig(FrozenConfig):
    """Fractions of equity (risk per trade) and of the day's starting equity (daily loss)."""

    risk_per_trade: float = Field(default=0.02, gt=0, le=1)
    max_position: int = Field(default=5, ge=1)
    daily_loss: float = Field(default=0.05, gt=0, le=1)
    max_open_instruments: int = Field(default=3, ge=1)

    def record(self) -> AnyArray:
        """The values as one structured record for compiled code."""
        return np.array((self.risk_per_trade, self.max_position, self.daily_loss, self.max_open_instruments),
                        LIMITS_DTYPE)


LIMITS_DTYPE = np.dtype([("risk_per_trade", "f8"), ("max_position", "f8"), ("daily_loss", "f8"),
                         ("max_open_instruments", "f8")])

_NONE, _RISK, _POSITION, _DAILY, _INSTRUMENTS = (int(limit) for limit in Limit)


@nb.njit(cache=True)
def limit_contracts(limits: Any, contracts: float, stop_loss_per_contract: float, equity: float,
                    day_start_equity: float, open_instruments: int) -> tuple[float, int]:
    """(contracts allowed, Limit code) for a proposal of `contracts` >= 0.

    `stop_loss_per_contract` is the loss in account currency if the stop fills (<= 0: no stop, which the
    risk-per-trade rule treats as unlimited risk and refuses). The daily loss is kept even if the stop fills. The
    last binding limit is named. A size that is no number is none.
    """
    if not contracts > 0.0:
        return 0.0, _NONE
    room = equity - (1.0 - limits.daily_loss) * day_start_equity  # what may still be lost today
    if not room > 0.0:  # negated, so that a NaN refuses
        return 0.0, _DAILY
    if open_instruments >= limits.max_open_instruments:
        return 0.0, _INSTRUMENTS
    allowed, code = contracts, _NONE
    if allowed > limits.max_position:
        allowed, code = limits.max_position, _POSITION
    if not (stop_loss_per_contract > 0.0 and equity > 0.0):
        return 0.0, _RISK
    affordable = np.floor(limits.risk_per_trade * equity / stop_loss_per_contract + 1e-9)
    if allowed > affordable:
        allowed, code = affordable, _RISK
    bearable = np.floor(room / stop_loss_per_contract + 1e-9)
    if allowed > bearable:
        allowed, code = bearable, _DAILY
    return allowed, code
