"""Indicators beside the built-in pipeline: the general library and a user's own, one causal step each.

An indicator reads base bars, one at a time, after the pipeline has written them (adjusted prices, see `bars.BAR`),
and its columns follow the built-in ones in every feature row. History and live call the same `update`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numba as nb
import numpy as np
from numba.core.dispatcher import Dispatcher

from algospace.errors import ConfigError
from algospace.features.bars import BAR
from algospace.types import AnyArray, FloatArray


@dataclass(frozen=True)
class Indicator:
    """A causal state machine over base bars.

    columns: names of the values that `update` writes, in order.
    new_state: the state before the first bar: a numpy array, or a NamedTuple of arrays (nested, if need be), so
        that it can be saved; lengths never change.
    update(state, bar, out): takes one bar (a record of `bars.BAR`) and fills `out` (columns,), NaN in the warm-up.
        Compiled with `numba.njit` it runs compiled over history; a plain function works, slower.
    run(state, bars, out): `update` over bars (n,) into out (columns, n), where there is a faster way; bit-equal.
    version: changes whenever the values do; part of the table's schema.
    """

    name: str
    columns: tuple[str, ...]
    new_state: Callable[[], Any]
    update: Callable[[Any, Any, FloatArray], None]
    run: Callable[[Any, AnyArray, FloatArray], None] | None = None
    version: str = "1"

    def history(self, state: Any, bars: AnyArray) -> FloatArray:
        """(columns, n) values of consecutive bars (n,), moving `state` on."""
        out = np.full((len(self.columns), bars.size), np.nan)
        if self.run is not None:
            self.run(state, bars, out)
        elif isinstance(self.update, Dispatcher):
            _run_compiled(self.update, state, bars, out)
        else:
            records = bars.view(np.recarray)
            for i in range(bars.size):
                self.update(state, records[i], out[:, i])
        return out


@nb.njit
def _run_compiled(update: Any, state: Any, bars: Any, out: FloatArray) -> None:
    row = np.empty(out.shape[0])
    for i in range(bars.size):
        row[:] = np.nan
        update(state, bars[i], row)
        out[:, i] = row


def bars_of_rows(ts_close: AnyArray, contract: AnyArray, base: FloatArray) -> AnyArray:
    """Records of `bars.BAR` (n,) from base rows: `base` (at least 7, n) in the order of `columns.BAR_COLUMNS`."""
    bars = np.zeros(ts_close.size, BAR)
    bars["ts_close"], bars["contract"] = ts_close, contract
    for place, name in enumerate(("open", "high", "low", "close", "volume", "filled", "factor")):
        bars[name] = base[place]
    return bars


def digest_with(config_digest: str, indicators: Sequence[Indicator]) -> str:
    """The digest of a feature configuration together with further indicators."""
    if not indicators:
        return config_digest
    parts = [config_digest, *(f"{i.name}:{','.join(i.columns)}:{i.version}" for i in indicators)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def check_names(built_in: Sequence[str], indicators: Sequence[Indicator]) -> None:
    """ConfigError if two columns would have one name."""
    seen = set(built_in)
    for indicator in indicators:
        for column in indicator.columns:
            if column in seen:
                raise ConfigError(f"indicator '{indicator.name}': column '{column}' exists already; rename it")
            seen.add(column)
