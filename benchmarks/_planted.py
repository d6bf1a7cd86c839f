"""A planted market as plain tensors, with the solved limit's own action values, for `benchmarks.ceilings`."""

from __future__ import annotations

from typing import NamedTuple

import numba as nb
import numpy as np
import torch
from scipy.signal import lfilter

from algospace.features import build
from algospace.features.matrices import Normaliser, assemble
from algospace.features.matrix_schema import TACTICAL, MatrixConfig, MatrixSchema
from algospace.instruments import instrument
from algospace.marketdata.bayes_limit import COST_TICKS, TICK_RETURN, cached_limit, simplex_weights
from algospace.marketdata.synthetic import SyntheticTruth, generate, scenario_named
from algospace.types import AnyArray, FloatArray

EXTRA = ("return_1", "volatility_60", "autocorr1_60")
OWN = (*TACTICAL, *EXTRA)
AVERAGES = ("raw", "ema10", "ema20", "ema40", "ema80", "ac20", "ac40", "vol20", "vol60")
"""An unclipped return, exponential averages of returns, of their lag-1 products and of their squares."""
UNIT = 7e-4          # about a bar's standard deviation on `easy`
COST = COST_TICKS * TICK_RETURN


class Market(NamedTuple):
    """One market as the networks read it; index 1 of the doubled arrays is its mirror image."""

    tactical: torch.Tensor     # (2, n, F)
    strategic: torch.Tensor    # (2, m, G)
    row_30m: torch.Tensor      # (n,)
    realised: torch.Tensor     # (n,) the next bar's return, in UNIT
    expected: torch.Tensor     # (n,) its true expectation
    values: torch.Tensor       # (n, 2) the limit's values of long and short over flat, in COST
    truth: SyntheticTruth
    close: FloatArray
    first: int


def open_market(scenario: str, seed: int, bars: int, schema: MatrixSchema | None,
                columns: tuple[str, ...]) -> tuple[Market, MatrixSchema]:
    """A synthetic market; normalised by its own rows where no schema is given."""
    made, spec = generate(scenario_named(scenario), seed, bars), instrument("SYNTH")
    features = build(made.bars, spec)
    schema = schema or Normaliser.fit(features, MatrixConfig(tactical_extra=EXTRA), int(features.ts_close[-1]))
    table = assemble(features, schema, spec)
    truth, close = made.truth, np.asarray(table.close)
    assert truth.expected_return is not None
    assert truth.belief is not None
    returns = np.append(0.0, close[1:] / close[:-1] - 1.0)
    limit = cached_limit(scenario_named(scenario).hmm())
    values = np.empty((len(close), 2))
    _limit_values(truth.belief, truth.expected_return, returns, limit.long, limit.short, limit.vertex,
                  limit.return_grid, values)
    tactical = _with_columns(np.nan_to_num(np.asarray(table.tactical)), schema, returns, columns)
    strategic = np.nan_to_num(np.asarray(table.strategic))
    image = strategic[:, schema.strategic.mirror] * schema.strategic.sign
    found = (tactical, np.stack((strategic, image)), np.append(returns[1:], 0.0) / UNIT,
             truth.expected_return / UNIT, values / COST)
    inputs, slow, realised, expected, best = (torch.from_numpy(part.astype(np.float32)) for part in found)
    row_30m = torch.from_numpy(np.maximum(np.asarray(table.row_30m), 0).astype(np.int64))
    return Market(inputs, slow, row_30m, realised, expected, best, truth, close, table.first_decision), schema


def _with_columns(own: AnyArray, schema: MatrixSchema, returns: FloatArray, names: tuple[str, ...]) -> AnyArray:
    """(2, n, F): the named columns of the matrix, or averages over returns, and their mirror images."""
    matrix, image = list(schema.tactical.names), own[:, schema.tactical.mirror] * schema.tactical.sign
    pairs = []
    for name in names:
        if name in matrix:
            place = matrix.index(name)
            pairs.append((own[:, place], image[:, place]))
        else:
            column, sign = _average(returns / 6e-4, name)
            pairs.append((column, sign * column))
    return np.stack([np.stack(half, 1) for half in zip(*pairs, strict=True)])


def _average(x: FloatArray, name: str) -> tuple[FloatArray, float]:
    """raw, emaN, acN (of lag-1 products) or volN (log of squares), and its sign in the mirror."""
    if name == "raw":
        return x, -1.0
    kind, span = name.rstrip("0123456789"), int(name.lstrip("acemvol"))

    def smooth(values: FloatArray) -> FloatArray:
        a = 2.0 / (span + 1.0)
        return np.asarray(lfilter([a], [1.0, a - 1.0], values))

    if kind == "ema":
        return smooth(x) * span**0.5, -1.0
    if kind == "ac":
        return smooth(np.append(0.0, x[1:] * x[:-1])) * span**0.5, 1.0
    return np.log(smooth(x**2) + 1e-3), 1.0


@nb.njit(cache=True)
def _limit_values(beliefs: AnyArray, expected: AnyArray, returns: AnyArray, long: AnyArray, short: AnyArray,
                  vertex: AnyArray, grid: AnyArray, out: AnyArray) -> None:
    """G_a of `algospace.marketdata.bayes_limit` at every bar, for long and short."""
    rows, weights = np.empty(4, np.int64), np.empty(4)
    step = grid[1] - grid[0]
    for t in range(returns.size):
        simplex_weights(beliefs[t], vertex, rows, weights)
        x = min(max((returns[t] - grid[0]) / step, 0.0), grid.size - 1.0)
        i = min(int(x), grid.size - 2)
        f = x - i
        out[t, 0], out[t, 1] = expected[t], -expected[t]
        for c in range(4):
            out[t, 0] += weights[c] * ((1.0 - f) * long[rows[c], i] + f * long[rows[c], i + 1])
            out[t, 1] += weights[c] * ((1.0 - f) * short[rows[c], i] + f * short[rows[c], i + 1])
