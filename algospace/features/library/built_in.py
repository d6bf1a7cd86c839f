"""The registry of the pipeline's own columns (`algospace.features.columns`), beside that of the library."""

from __future__ import annotations

from typing import Any

from algospace.features.library.column import Column

_WILDER = "Wilder 1978, New Concepts in Technical Trading Systems"
_TIME = "cyclical encoding, Chicago time of the close for CME"
_HA = "Valcu 2004, Stocks & Commodities 22(2)"
_KERNEL = "Nadaraya 1964, Watson 1964; after jdehorty's rational quadratic kernel"
_NEIGHBOURS = "after Zeiierman's Machine Learning Momentum Index"
_GAP = "Fair value gap (three-bar imbalance)"
_PROFILE = "Steidlmayer 1984, Market Profile; of the last 240 bars, smoothed, σ 2 bins"
_SIGNATURE = "Lyons 1998; Gyurkó et al. 2013, arXiv 1307.7244"


def _family(family: str, source: str, clock: str = "base", /, *columns: tuple[str, int, str, str],
            talib: dict[str, str] | None = None) -> tuple[Column, ...]:  # fmt: skip
    """Columns of (name, warm-up, unit, formula)."""
    calls: dict[str, Any] = talib or {}
    return tuple(Column(name=name, family=family, source=source, clock=clock, warm_up=warm_up, unit=unit,
                        formula=formula, talib=calls.get(name))
                 for name, warm_up, unit, formula in columns)  # fmt: skip


_BASE = (
    *_family("bar", "exchange", "base",
        ("open", 0, "price", "first price, forward ratio-adjusted over rolls"),
        ("high", 0, "price", "highest price, adjusted"),
        ("low", 0, "price", "lowest price, adjusted"),
        ("close", 0, "price", "last price, adjusted"),
        ("volume", 0, "contracts", "Σ size; NaN in every row if the data has none, 0 in a filled bar otherwise"),
        ("filled", 0, "0/1", "1 if no trade happened in the bar and the one before was carried on"),
        ("roll_factor", 0, "1", "Π (last close of the old contract / first open of the new one)"),
    ),
    *_family("time", _TIME, "base",
        ("hour_sin", 0, "-1..1", "sin(2π·hour/24), hour fractional"),
        ("hour_cos", 0, "-1..1", "cos(2π·hour/24), hour fractional"),
        ("weekday_sin", 0, "-1..1", "sin(2π·weekday/7), Monday 0"),
        ("weekday_cos", 0, "-1..1", "cos(2π·weekday/7), Monday 0"),
    ),
    *_family("volatility", _WILDER, "base",
        ("atr_5m", 14, "price", "RMA(true range, 14) of base bars"),
        talib={"atr_5m": "ATR(h, l, c, 14)"},
    ),
    *_family("fvg", _GAP, "base",
        ("fvg_bull_active", 0, "0/1", "1 if a bullish gap (low > high[2], close[1] > high[2]) is active"),
        ("fvg_bear_active", 0, "0/1", "1 if a bearish gap (high < low[2], close[1] < low[2]) is active"),
        ("fvg_nearest_level", 0, "price", "edge of an active gap nearest to the close; the close if none"),
        ("fvg_age", 0, "bars", "age of the gap of fvg_nearest_level; max_age if none"),
        ("fvg_bull_filled", 0, "count", "bullish gaps that a close below their bottom ended at this bar"),
        ("fvg_bear_filled", 0, "count", "bearish gaps that a close above their top ended at this bar"),
        ("fvg_mitigation", 0, "-1/0/1", "1 at the retest of a bullish gap, -1 of a bearish one, 0 none or both"),
    ),
    *_family("returns", "Campbell, Lo, MacKinlay 1997, The Econometrics of Financial Markets", "base",
        ("price_momentum_5", 5, "percent", "100·(close / close[5] - 1)"),
        ("volume_ratio", 0, "1", "volume / EMA(volume, 20)[1]; 1 at first, without volume, or if the EMA is 0"),
        ("return_1", 1, "log", "ln(close / close[1])"),
        ("volatility_60", 60, "log per bar", "standard deviation of 60 log returns, ddof 0"),
        ("autocorr1_60", 60, "-1..1", "lag-1 autocorrelation of 60 log returns; 0 if they do not vary"),
        talib={"price_momentum_5": "ROC(c, 5)"},
    ),
    *_family("synergy", "AlgoSpace design, Gate 1", "base",
        ("synergy_type", 0, "0..4", "order of three signals completed at this bar: 1 MNF, 2 MFN, 3 NFM, 4 NMF"),
        ("synergy_direction", 0, "-1/0/1", "direction of the synergy completed at this bar"),
        ("synergy_bars", 0, "bars", "bars from its first to its third signal"),
    ),
)  # fmt: skip

