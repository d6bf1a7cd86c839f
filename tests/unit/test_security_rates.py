"""Rates are moving windows, kept for a bounded number of keys; many keys do not set everybody free."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from serving.security import rates
from serving.security.rates import Rate, TooMany
from serving.security.settings import RateSettings


class Clock:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


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
    assert len(rate._came) == 10
    assert rate.allows("early")
    assert rate.allows("invented 39")
    assert not rate.allows("invented 39")


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0.0, 40.0)), max_size=60), st.integers(1, 5))
def test_no_window_holds_more_than_the_rate_and_none_less_than_it_could(arrivals: list[tuple[str, float]],
                                                                        most: int) -> None:
    clock = Clock()
    rate = Rate(f"{most}/minute", clock)
    let_in: dict[str, list[float]] = {"a": [], "b": []}
    for key, pause in arrivals:
        clock.now += pause
        in_window = [at for at in let_in[key] if clock.now - at < 60.0]
        allowed = rate.allows(key)
        assert allowed == (len(in_window) < most)
        if allowed:
            let_in[key].append(clock.now)


def test_who_comes_after_the_named_seconds_is_let_in() -> None:
    clock = Clock()
    rate = Rate("2/minute", clock)
    rate.take("a")
    clock.now += 20.5
    rate.take("a")
    with pytest.raises(TooMany) as refused:
        rate.take("a")
    assert refused.value.retry_after == 40
    clock.now += 39.0
    assert not rate.allows("a")
    clock.now += 1.0
    assert rate.allows("a")
    assert not rate.allows("a")


def test_keys_whose_windows_are_over_are_forgotten() -> None:
    clock = Clock()
    rate = Rate("5/minute", clock)
    for number in range(100):
        rate.take(f"once {number}")
    clock.now += 60.0
    rate.take("again")
    assert list(rate._came) == ["again"]


@pytest.mark.parametrize("text", ["0/minute", "0 per 2 hours", "soon"])
def test_a_rate_that_lets_nobody_in_is_refused_when_it_is_read(text: str) -> None:
    """It was accepted, and every request was a fault of the service."""
    with pytest.raises(ValidationError, match=r"10/minute|at least 1") as refused:
        RateSettings(requests=text)
    assert refused.value.error_count() == 1


def test_counting_starts_no_thread() -> None:
    before, rate = threading.active_count(), Rate("100/second")
    for _ in range(50):
        rate.take("a")
    assert threading.active_count() == before
