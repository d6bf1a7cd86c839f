"""The kernel: needs first, three phases, one-line reasons, reverse shutdown, one snapshot."""

from __future__ import annotations

import pytest

from algospace.errors import ConfigError, InternalError, SchemaError
from algospace.events import EventBus, ShutdownRequest, SystemErrorEvent
from algospace.kernel import Component, Driver, Kernel


class Part(Component):
    """Writes what happens to it into a common log; fails where told to."""

    def __init__(self, name: str, log: list[str], fails: str = "", error: Exception | None = None) -> None:
        self.name, self.log, self.fails = name, log, fails
        self.error = error or RuntimeError("broken\nfor good")
        self.state = b""

    def _step(self, phase: str) -> None:
        self.log.append(f"{self.name}.{phase}")
        if phase == self.fails:
            raise self.error

    def register(self, bus: EventBus) -> None:
        self._step("register")

    def connect(self) -> None:
        self._step("connect")

    def warm_up(self) -> None:
        self._step("warm_up")

    def shutdown(self) -> None:
        self._step("shutdown")

    def snapshot(self) -> bytes:
        return self.state

    def restore(self, blob: bytes) -> None:
        if self.fails == "restore":
            raise SchemaError("other configuration")
        self.state = blob


class Source(Driver):
    def __init__(self, bus: EventBus, events: list[object]) -> None:
        self.bus, self.events, self.stopped = bus, events, False

    def run(self) -> None:
        while self.events and not self.stopped:
            self.bus.publish(self.events.pop(0))

    def stop(self) -> None:
        self.stopped = True


def test_three_phases_in_order_of_needs_and_reverse_shutdown() -> None:
    log: list[str] = []
    kernel = Kernel(EventBus())
    kernel.register("c", Part("c", log), requires=("b",))
    kernel.register("a", Part("a", log))
    kernel.register("b", Part("b", log), requires=("a",))
    assert kernel.order == ("a", "b", "c")
    with kernel:
        pass
    names = "abc"
    assert log == [f"{n}.{phase}" for phase in ("register", "connect", "warm_up") for n in names] + [
        "c.shutdown", "b.shutdown", "a.shutdown"]


@pytest.mark.parametrize("phase", ["register", "connect", "warm_up"])
def test_a_failing_component_stops_start_up_and_what_started_is_shut_down(phase: str) -> None:
    log: list[str] = []
    bus, errors = EventBus(), []
    bus.subscribe(SystemErrorEvent, errors.append)
    kernel = Kernel(bus)
    kernel.register("a", Part("a", log))
    kernel.register("b", Part("b", log, phase), requires=("a",))
    kernel.register("c", Part("c", log), requires=("b",))
    with pytest.raises(InternalError) as caught:
        kernel.initialize()
    assert str(caught.value) == f"start-up stopped: component 'b' failed in {phase}: broken for good"
    stopped = [line for line in log if line.endswith("shutdown")]
    assert stopped == (["b.shutdown", "a.shutdown"] if phase == "register"
                       else ["c.shutdown", "b.shutdown", "a.shutdown"])
    assert f"c.{phase}" not in log
    assert [e.source for e in errors] == ["b"]


def test_the_users_fault_keeps_its_exit_code() -> None:
    kernel = Kernel(EventBus())
    kernel.register("a", Part("a", [], "connect", ConfigError("no such file; give another")))
    with pytest.raises(ConfigError, match=r"component 'a' failed in connect: no such file; give another"):
        kernel.initialize()


def test_missing_doubled_circular_and_absent_components_are_refused() -> None:
    kernel = Kernel(EventBus())
    with pytest.raises(ConfigError, match="'x' is missing"):
        kernel.register("x", None)
    kernel.register("a", Component(), requires=("b",))
    with pytest.raises(ConfigError, match="'a' needs 'b', which is not registered"):
        kernel.initialize()
    with pytest.raises(ConfigError, match="registered twice"):
        kernel.register("a", Component())
    kernel.register("b", Component(), requires=("a",))
    with pytest.raises(ConfigError, match="in a circle: a → b → a"):
        kernel.initialize()
    with pytest.raises(ConfigError, match="no component 'z'"):
        kernel["z"]


def test_every_component_gets_its_shutdown_and_failures_are_reported() -> None:
    log: list[str] = []
    kernel = Kernel(EventBus())
    for name in "abc":
        kernel.register(name, Part(name, log, "shutdown" if name != "b" else ""))
    kernel.initialize()
    failures = kernel.shutdown()
    assert log[-3:] == ["c.shutdown", "b.shutdown", "a.shutdown"]
    assert [f.component for f in failures] == ["c", "a"]
    assert kernel.shutdown() == []
    with pytest.raises(InternalError, match=r"shutdown: component 'c' failed in .*; component 'a'"), kernel:
        pass
    with pytest.raises(ValueError, match="mine"), kernel:  # the block's own error is the one to see
        raise ValueError("mine")


