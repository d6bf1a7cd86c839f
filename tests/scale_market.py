"""Small markets on disk and comparisons for the tests of block-wise features."""

from __future__ import annotations

import hashlib
from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from algospace.features import FeatureTable
from algospace.instruments import Instrument, instrument
from algospace.marketdata import Catalog
from algospace.marketdata.synthetic import generate, scenario_named
from algospace.types import Bars

SYNTH: Instrument = instrument("SYNTH")
CONTRACTS = ["A", "B", "C"]


@lru_cache(maxsize=8)
def rolling_bars(seed: int = 1, base_bars: int = 24_000) -> Bars:
    """Some four months of a market with breaks and missing bars, which rolls twice."""
    bars = generate(scenario_named("stress"), seed, base_bars).bars
    codes = np.searchsorted([len(bars) // 3, 2 * len(bars) // 3], np.arange(len(bars)), side="right")
    return replace(bars, contract=codes.astype(np.int32))


def write_catalog(root: Path, bars: Bars, symbol: str = "SYNTH") -> Path:
    """`bars` as a catalog."""
    Catalog(root).write(symbol, bars, CONTRACTS)
    return root


def assert_same(found: FeatureTable, expected: FeatureTable) -> None:
    """Equal in every column to the bit."""
    for field in fields(FeatureTable):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(b, dict):
            assert list(a) == list(b)
            for name in b:
                _same_array(a[name], b[name], f"{field.name} {name}")
        elif isinstance(b, np.ndarray):
            _same_array(a, b, field.name)
        else:
            assert a == b, field.name


def _same_array(found: Any, expected: Any, what: str) -> None:
    assert found.dtype == expected.dtype, what
    assert found.tobytes() == expected.tobytes(), what


def content(folder: Path) -> dict[str, str]:
    """Digest of every file of a partitioned table; the lock, which names a process, is none of it."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())
            if path.name != ".lock"}
