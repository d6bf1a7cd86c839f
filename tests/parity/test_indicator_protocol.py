"""A further indicator gives the same columns over history, event by event, in blocks and after a restart."""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
import pytest

from algospace.errors import ConfigError, UserError
from algospace.features import FeatureConfig, FeatureStream, Indicator, SourceBar, build, concatenate
from algospace.instruments import instrument
from algospace.marketdata.synthetic import generate
from algospace.types import Bars

STATE = np.dtype([("count", "i8"), ("last", "f8")], align=True)
LEAN = FeatureConfig(regime=False)
SYNTH = instrument("SYNTH")


@nb.njit
def compiled_update(state: Any, bar: Any, out: Any) -> None:
    s = state[0]
    if s.count > 0:
        out[0] = bar.close / s.last - 1.0
        out[1] = s.count
    s.count += 1
    s.last = bar.close


def plain_update(state: Any, bar: Any, out: Any) -> None:
    s = state[0]
    if s["count"] > 0:
        out[0] = bar.close / s["last"] - 1.0
        out[1] = s["count"]
    s["count"] += 1
    s["last"] = bar.close


def indicators() -> list[Indicator]:
    return [Indicator("compiled", ("c_return", "c_age"), lambda: np.zeros(1, STATE), compiled_update),
            Indicator("plain", ("p_return", "p_age"), lambda: np.zeros(1, STATE), plain_update)]


def market(n: int = 400) -> Bars:
    return generate("stress", 5, n, "1m").bars


def test_compiled_and_plain_agree_and_follow_the_built_in_columns() -> None:
    table = build(market(), SYNTH, LEAN, indicators())
    assert list(table.base)[-4:] == ["c_return", "c_age", "p_return", "p_age"]
    np.testing.assert_array_equal(table.base["c_return"], table.base["p_return"])
    closes = table.base["close"]
    np.testing.assert_array_equal(table.base["c_return"][1:], closes[1:] / closes[:-1] - 1.0)
    assert np.isnan(table.base["c_return"][0])
    assert table.config_digest != build(market(), SYNTH, LEAN).config_digest


def test_stream_blocks_and_restart_equal_history() -> None:
    bars = market()
    whole = build(bars, SYNTH, LEAN, indicators())
    streams = [FeatureStream(SYNTH, LEAN, bars.width_ns, indicators()) for _ in range(3)]
    cut = len(bars) // 3
    blocks = concatenate([streams[0].extend(bars.slice(0, cut)), streams[0].extend(bars.slice(cut, len(bars)))])
    streams[1].extend(bars.slice(0, cut))
    streams[2].restore(streams[1].snapshot())
    rows = []
    for i in range(cut, len(bars)):
        rows += streams[2].push(SourceBar(int(bars.ts_open[i]), float(bars.open[i]), float(bars.high[i]),
                                          float(bars.low[i]), float(bars.close[i]), float(bars.volume[i])))
    tail = np.stack([row.base for row in rows])
    for place, name in enumerate(streams[2].base_columns):
        np.testing.assert_array_equal(blocks.base[name], whole.base[name], err_msg=name)
        np.testing.assert_array_equal(tail[:, place], whole.base[name][len(whole) - len(tail):], err_msg=name)


def test_a_snapshot_of_other_indicators_is_refused() -> None:
    from algospace.errors import SchemaError

    saved = FeatureStream(SYNTH, LEAN).snapshot()
    with pytest.raises(SchemaError, match="same configuration"):
        FeatureStream(SYNTH, LEAN, indicators=indicators()).restore(saved)


def test_a_taken_column_name_is_refused() -> None:
    clash = Indicator("mine", ("close",), lambda: np.zeros(1), plain_update)
    with pytest.raises(ConfigError, match="'close' exists already"):
        build(market(), SYNTH, LEAN, [clash])
    table = build(market(), SYNTH, LEAN)
    more = table.with_columns({"vix": np.zeros(len(table))}, "vix daily")
    assert more.base["vix"].size == len(table)
    assert more.config_digest != table.config_digest
    with pytest.raises(ConfigError, match="'vix' exists already"):
        more.with_columns({"vix": np.zeros(len(table))}, "again")


