"""The bus: typed, ordered, once per subscriber, no recursion, failures isolated, counted and reported."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from algospace.events import EventBus, NewTick, ShutdownRequest, SystemErrorEvent, TimeAdvanced


class Ping(NamedTuple):
    number: int


class Pong(NamedTuple):
    number: int


def test_dispatch_is_by_exact_class_in_order_of_subscription() -> None:
    bus, seen = EventBus(), []
    bus.subscribe(Ping, lambda e: seen.append(("first", e)))
    bus.subscribe(Ping, lambda e: seen.append(("second", e)))
    bus.subscribe(Pong, lambda e: seen.append(("other", e)))
    bus.publish(Ping(1))
    assert seen == [("first", Ping(1)), ("second", Ping(1))]
    bus.publish(TimeAdvanced(1))  # nobody listens
    assert len(seen) == 2


def test_a_subscriber_is_called_once_however_often_it_subscribes() -> None:
    class Listener:
        calls = 0

        def on_ping(self, _event: Ping) -> None:
            self.calls += 1

    bus, listener = EventBus(), Listener()
    bus.subscribe(Ping, listener.on_ping)
    bus.subscribe(Ping, listener.on_ping)  # another bound method object, the same subscriber
    bus.publish(Ping(1))
    assert listener.calls == 1
    bus.unsubscribe(Ping, listener.on_ping)
    bus.publish(Ping(2))
    assert listener.calls == 1


def test_published_by_a_handler_is_delivered_after_the_present_event() -> None:
    bus, seen = EventBus(), []

    def chatty(event: Ping) -> None:
        if event.number < 3:
            bus.publish(Ping(event.number + 1))
            bus.publish(Pong(event.number))
        seen.append(("chatty", event.number))

    bus.subscribe(Ping, chatty)
    bus.subscribe(Ping, lambda e: seen.append(("late", e.number)))
    bus.subscribe(Pong, lambda e: seen.append(("pong", e.number)))
    bus.publish(Ping(1))
    assert seen == [("chatty", 1), ("late", 1), ("chatty", 2), ("late", 2), ("pong", 1),
                    ("chatty", 3), ("late", 3), ("pong", 2)]
    assert not bus.busy


def test_a_chain_of_events_does_not_recurse() -> None:
    bus, last = EventBus(), []
    bus.subscribe(Ping, lambda e: bus.publish(Ping(e.number + 1)) if e.number < 50_000 else last.append(e.number))
    bus.publish(Ping(0))
    assert last == [50_000]


def test_a_failing_handler_is_isolated_counted_and_reported() -> None:
    bus, seen, errors = EventBus(), [], []

    def broken(event: Ping) -> None:
        raise ValueError(f"no {event.number}\nsecond line")

    bus.subscribe(Ping, broken, "my.handler")
    bus.subscribe(Ping, lambda e: seen.append(e.number))
    bus.subscribe(SystemErrorEvent, errors.append)
    for number in range(3):
        bus.publish(Ping(number))
    assert seen == [0, 1, 2]
    assert bus.failures == {"my.handler": 3}
    assert errors[2] == SystemErrorEvent("my.handler", "Ping", "ValueError", "no 2 second line", 3)


def test_a_failing_reporter_does_not_report_itself() -> None:
    bus, errors = EventBus(), []

    def broken(event: object) -> None:
        raise RuntimeError("broken")

    bus.subscribe(Ping, broken, "worker")
    bus.subscribe(SystemErrorEvent, broken, "reporter")
    bus.subscribe(SystemErrorEvent, errors.append)
    bus.publish(Ping(1))
    assert bus.failures == {"worker": 1, "reporter": 1}
    assert [e.source for e in errors] == ["worker"]


def test_a_report_whose_consequences_fail_comes_to_an_end() -> None:
    """An alert per error, and sending alerts is what fails."""
    bus, errors = EventBus(), []

    def broken(event: object) -> None:
        raise RuntimeError("broken")

    bus.subscribe(Ping, broken, "worker")
    bus.subscribe(SystemErrorEvent, lambda _e: bus.publish(Pong(0)))
    bus.subscribe(SystemErrorEvent, errors.append)
    bus.subscribe(Pong, broken, "sender")
    bus.publish(Ping(1))
    assert [e.source for e in errors] == ["worker", "sender"]
    assert bus.failures == {"worker": 1, "sender": 2}
    bus.publish(Ping(1))
    assert [e.source for e in errors] == ["worker", "sender"] * 2


def test_unsubscribing_in_a_handler_starts_with_the_next_event() -> None:
    bus, seen = EventBus(), []
    bus.subscribe(Ping, lambda _e: bus.unsubscribe(Ping, seen.append))
    bus.subscribe(Ping, seen.append)
    for number in range(2):
        bus.publish(Ping(number))
    assert seen == [Ping(0)]


def test_what_cannot_be_a_handler_is_not_half_subscribed() -> None:
    class Unhashable:
        __hash__ = None  # type: ignore[assignment]
        calls = 0

        def __call__(self, _event: Ping) -> None:
            self.calls += 1

    bus, handler = EventBus(), Unhashable()
    with pytest.raises(TypeError):
        bus.subscribe(Ping, handler)
    bus.publish(Ping(1))
    assert handler.calls == 0


def test_subscribing_in_a_handler_starts_with_the_next_event() -> None:
    bus, seen = EventBus(), []
    bus.subscribe(Ping, lambda _e: bus.subscribe(Ping, seen.append))
    bus.publish(Ping(1))
    assert seen == []


def test_an_interrupt_passes_and_what_was_queued_comes_with_the_next_event() -> None:
    bus, seen = EventBus(), []

    def interrupted(_event: Ping) -> None:
        bus.publish(Pong(1))
        raise KeyboardInterrupt

    bus.subscribe(Ping, interrupted)
    bus.subscribe(Pong, seen.append)
    bus.subscribe(ShutdownRequest, seen.append)
    with pytest.raises(KeyboardInterrupt):
        bus.publish(Ping(1))
    bus.publish(ShutdownRequest("ctrl-c"))
    assert seen == [Pong(1), ShutdownRequest("ctrl-c")]


def test_events_are_immutable() -> None:
    with pytest.raises(AttributeError):
        NewTick("ES", 1, 2.0).price = 3.0  # type: ignore[misc]
