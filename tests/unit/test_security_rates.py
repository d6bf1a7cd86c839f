"""Rates are kept for a bounded number of keys, and many keys do not set everybody free."""

from __future__ import annotations

import pytest

from serving.security import rates
from serving.security.rates import Rate, TooMany


def test_the_key_that_came_longest_ago_is_forgotten_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "_MANY_KEYS", 10)
    rate = Rate("2/hour")
    for _ in range(2):
        rate.take("early")
        rate.take("insistent")
    for number in range(40):
        assert rate.allows(f"invented {number}")
        with pytest.raises(TooMany):
            rate.take("insistent")
    assert len(rate._keys) == len(rate._storage.events) == 10
    assert rate.allows("early")
    assert rate.allows("invented 39")
    assert not rate.allows("invented 39")
