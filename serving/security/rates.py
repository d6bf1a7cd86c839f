"""How often: moving windows, kept in this replica's memory; rates are written as the `limits` library reads them.

The library's own storage in memory starts a thread for nearly every request, to forget what is over: a fifth of a
millisecond of each. Here that is forgotten when somebody comes.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable

import limits

from serving.access import Refused

_MANY_KEYS = 10_000


class TooMany(Refused):
    """429, with the whole seconds after which it is worth another try."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(429, f"too many requests; try again in {retry_after} s")
        self.retry_after = retry_after


class Rate:
    """One rate, for any number of keys (users, addresses): at most so many in any window of its length."""

    def __init__(self, text: str, clock: Callable[[], float] = time.monotonic) -> None:
        item = limits.parse(text)
        self._most, self._seconds, self._clock = item.amount, float(item.get_expiry()), clock
        # when each key came and was let in; the key that came last is last
        self._came: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def allows(self, key: str) -> bool:
        """Whether `key` may once more, now; counts it if so."""
        return self._wait(key) is None

    def take(self, key: str) -> None:
        """`allows`, or TooMany."""
        wait = self._wait(key)
        if wait is not None:
            raise TooMany(max(1, math.ceil(wait)))

    def _wait(self, key: str) -> float | None:
        """Seconds until `key` may come again; None, and counted, if it may now."""
        with self._lock:
            now = self._clock()
            came = self._came.setdefault(key, deque())
            self._came.move_to_end(key)
            while came and now - came[0] >= self._seconds:
                came.popleft()
            wait = None if len(came) < self._most else self._seconds - (now - came[0])
            if wait is None:
                came.append(now)
            self._forget(now)
            return wait

    def _forget(self, now: float) -> None:
        """Invented addresses would fill memory: keys whose windows are over go, and beyond _MANY_KEYS the one that
        has not come for longest, so that who is refused, and comes again, stays refused."""
        while len(self._came) > 1:
            came = next(iter(self._came.values()))
            if len(self._came) <= _MANY_KEYS and came and now - came[-1] < self._seconds:
                return
            self._came.popitem(last=False)
