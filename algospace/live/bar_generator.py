"""From ticks, source bars and the clock to base and 30-minute bars, as events.

Ticks of an open bar cannot close it, so they wait in a buffer and go through the compiled step together: when one
reaches the bar's end, when the clock does, when the buffer is full, and whenever somebody looks at the state.
Results, counts and the moment of every close are those of one tick at a time: nothing is observable in between.
"""

from __future__ import annotations

from struct import Struct

import numpy as np

from algospace.errors import ConfigError, InputError
from algospace.events import (
    UNKNOWN_TIME,
    EventBus,
    NewBaseBar,
    NewSlowBar,
    NewSourceBar,
    NewTick,
    TimeAdvanced,
)
from algospace.features import FeatureConfig, bars
from algospace.features.checks import check_width
from algospace.instruments import Instrument
from algospace.kernel import Component
from algospace.live.compiled import TICK, add_to_slow, close_by_clock, mark_in_time, take_bar, take_ticks
from algospace.snapshots import pack_arrays, unpack_arrays
from algospace.types import MINUTE_NS, AnyArray, BoolArray, Ticks

DEFAULT_GRACE_NS = 250_000_000
DEFAULT_FUTURE_NS = MINUTE_NS  # clocks differ by seconds, not by minutes
_CAPACITY = 256  # ticks: a full buffer takes some 10 µs, far below what a bar's close may take
_TICK_BYTES = TICK.itemsize
_BUFFER_BYTES = _TICK_BYTES * _CAPACITY
_pack_tick = Struct("@qddq").pack_into  # a record of TICK
_NO_TIME = int(np.iinfo(np.int64).max)


