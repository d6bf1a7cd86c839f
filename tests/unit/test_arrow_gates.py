"""Outcomes of closed trades in an Arrow batch: folded to the bit as a session folds them, read no further than
they may be long, and leaving others their turn."""

from __future__ import annotations

import asyncio
import tracemalloc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.calibration import AdaptiveConformal
from serving.batch_arrow import GATE, correct
from serving.correction import GateLevel

MODEL = "a" * 64
FLOOR = 0.01


class Correction:
    """As of a bundle MODEL."""

    def __init__(self, threshold: float = 0.6, precision: float = 0.55, rate: float = 0.02) -> None:
        self.adaptive = AdaptiveConformal(np.linspace(0.5, 0.9, 101), threshold, precision, rate, FLOOR)

    def after(self, model: str | None, level: float | None, closed: list[bool]) -> GateLevel:
        found = self.adaptive.after(level, closed)
        return GateLevel(MODEL, found, self.adaptive.threshold_at(found))


def corrected(batch: pa.RecordBatch, correction: Correction,
              errors: list[str | None] | None = None) -> tuple[Any, list[str | None], int]:
    """(N, 2) levels and thresholds, the errors, and how often others had a turn."""
    inputs: Any = SimpleNamespace(gate=np.full((batch.num_rows, 2), np.nan))
    found = errors or [None] * batch.num_rows
    turns = 0

    async def turn() -> None:
        nonlocal turns
        turns += 1

    asyncio.run(correct(batch, inputs, found, correction, turn))  # type: ignore[arg-type]
    return inputs.gate, found, turns


def batch_of(levels: list[float | None], closed: list[list[bool | None] | None]) -> pa.RecordBatch:
    models = [None if level is None else MODEL for level in levels]
    return pa.record_batch([pa.array(models, pa.string()), pa.array(levels, pa.float64()),
                            pa.array(closed, pa.list_(pa.bool_()))], schema=GATE)


def reference(adaptive: AdaptiveConformal, level: float | None, gained: list[bool], target: float,
              rate: float) -> float:
    """The fold as its docstring says it."""
    ceiling = adaptive.level
    level = ceiling if level is None else min(max(level, FLOOR), ceiling)
    for gain in gained:
        level = min(max(level + rate * (target - (0.0 if gain else 1.0)), FLOOR), ceiling)
    return level


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(st.tuples(st.none() | st.floats(0.0, 1.0), st.lists(st.booleans(), max_size=60)),
                     min_size=1, max_size=8),
       precision=st.floats(0.05, 0.95), rate=st.floats(1e-4, 0.5), threshold=st.floats(0.4, 0.9),
       first=st.integers(0, 7))
def test_every_row_is_folded_to_the_bit(rows: list[tuple[float | None, list[bool]]], precision: float, rate: float,
                                        threshold: float, first: int) -> None:
    correction = Correction(threshold, precision, rate)
    rows = rows[min(first, len(rows) - 1):] if first else rows
    batch = batch_of([None, *(level for level, _ in rows)], [[True], *(closed for _, closed in rows)])
    gate, errors, turns = corrected(batch.slice(1), correction)  # a slice: offsets do not begin at 0
    assert errors == [None] * len(rows)
    assert turns == len(rows)
    for (level, closed), found in zip(rows, gate.tolist(), strict=True):
        expected = reference(correction.adaptive, level, closed, 1.0 - precision, rate)
        assert found == [expected, correction.adaptive.threshold_at(expected)]


def test_what_is_no_gate_is_said_of_its_row_and_costs_the_others_nothing() -> None:
    batch = batch_of([0.5, 1.5, 0.5, 0.5, 0.5, 0.5], [[True] * 1000, [], [False] * 1001, None, [True, None], []])
    gate, errors, _ = corrected(batch, Correction(), [None, None, None, None, None, "seed: must not be negative"])
    assert [error and error.partition(":")[0] for error in errors] == [
        None, "gate_level", "gate_closed", "gate_closed", "gate_closed", "seed"]
    assert np.isnan(gate).all(1).tolist() == [False, True, True, True, True, True]
    half = pa.record_batch([pa.array([None], pa.string()), pa.array([0.5]), pa.array([[]], pa.list_(pa.bool_()))],
                           schema=GATE)
    assert "belong together" in str(corrected(half, Correction())[1])


@pytest.mark.parametrize("nothing", [True, False], ids=["null", "long"])
def test_a_list_that_is_too_long_is_not_taken_apart(nothing: bool) -> None:
    """2 MB of bits were 134 MB of Python's. A null may have elements, too."""
    many = 16_000_000
    offsets = pa.array([0, many], pa.int32())
    closed = pa.ListArray.from_arrays(offsets, pa.array(np.zeros(many, np.bool_)),
                                      mask=pa.array([True]) if nothing else None)
    batch = pa.record_batch([pa.array([MODEL]), pa.array([0.5]), closed], schema=GATE)
    tracemalloc.start()
    try:
        _, errors, _ = corrected(batch, Correction())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert errors[0] is not None
    assert peak < 2_000_000
