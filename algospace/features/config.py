"""Configuration of the feature pipeline, with the defaults of the design."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from algospace.config import FrozenConfig

_MINUTES_PER_HOUR = 60
_MINUTES_PER_DAY = 24 * _MINUTES_PER_HOUR


class NwrqkConfig(FrozenConfig):
    """Nadaraya-Watson regression with a rational quadratic kernel (30-minute bars).

    `h` look-back width in bars, `r` relative weighting of time scales, `x0` the last tap but one, `lag` by how
    much the fast line's width is smaller. `strength`: a signal counts for the synergy where |slope| is above
    strength · ATR.
    """

    h: float = Field(default=8.0, gt=0)
    r: float = Field(default=8.0, gt=0)
    x0: int = Field(default=25, ge=1, le=500)
    lag: float = Field(default=2.0, ge=0)
    strength: float = Field(default=0.05, ge=0)

    @model_validator(mode="after")
    def _fast_line_has_width(self) -> NwrqkConfig:
        if self.lag >= self.h:
            raise ValueError("lag must be smaller than h")
        return self


class MlmiConfig(FrozenConfig):
    """Machine Learning Momentum Index (30-minute bars): `k` neighbours, `window` bars of the RSI averages.

    `strength`: a signal counts for the synergy where |mlmi_value - 50| > strength.
    """

    k: int = Field(default=200, ge=1)
    window: int = Field(default=20, ge=2, le=500)
    strength: float = Field(default=5.0, ge=0)


class FvgConfig(FrozenConfig):
    """Fair value gaps (base bars): relative size `threshold`; active at ages 0 .. max_age - 1 (None: for ever)."""

    threshold: float = Field(default=0.001, ge=0)
    max_age: int | None = Field(default=50, ge=1, le=100_000)


class SynergyConfig(FrozenConfig):
    """`window`: rows from the first to the third signal; `cooldown`: rows ignored after a detection."""

    window: int = Field(default=10, ge=1)
    cooldown: int = Field(default=5, ge=0)


class FeatureConfig(FrozenConfig):
    """Everything that decides what a feature table holds.

    source: what NW-RQK and MLMI read. base_minutes, slow_minutes: the pair of timeframes. regime: compute the LVN
    and MMD columns (they cost most of the time). max_disorder_ns: how much older than the last accepted tick a
    tick may be. library: columns of the general library (`algospace features --list`), after the built-in ones in
    base rows; "all" alone takes every one.
    """

    source: Literal["ha_close", "close"] = "ha_close"
    base_minutes: int = Field(default=5, ge=1, le=_MINUTES_PER_HOUR)
    slow_minutes: int = Field(default=30, ge=1, le=_MINUTES_PER_DAY)
    regime: bool = True
    max_disorder_ns: int = Field(default=0, ge=0)
    library: tuple[str, ...] = ()
    nwrqk: NwrqkConfig = NwrqkConfig()
    mlmi: MlmiConfig = MlmiConfig()
    fvg: FvgConfig = FvgConfig()
    synergy: SynergyConfig = SynergyConfig()

    @model_validator(mode="after")
    def _widths_nest(self) -> FeatureConfig:
        if self.slow_minutes % self.base_minutes:
            raise ValueError("slow_minutes must be a multiple of base_minutes")
        if _MINUTES_PER_DAY % self.slow_minutes or _MINUTES_PER_HOUR % self.base_minutes:
            raise ValueError("base_minutes must divide an hour and slow_minutes a day, to align with the clock")
        return self

    @model_validator(mode="after")
    def _library_is_known(self) -> FeatureConfig:
        if self.library and self.library != ("all",):
            from algospace.features.library.registry import REGISTRY  # compiled code: only where it is asked for

            unknown = [name for name in self.library if name not in REGISTRY]
            if unknown:
                raise ValueError(f"unknown library column '{unknown[0]}'; `algospace features --list` prints all")
            if len(set(self.library)) < len(self.library):
                raise ValueError(f"a library column is named twice in {', '.join(self.library)}")
        return self

    @property
    def max_fill_bars(self) -> int:
        """The longest run of missing base bars that is a gap; one more is a session break."""
        return _MINUTES_PER_HOUR // self.base_minutes - 1
