"""The registry of the pipeline's own columns covers each exactly once, with its true warm-up."""

from __future__ import annotations

import numpy as np

from algospace.features import build, columns
from algospace.features.library import BUILT_IN, describe_built_in
from algospace.instruments import instrument
from algospace.marketdata.synthetic import generate


def test_every_column_of_the_pipeline_is_described_once_in_order() -> None:
    names = [column.name for column in describe_built_in()]
    assert tuple(names) == columns.base_columns(True)
    assert len(BUILT_IN) == len(names)
    for column in describe_built_in():
        for text in (column.formula, column.unit, column.source, column.family):
            assert text.strip(), column


def test_the_first_value_stands_where_the_registry_says() -> None:
    table = build(generate("easy", 5, 4000, "5m").bars, instrument("SYNTH"))
    for column in describe_built_in():
        values = (table.slow if column.clock == "30m" else table.base)[column.name]
        assert int(np.argmax(np.isfinite(values))) == column.warm_up, column.name
        assert np.isfinite(values[column.warm_up:]).all(), column.name