def test_library_columns_of_the_configuration_reach_the_matrices() -> None:
    """Named in `features.library` and in the tactical matrix: scaled by rule, equal live and in batch."""
    from algospace.features.matrices import MatrixAssembler, Normaliser, assemble
    from algospace.features.matrix_schema import MatrixConfig

    extra = ("rsi_14", "sma_20", "macd_12_26_9", "natr_14", "adx_14")
    with pytest.raises(ValueError, match="'natr_14', or one without a mirror image"):
        MatrixConfig(tactical_extra=extra)
    names = tuple(name for name in extra if name != "natr_14")
    config = FeatureConfig(library=names)
    bars = generate("session", 6, 4000).bars
    table = build(bars, SYNTH, config)
    schema = Normaliser.fit(table, MatrixConfig(tactical_extra=names, strategic_window=4, regime_window=4),
                            int(table.ts_close[3000]))
    kinds = {column.name: (column.kind, column.sign) for column in schema.tactical.columns}
    assert kinds["rsi_14"] == ("robust", -1)
    assert kinds["sma_20"] == ("level", -1)
    assert kinds["macd_12_26_9"] == ("difference", -1)
    assert kinds["adx_14"] == ("robust", 1)
    assert next(c.centre for c in schema.tactical.columns if c.name == "rsi_14") == 50.0
    market_table = assemble(table, schema, SYNTH)
    assert market_table.decision.sum() > 1000
    stream = FeatureStream(SYNTH, config, bars.width_ns)
    live = MatrixAssembler(schema, SYNTH, stream.base_columns, stream.slow_columns)
    for i in range(len(bars)):
        for row in stream.push(SourceBar(int(bars.ts_open[i]), float(bars.open[i]), float(bars.high[i]),
                                         float(bars.low[i]), float(bars.close[i]), float(bars.volume[i]))):
            live.push(row)
    np.testing.assert_array_equal(live.tactical, market_table.tactical[-len(live.tactical):])


def test_an_unknown_library_column_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown library column 'rsi_15'"):
        FeatureConfig(library=("rsi_15",))


def events(bars: Bars) -> list[SourceBar]:
    return [SourceBar(int(bars.ts_open[i]), float(bars.open[i]), float(bars.high[i]), float(bars.low[i]),
                      float(bars.close[i]), float(bars.volume[i])) for i in range(len(bars))]


def test_a_stream_whose_indicator_failed_gives_no_further_rows_until_it_is_restored() -> None:
    """A failure leaves other indicators a bar ahead: rows after it would not be those of history."""
    armed = [True]

    def trips(state: Any, bar: Any, out: Any) -> None:
        state[0] += 1
        if armed[0] and state[0] == 40:
            raise ArithmeticError("the fortieth bar")
        out[0] = state[0]

    def counts(state: Any, bar: Any, out: Any) -> None:
        state[0] += 1
        out[0] = state[0]

    both = [Indicator("counts", ("n",), lambda: np.zeros(1), counts),
            Indicator("trips", ("m",), lambda: np.zeros(1), trips)]
    bars = market(120)
    stream = FeatureStream(SYNTH, LEAN, bars.width_ns, both)
    rows, saved, at, refused = [], b"", 0, 0
    for i, event in enumerate(events(bars)):
        try:
            rows += stream.push(event)
            saved, at = stream.snapshot(), i + 1
        except ArithmeticError:
            with pytest.raises(UserError, match=r"the fortieth bar.*restore a snapshot"):
                stream.snapshot()
        except UserError:
            refused += 1
    assert len(rows) == 39
    assert refused > 100  # more events than the stream has room for rows
    armed[0] = False
    stream.restore(saved)
    for event in events(bars)[at:]:
        rows += stream.push(event)
    whole = build(bars, SYNTH, LEAN, both)
    np.testing.assert_array_equal([row.base[-2:] for row in rows],
                                  np.stack([whole.base["n"], whole.base["m"]], axis=1))


def test_an_indicator_that_writes_to_its_bar_changes_no_other() -> None:
    def scribble(state: Any, bar: Any, out: Any) -> None:
        bar.close = -1.0
        out[0] = 0.0

    def echo(state: Any, bar: Any, out: Any) -> None:
        out[0] = bar.close

    table = build(market(), SYNTH, LEAN, [Indicator("s", ("s",), lambda: np.zeros(1), scribble),
                                          Indicator("e", ("e",), lambda: np.zeros(1), echo)])
    np.testing.assert_array_equal(table.base["e"], table.base["close"])


def test_the_digest_says_which_columns_there_are_and_not_how_they_were_asked_for() -> None:
    from algospace.features.library import NAMES, library_indicator

    def digest(*names: str, indicators: Any = ()) -> str:
        return FeatureStream(SYNTH, FeatureConfig(library=names), indicators=indicators).digest

    assert digest("all") == digest(*NAMES) == digest(indicators=[library_indicator(None, SYNTH)])
    others = {digest(), digest("rsi_14"), digest("rsi_14", "obv"), digest("obv", "rsi_14"), digest("all"),
              digest("rsi_14", indicators=indicators())}
    assert len(others) == 6
    assert digest() == FeatureConfig().digest()
