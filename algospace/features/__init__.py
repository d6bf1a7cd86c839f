"""From bars or ticks to feature tables: `build` for history, `FeatureStream` for live, one step for both."""

from algospace.features.bars import SourceBar
from algospace.features.config import FeatureConfig, FvgConfig, MlmiConfig, NwrqkConfig, SynergyConfig
from algospace.features.driver import FeatureRow, FeatureStream, build, build_from_ticks, concatenate
from algospace.features.indicator import Indicator
from algospace.features.store import read_table, schema_hash, write_table
from algospace.features.table import FeatureTable

__all__ = [
    "FeatureConfig",
    "FeatureRow",
    "FeatureStream",
    "FeatureTable",
    "FvgConfig",
    "Indicator",
    "MlmiConfig",
    "NwrqkConfig",
    "SourceBar",
    "SynergyConfig",
    "build",
    "build_from_ticks",
    "concatenate",
    "read_table",
    "schema_hash",
    "write_table",
]
