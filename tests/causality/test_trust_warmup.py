"""`check warmup` tells how much history a column needs, to the tested length, and why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from algospace.errors import ConfigError
from algospace.features import FeatureConfig, FvgConfig, Indicator
from algospace.instruments import instrument
from algospace.trust import Features, check_warmup
from algospace.trust.warmup import ROLL_FACTOR, ROUNDING, SCALE_ONLY, WHOLE_HISTORY
from algospace.types import DAY_NS, HOUR_NS, MINUTE_NS, Bars, FloatArray

SYNTH = instrument("SYNTH")
LEAN = FeatureConfig(regime=False, fvg=FvgConfig(max_age=None))
LENGTHS = {"1 hour": HOUR_NS, "4 hours": 4 * HOUR_NS, "1 day": DAY_NS, "4 days": 4 * DAY_NS,
           "90 days": 90 * DAY_NS}


def walk(days: int, rolls: tuple[int, ...] = ()) -> Bars:
    """A random walk of five-minute bars around the clock, with rolls of 1 % at the given rows."""
    rng = np.random.default_rng(3)
    n = days * 288
    contract = np.zeros(n, np.int32)
    for row in rolls:
        contract[row:] += 1
    close = np.round(4000 * np.exp(np.cumsum(rng.standard_normal(n) * 5e-4)) * 1.01**contract, 2)
    open_ = np.concatenate([close[:1], close[:-1]]) * np.concatenate([[1.0], 1.01 ** np.diff(contract)])
    high, low = np.maximum(open_, close) + 0.5, np.minimum(open_, close) - 0.5
    start = 1_600_000_200 // 86_400 * 86_400 * 10**9
    return Bars(start + np.arange(n) * 5 * MINUTE_NS, open_, high, low, close, np.full(n, 10.0), 5 * MINUTE_NS,
                contract)


def window_update(state: FloatArray, bar: object, out: FloatArray) -> None:
    """Mean close of the last 24 bars, two hours."""
    state[1:-1] = state[2:]
    state[-1] = bar.close  # type: ignore[attr-defined]
    state[0] += 1
    if state[0] >= 24:
        out[0] = state[1:].mean()


def total_update(state: FloatArray, bar: object, out: FloatArray) -> None:
    state[0] += bar.volume  # type: ignore[attr-defined]
    out[0] = state[0]


def slow_update(state: FloatArray, bar: object, out: FloatArray) -> None:
    """An average that forgets with a half-life of 64 bars: 5.3 hours."""
    weight = 1.0 if state[1] == 0 else 1 - 0.5 ** (1 / 64)
    state[0] += weight * (bar.close - state[0])  # type: ignore[attr-defined]
    state[1] += 1
    out[0] = state[0]


OWN = [Indicator("window", ("window_24",), lambda: np.zeros(25), window_update),
       Indicator("total", ("total",), lambda: np.zeros(1), total_update),
       Indicator("slow", ("slow_64",), lambda: np.zeros(2), slow_update)]


@pytest.fixture(scope="module")
def columns() -> dict[str, object]:
    report = check_warmup(Features(SYNTH, LEAN, OWN).table, walk(24), 3, LENGTHS)
    assert report.references == (3, 3, 3, 3, 0)
    return {column.column: column for column in report.columns}


def test_a_window_needs_its_length_and_nothing_more(columns: dict) -> None:
    assert columns["window_24"].needed == ("4 hours", "4 hours", "4 hours")
    assert columns["window_24"].maximum[0] == np.inf, "one hour is not yet a value"
    assert columns["window_24"].maximum[1] == 0.0
    assert columns["window_24"].kind == ""


def test_an_average_that_forgets_needs_more_for_less_error(columns: dict) -> None:
    """Half-lives before the first reference row: 0.8 after four hours, 4.5 after a day, 18 after four days."""
    slow = columns["slow_64"]
    assert slow.needed == (None, "4 days", "1 day")
    assert slow.maximum[2] / slow.maximum[1] < 0.2
    assert 0 < slow.maximum[3] < 1e-4
    assert slow.kind == ""


def test_what_remembers_everything_is_named(columns: dict) -> None:
    assert columns["total"].needed == (None, None, None)
    assert columns["total"].kind == WHOLE_HISTORY
    assert columns["mlmi_raw"].kind == WHOLE_HISTORY
    assert np.isnan(columns["total"].maximum[-1]), "longer than the history: not tested"


def test_without_rolls_levels_need_no_scale(columns: dict) -> None:
    assert columns["close"].kind == ""
    assert columns["close"].needed[0] == "1 hour"


def test_gaps_that_live_for_ever_depend_on_the_whole_history() -> None:
    from algospace.features.driver import build

    always = LEAN.model_copy(update={"fvg": FvgConfig(max_age=None, threshold=0.0)})
    report = check_warmup(lambda bars: build(bars, SYNTH, always), walk(24), 3, LENGTHS)
    named = report.named()[WHOLE_HISTORY]
    assert {"fvg_bull_active", "fvg_bear_active", "fvg_age"} & set(named)


def test_roll_adjusted_levels_move_in_scale_only() -> None:
    report = check_warmup(Features(SYNTH, LEAN, OWN).table, walk(24, (1000, 2500)), 3, LENGTHS)
    found = {column.column: column for column in report.columns}
    for name in ("open", "close", "roll_factor", "atr_5m", "window_24"):
        assert found[name].kind == SCALE_ONLY, name
        assert found[name].naive[3] > 0.01, name
    assert found["close"].needed[0] == "1 hour"
    assert found["return_1"].kind == ""


def grid_update(state: FloatArray, bar: object, out: FloatArray) -> None:
    """Distance to the next lower multiple of 25 points: of adjusted points, so that their scale decides."""
    out[0] = bar.close % 25.0  # type: ignore[attr-defined]


def test_columns_in_fixed_points_need_the_roll_factor_and_volume_profiles_do_not() -> None:
    """The profile's ticks are those of the present contract, whatever the factor is that a history begins with."""
    own = [Indicator("grid", ("grid",), lambda: np.zeros(1), grid_update)]
    report = check_warmup(Features(SYNTH, FeatureConfig(), own).table, walk(40, (1000,)), 2,
                          {"8 days": 8 * DAY_NS, "16 days": 16 * DAY_NS})
    found = {column.column: column for column in report.columns}
    assert found["grid"].kind == ROLL_FACTOR
    assert found["grid"].maximum[-1] < 1e-9 < 1e-3 < found["grid"].naive[-1]
    assert report.named()[ROLL_FACTOR] == ["grid"]
    assert found["lvn_strength"].kind == ""
    assert found["lvn_distance"].kind == SCALE_ONLY


