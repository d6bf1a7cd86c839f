"""The strongest trend follower of a planted market: the exact Bayes filter, blind to everything but drift.

It knows the true parameters and believes what the exact filter believes, but counts only the drift of the trend
states as edge and takes the cost-optimal rule of a market without autocorrelation. A policy that beats it must
have learned something besides following trends.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from algospace.marketdata.bayes_filter import PlantedHmm
from algospace.marketdata.bayes_limit import cached_limit, limit_positions
from algospace.types import AnyArray, FloatArray


def trend_positions(hmm: PlantedHmm, belief: FloatArray, close: FloatArray) -> AnyArray:
    """Positions (n,) int8 decided at each close; `belief` (n, 4) after each bar, as the exact filter has it."""
    returns = np.zeros(close.size)
    returns[1:] = close[1:] / close[:-1] - 1.0
    drift = np.ascontiguousarray(belief @ hmm.transition @ hmm.mu)
    blind = replace(hmm, phi=np.zeros_like(hmm.phi))
    return limit_positions(cached_limit(blind), np.ascontiguousarray(belief), drift, returns)
