"""Data augmentation that keeps the structure of a market.

    augmented = augment(training_bars, AugmentationConfig(operators=("block_bootstrap", "noise")), seed=1)

Every result is deterministic in (bars, config, seed), has sound bars (low <= open, close <= high, positive) at the
same times and contracts, and as many as before (only an injected halt removes some). An operator sees nothing
but the bars it is given: give it one split, and no bar of another split can enter.
`algospace.analysis.similarity` scores how much of a market's character is left.
"""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field

from algospace.config import FrozenConfig
from algospace.errors import ConfigError
from algospace.marketdata.augmentation_matrices import feature_dropout, generator, matrix_noise
from algospace.marketdata.augmentation_operators import (
    InjectionConfig,
    MagnitudeWarpConfig,
    NoiseConfig,
    TimeWarpConfig,
    add_noise,
    inject,
    warp_magnitude,
    warp_time,
)
from algospace.marketdata.augmentation_resampling import (
    BlockBootstrapConfig,
    RegimeResampleConfig,
    block_bootstrap,
    regime_resample,
)
from algospace.marketdata.augmentation_shapes import bars_of, shapes_of
from algospace.types import Bars, IntArray

Operator = Literal["noise", "magnitude_warp", "time_warp", "block_bootstrap", "regime_resample", "inject"]
OPERATORS: tuple[str, ...] = get_args(Operator)

__all__ = ["OPERATORS", "AugmentationConfig", "augment", "feature_dropout", "matrix_noise"]


class AugmentationConfig(FrozenConfig):
    """`operators` are applied in order, each with its own section; tick_size rounds the final prices."""

    operators: tuple[Operator, ...] = Field(default=("noise",), min_length=1)
    noise: NoiseConfig = NoiseConfig()
    magnitude_warp: MagnitudeWarpConfig = MagnitudeWarpConfig()
    time_warp: TimeWarpConfig = TimeWarpConfig()
    block_bootstrap: BlockBootstrapConfig = BlockBootstrapConfig()
    regime_resample: RegimeResampleConfig = RegimeResampleConfig()
    inject: InjectionConfig = InjectionConfig()
    tick_size: float | None = Field(default=None, gt=0)


def augment(bars: Bars, config: AugmentationConfig, seed: int, regimes: IntArray | None = None) -> Bars:
    """`bars` after the operators of `config`; `regimes` (n,) labels, -1 unknown, for `regime_resample`.

    Raises ConfigError where labels are missing or an injection does not fit, InputError where a bar is unsound.
    """
    result = bars
    for place, name in enumerate(config.operators):
        rng = generator("augmentation", seed, place, name)
        if name == "noise":
            result = add_noise(result, config.noise, rng)
        elif name == "magnitude_warp":
            result = warp_magnitude(result, config.magnitude_warp, rng)
        elif name == "time_warp":
            result = warp_time(result, config.time_warp, rng)
        elif name == "block_bootstrap":
            result = block_bootstrap(result, config.block_bootstrap, rng)
        elif name == "regime_resample":
            if regimes is None:
                raise ConfigError("regime_resample needs a regime label for every bar; give `regimes`")
            result = regime_resample(result, regimes, config.regime_resample, rng)
        else:
            result = inject(result, config.inject, rng)
    return bars_of(shapes_of(result), result, config.tick_size) if config.tick_size else result
