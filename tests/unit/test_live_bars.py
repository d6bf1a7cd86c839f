"""The bar generator: buffered ticks close bars at the same event as one by one, and the clock's grace decides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.errors import ConfigError
from algospace.events import (
    EventBus,
    NewBaseBar,
    NewSlowBar,
    NewSourceBar,
    NewTick,
    SystemErrorEvent,
    TimeAdvanced,
)
from algospace.features import FeatureConfig, FeatureStream, build_from_ticks
from algospace.instruments import instrument
from algospace.live import BarGenerator
from algospace.types import MINUTE_NS, Ticks
from tests.live_market import DAY0, Collected, random_ticks

ES = instrument("ES")
LEAN = FeatureConfig(regime=False)
WIDTH, GRACE = 5 * MINUTE_NS, 250_000_000
END = DAY0 + WIDTH


def generator(config: FeatureConfig = LEAN) -> tuple[EventBus, BarGenerator, Collected]:
    bus = EventBus()
    bars = BarGenerator(ES, config, GRACE)
    bars.register(bus)
    return bus, bars, Collected(bus, NewBaseBar, NewSlowBar)


def tick(ts: int, price: float = 4000.0, recv: int | None = None) -> NewTick:
    return NewTick("ES", ts, price, 1.0, 0, ts if recv is None else recv)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), gap=st.sampled_from([0.3, 5.0, 60.0]), disorder=st.sampled_from([0.0, 0.1]))
def test_every_bar_closes_at_the_event_that_closes_it_one_by_one(seed: int, gap: float, disorder: float) -> None:
    ticks = random_ticks(1200, seed, gap, disorder, 0.03, rolls=True)
    bus, bars, seen = generator()
    stream = FeatureStream(ES, LEAN)
    assert ticks.contract is not None
    for ts, price, size, contract in zip(ticks.ts.tolist(), ticks.price.tolist(), ticks.size.tolist(),
                                         ticks.contract.tolist(), strict=True):
        before = len(seen.of(NewBaseBar))
        bus.publish(NewTick("ES", ts, price, size, contract))  # no receive time: the clock has no say
        rows = stream.push_tick(ts, price, size, contract)
        assert [bar.ts_close for bar in seen.of(NewBaseBar)[before:]] == [row.ts_close for row in rows]
    assert (bars.late, bars.invalid) == (stream.late, stream.invalid)


def test_bars_are_those_of_the_feature_table() -> None:
    ticks = random_ticks(6000, 4, 15.0, rolls=True)
    ticks = ticks.take(np.argsort(ticks.ts, kind="stable"))
    assert ticks.contract is not None
    ticks = Ticks(**{**ticks.columns(), "contract": np.sort(ticks.contract)})  # no contract comes back
    bus, _, seen = generator()
    for i in range(len(ticks)):
        bus.publish(NewTick("ES", int(ticks.ts[i]), float(ticks.price[i]), float(ticks.size[i]),
                            int(ticks.contract[i])))  # type: ignore[index]
    table = build_from_ticks(ticks, ES, LEAN)
    names = ("open", "high", "low", "close", "volume", "roll_factor")
    for kind, closes, columns in ((NewBaseBar, table.ts_close, table.base),
                                  (NewSlowBar, table.ts_close_30m, table.slow)):
        bars = seen.of(kind)
        assert len(bars) == closes.size > 30
        assert [bar.ts_close for bar in bars] == closes.tolist()
        live = np.array([(b.open, b.high, b.low, b.close, b.volume, b.factor) for b in bars])
        np.testing.assert_array_equal(live, np.stack([columns[name] for name in names], axis=1))
    order = [(type(e).__name__, e.ts_close) for e in seen.events]
    for kind, ts in order:  # a 30-minute bar follows the base bar that completes it
        if kind == "NewSlowBar" and ("NewBaseBar", ts) in order:
            assert order.index((kind, ts)) == order.index(("NewBaseBar", ts)) + 1


def test_a_bar_closes_by_the_clock_and_later_ticks_for_it_are_late() -> None:
    bus, bars, seen = generator()
    bus.publish(tick(DAY0 + 1))
    bus.publish(TimeAdvanced(END + GRACE - 1))
    assert seen.events == []
    bus.publish(tick(END - 1, 4001.0, recv=END + GRACE - 1))  # within grace
    bus.publish(TimeAdvanced(END + GRACE))
    (bar,) = seen.of(NewBaseBar)
    assert (bar.ts_close, bar.high, bar.volume, bar.filled) == (END, 4001.0, 2.0, 0)
    bus.publish(tick(END - 1, 4002.0, recv=END + GRACE))
    assert bars.late == 1
    bus.publish(TimeAdvanced(END + WIDTH + GRACE))
    assert len(seen.of(NewBaseBar)) == 1  # a bar without a tick is not closed by the clock


def test_the_receive_time_of_a_tick_is_a_clock() -> None:
    bus, bars, seen = generator()
    bus.publish(tick(DAY0 + 1))
    bus.publish(tick(END - 1, recv=END + GRACE))  # the timer has not come yet, the rule is the same
    assert [bar.ts_close for bar in seen.of(NewBaseBar)] == [END]
    assert bars.late == 1


def test_a_tick_from_the_future_counts_as_invalid_and_spoils_nothing() -> None:
    """Accepted, it would close bars until its own time, and every later tick would be late."""
    stamps = [DAY0 + k * 1_000_000_000 for k in range(900)]
    bus, bars, seen = generator()
    plain, clean, expected = generator()
    for k, ts in enumerate(stamps):
        if k in (100, 400):
            bus.publish(tick(ts + 24 * 60 * MINUTE_NS, 9999.0, recv=ts))
        bus.publish(tick(ts, 4000.0 + k))
        plain.publish(tick(ts, 4000.0 + k))
    assert (bars.invalid, bars.late) == (2, 0)
    assert (clean.invalid, clean.late) == (0, 0)
    assert seen.of(NewBaseBar) == expected.of(NewBaseBar)
    assert len(seen.of(NewBaseBar)) == 2
    bus.publish(tick(stamps[-1] + MINUTE_NS, recv=stamps[-1]))  # clocks may differ by as much as that
    assert bars.invalid == 2


def test_a_tick_of_the_next_bar_closes_without_waiting_for_the_grace() -> None:
    bus, bars, seen = generator()
    bus.publish(tick(DAY0 + 1))
    bus.publish(tick(END))
    assert [bar.ts_close for bar in seen.of(NewBaseBar)] == [END]
    bus.publish(tick(END - 1, recv=END + 1))  # within the grace, but its bar is gone
    assert bars.late == 1


@pytest.mark.parametrize("bad", [("price", None), ("price", "4000"), ("ts", 1.5), ("size", None),
                                 ("contract", "Z4")])
def test_a_tick_of_the_wrong_types_fails_alone(bad: tuple[str, Any]) -> None:
    bus, bars, seen = generator()
    errors: list[SystemErrorEvent] = []
    bus.subscribe(SystemErrorEvent, errors.append)
    bus.publish(tick(DAY0 + 1))
    bus.publish(tick(DAY0 + 2)._replace(**dict([bad])))
    bus.publish(tick(DAY0 + 3))
    bus.publish(tick(END))
    (bar,) = seen.of(NewBaseBar)
    assert bar.volume == 2.0
    assert [e.source for e in errors] == ["bar_generator.on_tick"]
    assert (bars.late, bars.invalid) == (0, 0)


def test_other_symbols_pass_by() -> None:
    bus, bars, seen = generator()
    bus.publish(tick(DAY0 + 1)._replace(symbol="NQ"))
    bus.publish(tick(END)._replace(symbol="NQ"))
    bus.publish(NewSourceBar("NQ", MINUTE_NS, DAY0, 1.0, 1.0, 1.0, 1.0))
    assert seen.events == []
    assert (bars.late, bars.invalid) == (0, 0)


def test_a_recording_with_a_tick_from_the_future_warms_up_as_it_ran() -> None:
    ts = DAY0 + np.arange(400, dtype=np.int64) * 1_000_000_000
    received = ts.copy()
    ts[150] += 60 * MINUTE_NS
    _, bars, _ = generator()
    told = bars.in_time(Ticks(ts, np.full(400, 4000.0), np.ones(400), ts_recv=received))
    assert np.flatnonzero(~told).tolist() == [150]


def test_source_bars_that_do_not_fit_and_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="grace"):
        BarGenerator(ES, LEAN, -1)
    bus, _, seen = generator()
    bus.publish(NewSourceBar("ES", 7 * MINUTE_NS, DAY0, 1.0, 1.0, 1.0, 1.0))
    assert bus.failures == {"bar_generator.on_source_bar": 1}
    bus.publish(NewSourceBar("ES", 5 * MINUTE_NS, DAY0, 1.0, 2.0, 1.0, 2.0, 3.0))
    assert seen.of(NewBaseBar) == [NewBaseBar("ES", END, 1.0, 2.0, 1.0, 2.0, 3.0, 1.0, 0, 0)]


def test_a_source_bar_off_the_grid_is_refused_as_in_history() -> None:
    bus, bars, seen = generator()
    bus.publish(NewSourceBar("ES", MINUTE_NS, END - MINUTE_NS // 2, 1.0, 1.0, 1.0, 1.0))
    assert bus.failures == {"bar_generator.on_source_bar": 1}
    assert (seen.events, bars.late, bars.invalid) == ([], 0, 0)


def test_a_source_bar_cut_short_closes_by_the_clock() -> None:
    bus, bars, seen = generator()
    for minute in range(3):
        bus.publish(NewSourceBar("ES", MINUTE_NS, DAY0 + minute * MINUTE_NS, 1.0, 2.0, 1.0, 2.0))
    bus.publish(TimeAdvanced(END + GRACE))
    assert len(seen.of(NewBaseBar)) == 1
    bus.publish(NewSourceBar("ES", MINUTE_NS, DAY0 + 4 * MINUTE_NS, 1.0, 2.0, 1.0, 2.0))
    assert bars.late == 1
