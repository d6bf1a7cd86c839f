"""Time is passed in: a live clock and a clock that a replay moves."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """The source of `now` for everything that must not read the wall clock itself."""

    def now_ns(self) -> int:
        """Current time, int64 nanoseconds UTC."""
        ...


class LiveClock:
    """The machine's own clock."""

    def now_ns(self) -> int:
        return time.time_ns()


class ReplayClock:
    """A clock that stands still until `set` moves it forward."""

    def __init__(self, now_ns: int = 0) -> None:
        self._now_ns = now_ns

    def now_ns(self) -> int:
        return self._now_ns

    def set(self, now_ns: int) -> None:
        """Move to `now_ns`; raises ValueError if that is in the past."""
        if now_ns < self._now_ns:
            raise ValueError(f"a replay clock cannot go back from {self._now_ns} to {now_ns}")
        self._now_ns = now_ns