_HELD = (
    *_family("volatility", _WILDER, "30m",
        ("atr_30m", 14, "price", "RMA(true range, 14) of 30-minute bars"),
        talib={"atr_30m": "ATR(h, l, c, 14)"},
    ),
    *_family("heikin_ashi", _HA, "30m",
        ("ha_open", 0, "price", "(ha_open[1] + ha_close[1]) / 2, first (open + close) / 2"),
        ("ha_high", 0, "price", "max(high, ha_open, ha_close)"),
        ("ha_low", 0, "price", "min(low, ha_open, ha_close)"),
        ("ha_close", 0, "price", "(open + high + low + close) / 4"),
    ),
    *_family("nwrqk", _KERNEL, "30m",
        ("nwrqk_value", 26, "price", "Σ src[i]·w_i / Σ w_i, w_i = (1 + i²/(2·r·h²))^-r, i = 0..26, h 8, r 8"),
        ("nwrqk_fast", 26, "price", "nwrqk_value with h - lag in place of h, lag 2"),
        ("nwrqk_slope", 27, "price per bar", "nwrqk_value - nwrqk_value[1]"),
        ("nwrqk_signal", 0, "-1/0/1", "1 where the slope crosses above 0, -1 where below"),
    ),
    *_family("mlmi", _NEIGHBOURS, "30m",
        ("mlmi_raw", 39, "votes", "Σ labels of the k = 200 nearest stored pairs of slow and fast RSI averages"),
        ("mlmi_value", 39, "0..100", "50 + 50·mlmi_raw / min(k, stored), clipped"),
        ("mlmi_ma", 58, "votes", "WMA(mlmi_raw, 20)"),
        ("mlmi_signal", 0, "-1/0/1", "1 where mlmi_raw crosses above mlmi_ma, -1 where below"),
    ),
)  # fmt: skip

_REGIME = (
    *_family("lvn", _PROFILE, "30m",
        ("lvn_distance", 239, "price", "nearest low volume node - close; 0 if none"),
        ("lvn_strength", 239, "0..100", "100·(1 - volume at the node / lower neighbouring peak); 0 if none"),
        ("poc_distance", 239, "price", "price of the highest volume - close"),
        ("value_area_position", 239, "-1..2", "close within the 70 % value area: 0 its bottom, 1 its top"),
        ("volume_profile_skew", 239, "1", "skewness of price in the volume profile"),
    ),
    *_family("mmd", _SIGNATURE, "30m",
        *((f"logsig_{i}", 32, "1", f"log-signature of (time, price) over 32 bars, Lyndon word {word}")
          for i, word in enumerate(("1", "2", "[1,2]", "[1,[1,2]]", "[[1,2],2]"), 1)),
    ),
    *_family("mmd", "Gretton et al. 2012, JMLR 13", "30m",
        ("mmd_score", 160, "1", "√max(0, unbiased MMD²) of the last 32 returns and 128 before, Gaussian kernel"),
    ),
    *_family("mmd", "AlgoSpace design, regime matrix", "30m",
        ("volatility_30", 30, "log per bar", "standard deviation of 30 log returns, ddof 0"),
        ("volatility_ratio", 60, "1", "volatility of 10 returns / of 60; 1 if the latter is 0"),
        ("price_acceleration", 30, "1", "second difference of EMA(ln close, 8) / volatility_30"),
        ("return_autocorr_20", 20, "-1..1", "lag-1 autocorrelation of 20 log returns; 0 if they do not vary"),
        ("range_ratio", 60, "1", "mean true range of 10 bars / of 60; 1 if the latter is 0"),
    ),
)  # fmt: skip

BUILT_IN: dict[str, Column] = {column.name: column for column in (*_BASE, *_HELD, *_REGIME)}


def describe_built_in() -> list[Column]:
    """What is known of every column of the pipeline, in the order of a base row."""
    return list(BUILT_IN.values())
