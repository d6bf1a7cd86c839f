"""Warm-up and snapshots: the chain goes on as if it had never stopped, in every column and matrix, to the bit."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from typing import Any

import numba as nb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.errors import ConfigError, SchemaError
from algospace.events import (
    UNKNOWN_TIME,
    EventBus,
    IndicatorsReady,
    MatricesReady,
    NewBaseBar,
    NewSlowBar,
    NewTick,
    SynergyDetected,
)
from algospace.features import FeatureConfig, FeatureTable, Indicator, build
from algospace.features.matrices import MatrixConfig, MatrixSchema, Normaliser, assemble
from algospace.instruments import instrument
from algospace.live import BarGenerator, Chain, build_chain
from algospace.marketdata.feeds import ReplayFeed
from algospace.marketdata.synthetic import generate
from algospace.snapshots import pack_arrays, unpack_all
from algospace.types import Bars, Ticks
from tests.live_market import Collected, assert_rows_equal, random_ticks

SYNTH, ES = instrument("SYNTH"), instrument("ES")
FULL = FeatureConfig(synergy={"window": 40}, mlmi={"strength": 0.0}, nwrqk={"strength": 0.0},  # type: ignore[arg-type]
                     fvg={"threshold": 0.0001})  # type: ignore[arg-type]
LEAN = FeatureConfig(regime=False)
KINDS = (NewBaseBar, NewSlowBar, IndicatorsReady, MatricesReady, SynergyDetected)


@nb.njit
def compiled_age(state: Any, bar: Any, out: Any) -> None:
    state[0] += bar.close
    out[0] = state[0]


def further() -> list[Indicator]:
    return [Indicator("running_sum", ("close_sum",), lambda: np.zeros(1), compiled_age)]


@cache
def market() -> tuple[Bars, FeatureTable, MatrixSchema]:
    bars = generate("stress", 7, 6_000, "5m").bars
    table = build(bars, SYNTH, FULL, further())
    return bars, table, Normaliser.fit(table, MatrixConfig(), int(table.ts_close[-1]))


def run(chain: Chain, snapshot: bytes = b"") -> Collected:
    seen = Collected(chain.bus, *KINDS)
    with chain.kernel as kernel:
        if snapshot:
            kernel.restore(snapshot)
        kernel.run()
    assert not chain.bus.failures
    return seen


def feed(bars: Bars, start: int = 0, stop: int | None = None) -> ReplayFeed:
    return ReplayFeed("SYNTH", bars.slice(start, len(bars) if stop is None else stop))


def assert_matrices_equal(events: list[MatricesReady], table: FeatureTable, schema: MatrixSchema, start: int
                          ) -> None:
    """Each event's windows are the windows of `assemble`, wherever those are complete."""
    market = assemble(table, schema, SYNTH)
    complete = 0
    for i, event in enumerate(events, start):
        assert event.ts_close == market.ts_close[i]
        assert event.decision == market.decision[i]
        if not event.decision:
            continue
        complete += 1
        row = int(market.row_30m[i]) + 1
        np.testing.assert_array_equal(event.tactical, market.tactical[i + 1 - schema.tactical.window : i + 1])
        np.testing.assert_array_equal(event.strategic, market.strategic[row - schema.strategic.window : row])
        np.testing.assert_array_equal(event.regime, market.regime[row - schema.regime.window : row])
    assert complete > 100


@cache
def uninterrupted() -> list[Any]:
    bars, _, schema = market()
    return run(build_chain(SYNTH, FULL, schema, further(), feed=feed(bars))).events


def same(left: Any, right: Any) -> bool:
    """Two events equal to the bit, arrays and rows inside them included."""
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
    if isinstance(left, tuple):
        return type(left) is type(right) and all(map(same, left, right))
    return bool(left == right) or (left != left and right != right)


def of(kind: type, events: list[Any]) -> list[Any]:
    return [event for event in events if type(event) is kind]


def test_rows_matrices_and_synergies_are_those_of_history() -> None:
    bars, table, schema = market()
    chain = build_chain(SYNTH, FULL, schema, further(), feed=feed(bars))
    seen = run(chain)
    assert_rows_equal([e.row for e in seen.of(IndicatorsReady)], table, chain.engine.stream.base_columns)
    assert_matrices_equal(seen.of(MatricesReady), table, schema, 0)
    rows = np.flatnonzero(table.base["synergy_type"] > 0)
    found = seen.of(SynergyDetected)
    assert len(found) == rows.size > 3
    for name, column in (("type", "synergy_type"), ("direction", "synergy_direction"), ("bars", "synergy_bars")):
        assert [getattr(e, name) for e in found] == table.base[column][rows].tolist()
    assert [e.ts_close for e in found] == table.ts_close[rows].tolist()