class BarGenerator(Component):
    """Publishes NewBaseBar and NewSlowBar for one instrument.

    A bar that holds a tick closes by the clock at ts_close + `grace_ns`, or when a tick of a later bar comes
    first. The clock is TimeAdvanced and the receive times of the ticks, so a recording gives the same bars as the
    live run did. A tick for a closed bar is late: dropped and counted in `late`. Counted in `invalid` is one that
    breaks a price rule, or is stamped more than `max_future_ns` after it was received, which would make all that
    follow late. Events of other symbols are not ours.
    """

    def __init__(self, instrument: Instrument, config: FeatureConfig, grace_ns: int = DEFAULT_GRACE_NS,
                 max_future_ns: int = DEFAULT_FUTURE_NS) -> None:
        if grace_ns < 0:
            raise ConfigError(f"grace_ns = {grace_ns}: the grace period cannot be negative")
        if max_future_ns < 0:
            raise ConfigError(f"max_future_ns = {max_future_ns}: it cannot be negative")
        self.max_future_ns = max_future_ns
        self.instrument, self.config, self.grace_ns = instrument, config, grace_ns
        self._symbol = instrument.symbol
        self._width, self._slow_width = config.base_minutes * MINUTE_NS, config.slow_minutes * MINUTE_NS
        self._max_fill = config.max_fill_bars
        self._generator = bars.new_generator()
        self._aggregator = np.zeros(1, bars.AGGREGATOR)
        self._queue = bars.new_queue(config.max_fill_bars)
        self._before, self._after = np.zeros(1, bars.AGGREGATOR), np.zeros(1, bars.AGGREGATOR)
        # Written by `struct`, the fastest way to set four numbers, and read by numpy without a copy.
        self._buffer = bytearray(_BUFFER_BYTES)
        self._ticks = np.frombuffer(self._buffer, TICK)
        self._waiting = 0  # bytes of the buffer in use
        self._checked_width = 0
        self._look_up_limits()

    def register(self, bus: EventBus) -> None:
        self._bus = bus
        bus.subscribe(NewTick, self.on_tick, "bar_generator.on_tick")
        bus.subscribe(NewSourceBar, self.on_source_bar, "bar_generator.on_source_bar")
        bus.subscribe(TimeAdvanced, self.on_time, "bar_generator.on_time")

    @property
    def late(self) -> int:
        """Events dropped because their bar had closed or they were out of order."""
        self._take_waiting()
        return int(self._generator["late"][0])

    @property
    def invalid(self) -> int:
        """Events dropped because a price or size broke a rule."""
        self._take_waiting()
        return int(self._generator["invalid"][0])

    def on_tick(self, tick: NewTick) -> None:
        """Take one tick, after closing the open bar if the tick was received after its grace period."""
        symbol, ts, price, size, contract, ts_recv, _, _, _ = tick
        if symbol != self._symbol:
            return
        if ts_recv >= self._deadline:
            self._close_by_clock(ts_recv)
        if ts_recv != UNKNOWN_TIME and ts - ts_recv > self.max_future_ns:
            self._generator["invalid"] += 1
            return
        waiting = self._waiting
        _pack_tick(self._buffer, waiting, ts, price, size, contract)
        # Only now: a tick of the wrong types raised above and leaves nothing behind.
        self._waiting = waiting = waiting + _TICK_BYTES
        if ts >= self._boundary or waiting == _BUFFER_BYTES:
            self._take_waiting()

    def on_source_bar(self, bar: NewSourceBar) -> None:
        """Take one source bar, known at its end."""
        if bar.symbol != self._symbol:
            return
        if bar.width_ns != self._checked_width:
            check_width(bar.width_ns, self._width)
            self._checked_width = bar.width_ns
        if bar.ts_open % bar.width_ns:
            raise InputError("source bar", f"it starts at {bar.ts_open}, off the clock's grid",
                             "check the bar width and that ts_open is the start in UTC")
        known = bar.ts_open + bar.width_ns
        if known > self._deadline:
            self._close_by_clock(known - 1)
        self._take_waiting()
        closed = take_bar(self._generator, self._queue, self._width, self._max_fill, bar.width_ns, bar.ts_open,
                          float(bar.open), float(bar.high), float(bar.low), float(bar.close), float(bar.volume),
                          bar.contract)  # fmt: skip
        self._publish(closed)
        self._look_up_limits()

    def on_time(self, event: TimeAdvanced) -> None:
        """Close the open bar if its grace period has ended."""
        if event.now >= self._deadline:
            self._close_by_clock(event.now)

    @property
    def bar_state(self) -> tuple[AnyArray, AnyArray]:
        """The records GENERATOR (1,) and AGGREGATOR (1,) behind the last event."""
        self._take_waiting()
        return self._generator, self._aggregator

    def in_time(self, ticks: Ticks) -> BoolArray:
        """(n,): which of these ticks, received at their `ts_recv`, would be neither late nor from the future;
        changes nothing."""
        result = np.ones(len(ticks), np.bool_)
        if ticks.ts_recv is not None:
            codes = np.zeros(len(ticks), np.int32) if ticks.contract is None else ticks.contract
            columns = (ticks.ts, ticks.price, ticks.size, codes, ticks.ts_recv)
            # Writable copies: compiled code sees one type whatever the source.
            ts, price, size, contract, received = (np.array(column) for column in columns)
            mark_in_time(self.bar_state[0].copy(), self._queue, self._width, self._max_fill,
                         self.config.max_disorder_ns, self.grace_ns, self.max_future_ns, ts, price, size, contract,
                         received, result)
        return result

    def adopt(self, generator: AnyArray, aggregator: AnyArray) -> None:
        """Continue from the state of another generator (records GENERATOR and AGGREGATOR, copied)."""
        self._waiting = 0
        self._generator[:], self._aggregator[:] = generator, aggregator
        self._look_up_limits()

    def snapshot(self) -> bytes:
        generator, aggregator = self.bar_state
        return pack_arrays(self._identity(), {"generator": generator, "aggregator": aggregator})

    def restore(self, blob: bytes) -> None:
        like = {"generator": self._generator, "aggregator": self._aggregator}
        self.adopt(**unpack_arrays(self._identity(), blob, "bar generator", like))

    def _identity(self) -> dict[str, object]:
        """What the bars depend on; the grace period decides only when, so a restart may change it."""
        return {"symbol": self._symbol, "base_minutes": self.config.base_minutes,
                "slow_minutes": self.config.slow_minutes, "max_disorder_ns": self.config.max_disorder_ns}

    def _take_waiting(self) -> None:
        """Run the waiting ticks through the compiled step and publish the bars that they close."""
        at, end = 0, self._waiting // _TICK_BYTES
        if end == 0:
            return
        self._waiting = 0
        while at < end:
            at, closed = take_ticks(self._generator, self._queue, self._width, self._max_fill,
                                    self.config.max_disorder_ns, self._ticks, at, end)  # fmt: skip
            self._publish(closed)
        self._look_up_limits()

    def _close_by_clock(self, now: int) -> None:
        self._take_waiting()
        self._publish(close_by_clock(self._generator, self._queue, self._width, now - self.grace_ns))
        self._look_up_limits()

    def _look_up_limits(self) -> None:
        """From which tick time on the buffer cannot wait, and when the clock closes the open bar."""
        g = self._generator[0]
        if g["is_open"]:
            self._boundary = int(g["start"]) + self._width
            self._deadline = self._boundary + self.grace_ns
        else:
            self._boundary = int(g["end"])  # whatever is older is late and opens nothing
            self._deadline = _NO_TIME

    def _publish(self, closed: int) -> None:
        for j in range(closed):
            bar = self._queue[j : j + 1]
            emitted = add_to_slow(self._aggregator, bar, self._width, self._slow_width, self._before, self._after)
            if emitted & 1:
                self._bus.publish(self._slow_bar(self._before))
            self._bus.publish(NewBaseBar(self._symbol, *bar[0].item()))
            if emitted & 2:
                self._bus.publish(self._slow_bar(self._after))

    def _slow_bar(self, record: AnyArray) -> NewSlowBar:
        bar = record[0]
        values = (bar[name].item() for name in ("end", *NewSlowBar._fields[2:]))
        return NewSlowBar(self._symbol, *values)
