"""The account's side of N decisions: one environment of the batched kernels for each.

Observation, opportunity, hard limits and allowed actions come from the environment's own compiled half-steps
(`envs.core_kernels`), so that serving cannot drift from training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from algospace.execution.mechanics import ACCOUNT_DTYPE
from algospace.types import AnyArray, BoolArray, Float32Array, FloatArray
from envs.core_kernels import ACCOUNT_FEATURES, BAR_DTYPE, Market, observe_kernel, vote_kernel
from envs.vector_core import build_rules, empty_batch, read_only
from serving.bundle import Bundle
from serving.kernels import limit_rows

_RAW = np.dtype(f"V{ACCOUNT_DTYPE.itemsize}")
"""A record as bytes: numpy copies records field by field, which takes as long as the kernel behind it."""


@dataclass(frozen=True)
class Offers:
    """What execution is asked, for N rows. opportunity (N,) int8; asked (N,); allowed (N, 3) actions; encoded
    (N, 3) proposal as the team sees it; orders (N, 3) contracts, stop and target distance after limits; limits
    (N,) codes of algospace.risk.limits.Limit."""

    opportunity: AnyArray
    asked: BoolArray
    allowed: BoolArray
    encoded: Float32Array
    orders: FloatArray
    limits: AnyArray


class Desk:
    """N rows at a time. Not for use by two callers at once; its arrays are overwritten by the next `observe`."""

    def __init__(self, bundle: Bundle, rows: int) -> None:
        config = bundle.manifest.env
        self.rows = rows
        self._rules = build_rules(bundle.instrument, config, bundle.manifest.risk_unit)
        self._limits = config.limits.record()[()]
        self._bars = np.zeros(rows, BAR_DTYPE)
        self._clock = np.zeros((rows, 2), np.float32)
        self._market = Market(read_only(self._bars), read_only(self._clock), read_only(np.zeros(1, np.int32)))
        self._batch = empty_batch(rows, self._market, self._rules)
        self._batch.rows[:] = np.arange(rows)
        self._multiplier = bundle.instrument.multiplier
        self._money = np.zeros((rows, 2))
        self._raw = self._batch.accounts.view(_RAW)

    def observe(self, close: Any, atr: Any, clock: Any, accounts: AnyArray) -> Float32Array:
        """Prices (N,) in points, clock (N, 2), ACCOUNT_DTYPE records (N,) -> account features (N, 8)."""
        self._bars["close"], self._bars["atr"] = close, atr
        self._clock[:] = clock
        own = self._batch.accounts
        self._raw[:] = np.asarray(accounts, ACCOUNT_DTYPE).view(_RAW)
        self._money[:, 0], self._money[:, 1] = own["equity"], own["day_start"]
        if self._rules.unit:
            self._as_unit(own)
        out = np.empty((self.rows, ACCOUNT_FEATURES), np.float32)
        observe_kernel(self._batch, self._market, self._rules, self._limits, out)
        return out

    def _as_unit(self, accounts: AnyArray) -> None:
        """Real accounts as a policy trained on unit mechanics knows them: a side, and money as a fraction of the
        notional held (of one contract when flat)."""
        notional = self._bars["close"] * self._multiplier * np.maximum(1.0, np.abs(accounts["position"]))
        accounts["equity"] = (accounts["equity"] - accounts["day_start"]) / notional
        accounts["day_start"] = 0.0
        accounts["position"] = np.sign(accounts["position"])
        accounts["stop"] = accounts["target"] = np.nan

    def vote(self, chosen: AnyArray, proposals: Float32Array, voting: BoolArray | bool) -> Offers:
        """Votes (N, 3) int8, proposals (N, 2, 3) for short and long, whether each row's voters are asked."""
        batch = self._batch
        batch.voting[:] = voting
        encoded, limits = np.zeros((self.rows, 3), np.float32), np.zeros(self.rows, np.int8)
        vote_kernel(batch, self._market, self._rules, self._limits, read_only(proposals), chosen, encoded, limits)
        orders = np.where(batch.opportunity[:, None] != 0, batch.order, 0.0)
        if self._rules.unit:  # the team saw the proposal as it was; what leaves the desk is limited
            limit_rows(self._limits, orders, batch.opportunity, self._money, self._multiplier,
                       self._rules.exit_cost, limits)
        return Offers(batch.opportunity.copy(), batch.asked.copy(), batch.action_mask.copy(), encoded, orders,
                      limits)

    @property
    def held(self) -> FloatArray:
        """(N,) signed positions of the present rows."""
        positions: FloatArray = self._batch.accounts["position"]
        return positions
