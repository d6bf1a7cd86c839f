"""The feature table: what is known at every base bar's close, before normalisation."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from algospace.errors import ConfigError
from algospace.types import BoolArray, FloatArray, Int32Array, IntArray


@dataclass(frozen=True)
class FeatureTable:
    """Feature rows of one instrument.

    base: column -> (n,) float64, one row per base bar; prices `open, high, low, close` are roll-adjusted,
        raw price = adjusted / `roll_factor`; the 30-minute columns are there too, held until the next one.
    slow: column -> (m,) float64, one row per 30-minute bar (its own close, its own time features).
    row_30m: (n,) index of the last 30-minute bar visible at each base row, -1 before the first.
    contract: (n,) contract code at the bar's close.
    config_digest: of the FeatureConfig that the rows were computed with; part of the schema hash.
    Rows of the warm-up are kept, with NaN.
    """

    symbol: str
    ts_close: IntArray
    filled: BoolArray
    contract: Int32Array
    base: dict[str, FloatArray]
    ts_close_30m: IntArray
    slow: dict[str, FloatArray]
    row_30m: Int32Array
    config_digest: str = ""

    def with_columns(self, columns: Mapping[str, FloatArray], version: str) -> FeatureTable:
        """The same rows with further base columns (n,), NaN where unknown.

        `version` says what the columns mean (source, settings) and becomes part of the schema's digest.
        ConfigError if a name is taken; ValueError if a length differs.
        """
        taken = sorted(set(columns) & set(self.base))
        if taken:
            raise ConfigError(f"column '{taken[0]}' exists already in the features of {self.symbol}; rename it")
        if any(values.shape != self.ts_close.shape for values in columns.values()):
            raise ValueError(f"further columns must have one value for each of the {len(self)} base rows")
        digest = hashlib.sha256("\n".join([self.config_digest, *columns, version]).encode()).hexdigest()
        return replace(self, base={**self.base, **columns}, config_digest=digest)

    def __len__(self) -> int:
        return int(self.ts_close.size)
