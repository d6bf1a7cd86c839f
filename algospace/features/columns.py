"""Names and positions of the feature columns; the compiled code addresses rows by these positions."""

from __future__ import annotations

from algospace.features.lvn import COLUMNS as LVN_COLUMNS
from algospace.features.mmd import COLUMNS as MMD_COLUMNS

REGIME_COLUMNS = LVN_COLUMNS + MMD_COLUMNS

BAR_COLUMNS = ("open", "high", "low", "close", "volume", "filled", "roll_factor")
TIME_COLUMNS = ("hour_sin", "hour_cos", "weekday_sin", "weekday_cos")
HELD_COLUMNS = (
    "atr_30m", "ha_open", "ha_high", "ha_low", "ha_close",
    "nwrqk_value", "nwrqk_fast", "nwrqk_slope", "nwrqk_signal",
    "mlmi_raw", "mlmi_value", "mlmi_ma", "mlmi_signal",
)  # fmt: skip
BASE_OWN_COLUMNS = (
    *BAR_COLUMNS, *TIME_COLUMNS, "atr_5m",
    "fvg_bull_active", "fvg_bear_active", "fvg_nearest_level", "fvg_age", "fvg_bull_filled", "fvg_bear_filled",
    "fvg_mitigation", "price_momentum_5", "volume_ratio", "return_1", "volatility_60", "autocorr1_60",
    "synergy_type", "synergy_direction", "synergy_bars",
)  # fmt: skip

_SLOW = BAR_COLUMNS + TIME_COLUMNS + HELD_COLUMNS + REGIME_COLUMNS


def base_columns(regime: bool) -> tuple[str, ...]:
    """Columns of a base row: its own, then the 30-minute ones it holds."""
    return BASE_OWN_COLUMNS + HELD_COLUMNS + (REGIME_COLUMNS if regime else ())


def slow_columns(regime: bool) -> tuple[str, ...]:
    """Columns of a 30-minute row."""
    return BAR_COLUMNS + TIME_COLUMNS + HELD_COLUMNS + (REGIME_COLUMNS if regime else ())


# Positions shared by base and 30-minute rows.
TIME_AT = len(BAR_COLUMNS)
# Positions in a base row.
ATR_AT = BASE_OWN_COLUMNS.index("atr_5m")
FVG_AT = BASE_OWN_COLUMNS.index("fvg_bull_active")
MITIGATION_AT = BASE_OWN_COLUMNS.index("fvg_mitigation")
MOMENTUM_AT = BASE_OWN_COLUMNS.index("price_momentum_5")
VOLUME_RATIO_AT = BASE_OWN_COLUMNS.index("volume_ratio")
RETURN_AT = BASE_OWN_COLUMNS.index("return_1")
SYNERGY_AT = BASE_OWN_COLUMNS.index("synergy_type")
HELD_AT = len(BASE_OWN_COLUMNS)
# Positions in a 30-minute row.
SLOW_HELD_AT = TIME_AT + len(TIME_COLUMNS)
SLOW_ATR_AT = _SLOW.index("atr_30m")
HA_AT = _SLOW.index("ha_open")
HA_CLOSE_AT = _SLOW.index("ha_close")
NWRQK_AT = _SLOW.index("nwrqk_value")
NWRQK_SLOPE_AT = _SLOW.index("nwrqk_slope")
NWRQK_SIGNAL_AT = _SLOW.index("nwrqk_signal")
MLMI_AT = _SLOW.index("mlmi_raw")
MLMI_VALUE_AT = _SLOW.index("mlmi_value")
MLMI_SIGNAL_AT = _SLOW.index("mlmi_signal")
LVN_AT = _SLOW.index(LVN_COLUMNS[0])
MMD_AT = _SLOW.index(MMD_COLUMNS[0])
REGIME_END = len(_SLOW)