def test_an_interrupt_during_start_up_closes_what_is_open() -> None:
    log: list[str] = []
    kernel = Kernel(EventBus())
    kernel.register("a", Part("a", log))
    interrupted = Part("b", log, "connect")
    interrupted.error = KeyboardInterrupt()  # type: ignore[assignment]
    kernel.register("b", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kernel.initialize()
    assert log[-2:] == ["b.shutdown", "a.shutdown"]


def test_an_interrupt_during_shutdown_frees_from_a_component_and_the_others_get_their_turn() -> None:
    log: list[str] = []
    kernel = Kernel(EventBus())
    stuck = Part("b", log, "shutdown")
    stuck.error = KeyboardInterrupt()  # type: ignore[assignment]
    for name, part in (("a", Part("a", log)), ("b", stuck), ("c", Part("c", log))):
        kernel.register(name, part)
    kernel.initialize()
    with pytest.raises(KeyboardInterrupt):
        kernel.shutdown()
    assert log[-3:] == ["c.shutdown", "b.shutdown", "a.shutdown"]
    assert kernel.shutdown() == []


def test_components_hear_nothing_behind_their_shutdown_and_hear_again_when_started_again() -> None:
    class Listener(Component):
        heard = 0

        def register(self, bus: EventBus) -> None:
            bus.subscribe(SystemErrorEvent, self.on_error)

        def on_error(self, _event: SystemErrorEvent) -> None:
            self.heard += 1

    bus, listener = EventBus(), Listener()
    kernel = Kernel(bus)
    kernel.register("listener", listener)
    for _ in range(2):
        with kernel:
            bus.publish(SystemErrorEvent("a", "", "", "", 1))
        bus.publish(SystemErrorEvent("a", "", "", "", 1))
    assert listener.heard == 2


@pytest.mark.parametrize("phase", ["register", "connect", "warm_up", "shutdown"])
def test_what_a_component_publishes_while_others_start_or_stop_is_delivered(phase: str) -> None:
    class Speaker(Part):
        def _step(self, step: str) -> None:
            if step == phase:
                bus.publish(ShutdownRequest(step))

    bus, heard, log = EventBus(), [], []
    bus.subscribe(ShutdownRequest, heard.append)
    kernel = Kernel(bus)
    kernel.register("a", Part("a", log))
    kernel.register("speaker", Speaker("speaker", log))
    source = Source(bus, ["never published"])
    kernel.register("source", source)
    with kernel:
        kernel.run()
    assert [e.reason for e in heard] == [phase]
    assert source.events == ([] if phase == "shutdown" else ["never published"])


def test_a_shutdown_request_ends_the_run() -> None:
    bus = EventBus()
    kernel = Kernel(bus)
    source = Source(bus, [SystemErrorEvent("a", "", "", "", 1), ShutdownRequest("enough"), "never published"])
    kernel.register("source", source)
    with pytest.raises(InternalError, match="not initialized"):
        kernel.run()
    with kernel:
        kernel.run()
    assert source.events == ["never published"]


def test_a_failing_driver_is_reported_and_stops_the_run() -> None:
    class Broken(Source):
        def run(self) -> None:
            raise OSError("connection lost")

    bus, errors, log = EventBus(), [], []
    bus.subscribe(SystemErrorEvent, errors.append)
    kernel = Kernel(bus)
    kernel.register("a", Part("a", log))
    kernel.register("feed", Broken(bus, []))
    with pytest.raises(InternalError, match="component 'feed' failed in run: connection lost"), kernel:
        kernel.run()
    assert errors[0].source == "feed"
    assert log[-1] == "a.shutdown"


def test_run_needs_exactly_one_driver() -> None:
    kernel = Kernel(EventBus())
    with pytest.raises(ConfigError, match="exactly one driver among the components, got none"), kernel:
        kernel.run()


def test_one_snapshot_of_all_and_nothing_changes_if_one_refuses() -> None:
    parts = {name: Part(name, []) for name in "abc"}
    kernel = Kernel(EventBus())
    for name, part in parts.items():
        part.state = name.encode()
        kernel.register(name, part)
    blob = kernel.snapshot()
    for part in parts.values():
        part.state = b"moved on"
    parts["c"].fails = "restore"
    with pytest.raises(SchemaError, match="other configuration"):
        kernel.restore(blob)
    assert [part.state for part in parts.values()] == [b"moved on"] * 3
    parts["c"].fails = ""
    kernel.restore(blob)
    assert [part.state for part in parts.values()] == [b"a", b"b", b"c"]


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b"x" * 100,
                                    lambda b: b.replace(b"some state", b"some stale")])
def test_a_damaged_snapshot_is_refused_in_one_line(damage: object) -> None:
    kernel = Kernel(EventBus())
    part = Part("a", [])
    part.state = b"some state"
    kernel.register("a", part)
    with pytest.raises(SchemaError, match="not a snapshot, or damaged") as caught:
        kernel.restore(damage(kernel.snapshot()))  # type: ignore[operator]
    assert "\n" not in str(caught.value)


def test_a_snapshot_of_other_components_or_while_busy_is_refused() -> None:
    one, two, bus = Kernel(EventBus()), Kernel(EventBus()), EventBus()
    for kernel, name in ((one, "a"), (two, "b")):
        part = Part(name, [])
        part.state = b"something"
        kernel.register(name, part)
        kernel.register("stateless " + name, Component())
    with pytest.raises(SchemaError, match="use the same configuration"):
        two.restore(one.snapshot())
    busy = Kernel(bus)
    refused: list[Exception] = []

    def on_tick(_event: ShutdownRequest) -> None:
        with pytest.raises(InternalError, match="between events") as caught:
            busy.snapshot()
        refused.append(caught.value)

    bus.subscribe(ShutdownRequest, on_tick)
    bus.publish(ShutdownRequest(""))
    assert len(refused) == 1
