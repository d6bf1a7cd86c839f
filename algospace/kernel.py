"""The kernel: named components, started in order of their needs, stopped in the reverse.

    kernel = Kernel(EventBus())
    kernel.register("bars", BarGenerator(...), requires=("clock",))
    with kernel:          # register → connect → warm up, each for all components; shutdown on the way out
        kernel.run()      # until the driver ends or someone publishes ShutdownRequest
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, NamedTuple

import structlog

from algospace.errors import ConfigError, InternalError, UserError
from algospace.events import EventBus, ShutdownRequest, SystemErrorEvent
from algospace.snapshots import pack, unpack

_LOG = structlog.get_logger(__name__)


class Component:
    """A part of the live system. Every hook is optional; what is overridden here is overridden once."""

    def register(self, bus: EventBus) -> None:
        """Phase 1: subscribe. Nothing else has been connected yet."""

    def connect(self) -> None:
        """Phase 2: open files and connections."""

    def warm_up(self) -> None:
        """Phase 3: bring the state up to date from history."""

    def shutdown(self) -> None:
        """Flush and close; called once, also if a later component failed to start."""

    def snapshot(self) -> bytes:
        """All state that later events depend on; empty for a component without."""
        return b""

    def restore(self, blob: bytes) -> None:
        """Continue from `snapshot`; SchemaError, and nothing changed, if it does not belong here."""


class Driver(Component, ABC):
    """The component that brings the events: `run` publishes them until it is told to stop."""

    @abstractmethod
    def run(self) -> None:
        """Publish events until the source ends or `stop` was called."""

    @abstractmethod
    def stop(self) -> None:
        """Have `run` return soon; may be called from a handler, another thread or a signal handler."""


class Failure(NamedTuple):
    """What went wrong in a component's phase."""

    component: str
    phase: str
    reason: str

    def __str__(self) -> str:
        return f"component '{self.component}' failed in {self.phase}: {self.reason}"


