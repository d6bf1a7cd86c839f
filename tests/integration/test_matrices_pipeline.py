"""From bars to matrices through the whole pipeline: synthetic market, mirrored market, live rows, real data."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from algospace.features import FeatureStream, FeatureTable, SourceBar, build
from algospace.features.market_table import MarketTable
from algospace.features.matrices import MatrixAssembler, MatrixConfig, Normaliser, assemble
from algospace.instruments import instrument
from algospace.marketdata.source import read_source
from algospace.marketdata.synthetic import generate
from algospace.types import Bars

SYNTH = instrument("SYNTH")
CONFIG = MatrixConfig(tactical_extra=("return_1", "volatility_60", "autocorr1_60"))


@pytest.fixture(scope="module")
def bars() -> Bars:
    return generate("easy", seed=4, n_bars=9000).bars


@pytest.fixture(scope="module")
def table(bars: Bars) -> FeatureTable:
    return build(bars, SYNTH)


@pytest.fixture(scope="module")
def market(table: FeatureTable) -> MarketTable:
    return assemble(table, Normaliser.fit(table, CONFIG, int(table.ts_close[6000])), SYNTH)


def test_after_the_warm_up_every_real_bar_is_a_decision(market: MarketTable, table: FeatureTable) -> None:
    first = market.first_decision
    # 240 bars of volume profile, then a window of 96, in 30-minute bars
    assert table.row_30m[first] == 239 + 95
    np.testing.assert_array_equal(market.decision[first:], ~table.filled[first:])
    for matrix in (market.tactical, market.strategic, market.regime):
        assert np.isfinite(matrix).all()
        assert np.abs(matrix).max() <= 50.0
    assert np.isfinite(market.atr[first:]).all()
    assert (market.strategic[240:] != 0).any(axis=0).all()


def test_a_market_without_volume_reaches_the_same_first_decision(bars: Bars, market: MarketTable) -> None:
    silent = build(replace(bars, volume=np.full(len(bars), np.nan)), SYNTH)
    schema = Normaliser.fit(silent, CONFIG, int(silent.ts_close[6000]))
    other = assemble(silent, schema, SYNTH)
    assert other.first_decision == market.first_decision
    np.testing.assert_array_equal(other.decision, market.decision)


def test_live_rows_are_the_tables_rows_to_the_bit(bars: Bars, market: MarketTable) -> None:
    stream = FeatureStream(SYNTH, source_width_ns=bars.width_ns)
    assembler = MatrixAssembler(market.schema, SYNTH, stream.base_columns, stream.slow_columns)
    spec, i = market.schema, 0
    for bar in zip(bars.ts_open[:2500], bars.open, bars.high, bars.low, bars.close, bars.volume, bars.contract,
                   strict=False):
        for row in stream.push(SourceBar(*bar)):
            assembler.push(row)
            assert row.ts_close == market.ts_close[i]
            assert assembler.decision == market.decision[i]
            if assembler.decision and i % 10 == 0:
                k, n = row.row_30m + 1, i + 1
                np.testing.assert_array_equal(assembler.tactical, market.tactical[n - spec.tactical.window:n])
                np.testing.assert_array_equal(assembler.strategic, market.strategic[k - spec.strategic.window:k])
                np.testing.assert_array_equal(assembler.regime, market.regime[k - spec.regime.window:k])
            i += 1
    assert market.decision[:i].sum() > 300


def test_a_mirrored_market_gives_mirrored_matrices(bars: Bars, market: MarketTable) -> None:
    """p -> c/p swaps highs with lows. Ticks, profile bins and points are not symmetric in log price, so columns
    agree closely rather than exactly (another node may be the nearest); a wrong parity would agree at -0.6."""
    pivot = bars.close[0] ** 2
    mirrored = replace(bars, open=pivot / bars.open, high=pivot / bars.low, low=pivot / bars.high,
                       close=pivot / bars.close)
    other = assemble(build(mirrored, SYNTH), market.schema, SYNTH)
    start = market.first_decision
    for name, first in (("tactical", start), ("strategic", 334), ("regime", 334)):
        spec = getattr(market.schema, name)
        image = (getattr(market, name)[:, spec.mirror] * spec.sign)[first:]
        theirs = getattr(other, name)[first:]
        for c, column in enumerate(spec.names):
            if image[:, c].std() == 0.0:
                assert theirs[:, c].std() == 0.0
                continue
            agreement = np.corrcoef(image[:, c], theirs[:, c])[0, 1]
            assert agreement > 0.6, f"{name} {column}: {agreement:.3f}"


@pytest.mark.slow
def test_a_year_of_real_data_has_no_gap_after_the_warm_up(data_root: Path) -> None:
    nq = instrument("NQ")
    bars = read_source(data_root / "nq_1m" / "nq_1m_2020.parquet", "NQ")
    build(bars.slice(0, 40_000), nq)
    begin = time.perf_counter()
    table = build(bars, nq)
    print(f"{len(table) / (time.perf_counter() - begin):.0f} base bars/s with the regime columns")
    market = assemble(table, Normaliser.fit(table, MatrixConfig(), int(table.ts_close[-1])), nq)
    np.testing.assert_array_equal(market.decision[market.first_decision:],
                                  ~table.filled[market.first_decision:])
    assert np.abs(market.regime).max() <= 5.0
