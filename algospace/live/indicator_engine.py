"""From base bars to feature rows, as events: the compiled step of history, one bar at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from algospace.events import EventBus, IndicatorsReady, NewBaseBar
from algospace.features import FeatureConfig, FeatureRow, FeatureStream, FeatureTable, Indicator
from algospace.features.bars import BAR
from algospace.instruments import Instrument
from algospace.kernel import Component
from algospace.live.compiled import run_bars
from algospace.types import AnyArray, Bars, Ticks


class BarStream(FeatureStream):
    """A FeatureStream that takes closed base bars; its own generator serves history only."""

    def push_base(self, bar: AnyArray) -> FeatureRow:
        """Take one base bar, a record of `bars.BAR` (1,); its row."""
        self._make_room(self._event_rows, self._event_rows + 1)
        run_bars(self._state, self._params, self._out, bar)
        (row,) = self._emitted()
        return row

    def history(self, history: Bars | Ticks) -> FeatureTable:
        """A block of history in compiled code."""
        return self.extend(history) if isinstance(history, Bars) else self.extend_ticks(history)

    @property
    def bar_state(self) -> tuple[AnyArray, AnyArray]:
        """(generator, aggregator): where the next block of history goes on."""
        return self._state.generator, self._state.aggregator

    @bar_state.setter
    def bar_state(self, state: tuple[AnyArray, AnyArray]) -> None:
        self._state.generator[:], self._state.aggregator[:] = state


class IndicatorEngine(Component):
    """Publishes IndicatorsReady for every base bar, in order, filled bars included."""

    def __init__(self, instrument: Instrument, config: FeatureConfig, indicators: Sequence[Indicator] = ()
                 ) -> None:
        self.stream = BarStream(instrument, config, indicators=indicators)
        self._symbol = instrument.symbol
        self._bar = np.zeros(1, BAR)

    def register(self, bus: EventBus) -> None:
        self._bus = bus
        bus.subscribe(NewBaseBar, self.on_base_bar, "indicator_engine.on_base_bar")

    def on_base_bar(self, bar: NewBaseBar) -> None:
        """Compute the bar's feature row."""
        if bar.symbol == self._symbol:
            self._bar[0] = bar[1:]
            self._bus.publish(IndicatorsReady(self._symbol, self.stream.push_base(self._bar)))

    def snapshot(self) -> bytes:
        return self.stream.snapshot()

    def restore(self, blob: bytes) -> None:
        self.stream.restore(blob)