@pytest.mark.parametrize("cut", [3000, 4321])
def test_after_warm_up_the_first_live_row_is_that_of_an_uninterrupted_run(cut: int) -> None:
    bars, table, schema = market()
    chain = build_chain(SYNTH, FULL, schema, further(), feed=feed(bars, cut), history=lambda: bars.slice(0, cut))
    seen = run(chain)
    rows = [e.row for e in seen.of(IndicatorsReady)]
    start = len(table) - len(rows)
    assert table.ts_close[start - 1] == bars.ts_open[cut - 1] + bars.width_ns
    assert_rows_equal(rows, table, chain.engine.stream.base_columns, start)
    assert_matrices_equal(seen.of(MatricesReady), table, schema, start)
    whole = uninterrupted()
    assert all(map(same, seen.events, whole[len(whole) - len(seen.events):]))


@pytest.mark.parametrize("cut", [1, 2, 1234, 5000])
def test_a_restored_chain_continues_to_the_bit_wherever_it_was_cut(cut: int) -> None:
    bars, _, schema = market()
    first = build_chain(SYNTH, FULL, schema, further(), feed=feed(bars, 0, cut))
    head = run(first).events
    blob = first.kernel.snapshot()
    second = build_chain(SYNTH, FULL, schema, further(), feed=feed(bars, cut))
    tail = run(second, blob).events
    assert all(map(same, [*head, *tail], uninterrupted()))
    assert len(head) + len(tail) == len(uninterrupted())
    third = build_chain(SYNTH, FULL, schema, further())
    third.kernel.restore(blob)
    assert third.kernel.snapshot() == blob


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), cut=st.integers(1, 1499))
def test_ticks_cut_inside_a_bar_by_snapshot_and_by_warm_up(seed: int, cut: int) -> None:
    ticks = random_ticks(1500, seed, 20.0, 0.05, 0.03, rolls=True)

    def chain(part: Ticks, **more: Any) -> Chain:
        return build_chain(ES, LEAN, indicators=further(), feed=ReplayFeed("ES", part), **more)

    received = ReplayFeed("ES", ticks)._received  # the order of the parts' clocks is that of the whole
    ticks = Ticks(**{**ticks.columns(), "ts_recv": received})
    whole = run(chain(ticks)).events
    first = chain(ticks.take(slice(0, cut)))
    head = run(first).events
    restored = run(chain(ticks.take(slice(cut, None))), first.kernel.snapshot()).events
    assert len(head) + len(restored) == len(whole)
    # By class: in a silence around the cut nobody's clock runs, so a bar may close together with the next one.
    for kind in KINDS:
        assert all(map(same, of(kind, [*head, *restored]), of(kind, whole)))
    warm = run(chain(ticks.take(slice(cut, None)), history=ticks.take(slice(0, cut)))).events
    for kind in KINDS:
        ours = of(kind, warm)
        assert all(map(same, ours, of(kind, whole)[len(of(kind, whole)) - len(ours):]))
    assert len(whole) - len(head) <= len(warm) + 2  # base and 30-minute bar that the clock had closed earlier


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), cut=st.integers(1, 1499))
def test_a_recording_warms_up_to_the_state_of_its_live_run(seed: int, cut: int) -> None:
    """Ticks arrive up to seconds late, so that the clock closes bars before them."""
    ticks = random_ticks(1500, seed, 20.0, 0.02, 0.03, rolls=True)
    delay = (np.random.default_rng(seed).exponential(2e9, 1500)).astype(np.int64)
    received = np.maximum.accumulate(ticks.ts + delay)
    recorded = Ticks(**{**ticks.columns(), "ts_recv": received})

    def chain(part: slice, **more: Any) -> Chain:
        return build_chain(ES, LEAN, indicators=further(), feed=ReplayFeed("ES", recorded.take(part)), **more)

    live = chain(slice(0, None))
    whole = run(live).events
    warm = chain(slice(cut, None), history=recorded.take(slice(0, cut)))
    seen = run(warm).events
    for kind in KINDS:
        ours = of(kind, seen)
        assert all(map(same, ours, of(kind, whole)[len(of(kind, whole)) - len(ours):]))
    assert (warm.generator.late, warm.generator.invalid) == (live.generator.late, live.generator.invalid)
    unknown = BarGenerator(ES, LEAN)
    assert unknown.in_time(Ticks(**{**ticks.columns(), "ts_recv": np.full(1500, UNKNOWN_TIME)})).sum() > 1300


def test_history_behind_a_restored_snapshot_closes_the_gap_and_repeats_nothing() -> None:
    bars, _, schema = market()
    saved = build_chain(SYNTH, FULL, schema, further(), feed=feed(bars, 0, 2000))
    run(saved)
    second = build_chain(SYNTH, FULL, schema, further(), feed=feed(bars, 3000), history=bars.slice(1000, 3000))
    second.kernel.restore(saved.kernel.snapshot())
    tail, whole = run(second).events, uninterrupted()
    assert len(tail) > 3000
    assert all(map(same, tail, whole[len(whole) - len(tail):]))
    assert second.generator.late == 1000


