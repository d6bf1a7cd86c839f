"""The live twin of `relative_columns`: bars of other instruments and base rows, one event at a time."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from algospace.errors import ConfigError, InputError
from algospace.features import relative_kernel as kernel
from algospace.features.bars import SourceBar
from algospace.features.relative import RelativeConfig, make_params, relative_names
from algospace.snapshots import pack_arrays, unpack_all
from algospace.types import AnyArray, FloatArray

_NO_CONTRACT = -1


class RelativeStream:
    """Values of the relative columns, row by row, equal to `relative_columns` to the bit.

    `widths_ns`: name -> width of the bars given to `push_other`. Give each other bar when it has closed, before
    the base row of the same instant; base rows may come late (filled bars do), bars that closed after their
    ts_close wait. Counted, and changing nothing: `late` bars (not later than the one before), `invalid` ones (no
    positive price). `overdue` counts bars that came after a base row which history would have shown them to.
    """

    def __init__(self, widths_ns: Mapping[str, int], config: RelativeConfig | None = None) -> None:
        self.config = config or RelativeConfig()
        self.names = tuple(widths_ns)
        self._widths = dict(widths_ns)
        self.columns = relative_names(self.names, self.config)
        self._params = make_params(self.names, self.config)
        self._state = kernel.new_state(self._params)
        self._waiting: dict[str, deque[tuple[int, float]]] = {name: deque() for name in self.names}
        k = len(self.names)
        # of each other: roll factor and raw close of its last bar; its contract and ts_close
        self._roll = np.ones((k, 2))
        self._last = np.full((k, 2), kernel.NEVER)
        self._last[:, 0] = _NO_CONTRACT
        self._counts = np.zeros(3, np.int64)
        self._base_ts = np.full(1, kernel.NEVER)

    @property
    def late(self) -> int:
        """Bars dropped because they were not later than the one before."""
        return int(self._counts[0])

    @property
    def invalid(self) -> int:
        """Bars dropped for an impossible price."""
        return int(self._counts[1])

    @property
    def overdue(self) -> int:
        """Bars that a base row already given should have seen; they count from the next row on."""
        return int(self._counts[2])

    def push_other(self, name: str, bar: SourceBar) -> None:
        """A closed source bar of another instrument; a change of its contract is a roll."""
        k = self._number(name)
        if not all(0.0 < price < math.inf for price in (bar.open, bar.close)):
            self._counts[1] += 1
            return
        ts_close = bar.ts_open + self._widths[name]
        if ts_close <= self._last[k, 1]:
            self._counts[0] += 1
            return
        if self._last[k, 0] not in (_NO_CONTRACT, bar.contract):
            self._roll[k, 0] *= self._roll[k, 1] / bar.open
        self._last[k, 0], self._roll[k, 1] = bar.contract, bar.close
        self._take(k, name, ts_close, float(bar.close * self._roll[k, 0]))

    def push_other_row(self, name: str, ts_close: int, close: float, filled: bool = False) -> None:
        """A row of another instrument's feature stream (its close is adjusted); filled ones are left out."""
        k = self._number(name)
        if filled:
            return
        if not 0.0 < close < math.inf:
            self._counts[1] += 1
        elif ts_close <= self._last[k, 1]:
            self._counts[0] += 1
        else:
            self._take(k, name, ts_close, close)

    def push_base(self, ts_close: int, close: float) -> FloatArray:
        """The columns (in the order of `columns`) of the base row at `ts_close` with adjusted close `close`.

        InputError if the row is not later than the one before or has no positive close.
        """
        if ts_close <= self._base_ts[0] or not 0.0 < close < math.inf:
            raise InputError("base rows", f"row at {ts_close} is not later than the one before, or its close "
                                          f"({close}) is no price", "give every base row once, in order")
        self._base_ts[0] = ts_close
        due = [self._due(k, name, ts_close) for k, name in enumerate(self.names)]
        first = np.cumsum([0, *map(len, due)]).astype(np.int64)
        bars = [bar for part in due for bar in part]
        out = np.empty((len(self.columns), 1))
        if self.names:
            kernel.run(self._state, self._params, np.array([ts_close], np.int64), np.array([close], np.float64),
                       np.array([ts for ts, _ in bars], np.int64), np.array([p for _, p in bars], np.float64),
                       first, out)
        return out[:, 0]

    def snapshot(self) -> bytes:
        """The whole state; a stream of the same settings that restores it continues to the bit."""
        arrays: dict[str, AnyArray] = {name: getattr(self._state, name) for name in self._state._fields}
        arrays |= {"_roll": self._roll, "_last": self._last, "_counts": self._counts, "_base_ts": self._base_ts}
        for k, name in enumerate(self.names):
            arrays[f"_ts{k}"] = np.array([ts for ts, _ in self._waiting[name]], np.int64)
            arrays[f"_close{k}"] = np.array([close for _, close in self._waiting[name]], np.float64)
        return pack_arrays(self._identity(), arrays)

    def restore(self, snapshot: bytes) -> None:
        """Continue from `snapshot`; SchemaError if it is damaged or belongs to other settings or instruments."""
        arrays = unpack_all(self._identity(), snapshot, "relative state")
        self._state = kernel.RelativeState(*(arrays[name] for name in self._state._fields))
        self._roll, self._last = arrays["_roll"], arrays["_last"]
        self._counts, self._base_ts = arrays["_counts"], arrays["_base_ts"]
        for k, name in enumerate(self.names):
            pairs = zip(arrays[f"_ts{k}"].tolist(), arrays[f"_close{k}"].tolist(), strict=True)
            self._waiting[name] = deque(pairs)

    def _identity(self) -> dict[str, Any]:
        return {"widths_ns": self._widths, "config": self.config.digest()}

    def _number(self, name: str) -> int:
        if name not in self._widths:
            raise ConfigError(f"relative columns: no instrument '{name}' (there are: {', '.join(self.names)})")
        return self.names.index(name)

    def _take(self, k: int, name: str, ts_close: int, close: float) -> None:
        self._last[k, 1] = ts_close
        if ts_close + self._params.delay_ns[k] <= self._base_ts[0]:
            self._counts[2] += 1
        self._waiting[name].append((ts_close, close))

    def _due(self, k: int, name: str, now: int) -> list[tuple[int, float]]:
        """Bars known by `now`, oldest first; only the last one matters, but a new one must be there to be seen."""
        waiting = self._waiting[name]
        due = []
        while waiting and waiting[0][0] + int(self._params.delay_ns[k]) <= now:
            due.append(waiting.popleft())
        return due[-1:]
