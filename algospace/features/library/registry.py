"""The columns of the library, by family and by name."""

from __future__ import annotations

from algospace.features.library import momentum, relative, returns, temporal, trend, volatility, volume
from algospace.features.library.column import Column

# In the order of the rows that `step` writes.
FAMILIES: dict[str, tuple[Column, ...]] = {
    "returns": returns.COLUMNS,
    "trend": trend.COLUMNS,
    "momentum": momentum.COLUMNS,
    "volatility": volatility.COLUMNS,
    "volume": volume.COLUMNS,
    "temporal": temporal.COLUMNS,
    "relative": relative.COLUMNS,
}
REGISTRY: dict[str, Column] = {column.name: column for family in FAMILIES.values() for column in family}
NAMES: tuple[str, ...] = tuple(REGISTRY)


def describe() -> list[Column]:
    """What is known of every column, in order."""
    return list(REGISTRY.values())