class Kernel:
    """Owns the components' life: `initialize`, `run`, `shutdown`, and one snapshot of all state."""

    def __init__(self, bus: EventBus) -> None:
        self.bus = bus
        self._components: dict[str, Component] = {}
        self._requires: dict[str, tuple[str, ...]] = {}
        self._started: list[str] = []  # those whose `register` was called, in that order
        self._stop_reason = ""  # for which the run was asked to end

    def register(self, name: str, component: Component | None, requires: Sequence[str] = ()) -> None:
        """Add a component under `name`; those in `requires` start before it and stop after it."""
        if component is None:
            raise ConfigError(f"component '{name}' is missing (None was registered); build it or leave it out")
        if name in self._components:
            raise ConfigError(f"component '{name}' is registered twice; give the second another name")
        if self._started:
            raise ConfigError(f"component '{name}' comes after start-up; register it before")
        self._components[name] = component
        self._requires[name] = tuple(requires)

    def __getitem__(self, name: str) -> Component:
        """The component of that name; ConfigError if there is none."""
        try:
            return self._components[name]
        except KeyError:
            known = ", ".join(self._components) or "none"
            raise ConfigError(f"no component '{name}'; registered: {known}") from None

    @property
    def order(self) -> tuple[str, ...]:
        """Names in the order of starting: needs first, otherwise as registered."""
        done: list[str] = []

        def visit(name: str, path: tuple[str, ...]) -> None:
            if name in done:
                return
            if name in path:
                raise ConfigError(f"components need each other in a circle: {' → '.join((*path, name))}")
            for need in self._requires[name]:
                if need not in self._components:
                    raise ConfigError(f"component '{name}' needs '{need}', which is not registered")
                visit(need, (*path, name))
            done.append(name)

        for name in self._components:
            visit(name, ())
        return tuple(done)

    def initialize(self) -> None:
        """Register, connect and warm up every component, in order.

        The first failure stops start-up: what was started is shut down, in reverse, and a ConfigError (the user's
        fault) or InternalError gives the reason in one line.
        """
        if self._started:
            raise InternalError("the kernel is running already; shut it down before starting it again")
        order = self.order
        self.bus.subscribe(ShutdownRequest, self._on_shutdown_request, "kernel")
        for phase, hook in _PHASES:
            for name in order:
                component = self._components[name]
                if phase == "register":
                    self._started.append(name)  # before the call: half a start also needs its shutdown
                try:
                    hook(component, self.bus)
                except Exception as error:
                    raise self._refused(Failure(name, phase, _reason(error)), error) from error
                except BaseException:  # Ctrl-C while connecting: what is open is closed all the same
                    self.shutdown()
                    raise
                _LOG.info("component ready", component=name, phase=phase)
        _LOG.info("kernel started", components=list(order))

    def run(self) -> None:
        """Let the driver run until it ends, or until ShutdownRequest; InternalError if it fails."""
        name, driver = self._driver()
        if name not in self._started:
            raise InternalError("the kernel was not initialized; call initialize() or use it as a context")
        _LOG.info("kernel runs", driver=name)
        try:
            driver.run()
        except Exception as error:
            failure = Failure(name, "run", _reason(error))
            self._report(failure, error)
            raise _as_error(f"run stopped: {failure}", error) from error
        _LOG.info("kernel run ended", driver=name, reason=self._stop_reason or "the driver is done")
        self._stop_reason = ""

    def stop(self, reason: str = "stopped") -> None:
        """End `run` in order; safe from a signal handler or another thread, unlike publishing."""
        self._stop_reason = reason  # logged when the run has ended: a signal handler may interrupt a log's line
        for component in self._components.values():
            if isinstance(component, Driver):
                component.stop()

    def shutdown(self) -> list[Failure]:
        """Shut down what was started, in reverse; every component gets its turn. Returns what failed.

        Ctrl-C frees it from a component that hangs; the others still get their turn before it goes on. Components
        hear no event any more, so that another kernel may use the bus.
        """
        failures = []
        interrupt: BaseException | None = None
        while self._started:
            name = self._started.pop()
            try:
                self._components[name].shutdown()
            except Exception as error:  # noqa: BLE001 - the others must still get their turn; reported below
                failures.append(Failure(name, "shutdown", _reason(error)))
                self._report(failures[-1], error)
            except BaseException as error:  # noqa: BLE001 - raised again below
                interrupt = error
                _LOG.error("component interrupted", component=name, phase="shutdown")
            else:
                _LOG.info("component stopped", component=name)
            self.bus.forget(self._components[name])
        self.bus.forget(self)
        if interrupt is not None:
            raise interrupt
        return failures

    def __enter__(self) -> Kernel:
        self.initialize()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        failures = self.shutdown()
        if failures and error is None:
            raise InternalError("shutdown: " + "; ".join(map(str, failures)))

    def snapshot(self) -> bytes:
        """The state of every component that has one, in one blob; only between events."""
        self._require_idle("snapshot")
        states = self._states()
        return pack({"components": list(states)}, states)

    def restore(self, blob: bytes) -> None:
        """Continue from `snapshot`, feeds and other stateless components apart.

        SchemaError, and nothing changed, if it was taken of other components or another configuration, or is
        damaged.
        """
        self._require_idle("restore")
        before = self._states()
        parts = unpack({"components": list(before)}, blob, "the live state")
        done = []
        try:
            for name, part in parts.items():
                done.append(name)
                self._components[name].restore(part)
        except Exception:
            for name in done[:-1]:  # the last one refused, and so did not change
                self._components[name].restore(before[name])
            raise
        _LOG.info("state restored", components=done, bytes=len(blob))

    def _states(self) -> dict[str, bytes]:
        states = {name: self._components[name].snapshot() for name in self.order}
        return {name: state for name, state in states.items() if state}

    def _require_idle(self, what: str) -> None:
        if self.bus.busy:
            raise InternalError(f"{what} while an event is being delivered: queued events would be lost; do it "
                                "between events")

    def _driver(self) -> tuple[str, Driver]:
        drivers = [(name, c) for name, c in self._components.items() if isinstance(c, Driver)]
        if len(drivers) != 1:
            names = ", ".join(name for name, _ in drivers) or "none"
            raise ConfigError(f"run needs exactly one driver among the components, got {names}")
        return drivers[0]

    def _on_shutdown_request(self, event: ShutdownRequest) -> None:
        self.stop(event.reason)

    def _refused(self, failure: Failure, error: Exception) -> Exception:
        self._report(failure, error)
        self.shutdown()
        return _as_error(f"start-up stopped: {failure}", error)

    def _report(self, failure: Failure, error: Exception) -> None:
        _LOG.error("component failed", component=failure.component, phase=failure.phase, reason=failure.reason)
        kind = type(error).__name__
        self.bus.publish(SystemErrorEvent(failure.component, failure.phase, kind, failure.reason, 1))


_PHASES: tuple[tuple[str, Callable[[Component, EventBus], Any]], ...] = (
    ("register", lambda component, bus: component.register(bus)),
    ("connect", lambda component, bus: component.connect()),
    ("warm_up", lambda component, bus: component.warm_up()),
)


def _reason(error: Exception) -> str:
    return " ".join(f"{error}".split()) or type(error).__name__


def _as_error(message: str, cause: Exception) -> Exception:
    """The cause's own kind of guilt: exit code 2 for the user's, 1 for ours."""
    return ConfigError(message) if isinstance(cause, UserError) else InternalError(message)
