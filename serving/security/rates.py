"""How often: moving windows of the `limits` library, kept in this replica's memory."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict

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
        self._keys: OrderedDict[str, None] = OrderedDict()  # the one that came last is last
        self._lock = threading.Lock()

    def allows(self, key: str) -> bool:
        """Whether `key` may once more, now; counts it if so."""
        with self._lock:
            self._keys[key] = None
            self._keys.move_to_end(key)
            while len(self._keys) > _MANY_KEYS:
                self._forget(self._keys.popitem(last=False)[0])
        return self._limiter.hit(self._item, key)

    def take(self, key: str) -> None:
        """`allows`, or TooMany."""
        if not self.allows(key):
            reset = self._limiter.get_window_stats(self._item, key).reset_time
            raise TooMany(max(1, math.ceil(reset - time.time())))

    def _forget(self, key: str) -> None:
        """The library keeps a list for every key it has ever seen; invented addresses would fill memory. The key
        that has not come for longest goes, so that who is refused, and comes again, stays refused."""
        self._storage.clear(self._item.key_for(key))
