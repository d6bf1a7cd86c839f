"""Slow series from outside the market (volatility index, calendar, news, surfaces, corporate actions), as columns.

What decides is when a value became known, never what it is about: a row sees a publication from the first bar that
closes at or after `published`. The file, Parquet or CSV, has one row per publication:

    published   when it became known, with a time zone                    required
    name        of the series, a column name: a-z, 0-9, _                 required
    value       float64, finite                                           required
    event       what time it is about, with a time zone                   default: published
    kind        level | event | score | corporate_action                  default: level
    tenor       of a surface point, for example 30d (also: `horizon`)     optional
    delta       of a surface point, for example -25                       optional

level             a published value. Columns NAME, the value for the latest event known, and NAME_age, hours since
                  its publication. A later publication for one event revises it, from its publication on.
event             a scheduled event; value: its importance, 0 cancels it. Columns NAME_since and NAME_until, hours
                  from the last and to the next event by the schedule published so far.
score             an item of news; value: its score. Columns NAME, the sum of the scores, each halved every
                  `half_life_hours`, and NAME_age, hours since the last item.
corporate_action  value: the price factor (0.5 for a 2-for-1 split), from `event` on. Columns NAME_factor, the
                  product of all factors in effect, NAME_pending, of those announced only, and NAME_until, hours
                  to the next.

A surface point is a level of its own, called NAME_TENOR_DELTA. Hours are capped; NaN is a level before its
first value only. The steps are in `outside_states`; history and stream run the same ones.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from heapq import heappop, heappush
from itertools import pairwise

import numpy as np

from algospace.features.outside_series import (
    OutsideKey,
    OutsideSeries,
    column_names,
    daily_publications,
    load_outside,
    outside_series,
)
from algospace.features.outside_states import NEVER, OutsideConfig, new_state
from algospace.types import FloatArray, IntArray

__all__ = [
    "OutsideConfig",
    "OutsideKey",
    "OutsideSeries",
    "OutsideStream",
    "daily_publications",
    "load_outside",
    "outside_columns",
    "outside_series",
    "outside_version",
]


def outside_version(keys: Sequence[OutsideKey], config: OutsideConfig) -> str:
    """What the columns mean, for `FeatureTable.with_columns`: names, kinds and settings. Not the publications
    themselves, or every new one would make a model refuse its table."""
    text = "\n".join([*(f"{key.name}:{key.kind}" for key in keys), config.digest()])
    return f"outside {hashlib.sha256(text.encode()).hexdigest()}"


def outside_columns(
    series: OutsideSeries, ts_close: IntArray, config: OutsideConfig | None = None
) -> dict[str, FloatArray]:
    """Columns (n,) as known at each `ts_close` (n,) (UTC ns, not decreasing): by publications up to it."""
    config = config or OutsideConfig()
    columns: dict[str, FloatArray] = {}
    for number, key in enumerate(series.keys):
        mine = series.take(series.key == number)
        rows = np.searchsorted(ts_close, mine.published, side="left")  # the first row that knows each
        bounds = [0, *np.unique(rows).tolist(), ts_close.size]
        state = new_state(key, config)
        parts: list[list[FloatArray]] = []
        taken = 0
        for start, stop in pairwise(bounds):
            while taken < len(mine) and rows[taken] <= start:
                state.apply(int(mine.published[taken]), int(mine.event[taken]), float(mine.value[taken]))
                taken += 1
            parts.append(state.values(ts_close[start:stop]))
        for name, values in zip(column_names(key), zip(*parts, strict=True), strict=True):
            columns[name] = np.concatenate(values)
    return columns


class OutsideStream:
    """The same columns live: publications as they are received, values at every bar's close.

    A publication counts from the first `at` whose time is not before it. One that is received after that row was
    asked for counts from the next row on, and in `late`.
    """

    def __init__(self, keys: Sequence[OutsideKey], config: OutsideConfig | None = None) -> None:
        self.config = config or OutsideConfig()
        self.keys = tuple(keys)
        self.late = 0
        self._states = [new_state(key, self.config) for key in self.keys]
        self._place = {key.name: i for i, key in enumerate(self.keys)}
        self._waiting: list[tuple[int, int, float, int]] = []
        self._now = NEVER

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the values, in order."""
        return tuple(name for key in self.keys for name in column_names(key))

    def push(self, name: str, published: int, value: float, event: int | None = None) -> None:
        """Take a publication of the series `name`; times UTC ns. KeyError for a series that is not in `keys`,
        ValueError for a value that is not finite."""
        if not math.isfinite(value):
            raise ValueError(f"{name}: value {value} is not a finite number")
        self.late += published <= self._now
        heappush(self._waiting, (published, published if event is None else event, value, self._place[name]))

    def at(self, ts_close: int) -> Mapping[str, float]:
        """The columns at a bar's close; ValueError if the close before was later."""
        if ts_close < self._now:
            raise ValueError(f"close {ts_close} after {self._now}: time runs backwards")
        self._now = ts_close
        while self._waiting and self._waiting[0][0] <= ts_close:
            published, event, value, place = heappop(self._waiting)
            self._states[place].apply(published, event, value)
        when = np.array([ts_close], np.int64)
        values = [column[0] for state in self._states for column in state.values(when)]
        return dict(zip(self.columns, map(float, values), strict=True))