def test_a_history_that_is_too_short_is_one_line() -> None:
    with pytest.raises(ConfigError, match="too short for a warm-up of 90 days"):
        check_warmup(Features(SYNTH, LEAN).table, walk(3), 2, {"90 days": 90 * DAY_NS})


def test_given_reference_times_are_used() -> None:
    bars = walk(6)
    times = [int(bars.ts_open[1200]), int(bars.ts_open[1500])]
    report = check_warmup(Features(SYNTH, LEAN).table, bars, times, {"1 day": DAY_NS}, span_ns=HOUR_NS)
    assert report.references == (2,)
    assert report.to_dict()["columns"][0]["maximum"][0] is not None


def test_on_nq_only_mlmi_depends_on_everything(data_root: Path) -> None:
    frame = pd.read_parquet(data_root / "nq_1m" / "nq_1m_2019.parquet").iloc[:160_000]
    ts = frame["ts_utc"].astype("datetime64[ns, UTC]").astype("int64").to_numpy()
    prices = [frame[name].to_numpy(np.float64) for name in ("open", "high", "low", "close")]
    bars = Bars(ts, *prices, np.full(len(frame), np.nan), MINUTE_NS, frame["contract"].to_numpy(np.int32))
    lengths = {"1 week": 7 * DAY_NS, "1 month": 30 * DAY_NS, "2 months": 61 * DAY_NS}
    report = check_warmup(Features(instrument("NQ")).table, bars, 2, lengths)
    assert all(name.startswith(("mlmi", "synergy")) for name in report.named()[WHOLE_HISTORY])
    needs = {column.column: column.needed[2] for column in report.columns}
    assert needs["nwrqk_value"] == "1 week"
    assert needs["logsig_3"] in ("1 week", "1 month")


def ties_update(state: FloatArray, bar: object, out: FloatArray) -> None:
    """Share of bars whose reach above the open is larger than below: on a tick grid often equal."""
    up, down = bar.high - bar.open, bar.open - bar.low  # type: ignore[attr-defined]
    state[1:-1] = state[2:]
    state[-1] = up > down
    state[0] += 1
    if state[0] >= 24:
        out[0] = state[1:].mean()


def test_ties_that_rounding_breaks_are_not_called_memory() -> None:
    """Equal distances on the tick grid differ in the last bit once prices carry a roll factor."""
    bars = walk(24, tuple(range(500, 24 * 288, 300)))
    flat = Bars(bars.ts_open, bars.close, bars.close + 0.25, bars.close - 0.25, bars.close, bars.volume,
                bars.width_ns, bars.contract)
    own = [Indicator("ties", ("ties",), lambda: np.zeros(25), ties_update)]
    report = check_warmup(Features(SYNTH, LEAN, own).table, flat, 3, LENGTHS)
    found = {column.column: column for column in report.columns}
    assert found["ties"].kind == ROUNDING
    assert found["ties"].naive[3] > 0.1


def log_mean_update(state: FloatArray, bar: object, out: FloatArray) -> None:
    """Mean of all logarithms so far: it knows the whole history, and another scale of prices moves it."""
    state[0] += 1
    state[1] += np.log(bar.close)  # type: ignore[attr-defined]
    out[0] = state[1] / state[0]


def inverse_update(state: FloatArray, bar: object, out: FloatArray) -> None:
    state[0] += 1
    state[1] += 1.0 / bar.close  # type: ignore[attr-defined]
    out[0] = state[1] / state[0]


def test_memory_of_what_is_no_multiple_of_a_price_is_not_called_rounding() -> None:
    own = [Indicator("logs", ("logs",), lambda: np.zeros(2), log_mean_update),
           Indicator("inverse", ("inverse",), lambda: np.zeros(2), inverse_update)]
    report = check_warmup(Features(SYNTH, LEAN, own).table, walk(24), 3, LENGTHS)
    kinds = {column.column: column.kind for column in report.columns}
    assert (kinds["logs"], kinds["inverse"]) == (WHOLE_HISTORY, WHOLE_HISTORY)
