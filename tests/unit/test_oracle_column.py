"""The oracle column shows the next return, on request only; no table or network with it leaves the laboratory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from agents.core import CoreNet
from algospace.errors import AlgoSpaceError, ConfigError, SchemaError
from algospace.features import build
from algospace.features.market_table import MarketTable
from algospace.features.matrices import MatrixAssembler, assemble
from algospace.features.matrix_schema import MatrixConfig
from algospace.features.oracle import ORACLE_COLUMN, has_oracle, oracle_scale, refuse_oracle, with_oracle
from algospace.instruments import instrument
from algospace.marketdata.synthetic import generate
from serving.bundle import load_bundle, network_shapes
from serving.export import write_bundle
from tests.serving_market import random_bundle, random_networks
from tests.training_market import MarketOnDisk


@pytest.fixture(scope="module")
def table(training_market: MarketOnDisk) -> MarketTable:
    return training_market.table


def test_the_column_is_the_next_bars_return_and_nothing_else_changes(table: MarketTable) -> None:
    scale = oracle_scale(table)
    shown = with_oracle(table, scale)
    assert shown.schema.tactical.names == (*table.schema.tactical.names, ORACLE_COLUMN)
    np.testing.assert_array_equal(shown.tactical[:, :-1], table.tactical)
    close = np.asarray(table.close)
    expected = np.clip((close[1:] / close[:-1] - 1.0) / scale, -table.schema.clip, table.schema.clip)
    np.testing.assert_allclose(shown.tactical[:-1, -1], expected, rtol=1e-5, atol=1e-6)
    assert shown.tactical[-1, -1] == 0.0
    assert shown.strategic is table.strategic
    assert shown.schema.tactical.sign[-1] == -1.0  # mirrored, it changes sign like the return it shows


def test_the_mark_survives_the_disk(table: MarketTable, tmp_path: Path) -> None:
    with_oracle(table, 1e-3).save(tmp_path / "marked")
    assert has_oracle(MarketTable.load(tmp_path / "marked").schema)
    assert not has_oracle(table.schema)


def test_no_configuration_can_name_it() -> None:
    for matrix in ("tactical_extra", "strategic", "regime"):
        with pytest.raises(ValueError, match=f"unknown column '{ORACLE_COLUMN}'"):
            MatrixConfig(**{matrix: (ORACLE_COLUMN,)})


def test_no_feature_pipeline_computes_it(table: MarketTable) -> None:
    spec, schema = instrument("SYNTH"), with_oracle(table, 1e-3).schema
    features = build(generate("easy", 2, 3_000).bars, spec)
    with pytest.raises(ConfigError, match=ORACLE_COLUMN):
        assemble(features, schema, spec)
    with pytest.raises(AlgoSpaceError, match=ORACLE_COLUMN):
        MatrixAssembler(schema, spec, list(features.base), list(features.slow))


def test_no_bundle_is_written_of_it(table: MarketTable, tmp_path: Path) -> None:
    spec = load_bundle(random_bundle(tmp_path / "good").directory).manifest
    core, _, regime = random_networks()
    schema = with_oracle(table, 1e-3).schema
    fed = CoreNet(network_shapes(schema, core.shapes.regime), core.config)
    with pytest.raises(SchemaError, match="shows the future on purpose"):
        write_bundle(tmp_path / "bad", spec, schema, fed, None, regime)
    assert not (tmp_path / "bad").exists()


def test_it_is_shown_once_and_on_a_sensible_scale(table: MarketTable) -> None:
    shown = with_oracle(table, 1e-3)
    with pytest.raises(SchemaError, match="shows the future"):
        with_oracle(shown, 1e-3)
    with pytest.raises(SchemaError, match="shows the future"):
        refuse_oracle(shown.schema, "a table")
    with pytest.raises(ValueError, match="positive"):
        with_oracle(table, 0.0)
