"""The supervised baseline sees the past only, learns what is there, and stays out where nothing is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from algospace.errors import ConfigError, SchemaError
from algospace.features import build
from algospace.features.market_table import MarketTable
from algospace.features.matrices import MatrixConfig, Normaliser, assemble
from algospace.instruments import instrument
from algospace.marketdata.synthetic import generate
from training.supervised import SupervisedModel, _hold, fit_supervised, positions

SYNTH = instrument("SYNTH")
N, STOP = 9000, 7000


@pytest.fixture(scope="module")
def plain() -> MarketTable:
    table = build(generate("easy", seed=4, n_bars=N).bars, SYNTH)
    config = MatrixConfig(tactical_extra=("return_1", "volatility_60", "autocorr1_60"))
    return assemble(table, Normaliser.fit(table, config, int(table.ts_close[STOP])), SYNTH)


@pytest.fixture(scope="module")
def market(plain: MarketTable) -> MarketTable:
    """The market with its own next direction written into a regime column: something that can be learned."""
    return replace(plain, regime=hinted(plain, 1.0))


def hinted(table: MarketTable, strength: float) -> np.ndarray:
    """Regime rows whose first column is the direction of the 30-minute bars to come."""
    first = np.searchsorted(table.row_30m, np.arange(len(table.regime)))
    close = np.append(table.close, np.full(12, table.close[-1]))
    ahead = np.sign(close[np.minimum(first + 12, len(close) - 1)] - close[first]).astype(np.float32)
    regime = np.array(table.regime)
    regime[:, 0] = strength * ahead
    return regime


@pytest.fixture(scope="module")
def model(market: MarketTable) -> SupervisedModel:
    return fit_supervised(market, None, 0, STOP, seed=3, max_rows=4000)


def garbled(table: MarketTable, t: int) -> MarketTable:
    """Everything after row t replaced by noise."""
    noise = np.random.default_rng(t)
    rows, slow = np.arange(len(table)) > t, np.arange(len(table.regime)) > table.row_30m[t]
    changed = {}
    for name in ("open", "high", "low", "close", "atr", "atr_30m"):
        changed[name] = np.where(rows, noise.uniform(1.0, 9e3, len(table)), getattr(table, name))
    for name, late in (("tactical", rows), ("strategic", slow), ("regime", slow)):
        matrix = getattr(table, name)
        changed[name] = np.where(late[:, None], noise.normal(0, 3, matrix.shape), matrix).astype(np.float32)
    changed["decision"] = np.where(rows, noise.random(len(table)) < 0.5, table.decision)
    return replace(table, **changed)


@pytest.mark.parametrize("t", [2300, 5000, 7321, 8998])
def test_changing_the_future_changes_no_earlier_position(market: MarketTable, model: SupervisedModel, t: int
                                                         ) -> None:
    ours = positions(model, market, 2100, N)
    theirs = positions(model, garbled(market, t), 2100, N)
    np.testing.assert_array_equal(ours[:t + 1], theirs[:t + 1])
    assert np.abs(ours).sum() > 0
    assert t > 8000 or (ours[t + 1:] != theirs[t + 1:]).any()


def test_fitting_reads_nothing_after_the_training_split(market: MarketTable, model: SupervisedModel) -> None:
    other = fit_supervised(garbled(market, STOP - 1), None, 0, STOP, seed=3, max_rows=4000)
    assert (other.enter, other.leave, other.tuning_pnl) == (model.enter, model.leave, model.tuning_pnl)
    np.testing.assert_array_equal(positions(other, market, STOP, N), positions(model, market, STOP, N))


def test_it_uses_what_predicts_on_unseen_rows(market: MarketTable, model: SupervisedModel) -> None:
    held = positions(model, market, STOP, N)
    assert set(np.unique(held)) <= {-1.0, 0.0, 1.0}
    assert not held[:STOP].any()
    moves = np.diff(market.close) / market.close[:-1]
    assert (held[STOP:-1] * moves[STOP:]).mean() > 3e-5  # half a tick per bar


def test_the_same_seed_gives_the_same_positions_and_another_one_others(market: MarketTable, model: SupervisedModel
                                                                       ) -> None:
    again = fit_supervised(market, None, 0, STOP, seed=3, max_rows=4000)
    np.testing.assert_array_equal(positions(again, market, STOP, N), positions(model, market, STOP, N))
    other = fit_supervised(market, None, 0, STOP, seed=4, max_rows=1000)
    assert other.fit_rows == 1000
    assert (positions(other, market, STOP, N) != positions(model, market, STOP, N)).any()


def test_costs_that_nothing_earns_keep_it_out(plain: MarketTable) -> None:
    model = fit_supervised(plain, None, 0, STOP, seed=0, max_rows=2000, cost=2e-3)
    assert np.isinf(model.enter)
    assert not positions(model, plain, STOP, N).any()


def test_regime_vectors_are_part_of_the_features(market: MarketTable) -> None:
    vectors = np.zeros((len(market.regime), 8), np.float32)
    vectors[:, 2] = market.regime[:, 0]
    model = fit_supervised(replace(market, regime=np.zeros_like(market.regime)), vectors, 0, STOP, 0, 4000)
    assert positions(model, market, STOP, N, vectors)[STOP:].any()
    with pytest.raises(SchemaError, match="width 12"):
        positions(model, market, STOP, N)
    with pytest.raises(SchemaError, match="30-minute rows"):
        positions(model, market, STOP, N, vectors[1:])


def test_another_schema_and_a_short_split_are_refused(market: MarketTable, model: SupervisedModel) -> None:
    with pytest.raises(SchemaError, match="fitted on"):
        positions(model, replace(market, schema=replace(market.schema, clip=4.0)), STOP, N)
    with pytest.raises(ConfigError, match="longer training split"):
        fit_supervised(market, None, 0, 2200, seed=0)


def test_hysteresis_by_hand() -> None:
    edge = np.array([0.1, 0.5, 0.3, 0.1, 0.2, -0.5, -0.9, -0.3, 0.6, 0.0])
    decision = np.array([1, 1, 1, 0, 1, 0, 1, 1, 1, 1], np.bool_)
    np.testing.assert_array_equal(_hold(edge, decision, 0.5, 0.25), [0, 1, 1, 1, 0, 0, -1, -1, 1, 0])
