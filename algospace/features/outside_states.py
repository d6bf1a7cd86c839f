"""The steps from publications to columns, for history and stream alike: one state per series, fed in the order in
which things became known, asked for the values at times between two publications."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Callable
from typing import Protocol

import numpy as np
from pydantic import Field

from algospace.config import FrozenConfig
from algospace.features.outside_series import OutsideKey
from algospace.types import HOUR_NS, FloatArray, IntArray

NEVER = np.iinfo(np.int64).min


class OutsideConfig(FrozenConfig):
    """How outside series become columns. Caps keep an age from growing without end where a source falls silent."""

    max_age_hours: float = Field(default=720.0, gt=0)
    max_event_hours: float = Field(default=168.0, gt=0)
    half_life_hours: float = Field(default=24.0, gt=0)


class State(Protocol):
    """What is known of one series."""

    def apply(self, published: int, event: int, value: float) -> None:
        """Take a publication."""

    def values(self, ts: IntArray) -> list[FloatArray]:
        """Columns (n,) at times (n,) at or after the last publication and before the next."""


def new_state(key: OutsideKey, config: OutsideConfig) -> State:
    """Before the first publication."""
    makers: dict[str, Callable[[OutsideConfig], State]] = {
        "level": _Level, "score": _Score, "event": _Events, "corporate_action": _Actions}
    return makers[key.kind](config)


class _Level:
    """The value for the latest event known; of one event the latest publication."""

    def __init__(self, config: OutsideConfig) -> None:
        self._cap = config.max_age_hours
        self._latest = NEVER, NEVER  # event, published
        self._value = math.nan

    def apply(self, published: int, event: int, value: float) -> None:
        if (event, published) >= self._latest:
            self._latest, self._value = (event, published), value

    def values(self, ts: IntArray) -> list[FloatArray]:
        age = np.full(ts.size, np.nan) if self._latest[0] == NEVER else _hours(ts - self._latest[1], self._cap)
        return [np.full(ts.size, self._value), age]


class _Score:
    """Sum of scores that halve every `half_life_hours`, as of the time of the last item."""

    def __init__(self, config: OutsideConfig) -> None:
        self._cap = config.max_age_hours
        self._rate = math.log(2.0) / (config.half_life_hours * HOUR_NS)
        self._last, self._sum = NEVER, 0.0

    def apply(self, published: int, event: int, value: float) -> None:
        if self._last == NEVER:
            self._last, self._sum = published, value
        elif published >= self._last:
            self._sum = self._sum * math.exp(-self._rate * (published - self._last)) + value
            self._last = published
        else:  # received late, behind a later item
            self._sum += value * math.exp(-self._rate * (self._last - published))

    def values(self, ts: IntArray) -> list[FloatArray]:
        if self._last == NEVER:
            return [np.zeros(ts.size), np.full(ts.size, self._cap)]
        # math.exp one by one: a vectorised exp may differ in the last bit with the length of its array
        decay = np.array([math.exp(-self._rate * dt) for dt in (ts - self._last).tolist()], np.float64)
        return [self._sum * decay, _hours(ts - self._last, self._cap)]


class _Schedule:
    """Events in order of time, each with its latest published value; 0 cancels."""

    def __init__(self) -> None:
        self.times: list[int] = []
        self._latest: dict[int, tuple[int, float]] = {}

    def apply(self, published: int, event: int, value: float) -> None:
        before, old = self._latest.get(event, (NEVER, 0.0))
        if published < before:
            return  # received late, revised already
        self._latest[event] = published, value
        if old == 0.0 and value != 0.0:
            insort(self.times, event)
        elif old != 0.0 and value == 0.0:
            self.times.remove(event)

    def value(self, event: int) -> float:
        return self._latest[event][1]


class _Events:
    """Scheduled events that were not cancelled."""

    def __init__(self, config: OutsideConfig) -> None:
        self._cap = config.max_event_hours
        self._schedule = _Schedule()

    def apply(self, published: int, event: int, value: float) -> None:
        self._schedule.apply(published, event, value)

    def values(self, ts: IntArray) -> list[FloatArray]:
        times = np.array(self._schedule.times, np.int64)
        following = np.searchsorted(times, ts, side="right")
        return [_distance(ts, times, following - 1, self._cap), _distance(ts, times, following, self._cap)]


class _Actions:
    """Corporate actions: a factor counts from its event on, or from its publication if that was later."""

    def __init__(self, config: OutsideConfig) -> None:
        self._cap = config.max_event_hours
        self._schedule = _Schedule()

    def apply(self, published: int, event: int, value: float) -> None:
        self._schedule.apply(published, event, value)

    def values(self, ts: IntArray) -> list[FloatArray]:
        times = self._schedule.times
        factors = np.array([self._schedule.value(event) for event in times], np.float64)
        products = np.concatenate([[1.0], np.cumprod(factors)])  # of the first k actions
        rest = np.concatenate([[1.0], np.cumprod(factors[::-1])])[::-1]  # of those from the k-th on
        array = np.array(times, np.int64)
        following = np.searchsorted(array, ts, side="right")
        return [products[following], rest[following], _distance(ts, array, following, self._cap)]


def _hours(ns: IntArray, cap: float) -> FloatArray:
    return np.asarray(np.minimum(ns / HOUR_NS, cap))


def _distance(ts: IntArray, times: IntArray, at: IntArray, cap: float) -> FloatArray:
    """Hours between each time and the event at its index, `cap` where there is none."""
    exists = (at >= 0) & (at < times.size)
    result = np.full(ts.size, cap)
    result[exists] = _hours(np.abs(ts[exists] - times[at[exists]]), cap)
    return result
