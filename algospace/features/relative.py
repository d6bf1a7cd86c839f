"""Columns that set one instrument against others: as-of close, age, relative strength, beta, correlation, lead.

    base feature rows + bars (or feature rows) of other instruments -> columns of the base rows

**As of.** A base row at `ts_close` T sees, of each other instrument, the last bar that had closed (and was
published, `delay_s`) by T: its ts_close + delay ≤ T. A daily bar is thus known only after its day has ended. Bars
of any width do: hourly, 5-minute, daily beside 5-minute base rows. Rolls are forward ratio-adjusted first
(`marketdata.continuous`); filled rows of another feature table are left out, for they are known only once the next
trade has come.

Columns of another instrument `x` (NaN until it has been seen often enough, never after that):

| column | formula | unit |
|---|---|---|
| `x_close` | adjusted close of its last known bar | points |
| `x_age` | (T - ts_close of that bar) / base bar; at most `max_age_bars` | base bars |
| `x_strength_w` | log(b_t/b_{t-w}) - log(x_t/x_{t-w}), closes at base rows, x as of the row | log return |
| `x_ratio_z` | (q_t - mean q) / stdev q of q = log(b/x) over `zscore_window` rows, ddof = 0 | stdevs |
| `x_beta` | cov(r_b, r_x) / var(r_x) over `beta_window` pairs of returns | 1 |
| `x_correlation` | correlation of the same pairs | -1..1 |
| `x_lead` | corr(r_b[t], r_x[t-lag]) - corr(r_b[t-lag], r_x[t]): above 0 where x leads | -2..2 |

Pairs of returns are aligned in time: both run between the rows that first see a new bar of x, so that an hourly or
daily x is compared with the base's returns over the same hour or day; between its bars the values are held.
Without variation beta, correlation and z are 0. **Stale**: while x is older than `max_age_bars`, its close is
held, its age stands at that limit and the other columns are 0 (`stale: neutral`) or NaN (`stale: nan`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field, field_validator

from algospace.config import FrozenConfig
from algospace.errors import ConfigError, InputError
from algospace.features import relative_kernel as kernel
from algospace.features.table import FeatureTable
from algospace.marketdata.continuous import continuous
from algospace.types import MINUTE_NS, SECOND_NS, Bars, BoolArray, FloatArray, IntArray

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_LONGEST = 10_000


class SourceSettings(FrozenConfig):
    """Of one other instrument: `delay_s` seconds from a bar's close to its publication; its own `max_age_bars`."""

    delay_s: float = Field(default=0.0, ge=0)
    max_age_bars: int | None = Field(default=None, ge=1)


class RelativeConfig(FrozenConfig):
    """Windows in base rows (`beta_window`, `lag` in pairs of returns); ages in base bars of `base_minutes`.

    max_age_bars 1152 is four days of 5-minute bars: a daily series over a long weekend is not stale.
    """

    strength_windows: tuple[int, ...] = (12, 72)
    zscore_window: int = Field(default=60, ge=2, le=_LONGEST)
    beta_window: int = Field(default=60, ge=2, le=_LONGEST)
    lag: int = Field(default=1, ge=1, le=_LONGEST)
    base_minutes: int = Field(default=5, ge=1)
    max_age_bars: int = Field(default=1152, ge=1)
    stale: Literal["neutral", "nan"] = "neutral"
    sources: dict[str, SourceSettings] = Field(default_factory=dict)

    @field_validator("strength_windows")
    @classmethod
    def _windows_are_lengths(cls, windows: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(windows)) != len(windows) or any(not 1 <= w <= _LONGEST for w in windows):
            raise ValueError(f"windows must be different and from 1 to {_LONGEST}")
        return windows


def relative_names(names: Sequence[str], config: RelativeConfig) -> tuple[str, ...]:
    """The columns of the other instruments `names`, in order."""
    parts = ("close", "age", *(f"strength_{w}" for w in config.strength_windows), "ratio_z", "beta", "correlation",
             "lead")
    return tuple(f"{name}_{part}" for name in names for part in parts)


