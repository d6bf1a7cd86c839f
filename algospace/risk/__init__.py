"""Risk: hard limits and measures."""

from algospace.risk.limits import Limit, LimitsConfig, limit_contracts
from algospace.risk.measures import expected_shortfall, kelly_bet, kelly_fraction, value_at_risk

__all__ = ["Limit", "LimitsConfig", "expected_shortfall", "kelly_bet", "kelly_fraction", "limit_contracts",
           "value_at_risk"]
