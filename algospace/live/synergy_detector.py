"""Gate 1 as events. The detection itself is part of the compiled step, so that history and live have one."""

from __future__ import annotations

from collections.abc import Sequence

from algospace.events import EventBus, IndicatorsReady, SynergyDetected
from algospace.instruments import Instrument
from algospace.kernel import Component


class SynergyDetector(Component):
    """Publishes SynergyDetected for every feature row in which a pattern is complete; keeps no state."""

    def __init__(self, instrument: Instrument, base_columns: Sequence[str]) -> None:
        self._symbol = instrument.symbol
        names = list(base_columns)
        self._type_at, self._direction_at, self._bars_at = (
            names.index(name) for name in ("synergy_type", "synergy_direction", "synergy_bars"))

    def register(self, bus: EventBus) -> None:
        self._bus = bus
        bus.subscribe(IndicatorsReady, self.on_indicators, "synergy_detector.on_indicators")

    def on_indicators(self, event: IndicatorsReady) -> None:
        """Announce the row's synergy, if it has one."""
        base = event.row.base
        if event.symbol == self._symbol and base[self._type_at] > 0.0:
            self._bus.publish(SynergyDetected(self._symbol, event.row.ts_close, int(base[self._type_at]),
                                              int(base[self._direction_at]), int(base[self._bars_at])))