@pytest.mark.parametrize("patience", [0, 100 * 10**9])
def test_ticks_of_a_history_that_overlaps_a_restored_snapshot_count_once(patience: int) -> None:
    ticks = random_ticks(3000, 5, 4.0)
    ticks = ticks.take(np.argsort(ticks.ts, kind="stable"))
    config = LEAN.model_copy(update={"max_disorder_ns": patience})

    def chain(part: slice, **more: Any) -> Chain:
        return build_chain(ES, config, indicators=further(), feed=ReplayFeed("ES", ticks.take(part)), **more)

    whole = run(chain(slice(0, None))).events
    first = chain(slice(0, 1500))
    run(first)
    second = chain(slice(2000, None), history=ticks.take(slice(500, 2000)))
    second.kernel.restore(first.kernel.snapshot())
    seen = run(second).events
    assert len(of(NewBaseBar, seen)) > 10
    for kind in KINDS:
        ours = of(kind, seen)
        assert all(map(same, ours, of(kind, whole)[len(of(kind, whole)) - len(ours):]))
    assert second.generator.late == 1000
    with second.kernel:  # a second start finds nothing new in its history
        pass
    assert second.generator.late == 2500


def test_a_second_start_goes_on_where_the_first_run_ended() -> None:
    bars, _, schema = market()
    chain = build_chain(SYNTH, FULL, schema, further(), feed=feed(bars, 2000), history=bars.slice(0, 2000))
    seen = Collected(chain.bus, *KINDS)
    chain.bus.subscribe(NewBaseBar, lambda bar: chain.kernel.stop() if bar.ts_close == stop_at else None)
    stop_at = int(bars.ts_open[2777]) + bars.width_ns
    for _ in range(2):
        with chain.kernel as kernel:
            kernel.run()
    whole = uninterrupted()
    assert len(seen.events) > 3000
    assert all(map(same, seen.events, whole[len(whole) - len(seen.events):]))


def test_an_empty_history_is_refused_in_one_line() -> None:
    ticks = random_ticks(10, 1)
    chain = build_chain(ES, LEAN, history=ticks.take(slice(0, 0)))
    with pytest.raises(ConfigError, match="failed in warm_up: history: no data; give a range"):
        chain.kernel.initialize()


def test_a_snapshot_of_another_configuration_is_refused_and_changes_nothing() -> None:
    bars, _, schema = market()
    saved = build_chain(SYNTH, FULL, schema, further(), feed=feed(bars, 0, 500))
    run(saved)
    blob = saved.kernel.snapshot()
    other = FULL.model_copy(update={"source": "close"})
    for chain in (build_chain(SYNTH, FULL, schema=None, indicators=further()), build_chain(SYNTH, other),
                  build_chain(ES, LEAN)):
        before = chain.kernel.snapshot()
        with pytest.raises(SchemaError) as caught:
            chain.kernel.restore(blob)
        assert "\n" not in str(caught.value)
        assert chain.kernel.snapshot() == before
    same_parts = build_chain(SYNTH, LEAN)
    fitted_elsewhere = build_chain(SYNTH, LEAN.model_copy(update={"source": "close"}))
    before = same_parts.kernel.snapshot()
    with pytest.raises(SchemaError, match="same configuration"):
        same_parts.kernel.restore(fitted_elsewhere.kernel.snapshot())
    assert same_parts.kernel.snapshot() == before


def test_a_bar_generator_refuses_every_damaged_byte() -> None:
    generator = BarGenerator(ES, LEAN)
    generator.register(EventBus())
    for event in random_ticks(50, 1).ts.tolist():
        generator.on_tick(NewTick("ES", event, 4000.0))
    blob = generator.snapshot()
    for place in range(len(blob)):
        for bit in (1, 8, 128):
            damaged = bytearray(blob)
            damaged[place] ^= bit
            with suppress(SchemaError):
                generator.restore(bytes(damaged))
            assert generator.snapshot() == blob  # refused, or a byte without meaning


@pytest.mark.parametrize("change", ["a part less", "a part more", "another record"])
def test_a_snapshot_of_another_versions_state_is_refused_in_one_line(change: str) -> None:
    stream = build_chain(ES, LEAN).engine.stream
    arrays = unpack_all(stream._identity(), stream.snapshot(), "state")
    if change == "a part less":
        del arrays["rows"]
    elif change == "a part more":
        arrays["new"] = np.zeros(3)
    else:
        arrays["generator"] = arrays["generator"][["is_open", "start"]].copy()
    before = stream.snapshot()
    with pytest.raises(SchemaError, match="saved by another version"):
        stream.restore(pack_arrays(stream._identity(), arrays))
    assert stream.snapshot() == before


def test_matrices_of_another_feature_configuration_are_refused() -> None:
    _, _, schema = market()
    with pytest.raises(SchemaError, match="use the model's configuration"):
        build_chain(SYNTH, FULL, schema)
