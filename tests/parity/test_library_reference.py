"""Library columns that TA-Lib lacks equal literal, slow formulas in pandas and numpy."""

from __future__ import annotations

from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest

from algospace.features.library import REGISTRY, compute
from algospace.instruments import instrument
from algospace.types import Bars, FloatArray
from tests.library_market import walk

ES = instrument("ES")


def frame_of(bars: Bars, zone: str, day_start_hour: int) -> pd.DataFrame:
    """Bars with typical price, volume (1 where missing) and trading day."""
    frame = pd.DataFrame({"o": bars.open, "h": bars.high, "l": bars.low, "c": bars.close})
    frame["v"] = pd.Series(bars.volume).fillna(1.0)
    frame["tp"] = (frame.h + frame.l + frame.c) / 3
    local = pd.DatetimeIndex(pd.to_datetime(bars.ts_open + bars.width_ns, utc=True)).tz_convert(ZoneInfo(zone))
    frame["local"] = local.tz_localize(None)
    before = frame.local - pd.Timedelta(1, "ns")
    frame["day"] = (before + pd.Timedelta((24 - day_start_hour) % 24, "h")).dt.floor("D")
    return frame


def ols(closes: FloatArray) -> float:
    """Coefficient of determination on time."""
    return 0.0 if np.ptp(closes) == 0 else float(np.corrcoef(np.arange(closes.size), closes)[0, 1] ** 2)


def mid_rank(closes: FloatArray) -> float:
    """Share of the others below the last, equal ones half."""
    others = closes[:-1]
    return float(((others < closes[-1]).sum() + 0.5 * (others == closes[-1]).sum()) / others.size)


def literal(f: pd.DataFrame, day_start_hour: int) -> dict[str, pd.Series]:
    """Every column that TA-Lib lacks, straight from its formula."""
    ln, day = np.log, f.groupby("day")
    mean, std = f.c.rolling(20).mean(), f.c.rolling(20).std(ddof=0)
    true_range = np.maximum(f.h, f.c.shift()) - np.minimum(f.l, f.c.shift())
    atr_10 = true_range.copy()
    atr_10.iloc[:10] = np.nan
    atr_10.iloc[10] = true_range.iloc[1:11].mean()
    atr_10 = atr_10.ewm(alpha=0.1, adjust=False, ignore_na=True).mean()
    ema_20 = f.c.copy()
    ema_20.iloc[:19] = np.nan
    ema_20.iloc[19] = f.c.iloc[:20].mean()
    ema_20 = ema_20.ewm(span=20, adjust=False, ignore_na=True).mean()
    hl2, co, gap = ln(f.h / f.l) ** 2, ln(f.c / f.o), ln(f.o / f.c.shift())
    rs = ln(f.h / f.c) * ln(f.h / f.o) + ln(f.l / f.c) * ln(f.l / f.o)
    k = 0.34 / (1.34 + 21 / 19)
    high, low = f.h.rolling(50).max(), f.l.rolling(50).min()
    middle = (f.h + f.l) / 2
    vwap = (f.tp * f.v).groupby(f.day).cumsum() / f.v.groupby(f.day).cumsum()
    opens = day.o.transform("first")
    last_of_day = f.c.groupby(f.day).last().shift()
    first_gap = ln(opens / f.day.map(last_of_day)).fillna(0.0)
    minute = (f.local - (f.day - pd.Timedelta((24 - day_start_hour) % 24, "h"))).dt.total_seconds() / 60
    return {
        **{f"log_return_{n}": ln(f.c / f.c.shift(n)) for n in (1, 5, 10, 20)},
        "gap_1": gap, "session_gap": first_gap, "session_return": ln(f.c / opens),
        "linreg_r2_20": f.c.rolling(20).apply(ols, raw=True),
        "parkinson_20": np.sqrt(hl2.rolling(20).mean() / (4 * np.log(2))),
        "garman_klass_20": np.sqrt((hl2 / 2 - (2 * np.log(2) - 1) * co**2).rolling(20).mean()),
        "rogers_satchell_20": np.sqrt(rs.rolling(20).mean()),
        "yang_zhang_20": np.sqrt(
            gap.rolling(20).var() + k * co.rolling(20).var() + (1 - k) * rs.rolling(20).mean()),
        "realized_vol_20": np.sqrt((ln(f.c / f.c.shift()) ** 2).rolling(20).mean()),
        "keltner_position_20": (f.c - ema_20) / (2 * atr_10),
        "vwap_session": vwap, "vwap_distance": f.c / vwap - 1,
        "volume_zscore_20": ((f.v - f.v.rolling(20).mean()) / f.v.rolling(20).std(ddof=0)).where(
            f.v.rolling(20).max() > f.v.rolling(20).min(), 0.0).where(f.v.rolling(20).count() == 20),
        "eom_14": (middle.diff() * (f.h - f.l) * 10_000 / f.v).rolling(14).mean(),
        "minute_of_session": minute, "minutes_to_close": (23 * 60 - minute).clip(lower=0),
        "bar_of_session": day.cumcount().astype(float), "day_of_week": f.day.dt.dayofweek.astype(float),
        "zscore_20": (f.c - mean) / std, "percent_rank_100": f.c.rolling(100).apply(mid_rank, raw=True),
        "distance_high_50": ln(f.c / high), "distance_low_50": ln(f.c / low),
        "range_position_50": (f.c - low) / (high - low),
    }  # fmt: skip


@pytest.mark.parametrize("volume", [True, False])
def test_equal_to_the_literal_formulas(volume: bool) -> None:
    bars = walk(21, 2500, flat=0.05, volume=volume)
    bars.volume[bars.volume == 0.0] = 1.0  # pandas would divide by 0
    expected = literal(frame_of(bars, "America/Chicago", 17), 17)
    assert set(expected) == {name for name, column in REGISTRY.items() if not column.talib}
    ours = compute(bars, list(expected), ES)
    for name, values in expected.items():
        start = REGISTRY[name].warm_up
        np.testing.assert_allclose(ours[name][start:], values.to_numpy()[start:], 1e-9, 1e-9, err_msg=name)


def test_hours_of_a_share_before_and_after_the_session() -> None:
    bars = walk(1, 1000)
    frame = frame_of(bars, "America/New_York", 0)
    minute = (frame.local - frame.day).dt.total_seconds().to_numpy() / 60
    table = compute(bars, ["minute_of_session", "minutes_to_close"], instrument("SPY"))
    np.testing.assert_array_equal(table["minute_of_session"], np.maximum(minute - 570, 0))
    np.testing.assert_array_equal(table["minutes_to_close"], np.maximum(960 - minute, 0))


def test_the_clock_change_moves_the_session() -> None:
    bars = walk(1, 3 * 288)
    sunday = 1_583_640_000_000_000_000 // bars.width_ns * bars.width_ns  # 2020-03-08 04:00 UTC
    shifted = Bars(bars.ts_open - bars.ts_open[0] + sunday, bars.open, bars.high, bars.low, bars.close,
                   bars.volume, bars.width_ns)
    expected = literal(frame_of(shifted, "America/Chicago", 17), 17)
    table = compute(shifted, ["bar_of_session", "day_of_week"], ES)
    for name, values in table.items():
        np.testing.assert_array_equal(values, expected[name].to_numpy(), err_msg=name)
