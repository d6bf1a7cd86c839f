"""Supervised baseline: a classifier of the next hour's direction on the core team's features, traded as a rule.

What reinforcement learning has to beat to be worth its trouble. Gradient-boosted trees see the last rows of the
tactical and strategic matrices, means over their windows and the regime vector, and give p(down), p(flat) and
p(up) of the next `horizon_bars` bars. The edge p(up) - p(down) becomes a position by two thresholds, enter and
leave, chosen on the last part of the training split, on which the trees were not grown.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numba as nb
import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier

from algospace.analysis.baselines import adjusted_close
from algospace.errors import ConfigError, SchemaError
from algospace.features.market_table import MarketTable
from algospace.marketdata.bayes_limit import COST_TICKS, TICK_RETURN
from algospace.seeding import stream_key
from algospace.types import AnyArray, BoolArray, Float32Array, FloatArray, IntArray

COST = COST_TICKS * TICK_RETURN  # of notional, per side
TUNING_SHARE = 0.25
_TREES, _LEAVES, _LEARNING_RATE, _MIN_LEAF, _L2 = 60, 12, 0.06, 100, 5.0
_MIN_ROWS = 500
_SPANS = (6, 20, 60)  # rows; those longer than the tactical window are cut to it
_STRATEGIC_SPAN = 8
_CHUNK = 4096  # rows; every tree passes over the whole chunk, so it should stay in the cache
_ENTER_QUANTILES = (0.4, 0.55, 0.7, 0.8, 0.88, 0.94)
_LEAVE_SHARES = (-0.75, -0.5, -0.25, 0.0, 0.25, 0.5)  # of the entry threshold
_MIN_T = 1.0  # standard errors of tuning P&L above zero, or the rule stays out


@dataclass(frozen=True)
class SupervisedModel:
    """A fitted classifier and its trading rule.

    enter, leave: a position opens where |edge| ≥ enter and closes where the edge in its direction is < leave;
    enter is infinite where no thresholds earned their costs. tuning_pnl: per bar, of notional, net of costs.
    """

    classifier: HistGradientBoostingClassifier
    schema_digest: str
    vector_width: int
    horizon_bars: int
    enter: float
    leave: float
    fit_rows: int
    tuning_pnl: float


def fit_supervised(table: MarketTable, regime_vectors: Float32Array | None, start: int, stop: int, seed: int,
                   max_rows: int = 60_000, horizon_bars: int = 12, cost: float = COST) -> SupervisedModel:
    """Fit on decision rows of [start, stop); nothing from `stop` on is read.

    regime_vectors (m, k) per 30-minute row, or None for the rows of the regime matrix. At most `max_rows` rows,
    drawn by `seed`, grow the trees. cost: per side, of notional; a move within a round trip's cost is "flat".
    ConfigError where the rows are too few or all of one class.
    """
    vectors = _vectors(table, regime_vectors)
    adjusted = adjusted_close(table)[:stop]
    cut = stop - int(TUNING_SHARE * (stop - start))
    rows = start + np.flatnonzero(table.decision[start:cut - horizon_bars])  # no label reaches the tuning part
    if len(rows) < _MIN_ROWS or cut >= stop - 1:
        raise ConfigError(f"{len(rows)} decision rows for a supervised model, at least {_MIN_ROWS} needed; give a "
                          f"longer training split")
    labels = _labels(adjusted, rows, horizon_bars, cost)
    if np.unique(labels).size < 2:
        raise ConfigError("every training row of the supervised model has the same outcome; the market does not "
                          "move beyond its costs")
    picks = _subsample(len(rows), max_rows, seed)
    classifier = HistGradientBoostingClassifier(
        max_iter=_TREES, max_leaf_nodes=_LEAVES, learning_rate=_LEARNING_RATE, min_samples_leaf=_MIN_LEAF,
        l2_regularization=_L2, early_stopping=False, random_state=stream_key("supervised", seed) % 2**31)
    features = np.concatenate([_features(table, vectors, part) for part in _parts(rows[picks])])
    classifier.fit(features, labels[picks])
    edge = _edges(classifier, table, vectors, cut, stop)
    enter, leave, pnl = _tune(edge, table.decision[cut:stop], adjusted[cut:], cost)
    return SupervisedModel(classifier, table.schema.digest(), vectors.shape[1], horizon_bars, enter, leave,
                           len(picks), pnl)


def positions(model: SupervisedModel, table: MarketTable, start: int, stop: int,
              regime_vectors: Float32Array | None = None) -> FloatArray:
    """(n,) positions in {-1, 0, 1} decided at the close of each row of [start, stop), 0 elsewhere; starts flat.

    `regime_vectors` as in fitting. SchemaError if the table or the vectors are not what the model was fitted on.
    """
    if table.schema.digest() != model.schema_digest:
        raise SchemaError(f"table of schema {table.schema.digest()[:12]}, but the supervised model was fitted on "
                          f"{model.schema_digest[:12]}; build it with the training split's schema")
    vectors = _vectors(table, regime_vectors)
    if vectors.shape[1] != model.vector_width:
        raise SchemaError(f"regime vectors of width {vectors.shape[1]}, but the supervised model was fitted with "
                          f"width {model.vector_width}; give the same kind")
    held = np.zeros(len(table))
    if math.isfinite(model.enter):
        edge = _edges(model.classifier, table, vectors, start, stop)
        held[start:stop] = _hold(edge, table.decision[start:stop], model.enter, model.leave)
    return held


def _vectors(table: MarketTable, regime_vectors: Float32Array | None) -> Float32Array:
    vectors = table.regime if regime_vectors is None else regime_vectors
    if vectors.ndim != 2 or len(vectors) != len(table.strategic):
        raise SchemaError(f"regime vectors of shape {vectors.shape} for {len(table.strategic)} 30-minute rows")
    return vectors


def _labels(adjusted: FloatArray, rows: IntArray, horizon: int, cost: float) -> IntArray:
    """-1, 0 or 1: the move to the close `horizon` bars on, beyond the cost of a round trip."""
    move = adjusted[rows + horizon] / adjusted[rows] - 1.0
    return np.where(move > 2.0 * cost, 1, np.where(move < -2.0 * cost, -1, 0))


def _subsample(size: int, max_rows: int, seed: int) -> IntArray:
    if size <= max_rows:
        return np.arange(size)
    generator = np.random.default_rng(stream_key("supervised rows", seed))
    return np.sort(generator.choice(size, max_rows, replace=False))


def _parts(rows: IntArray) -> list[IntArray]:
    """Chunks whose borders do not depend on later rows (the sums in `_means` begin with the chunk)."""
    return [rows[first:first + _CHUNK] for first in range(0, len(rows), _CHUNK)]


def _features(table: MarketTable, vectors: Float32Array, rows: IntArray) -> Float32Array:
    """(len(rows), F): for each row its tactical row and the one before, means over the last rows of the tactical
    window, the strategic row visible there with its mean over four hours, and the regime vector. rows ascend."""
    first = max(0, int(rows[0]) - max(_SPANS))
    tactical = np.asarray(table.tactical[first:int(rows[-1]) + 1])
    at = rows - first
    slow = np.maximum(table.row_30m[rows], 0)
    slow_first = max(0, int(slow[0]) - _STRATEGIC_SPAN)
    strategic = np.asarray(table.strategic[slow_first:int(slow[-1]) + 1])
    blocks = [tactical[at], tactical[np.maximum(at - 1, 0)]]
    window = table.schema.tactical.window
    blocks += _means(tactical, at, sorted({min(span, window) for span in _SPANS}))
    blocks += [strategic[slow - slow_first]]
    blocks += _means(strategic, slow - slow_first, [min(_STRATEGIC_SPAN, table.schema.strategic.window)])
    return np.concatenate([*blocks, vectors[slow]], axis=1, dtype=np.float32)


def _means(matrix: Float32Array, at: IntArray, spans: list[int]) -> list[AnyArray]:
    """Mean over the last `span` rows up to each of `at` (fewer at the matrix's start), for every span."""
    sums = np.zeros((len(matrix) + 1, matrix.shape[1]))
    np.cumsum(matrix, axis=0, dtype=np.float64, out=sums[1:])
    result = []
    for span in spans:
        begin = np.maximum(at + 1 - span, 0)
        result.append((sums[at + 1] - sums[begin]) / (at + 1 - begin)[:, None])
    return result


def _edges(classifier: Any, table: MarketTable, vectors: Float32Array, start: int, stop: int) -> FloatArray:
    """(stop - start,) p(up) - p(down) at decision rows, 0 elsewhere."""
    edge = np.zeros(stop - start)
    sides = classifier.classes_.astype(np.float64)
    rows = start + np.flatnonzero(table.decision[start:stop])
    for part in _parts(rows):
        edge[part - start] = classifier.predict_proba(_features(table, vectors, part)) @ sides
    return edge


def _tune(edge: FloatArray, decision: BoolArray, adjusted: FloatArray, cost: float) -> tuple[float, float, float]:
    """(enter, leave, P&L per bar) with the largest P&L net of costs; (inf, inf, 0) unless it is significant."""
    best = (math.inf, math.inf, 0.0)
    strength = np.abs(edge[decision])
    if strength.size == 0:
        return best
    returns = adjusted[1:] / adjusted[:-1] - 1.0
    for enter in np.unique(np.quantile(strength, _ENTER_QUANTILES)):
        for share in _LEAVE_SHARES:
            held = _hold(edge, decision, float(enter), float(share * enter))[:-1]
            pnl = held * returns - cost * np.abs(np.diff(held, prepend=0.0))
            error = float(pnl.std()) / math.sqrt(len(pnl))
            if pnl.mean() > max(best[2], _MIN_T * error):
                best = (float(enter), float(share * enter), float(pnl.mean()))
    return best


@nb.njit(cache=True)
def _hold(edge: FloatArray, decision: BoolArray, enter: float, leave: float) -> FloatArray:
    """Positions with hysteresis; they change at decision rows only."""
    held = np.zeros(edge.size)
    position = 0.0
    for i in range(edge.size):
        if decision[i]:
            if position != 0.0 and position * edge[i] < leave:
                position = 0.0
            if edge[i] >= enter:
                position = 1.0
            elif edge[i] <= -enter:
                position = -1.0
        held[i] = position
    return held
