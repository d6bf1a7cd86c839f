"""How often: moving windows of the `limits` library, kept in this replica's memory."""

from __future__ import annotations

import math
import time

import limits
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from serving.access import Refused

_MANY_KEYS = 10_000


class TooMany(Refused):
    """429, with the whole seconds after which it is worth another try."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(429, f"too many requests; try again in {retry_after} s")
        self.retry_after = retry_after


class Rate:
    """One rate, for any number of keys (users, addresses)."""

    def __init__(self, text: str) -> None:
        self._item = limits.parse(text)
        self._storage = MemoryStorage()
        self._limiter = MovingWindowRateLimiter(self._storage)

    def allows(self, key: str) -> bool:
        """Whether `key` may once more, now; counts it if so."""
        if len(self._storage.events) > _MANY_KEYS:
            self._forget()
        return self._limiter.hit(self._item, key)

    def take(self, key: str) -> None:
        """`allows`, or TooMany."""
        if not self.allows(key):
            reset = self._limiter.get_window_stats(self._item, key).reset_time
            raise TooMany(max(1, math.ceil(reset - time.time())))

    def _forget(self) -> None:
        """The library keeps an empty list for every key it has ever seen; invented addresses would fill memory."""
        for key in [key for key, entries in tuple(self._storage.events.items()) if not entries]:
            self._storage.clear(key)
        if len(self._storage.events) > _MANY_KEYS:  # that many within one window: an attack from many addresses
            self._storage.reset()
