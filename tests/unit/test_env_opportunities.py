"""Opportunities and low volume nodes are read from the table as the design says."""

import numpy as np

from algospace.features import FeatureConfig, build
from algospace.features.matrices import MatrixConfig, Normaliser, assemble
from algospace.instruments import INSTRUMENTS
from envs.config import RiskEnvConfig
from envs.opportunities import low_volume_nodes, momentum_sides, opportunity_columns
from tests.env_market import random_table, source_bars

SYNTH = INSTRUMENTS["SYNTH"]


def test_low_volume_nodes_equal_the_feature_columns() -> None:
    features = build(source_bars(5_000), SYNTH, FeatureConfig())
    table = assemble(features, Normaliser.fit(features, MatrixConfig(), int(features.ts_close[-1])), SYNTH)
    nodes = low_volume_nodes(table)
    rows = np.flatnonzero(table.decision)
    slow = features.row_30m[rows]
    distance, strength = features.slow["lvn_distance"][slow], features.slow["lvn_strength"][slow]
    level = features.slow["close"][slow] + distance
    known = distance != 0.0
    assert known.mean() > 0.5
    expected = (level - features.base["close"][rows])[known]
    np.testing.assert_allclose(nodes[rows, 0][known], expected, atol=2e-3)
    np.testing.assert_allclose(nodes[rows, 1][known], strength[known], atol=1e-2)
    assert np.isnan(nodes[rows, 0][~known]).all()


def test_momentum_entries_are_where_the_return_changes_its_sign() -> None:
    table = random_table(3)
    sides = momentum_sides(table, 6)
    adjusted = table.close / np.cumprod(table.roll)
    for row in range(8, len(table)):
        now, before = adjusted[row] - adjusted[row - 6], adjusted[row - 1] - adjusted[row - 7]
        assert sides[row] == (np.sign(now) if now * before < 0.0 else 0)


def test_opportunities_lie_on_decision_rows_inside_the_split() -> None:
    table, config = random_table(4), RiskEnvConfig(momentum_bars=6)
    sides, following, cumulative = opportunity_columns(table, config, 40, 300)
    assert cumulative[-1] == 1.0
    for source in range(3):
        for row in range(len(table)):
            allowed = [r for r in range(max(row, 40), 301)
                       if table.decision[r] and (source == 2 or sides[source, r] != 0)]
            assert following[source, row] == (allowed[0] if allowed else -1)
