"""Measures of risk: pure functions of a sample of returns. Losses are positive numbers."""

from __future__ import annotations

import numpy as np

from algospace.types import FloatArray


def value_at_risk(returns: FloatArray, level: float) -> float | None:
    """Historical VaR: the loss that a share `level` of the returns does not exceed; None of no returns.

    The quantile interpolates linearly (Hyndman and Fan 1996, type 7). Negative when even that tail is a gain.
    """
    _check_level(level)
    return -float(np.quantile(returns, 1.0 - level)) if returns.size else None


def expected_shortfall(returns: FloatArray, level: float) -> float | None:
    """Historical ES: the mean loss of the returns at or beyond the VaR (Acerbi and Tasche 2002)."""
    var = value_at_risk(returns, level)
    if var is None:
        return None
    return -float(returns[returns <= -var].mean())


def kelly_fraction(returns: FloatArray) -> float | None:
    """Growth-optimal leverage mean/variance (Thorp 2006); None where the variance is 0 or unknown."""
    if returns.size < 2:
        return None
    variance = float(returns.var(ddof=1))
    return float(returns.mean()) / variance if variance > 0.0 else None


def kelly_bet(win_probability: float, payoff: float) -> float:
    """Share of capital p - (1-p)/b for a bet that wins `payoff` times the stake (Kelly 1956), at least 0."""
    if not 0.0 <= win_probability <= 1.0 or payoff <= 0.0:
        raise ValueError(f"need a probability and a payoff > 0, got {win_probability} and {payoff}")
    return max(0.0, win_probability - (1.0 - win_probability) / payoff)


def _check_level(level: float) -> None:
    if not 0.5 < level < 1.0:
        raise ValueError(f"a confidence level lies in (0.5, 1), got {level}")
