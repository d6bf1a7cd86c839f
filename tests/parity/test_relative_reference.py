"""The compiled relative columns equal a slow literal reference, and the stream equals history to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.errors import SchemaError
from algospace.features import SourceBar
from algospace.features.relative import RelativeConfig, SourceSettings, relative_columns
from algospace.features.relative_stream import RelativeStream
from algospace.marketdata.continuous import continuous
from algospace.types import Bars
from tests.relative_market import BASE_NS, random_bars, table_of

SMALL = RelativeConfig(strength_windows=(1, 7), zscore_window=9, beta_window=8, lag=2, max_age_bars=40,
                       sources={"vix": SourceSettings(delay_s=900, max_age_bars=12)})
WIDTHS = {"nq": 5, "ym": 60, "vix": 15, "spy": 1}


def market(seed: int, n: int = 500) -> tuple[Bars, dict[str, Bars]]:
    """Base bars, and others of every width, with rolls; some begin later."""
    others = {name: random_bars(seed + k, n * 5 // width, width, rolls=0.01, start=random_bars(0, 2).ts_open[0]
                                + k * 20 * BASE_NS // (width * BASE_NS // 5) * (width * BASE_NS // 5))
              for k, (name, width) in enumerate(WIDTHS.items(), 1)}
    grid = {name: Bars(b.ts_open - b.ts_open % b.width_ns, b.open, b.high, b.low, b.close, b.volume, b.width_ns,
                       b.contract) for name, b in others.items()}
    return random_bars(seed, n), grid


def reference(base: Bars, name: str, other: Bars, c: RelativeConfig) -> dict[str, np.ndarray]:
    """Literal formulas with numpy over explicit windows."""
    source = c.sources.get(name, SourceSettings())
    limit = source.max_age_bars or c.max_age_bars
    ts = base.ts_open + base.width_ns
    known = other.ts_open + other.width_ns + int(source.delay_s * 1e9)
    price = continuous(other).adjusted.close
    k = np.searchsorted(known, ts, side="right") - 1
    b, o = np.log(base.close), np.where(k >= 0, np.log(price[np.maximum(k, 0)]), np.nan)
    strengths = [f"strength_{w}" for w in c.strength_windows]
    out = {part: np.full(len(base), np.nan)
           for part in ("close", "age", *strengths, "ratio_z", "beta", "correlation", "lead")}
    samples: list[int] = []
    held = [np.nan] * 3
    for i in range(len(base)):
        if k[i] < 0:
            continue
        if i == 0 or k[i] != k[i - 1]:
            samples.append(i)
            rb, ro = np.diff(b[samples]), np.diff(o[samples])
            n, lag = c.beta_window, c.lag
            if len(rb) >= n:
                cov = np.cov(rb[-n:], ro[-n:], ddof=0)
                held[0] = cov[0, 1] / cov[1, 1]
                held[1] = np.corrcoef(rb[-n:], ro[-n:])[0, 1]
            if len(rb) >= n + lag:
                follows = np.corrcoef(rb[-n:], ro[-n - lag:-lag])[0, 1]
                held[2] = follows - np.corrcoef(rb[-n - lag:-lag], ro[-n:])[0, 1]
        age = (ts[i] - (other.ts_open[k[i]] + other.width_ns)) / BASE_NS
        row = {"close": price[k[i]], "age": min(age, limit)}
        row |= dict(zip(("beta", "correlation", "lead"), held, strict=True))
        for w in c.strength_windows:
            row[f"strength_{w}"] = (b[i] - b[i - w]) - (o[i] - o[i - w]) if i >= w else np.nan
        q = (b - o)[max(i - c.zscore_window + 1, 0):i + 1]
        row["ratio_z"] = (q[-1] - q.mean()) / q.std() if q.size == c.zscore_window else np.nan
        if age > limit:
            row = {part: v if part in ("close", "age") or np.isnan(v) else 0.0 for part, v in row.items()}
        for part, value in row.items():
            out[part][i] = value
    return {f"{name}_{part}": column for part, column in out.items()}


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_columns_equal_a_literal_reference(seed: int):
    base, others = market(seed)
    columns = relative_columns(table_of(base), others, SMALL)
    alive = 0
    for name, other in others.items():
        for column, expected in reference(base, name, other, SMALL).items():
            np.testing.assert_allclose(columns[column], expected, rtol=1e-7, atol=1e-9, err_msg=column)
            alive += int(np.isfinite(columns[column]).any())
    assert alive == len(columns)


def live(base: Bars, others: dict[str, Bars], config: RelativeConfig, restart: int | None = None) -> np.ndarray:
    """Rows of the stream: every event at the time at which it is known; optionally restored from a snapshot."""
    stream = RelativeStream({name: other.width_ns for name, other in others.items()}, config)
    events = [(int(ts + other.width_ns), 0, name, i) for name, other in others.items()
              for i, ts in enumerate(other.ts_open)]
    events += [(int(ts + base.width_ns), 1, "", i) for i, ts in enumerate(base.ts_open)]
    rows = []
    for number, (ts, is_base, name, i) in enumerate(sorted(events)):
        if number == restart:
            snapshot = stream.snapshot()
            stream = RelativeStream({name: other.width_ns for name, other in others.items()}, config)
            stream.restore(snapshot)
            assert stream.snapshot() == snapshot
        if is_base:
            rows.append(stream.push_base(ts, float(base.close[i])))
        else:
            o = others[name]
            stream.push_other(name, SourceBar(int(o.ts_open[i]), float(o.open[i]), 0.0, 0.0, float(o.close[i]),
                                              contract=int(o.contract[i])))
    assert (stream.late, stream.invalid, stream.overdue) == (0, 0, 0)
    return np.array(rows).T.copy()


def assert_bits_equal(rows: np.ndarray, columns: dict[str, np.ndarray]) -> None:
    expected = np.array(list(columns.values()))
    np.testing.assert_array_equal(rows.view(np.int64), expected.view(np.int64))


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10**6), restart=st.integers(1, 1500))
def test_the_stream_equals_history_to_the_bit_even_over_a_restart(seed: int, restart: int):
    base, others = market(seed, 400)
    for config in (SMALL, SMALL.model_copy(update={"stale": "nan"})):
        assert_bits_equal(live(base, others, config, restart), relative_columns(table_of(base), others, config))


def test_base_rows_that_come_late_do_not_see_bars_that_closed_after_them():
    base, others = market(3, 200)
    expected = relative_columns(table_of(base), others, SMALL)
    stream = RelativeStream({name: other.width_ns for name, other in others.items()}, SMALL)
    for name, o in others.items():  # all of them before the first row
        for i in range(len(o)):
            stream.push_other(name, SourceBar(int(o.ts_open[i]), float(o.open[i]), 0.0, 0.0, float(o.close[i]),
                                              contract=int(o.contract[i])))
    rows = [stream.push_base(int(ts + base.width_ns), float(close))
            for ts, close in zip(base.ts_open, base.close, strict=True)]
    assert_bits_equal(np.array(rows).T.copy(), expected)


def test_feature_rows_as_a_source_skip_filled_ones_in_both_ways():
    base, other = random_bars(1, 300), random_bars(2, 300)
    filled = np.random.default_rng(0).random(300) < 0.2
    table = table_of(other, filled)
    expected = relative_columns(table_of(base), {"nq": table}, SMALL.model_copy(update={"sources": {}}))
    stream = RelativeStream({"nq": other.width_ns}, SMALL.model_copy(update={"sources": {}}))
    for ts, close, gone in zip(table.ts_close, other.close, filled, strict=True):
        stream.push_other_row("nq", int(ts), float(close), bool(gone))
    rows = [stream.push_base(int(ts + base.width_ns), float(close))
            for ts, close in zip(base.ts_open, base.close, strict=True)]
    assert_bits_equal(np.array(rows).T.copy(), expected)


def test_a_snapshot_of_other_settings_or_a_damaged_one_is_refused():
    stream = RelativeStream({"nq": BASE_NS}, RelativeConfig())
    with pytest.raises(SchemaError, match="use the same configuration"):
        RelativeStream({"ym": BASE_NS}).restore(stream.snapshot())
    with pytest.raises(SchemaError, match="not a snapshot"):
        stream.restore(stream.snapshot()[:50])


def test_faulty_and_overdue_bars_of_a_stream_are_counted():
    stream = RelativeStream({"nq": BASE_NS})
    start = int(random_bars(0, 1).ts_open[0])
    stream.push_other("nq", SourceBar(start, 1.0, 1.0, 1.0, 1.0))
    stream.push_other("nq", SourceBar(start, 1.0, 1.0, 1.0, 1.0))
    stream.push_other("nq", SourceBar(start + BASE_NS, 1.0, 1.0, 1.0, float("nan")))
    stream.push_base(start + 5 * BASE_NS, 1.0)
    stream.push_other("nq", SourceBar(start + 2 * BASE_NS, 2.0, 2.0, 2.0, 2.0))
    assert (stream.late, stream.invalid, stream.overdue) == (1, 1, 1)
    assert stream.push_base(start + 6 * BASE_NS, 1.0)[0] == 2.0