def relative_columns(base: FeatureTable, others: Mapping[str, Bars | FeatureTable],
                     config: RelativeConfig | None = None) -> dict[str, FloatArray]:
    """Causal columns (n,) of the base rows, for `base.with_columns(columns, relative_version(others, config))`.

    `others`: lower-case name -> bars (one contract at a time; rolls are adjusted here) or a feature table.
    InputError for bars out of order or without a positive close; ConfigError for a bad name or setting.
    """
    config = config or RelativeConfig()
    names = list(others)
    params = make_params(names, config)
    series = [_series(name, others[name]) for name in names]
    check_series("base", base.ts_close, base.base["close"])
    first = np.cumsum([0, *(s.ts_close.size for s in series)]).astype(np.int64)
    columns = relative_names(names, config)
    out = np.empty((len(columns), len(base)))
    if names:
        kernel.run(kernel.new_state(params), params, _plain(base.ts_close, np.int64),
                   _plain(base.base["close"], np.float64), np.concatenate([s.ts_close for s in series]),
                   np.concatenate([s.close for s in series]), first, out)
    return dict(zip(columns, out, strict=True))


def relative_version(others: Mapping[str, Bars | FeatureTable], config: RelativeConfig | None = None) -> str:
    """What the columns mean: the settings, and name and width (or configuration) of every source."""
    parts = [(config or RelativeConfig()).digest()]
    parts += [f"{name}:{o.width_ns if isinstance(o, Bars) else o.config_digest}" for name, o in others.items()]
    return "relative:1:" + hashlib.sha256("\n".join(parts).encode()).hexdigest()


def make_params(names: Sequence[str], config: RelativeConfig) -> kernel.RelativeParams:
    """Compiled form of the settings; ConfigError for a bad name or a setting of an unknown source."""
    for name in names:
        if not _NAME.fullmatch(name):
            raise ConfigError(f"relative columns: '{name}' cannot begin a column's name; use lower case, like es")
    unknown = sorted(set(config.sources) - set(names))
    if unknown:
        raise ConfigError(f"relative columns: settings for '{unknown[0]}', but the instruments are "
                          f"{', '.join(names) or 'none'}; correct its name")
    settings = [config.sources.get(name, SourceSettings()) for name in names]
    return kernel.RelativeParams(
        np.array(config.strength_windows, np.int64), config.zscore_window, config.beta_window, config.lag,
        config.base_minutes * MINUTE_NS, np.array([round(s.delay_s * SECOND_NS) for s in settings], np.int64),
        np.array([float(s.max_age_bars or config.max_age_bars) for s in settings]), int(config.stale == "neutral"),
    )  # fmt: skip


class _Series(NamedTuple):
    ts_close: IntArray
    close: FloatArray


def _series(name: str, other: Bars | FeatureTable) -> _Series:
    if isinstance(other, Bars):
        check_series(name, other.ts_open, other.close)
        check_series(name, other.ts_open, other.open)  # an open enters where a contract begins
        return _Series(_plain(other.ts_open + other.width_ns, np.int64), continuous(other).adjusted.close)
    traded = ~other.filled
    series = _Series(_plain(other.ts_close[traded], np.int64), _plain(other.base["close"][traded], np.float64))
    check_series(name, series.ts_close, series.close)
    return series


def check_series(name: str, ts: IntArray, price: FloatArray) -> None:
    """InputError with the first row that is not later than the one before, or has no positive finite price."""
    _require(name, np.r_[True, ts[1:] > ts[:-1]][:ts.size], "time is not later than in the row before",
             "sort the rows and keep one contract at a time")
    _require(name, (price > 0) & (price < np.inf), "a price is NaN, infinite or not positive",
             "repair or drop the row")


def _require(name: str, fine: BoolArray, rule: str, fix: str) -> None:
    if not fine.all():
        raise InputError(f"{name} bars", rule, fix, row=int(np.argmin(fine)) + 2)


def _plain(values: FloatArray | IntArray, kind: type) -> np.ndarray:
    """One memory layout and a writable array: compiled code then has one signature."""
    return np.array(values, kind)
