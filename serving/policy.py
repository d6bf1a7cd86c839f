"""A bundle as a policy over a market table: what backtests and live sessions ask."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from agents.calibration import AdaptiveConformal
from algospace.errors import SchemaError
from algospace.execution.decision import Decision, Reason, RiskProposal
from algospace.execution.outcomes import ClosedTrade
from algospace.features.market_table import MarketTable
from algospace.seeding import combine
from algospace.types import AnyArray, Float32Array, IntArray
from envs.opportunities import low_volume_nodes
from serving.backends import Backend, make_backend
from serving.bundle import Bundle
from serving.correction import GateLevel
from serving.decider import VOTER_NAMES, Decider, DecisionInputs, MarketState

CHUNK = 64
"""Rows embedded together: their windows do not depend on the account."""
_CERTAIN = {"entropy": 0.0, "mutual_information": 0.0, "std": 0.0, "agreement": 1.0}
_PASS = (0.0, 1.0, 0.0)


class _Chunk(NamedTuple):
    first: int
    embedded: Float32Array   # (CHUNK, 3, D)
    regime: Float32Array     # (CHUNK, R)
    proposals: Float32Array  # (CHUNK, 2, 3)


class BundlePolicy:
    """Decides at rows of `table` with one bundle. `threshold`, if set, replaces the calibrated one.

    Where the gate is calibrated its threshold follows the session's closed trades (`correction`, None switches it
    off); every session starts anew, so equal sessions give equal answers.

    `regime_vectors` (m, R): the RDE's vector per 30-minute row, where they are already known (frozen experts are
    columns); otherwise the bundle's RDE computes them as they are needed.
    """

    def __init__(self, bundle: Bundle, table: MarketTable, backend: Backend | str = "onnx", seed: int = 0,
                 regime_vectors: Float32Array | None = None) -> None:
        bundle.schema.require(table.schema, f"market table of {table.symbol}")
        if table.symbol != bundle.manifest.instrument:
            raise SchemaError(f"the bundle trades {bundle.manifest.instrument}, the table holds {table.symbol}")
        self._backend = make_backend(backend, bundle) if isinstance(backend, str) else backend
        self.table, self.decider, self.seed = table, Decider(bundle, self._backend), seed
        self.threshold: float | None = None
        manifest = bundle.manifest
        self.correction = AdaptiveConformal.of(manifest.calibration, manifest.gate.adaptive_rate)
        self._lvn = low_volume_nodes(table)
        size = bundle.manifest.regime_size
        self._regimes = regime_vectors
        if regime_vectors is None:
            if not bundle.has("rde"):
                raise SchemaError("the bundle holds no RDE: give the regime vector of every 30-minute row")
            self._regimes = np.full((table.strategic.shape[0], size), np.nan, np.float32)
        elif regime_vectors.shape != (table.strategic.shape[0], size):
            raise SchemaError(f"regime vectors have shape {regime_vectors.shape}, the bundle and the table need "
                              f"{(table.strategic.shape[0], size)}")
        self._chunk = _Chunk(-CHUNK, np.empty((0, 0, 0), np.float32), np.empty((0, 0), np.float32),
                             np.empty((0, 0, 0), np.float32))

    def decide(self, row: int, account: Any) -> Decision:
        """See algospace.execution.decision.Policy. Rows that are not decision points have no opportunity."""
        if not self.table.decision[row]:
            return Decision(Reason.NO_OPPORTUNITY, 0, 0.0, RiskProposal(0.0, 0.0, 0.0),
                            dict.fromkeys(VOTER_NAMES, _PASS), dict(_CERTAIN))
        chunk = self._chunk
        if not chunk.first <= row < chunk.first + CHUNK:
            chunk = self._chunk = self._embed(row - row % CHUNK)
        at = row - chunk.first
        return self.decider.decide_embedded(chunk.embedded[at:at + 1], chunk.regime[at],
                                            lambda _: chunk.proposals[at:at + 1], self.market_state(row), account,
                                            self.seed_of(row), self.gate_threshold)

    @property
    def gate_threshold(self) -> float | None:
        """The threshold of the next decision: as set, else as corrected; None: the calibrated one."""
        if self.threshold is not None or self.correction is None:
            return self.threshold
        return self.correction.threshold

    def began(self) -> None:
        """See algospace.execution.outcomes.LearnsFromTrades."""
        if self.correction is not None:
            self.correction.reset()

    def closed(self, trade: ClosedTrade) -> None:
        """See algospace.execution.outcomes.LearnsFromTrades."""
        if self.correction is not None:
            self.correction.update(trade.gained)

    def inputs(self, row: int, account: Any) -> DecisionInputs:
        """The complete inputs of row `row`: what a client sends to the decision service.

        The service gives the verdict of `decide`: where the gate is corrected online, its level is among them.
        """
        table, schema = self.table, self.table.schema
        slow = int(table.row_30m[row])
        regime = self._regimes_of(np.array([slow]))[0]
        return DecisionInputs(
            np.ascontiguousarray(table.strategic[slow - schema.strategic.window + 1:slow + 1]),
            np.ascontiguousarray(table.tactical[row - schema.tactical.window + 1:row + 1]),
            regime, self.market_state(row), account, self.seed_of(row),
            None if self.correction is None else GateLevel(
                self.decider.bundle.id, self.correction.level, self.correction.threshold))

    def market_state(self, row: int) -> MarketState:
        """Prices, clock and synergy at the close of `row`."""
        table = self.table
        sin, cos = table.clock[row].tolist()
        distance, strength = self._lvn[row].tolist()
        return MarketState(float(table.close[row]), float(table.atr[row]), (sin, cos),
                           np.array(table.synergy[row], np.float32), (distance, strength),
                           int(table.ts_close[row]))

    def seed_of(self, row: int) -> int:
        """The seed of a row's dropout masks: the run's seed and the bar's time, 63 bits."""
        return int(combine(np.uint64(self.seed), np.uint64(self.table.ts_close[row]))) >> 1

    def _embed(self, first: int) -> _Chunk:
        """Embeddings, regime vectors and proposals of CHUNK rows; rows that are not decision points stay empty."""
        table, schema, core = self.table, self.table.schema, self.decider.bundle.manifest.networks.core
        size = self.decider.bundle.manifest.regime_size
        chunk = _Chunk(first, np.zeros((CHUNK, 3, core.embed_dim), np.float32),
                       np.zeros((CHUNK, size), np.float32), np.zeros((CHUNK, 2, 3), np.float32))
        last = min(first + CHUNK, len(table))
        rows = first + np.flatnonzero(table.decision[first:last])
        if rows.size == 0:
            return chunk
        slow = table.row_30m[rows].astype(np.int64)
        strategic = _windows(table.strategic, slow, schema.strategic.window)
        tactical = _windows(table.tactical, rows, schema.tactical.window)
        regime = self._regimes_of(slow)
        at = rows - first
        windows = {"strategic": strategic, "tactical": tactical}
        chunk.embedded[at] = self._backend.infer("embed", windows)["embedded"]
        chunk.regime[at] = regime
        chunk.proposals[at] = self.decider.proposer.propose(strategic, tactical, regime, table.atr[rows],
                                                            self._lvn[rows])
        return chunk

    def _regimes_of(self, slow: IntArray) -> Float32Array:
        """Regime vectors (B, R) of 30-minute rows, computed once each."""
        regimes = self._regimes
        assert regimes is not None
        missing = np.unique(slow[np.isnan(regimes[slow, 0])])
        if missing.size:
            windows = _windows(self.table.regime, missing, self.table.schema.regime.window)
            regimes[missing] = self._backend.infer("rde", {"window": windows})["regime"]
        found: Float32Array = regimes[slow]
        return found


def _windows(values: AnyArray, rows: IntArray, window: int) -> Float32Array:
    """(B, window, F): the windows that end at `rows`."""
    gathered: Float32Array = np.ascontiguousarray(values[rows[:, None] + np.arange(1 - window, 1)])
    return gathered
