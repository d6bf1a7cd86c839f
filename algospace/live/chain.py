"""The standard chain in one call: feed → bars → indicators → matrices and synergies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog

from algospace.errors import ConfigError, InputError
from algospace.events import EventBus
from algospace.features import FeatureConfig, Indicator
from algospace.features.matrices import MatrixSchema
from algospace.instruments import Instrument
from algospace.kernel import Component, Kernel
from algospace.live.bar_generator import DEFAULT_GRACE_NS, BarGenerator
from algospace.live.indicator_engine import IndicatorEngine
from algospace.live.matrix_assembler import MatrixComponent
from algospace.live.synergy_detector import SynergyDetector
from algospace.marketdata.feeds import DEFAULT_STALE_NS, DataHandler, Feed, Recorder
from algospace.types import MINUTE_NS, Bars, Ticks

_LOG = structlog.get_logger(__name__)
History = Bars | Ticks
HistorySource = History | Callable[[], History]


class WarmUp(Component):
    """Runs history through the compiled step and hands the state to the chain, open bar included.

    No event is published for it. The first live row then is that of an uninterrupted run, to the bit. It goes on
    from the chain's state: behind a restored snapshot, or in a second start, history closes the gap, and what is
    known already is late. Where ticks have receive times the clock closes bars here too: a recording warms up to
    the state of its live run.
    """

    def __init__(self, source: HistorySource, generator: BarGenerator, engine: IndicatorEngine,
                 matrices: MatrixComponent | None) -> None:
        self._source = source
        self._generator, self._engine, self._matrices = generator, engine, matrices

    def warm_up(self) -> None:
        history = self._source() if callable(self._source) else self._source
        if len(history) == 0:
            raise InputError("history", "no data", "give a range that holds data, or leave the warm-up out")
        stream = self._engine.stream
        stream.bar_state = self._generator.bar_state
        given = len(history)
        if isinstance(history, Ticks):
            history = _behind(history, int(self._generator.bar_state[0]["last_ts"][0]))
            in_time = self._generator.in_time(history)  # a recording's clock decides as it did live
            if not in_time.all():
                history = history.take(np.flatnonzero(in_time))
        rows = 0
        if len(history):
            table = stream.history(history)
            rows = len(table)
            if self._matrices is not None:
                self._matrices.push_history(table)
        stream.bar_state[0]["late"] += given - len(history)
        self._generator.adopt(*stream.bar_state)
        _LOG.info("warmed up", events=len(history), base_bars=rows, late=self._generator.late)


def _behind(history: Ticks, last_ts: int) -> Ticks:
    """The ticks that the state has not seen: all, or where history overlaps it, those later than its last.

    Ticks of one time cannot be told apart, and a tick of the last time, or within the tolerated disorder, would be
    accepted a second time.
    """
    overlaps = int(history.ts.min()) <= last_ts
    return history.take(np.flatnonzero(history.ts > last_ts)) if overlaps else history


@dataclass(frozen=True)
class Chain:
    """The parts of one instrument's chain, registered with `kernel` and talking over `bus`."""

    bus: EventBus
    kernel: Kernel
    generator: BarGenerator
    engine: IndicatorEngine
    matrices: MatrixComponent | None
    synergy: SynergyDetector
    handler: DataHandler | None
    recorder: Recorder | None


def build_chain(
    instrument: Instrument, config: FeatureConfig | None = None, schema: MatrixSchema | None = None,
    indicators: Sequence[Indicator] = (), *, feed: Feed | None = None, history: HistorySource | None = None,
    record_to: Path | str | None = None, grace_ns: int = DEFAULT_GRACE_NS, stale_after_ns: int = DEFAULT_STALE_NS,
    bus: EventBus | None = None,
) -> Chain:  # fmt: skip
    """Build and register the chain of one instrument; nothing has started yet (`with chain.kernel: ...`).

    schema: without it there are no matrices. feed: without it there is no driver; publish events by hand.
    history: warm-up data, or a function that reads it during start-up. record_to: folder of a recording.
    """
    config = config or FeatureConfig()
    bus = bus or EventBus()
    kernel = Kernel(bus)
    generator = BarGenerator(instrument, config, grace_ns)
    engine = IndicatorEngine(instrument, config, indicators)
    stream = engine.stream
    recorder = Recorder(instrument.symbol, record_to) if record_to is not None else None
    if recorder is not None:
        kernel.register("recorder", recorder)
    kernel.register("bar_generator", generator)
    kernel.register("indicator_engine", engine, ("bar_generator",))
    matrices = None
    if schema is not None:
        matrices = MatrixComponent(instrument, schema, stream.digest, stream.base_columns, stream.slow_columns)
        kernel.register("matrix_assembler", matrices, ("indicator_engine",))
    synergy = SynergyDetector(instrument, stream.base_columns)
    kernel.register("synergy_detector", synergy, ("indicator_engine",))
    chain = tuple(kernel.order)
    if history is not None:
        kernel.register("warm_up", WarmUp(history, generator, engine, matrices), chain)
    handler = None
    if feed is not None:
        if feed.symbol != instrument.symbol:
            raise ConfigError(f"a feed of {feed.symbol} was given for {instrument.symbol}; give its own")
        handler = DataHandler(feed, config.base_minutes * MINUTE_NS, grace_ns, stale_after_ns)
        # Needs all others: starts last, stops first.
        kernel.register("data_handler", handler, kernel.order)
    return Chain(bus, kernel, generator, engine, matrices, synergy, handler, recorder)
